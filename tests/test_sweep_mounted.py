"""Sweeps beneath real mounts, by manifests; Flux's published cases by their results."""

import mmap
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tagfs.removal import Mark
from tests.conftest import MakeDaemon
from tests.support.daemon import Daemon, eventually
from tests.support.programs import Flux, in_pieces, shell, succeed, tags

pytestmark = pytest.mark.mount

LIST = tags(500).encode()


class Manifests:
    """A tree of manifests: what it declares can be set."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    @property
    def flag(self) -> tuple[str, str]:
        return "--inventory", f"manifests:{self.path}"

    @property
    def when_asked(self) -> tuple[str, ...]:
        """The flags of a mount that sweeps only when it is asked."""
        return *self.flag, "--gc-interval", "0"

    def declare(self, *names: str) -> None:
        """Declare `<namespace>/<name>`s and no other."""
        text = "".join(
            "apiVersion: image.toolkit.fluxcd.io/v1\nkind: ImageRepository\n"
            f"metadata: {{namespace: {name.split('/')[0]}, name: {name.split('/')[1]}}}\n---\n"
            for name in names
        )
        replaced = self.path / "next"
        replaced.write_text(text)
        replaced.rename(self.path / "all.yaml")


@pytest.fixture
def manifests(tmp_path: Path) -> Manifests:
    return Manifests(tmp_path / "manifests")


def write(point: Path, *names: str) -> None:
    """Write lists as Flux does, through a mount."""
    flux = Flux(point)
    for name in names:
        namespace, _, repository = name.partition("/")
        flux.set_tags(repository, LIST, namespace)


def shown(root: Path) -> set[str]:
    """The lists in a mount, or in a store, which a sweep may be at work on."""
    base = root / "imagerepository"
    return {
        f"{namespace}/{name}"
        for namespace in os.listdir(base)
        for name in names(base / namespace)
        if any(entry.startswith("tags.txt") for entry in names(base / namespace / name))
    }


def names(directory: Path) -> list[str]:
    """What is in a directory; nothing where a sweep has removed it."""
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def sweep(daemon: Daemon) -> str:
    """Ask a mount that sweeps only when it is asked; -> the line that tells what it did."""
    # What was written in the tick of the clock in which a sweep begins is left to the next one.
    written = time.time_ns()
    while Mark.now().wall_ns <= written:
        pass
    before = len(summaries(daemon))
    os.kill(daemon.pid, signal.SIGUSR1)
    lines: list[str] = eventually(lambda: summaries(daemon)[before:], "a sweep")
    return lines[0]


def summaries(daemon: Daemon) -> list[str]:
    return [line for line in daemon.messages() if line.startswith("sweep: ") and "expected" in line]


def age(directory: Path) -> None:
    """Let a directory of the store be one that was made long ago."""
    os.utime(directory, (0, 0))


# -- Flux's published cases


def test_with_an_interval_of_zero_the_orphan_survives_and_the_log_says_disabled(
    daemons: MakeDaemon, manifests: Manifests
) -> None:
    manifests.declare("apps/web")
    daemon = daemons(*manifests.flag, "--gc-interval", "0")
    write(daemon.point, "apps/web", "apps/orphan")
    daemon.await_message("disabled")
    assert shown(daemon.point) == {"apps/web", "apps/orphan"}
    assert "1 deleted" in sweep(daemon)
    assert len(summaries(daemon)) == 1, "it was the first one"


def test_with_an_interval_the_orphan_goes_and_the_living_stay(daemons: MakeDaemon, manifests: Manifests) -> None:
    manifests.declare("apps/web", "apps/api")
    daemon = daemons(*manifests.flag, "--gc-interval", "0.01")
    write(daemon.point, "apps/web", "apps/api", "apps/orphan")
    eventually(lambda: shown(daemon.store) == {"apps/web", "apps/api"})
    manifests.declare("apps/web")
    eventually(lambda: shown(daemon.store) == {"apps/web"})
    assert shown(daemon.point) == {"apps/web"}
    assert daemon.list_path("web", "apps").read_bytes() == LIST


def test_empty_namespaces_go_and_those_with_lists_stay(daemons: MakeDaemon, manifests: Manifests) -> None:
    manifests.declare("apps/web")
    daemon = daemons(*manifests.when_asked)
    write(daemon.point, "apps/web", "gone/x")
    (daemon.point / "imagerepository/empty").mkdir()
    (daemon.point / "imagerepository/fresh").mkdir()
    age(daemon.store / "imagerepository/empty")
    sweep(daemon)
    assert sorted(os.listdir(daemon.store / "imagerepository")) == ["apps", "fresh"]
    assert sorted(os.listdir(daemon.point / "imagerepository")) == ["apps", "fresh"]
    eventually(lambda: not (daemon.point / "imagerepository/gone").exists())
    eventually(lambda: not (daemon.point / "imagerepository/empty").exists())


def test_shards_with_a_store_each_hold_their_own(daemons: MakeDaemon, tmp_path: Path) -> None:
    """Two of the default's are re-assigned to a shard: its sweep deletes exactly those, the shard's none."""
    default, shard = Manifests(tmp_path / "default"), Manifests(tmp_path / "shard")
    default.declare("apps/a", "apps/b", "apps/c", "infra/d")
    shard.declare("apps/x")
    of_default = daemons(*default.when_asked, store=tmp_path / "store-default")
    of_shard = daemons(*shard.when_asked, store=tmp_path / "store-shard")
    write(of_default.point, "apps/a", "apps/b", "apps/c", "infra/d")
    write(of_shard.point, "apps/x")
    default.declare("apps/a", "infra/d")
    shard.declare("apps/x", "apps/b", "apps/c")
    write(of_shard.point, "apps/b", "apps/c")
    told = sweep(of_default), sweep(of_shard)
    assert "2 deleted" in told[0]
    assert "0 deleted" in told[1]
    assert shown(of_default.point) == {"apps/a", "infra/d"}
    assert shown(of_shard.point) == {"apps/x", "apps/b", "apps/c"}


def test_without_an_inventory_orphans_stay_and_empty_namespaces_go(daemons: MakeDaemon) -> None:
    daemon = daemons("--gc-interval", "0.01")
    write(daemon.point, "apps/web")
    (daemon.point / "imagerepository/empty").mkdir()
    age(daemon.store / "imagerepository/empty")
    eventually(lambda: os.listdir(daemon.store / "imagerepository") == ["apps"])
    assert shown(daemon.point) == {"apps/web"}
    assert len([line for line in daemon.messages() if "no --inventory" in line]) == 1


# -- readers and writers


def test_readers_keep_their_version_and_the_name_goes_at_once(daemons: MakeDaemon, manifests: Manifests) -> None:
    manifests.declare("apps/web")
    daemon = daemons(*manifests.when_asked)
    write(daemon.point, "apps/web", "apps/orphan")
    path = daemon.list_path("orphan", "apps")
    read_later = path.open("rb")
    mapped_file = path.open("rb")
    mapped = mmap.mmap(mapped_file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    assert mapped[:10] == LIST[:10]
    assert in_pieces(path, between=lambda: sweep(daemon)) == LIST
    assert not path.exists()
    assert not path.parent.exists()
    assert os.listdir(path.parent.parent) == ["web"]
    assert read_later.read() == LIST
    assert mapped[:] == LIST
    mapped.close()
    mapped_file.close()
    read_later.close()


def test_what_the_kernel_keeps_of_a_directory_goes_at_once(daemons: MakeDaemon, manifests: Manifests) -> None:
    """Directories are kept for a second on a mount that is written through: the sweep does not wait for its end."""
    manifests.declare("apps/web")
    daemon = daemons(*manifests.when_asked)
    write(daemon.point, "apps/web", "apps/orphan")
    directory = daemon.list_path("orphan", "apps").parent
    for _ in range(3):
        directory.stat()
        sweep(daemon)
        began = time.monotonic()
        eventually(lambda: not directory.exists())
        assert time.monotonic() - began < 0.5
        write(daemon.point, "apps/orphan")


def test_a_reader_beside_and_a_read_only_mount_see_it_go(
    daemons: MakeDaemon, manifests: Manifests, tmp_path: Path
) -> None:
    manifests.declare("apps/web")
    daemon = daemons(*manifests.when_asked)
    write(daemon.point, "apps/web", "apps/orphan")
    window = daemons("--read-only", store=daemon.store)
    assert shown(window.point) == {"apps/web", "apps/orphan"}
    sweep(daemon)
    eventually(lambda: shown(window.point) == {"apps/web"})
    os.kill(window.pid, signal.SIGUSR1)
    window.await_message("a read-only mount sweeps nothing")
    assert window.list_path("web", "apps").read_bytes() == LIST


def test_a_list_that_is_being_written_is_left(daemons: MakeDaemon, manifests: Manifests) -> None:
    """Its object may have been created again; the next sweep looks again."""
    manifests.declare("apps/web")
    daemon = daemons(*manifests.when_asked)
    write(daemon.point, "apps/web", "apps/orphan")
    path = daemon.list_path("orphan", "apps")
    with path.open("a") as file:
        file.write("new\n")
        assert "1 left" in sweep(daemon)
        assert path.read_bytes() == LIST
    assert path.read_bytes() == LIST + b"new\n"
    scratch = path.with_name("tags.txt123")
    scratch.touch()
    assert "1 left" in sweep(daemon)
    scratch.unlink()
    assert "1 deleted" in sweep(daemon)
    assert shown(daemon.store) == {"apps/web"}


def test_a_repository_can_be_made_again_at_once(daemons: MakeDaemon, manifests: Manifests) -> None:
    manifests.declare("apps/web")
    daemon = daemons(*manifests.when_asked)
    write(daemon.point, "apps/web")
    for _ in range(20):
        write(daemon.point, "gone/x")
        assert "1 deleted" in sweep(daemon)
        # The kernel still shows the namespace for a second, so mkdir -p goes on below it.
        succeed("mkdir -p imagerepository/gone/x && echo v1 > imagerepository/gone/x/tags.txt", daemon.point)
        assert daemon.list_path("x", "gone").read_text() == "v1\n"


def test_who_makes_a_repository_anew_may_find_its_directory_gone_but_nothing_that_is_in_it(
    daemons: MakeDaemon, manifests: Manifests
) -> None:
    """A directory that was seen may be removed before a file is created in it, as on any file system that two use.
    With the first file the repository is the program's: nothing it then does can fail because of a sweep."""
    manifests.declare("apps/web")
    daemon = daemons(*manifests.when_asked, "--sweep-allow-mass-deletion")
    base = daemon.point / "imagerepository"
    failures: list[BaseException] = []

    def create(namespace: Path, directory: Path, name: str) -> int:
        for _ in range(1000):
            try:
                namespace.mkdir(exist_ok=True)
                directory.mkdir(exist_ok=True)
                return os.open(directory / name, os.O_CREAT | os.O_WRONLY, 0o600)
            except FileNotFoundError:
                continue
            except FileExistsError:
                continue  # It was there, and was gone when Python asked whether it is a directory.
        raise AssertionError("the directory is always gone")

    def work(namespace: Path) -> None:
        try:
            for number in range(80):
                directory = namespace / "x"
                name = "tags.txt" if number % 2 else f"tags.txt{number}"
                file = create(namespace, directory, name)
                os.write(file, LIST)
                if number % 3:
                    os.fsync(file)
                os.close(file)
                if number % 2 == 0:
                    os.chmod(directory / name, 0o600)
                    os.rename(directory / name, directory / "tags.txt")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(base / name,)) for name in ("apps", "gone")]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        os.kill(daemon.pid, signal.SIGUSR1)
        time.sleep(0.002)
    assert not failures, failures
    eventually(lambda: "0 left" in sweep(daemon) and shown(daemon.store) == set())


