"""A read-only mount whose kernel knows thousands of lists, each of which is replaced while programs have it open."""

import errno
import os
import random
import resource
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import MakeDaemon
from tests.support.daemon import Daemon, eventually
from tests.support.programs import Flux, succeed, tags

pytestmark = pytest.mark.mount

LISTS = 3000
AT_ONCE = 500
"""Lists that are held open together: the test has a limit too."""

FEW = 300


@pytest.fixture
def flux(tmp_path: Path) -> Flux:
    return Flux.store(tmp_path / "store")


def filled(flux: Flux, count: int) -> list[str]:
    """The names of so many lists, in any order, each with tags of its own."""
    names = [f"app-{number:04}" for number in range(count)]
    for name in names:
        flux.set_tags(name, old(name))
    return random.Random(count).sample(names, count)


def old(name: str) -> bytes:
    return tags(20, f"{name}.old.").encode()


def new(name: str) -> bytes:
    return tags(30, f"{name}.new.").encode()


def opened(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def opened_lists(daemon: Daemon) -> list[str]:
    links = []
    for number in os.listdir(f"/proc/{daemon.pid}/fd"):
        with suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/{daemon.pid}/fd/{number}"))
    return [link for link in links if "/tags.txt" in link]


def require_room(count: int) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2 * count:
        pytest.skip(f"takes a hard limit of {2 * count} open files")


def read_through(daemon: Daemon, flux: Flux, names: list[str]) -> dict[str, bytes | int]:
    """What is read of each list, or the errno, where it was opened, then replaced, then read."""
    files = {name: os.open(daemon.list_path(name), os.O_RDONLY) for name in names}
    found: dict[str, bytes | int] = {}
    for name in names:
        flux.set_tags(name, new(name))
    for name, file in files.items():
        try:
            found[name] = os.pread(file, 1 << 16, 0)
        except OSError as error:
            found[name] = error.errno or 0
        os.close(file)
    return found


def test_each_of_thousands_is_read_as_it_was_opened(daemons: MakeDaemon, flux: Flux) -> None:
    require_room(LISTS)
    names = filled(flux, LISTS)
    daemon = daemons("--read-only")
    before = opened(daemon)
    succeed("find . -type f", daemon.point)
    assert opened(daemon) >= before + LISTS
    for start in range(0, LISTS, AT_ONCE):
        some = names[start : start + AT_ONCE]
        assert read_through(daemon, flux, some) == {name: old(name) for name in some}
        assert {name: daemon.list_path(name).read_bytes() for name in some} == {name: new(name) for name in some}
    eventually(lambda: opened(daemon) <= before + LISTS + 5, "what was replaced is closed")


def test_readers_that_poll_meet_no_error_and_no_mixture(daemons: MakeDaemon, flux: Flux) -> None:
    require_room(LISTS)
    names = filled(flux, LISTS)
    daemon = daemons("--read-only")
    succeed("find . -type f", daemon.point)
    changing = names[:200]
    wrong: list[str] = []
    has_ended = threading.Event()

    def poll(seed: int) -> None:
        dice = random.Random(seed)
        while not has_ended.is_set():
            name = changing[min(dice.randrange(200), dice.randrange(200))]
            try:
                found = daemon.list_path(name).read_bytes()
            except OSError as error:
                wrong.append(f"{name}: {error}")
                continue
            if found not in (old(name), new(name)):
                wrong.append(f"{name}: {found!r}")

    def follow(name: str) -> bool:
        try:
            return daemon.list_path(name).read_bytes() == new(name)
        except OSError as error:
            wrong.append(f"{name}: {error}")
            return False

    readers = [threading.Thread(target=poll, args=(seed,)) for seed in range(3)]
    for reader in readers:
        reader.start()
    try:
        for name in changing:
            flux.set_tags(name, new(name))
            eventually(lambda name=name: follow(name), f"{name} is shown anew")  # type: ignore[misc]
    finally:
        has_ended.set()
        for reader in readers:
            reader.join()
    assert wrong == []


def test_what_the_kernel_forgets_is_closed(daemons: MakeDaemon, flux: Flux) -> None:
    names = filled(flux, FEW)
    daemon = daemons("--read-only")
    succeed("find . -type f", daemon.point)
    assert len(opened_lists(daemon)) == FEW
    for name in names:
        (flux.directory(name) / "tags.txt").unlink()
    eventually(lambda: not opened_lists(daemon), "each is closed")


@pytest.mark.parametrize("limit", [28, 64])
def test_with_few_descriptors_the_only_error_is_that_of_a_version_that_is_gone(
    daemons: MakeDaemon, flux: Flux, limit: int
) -> None:
    names = filled(flux, FEW)
    wrapper = ("sh", "-c", f'ulimit -n {limit}; "$@"; exit $?', "sh")
    daemon = daemons("--read-only", wrapper=wrapper)
    shown = succeed("find . -type f", daemon.point)
    assert shown.count("tags.txt") == FEW
    found = read_through(daemon, flux, names)
    assert set(found.values()) <= {errno.ESTALE, *(old(name) for name in names)}
    assert all(read in (errno.ESTALE, old(name)) for name, read in found.items())
    assert errno.ESTALE in found.values()
    for name in names:
        eventually(lambda name=name: shown_anew(daemon, name), f"{name} is shown anew")  # type: ignore[misc]
    assert sorted(succeed("grep -rhc new .", daemon.point).split()) == ["0"] + ["30"] * FEW
    assert opened(daemon) <= limit


def shown_anew(daemon: Daemon, name: str) -> bool:
    try:
        return daemon.list_path(name).read_bytes() == new(name)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return False