def test_writers_and_readers_meet_no_error_while_sweeps_run(daemons: MakeDaemon, manifests: Manifests) -> None:
    living = [f"n{number % 3}/r{number}" for number in range(9)]
    manifests.declare(*living)
    daemon = daemons(*manifests.when_asked, "--sweep-allow-mass-deletion")
    write(daemon.point, *living)
    failures: list[BaseException] = []
    is_over = threading.Event()

    def repeatedly(work: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                while not is_over.is_set():
                    work()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def read() -> None:
        for name in living:
            assert (daemon.point / "imagerepository" / name / "tags.txt").read_bytes() == LIST

    threads = [
        repeatedly(read),
        repeatedly(lambda: write(daemon.point, *living[:5])),
        # It says so where a name that it has listed is gone.
        repeatedly(lambda: shell("ls -lR imagerepository", daemon.point)),
    ]
    for number in range(40):
        write(daemon.point, *(f"o{number % 4}/x{other}" for other in range(3)))
        sweep(daemon)
    is_over.set()
    for thread in threads:
        thread.join()
    assert not failures, failures
    sweep(daemon)
    assert shown(daemon.store) == set(living)


# -- guards and errors


def test_manifests_that_fail_delete_nothing_and_the_mount_serves(daemons: MakeDaemon, manifests: Manifests) -> None:
    manifests.declare("apps/web")
    (manifests.path / "bad.yaml").write_text("a: [\n")
    daemon = daemons(*manifests.when_asked)
    write(daemon.point, "apps/web", "apps/orphan")
    os.kill(daemon.pid, signal.SIGUSR1)
    assert "bad.yaml:2: " in daemon.await_message("nothing is deleted, the inventory is not complete")
    assert shown(daemon.point) == {"apps/web", "apps/orphan"}
    (manifests.path / "bad.yaml").unlink()
    eventually(lambda: shown(daemon.store) == {"apps/web"})


def test_a_mass_deletion_is_held(daemons: MakeDaemon, manifests: Manifests) -> None:
    names = [f"apps/r{number}" for number in range(24)]
    manifests.declare(*names)
    daemon = daemons(*manifests.when_asked)
    write(daemon.point, *names)
    manifests.declare(*names[:11])
    os.kill(daemon.pid, signal.SIGUSR1)
    assert "13 of 24 lists would go" in daemon.await_message("orphans are held")
    assert shown(daemon.point) == set(names)
    manifests.declare(*names[:12])
    assert "0 deleted, 12 held" in sweep_expecting(daemon, "orphans are held")
    daemon.kill()
    manifests.declare(*names[:20])
    again = daemons(*manifests.when_asked, store=daemon.store, expected=("orphans are held",))
    assert "0 deleted, 4 held" in sweep(again), "by themselves they would be no mass"
    again.stop()
    allowed = daemons(*manifests.when_asked, "--sweep-allow-mass-deletion", store=daemon.store)
    assert "4 deleted" in sweep(allowed)


def test_a_mount_that_is_killed_again_and_again_deletes_no_more_than_the_share(
    daemons: MakeDaemon, manifests: Manifests, tmp_path: Path
) -> None:
    names = [f"apps/r{number:02}" for number in range(40)]
    flux = Flux.store(tmp_path / "store")
    for name in names:
        flux.set_tags(name.partition("/")[2], LIST, "apps")
    for number in range(1, 7):
        manifests.declare(*names[5 * number :])
        daemon = daemons(*manifests.when_asked, expected=("orphans are held",))
        sweep(daemon)
        daemon.kill()
    assert shown(tmp_path / "store") == set(names[20:])


def sweep_expecting(daemon: Daemon, message: str) -> str:
    daemon.expected.append(message)
    return sweep(daemon)


def test_suspended_it_tells_what_would_go(daemons: MakeDaemon, manifests: Manifests) -> None:
    manifests.declare("apps/web")
    daemon = daemons(*manifests.when_asked, "--sweep-suspend", expected=("suspended",))
    write(daemon.point, "apps/web", "apps/orphan")
    sweep(daemon)
    daemon.await_message("apps/orphan: an orphan, it would be deleted")
    assert shown(daemon.point) == {"apps/web", "apps/orphan"}


def test_a_wiped_store_is_not_swept_and_the_next_one_is(daemons: MakeDaemon, manifests: Manifests) -> None:
    manifests.declare("apps/web")
    daemon = daemons(*manifests.when_asked, expected=("EAGAIN", "nothing more is deleted"))
    write(daemon.point, "apps/web", "apps/orphan")
    (daemon.store / ".storage-version").unlink()
    daemon.await_message("EAGAIN")
    os.kill(daemon.pid, signal.SIGUSR1)
    assert shown(daemon.store) == {"apps/web", "apps/orphan"}
    (daemon.store / ".storage-version").write_text("3\n")
    daemon.await_line(" shows ")
    eventually(lambda: shown(daemon.store) == {"apps/web"})


def test_a_mount_ends_in_the_middle_of_a_sweep(daemons: MakeDaemon, manifests: Manifests, tmp_path: Path) -> None:
    manifests.declare("apps/web")
    flux = Flux.store(tmp_path / "store")
    for number in range(800):
        flux.set_tags(f"r{number}", LIST, "old")
    flux.set_tags("web", LIST, "apps")
    daemon = daemons(*manifests.when_asked, "--sweep-allow-mass-deletion")
    os.kill(daemon.pid, signal.SIGUSR1)
    eventually(lambda: len(names(daemon.store / "imagerepository/old")) < 780)
    assert daemon.stop() == 0
    again = daemons(*manifests.when_asked, "--sweep-allow-mass-deletion", store=daemon.store)
    sweep(again)
    assert shown(again.store) == {"apps/web"}


def test_a_relative_path_is_that_of_the_starter(
    daemons: MakeDaemon, manifests: Manifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(manifests.path.parent)
    manifests.declare("apps/web")
    daemon = daemons("--inventory", f"manifests:{manifests.path.name}", "--gc-interval", "0")
    write(daemon.point, "apps/web", "apps/orphan")
    assert "1 deleted" in sweep(daemon)


def test_manifests_from_standard_input_are_for_the_command(daemons: MakeDaemon) -> None:
    with pytest.raises(AssertionError, match="ended with 2"):
        daemons("--inventory", "manifests:-", expected=("tagfs sweep",))
