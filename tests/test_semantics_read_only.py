"""Clauses "Read-only mounts" and "Waiting" of `docs/semantics.md`: what Flux and others change beneath."""

import errno
import functools
import gzip
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import MakeDaemon
from tests.support.daemon import Daemon, eventually
from tests.support.programs import (
    Flux,
    in_pieces,
    is_ready,
    listing,
    percentile,
    refused,
    shell,
    succeed,
    tags,
)

pytestmark = pytest.mark.mount

EITHER_PATH = pytest.mark.usefixtures("either_path")


@pytest.fixture
def flux(tmp_path: Path) -> Flux:
    """Flux, writing natively to the store of the test."""
    return Flux.store(tmp_path / "store")


def shows(path: Path, plain: bytes | None) -> bool:
    """Whether a list is `plain` (None: is not there)."""
    try:
        return path.read_bytes() == plain
    except FileNotFoundError:
        return plain is None


def is_empty(directory: Path) -> bool:
    return list(directory.iterdir()) == []


def becomes(path: Path, plain: bytes | None) -> None:
    """What beneath is `plain` (None: nothing) is shown at once."""
    eventually(lambda: shows(path, plain), f"{path} with {plain!r}")


# -- never writes


@EITHER_PATH
def test_s46_nothing_is_written_to_the_store(daemons: MakeDaemon, flux: Flux, tmp_path: Path) -> None:
    flux.set_tags("app", b"v1\n")
    flux.set_compressed("zipped", gzip.compress(b"v2\n"))
    (flux.directory("app") / "tags.txt.gz").write_bytes(gzip.compress(b"v0\n"))
    (flux.directory("app") / "tags.txt42").write_text("left over")
    os.utime(flux.directory("app") / "tags.txt42", (1, 1))
    before = listing(tmp_path / "store")
    daemon = daemons("--read-only")
    path = daemon.list_path("app")
    succeed("find . ; ls -lR; grep -r v .; du .", daemon.point)
    for change in (
        lambda: path.write_text("v2\n"),
        lambda: path.open("a"),
        path.unlink,
        path.parent.rmdir,
        lambda: os.rename(path, path.with_name("x")),
        path.with_name("x").touch,
        (path.parent.parent / "new").mkdir,
        lambda: os.truncate(path, 0),
        lambda: os.utime(path, (1, 1)),
        lambda: os.chmod(path, 0o600),
        lambda: os.chown(path, 1, 1),
        lambda: os.setxattr(path, "user.x", b"1"),
        lambda: os.symlink("x", path.with_name("y")),
    ):
        assert refused(change) == errno.EROFS
    assert daemon.stop() == 0
    assert listing(tmp_path / "store") == before


def test_s46_a_store_on_a_read_only_file_system(daemons: MakeDaemon, flux: Flux, tmp_path: Path) -> None:
    flux.set_tags("app", b"v1\n")
    bound = tmp_path / "bound"
    bound.mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "store", bound], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", bound], check=True)
        daemon = daemons("--read-only", store=bound)
        assert daemon.list_path("app").read_text() == "v1\n"
        flux.set_tags("app", b"v2\n")
        becomes(daemon.list_path("app"), b"v2\n")
        daemon.stop()
    finally:
        subprocess.run(["umount", "-l", bound], check=True)


def test_s46_s47_several_windows_beside_a_writer(daemons: MakeDaemon) -> None:
    writer = daemons()
    windows = [daemons("--read-only") for _ in range(3)]
    path = writer.make("app")
    assert all(refused(window.list_path("app").stat) == errno.ENOENT for window in windows)
    for plain in (tags(3), tags(3000), "", tags(10), tags(5000, "w")):
        path.write_text(plain) if plain else os.truncate(path, 0)
        for window in windows:
            becomes(window.list_path("app"), plain.encode())
            assert succeed("ls", window.list_path("app").parent) == "tags.txt\n"
    path.rename(path.with_name("old"))
    for window in windows:
        becomes(window.list_path("app"), None)
        assert list(window.list_path("app").parent.iterdir()) == []
    succeed("rm -r team", writer.point / "imagerepository")
    for window in windows:
        base = window.point / "imagerepository"
        eventually(functools.partial(is_empty, base))


# -- changes beneath


@EITHER_PATH
def test_s47_lists_change_beneath_as_flux_changes_them(daemons: MakeDaemon, flux: Flux) -> None:
    path = daemons("--read-only").list_path("app")
    assert refused(path.stat) == errno.ENOENT

    def expect(plain: bytes | None) -> None:
        becomes(path, plain)
        eventually(lambda: path.exists() == (plain is not None))
        if plain is not None:
            assert path.stat().st_size == len(plain)
            assert succeed("cat $1", None, path) == plain.decode()

    flux.set_tags("app", b"v1\n")
    expect(b"v1\n")
    for number in range(3):
        flux.set_tags("app", f"plain{number}\n".encode())
        expect(f"plain{number}\n".encode())
        flux.set_compressed("app", gzip.compress(f"zipped{number}\n".encode()))
        expect(f"zipped{number}\n".encode())
        flux.set_compressed("app", gzip.compress(tags(2000 + number).encode()))
        expect(tags(2000 + number).encode())
    shutil.rmtree(flux.directory("app"))
    eventually(lambda: not path.parent.exists())
    expect(None)
    flux.set_compressed("app", gzip.compress(b"anew\n"))
    expect(b"anew\n")
    (flux.directory("app") / "tags.txt.gz").unlink()
    expect(None)
    assert path.parent.is_dir() and list(path.parent.iterdir()) == []
    flux.set_tags("app", b"again\n")
    expect(b"again\n")
    shutil.rmtree(flux.base)
    expect(None)
    flux.set_tags("app", b"from-nothing\n")
    expect(b"from-nothing\n")


@EITHER_PATH
def test_s47_names_that_were_looked_up_before_they_existed(daemons: MakeDaemon, flux: Flux) -> None:
    daemon = daemons("--read-only")
    paths = [daemon.list_path(name, namespace) for namespace in ("one", "two") for name in ("a", "b")]
    for path in paths:
        for missing in (path.parent.parent, path.parent, path):
            assert refused(missing.stat) == errno.ENOENT
    base = daemon.point / "imagerepository"
    assert list(base.iterdir()) == []
    flux.directory("a", "one").mkdir(parents=True)
    eventually((base / "one" / "a").is_dir)
    assert refused(paths[0].stat) == errno.ENOENT
    assert refused(paths[1].stat) == errno.ENOENT
    for path in paths:
        flux.set_tags(path.parent.name, b"v1\n", path.parent.parent.name)
    for path in paths:
        becomes(path, b"v1\n")
    shown = ".: one two ./one: a b ./one/a: tags.txt ./one/b: tags.txt ./two: a b ./two/a: tags.txt ./two/b: tags.txt"
    assert succeed("ls -R", base).split() == shown.split()


@EITHER_PATH
def test_s47_directories_that_are_made_anew(daemons: MakeDaemon, flux: Flux) -> None:
    daemon = daemons("--read-only")
    path = daemon.list_path("app")
    for number in range(20):
        flux.set_tags("app", f"v{number}\n".encode())
        becomes(path, f"v{number}\n".encode())
        shutil.rmtree(flux.base / "team" if number % 2 else flux.directory("app"))


def test_s47_a_namespace_that_is_moved_away_and_made_anew(daemons: MakeDaemon, flux: Flux, tmp_path: Path) -> None:
    flux.set_tags("app", b"v1\n")
    path = daemons("--read-only").list_path("app")
    with path.open() as kept:
        where = os.open(path.parent, os.O_RDONLY)
        try:
            (flux.base / "team").rename(tmp_path / "elsewhere")
            becomes(path, None)
            flux.set_tags("app", b"v2\n")
            becomes(path, b"v2\n")
            for number in range(3, 6):
                flux.set_tags("app", f"v{number}\n".encode())
                becomes(path, f"v{number}\n".encode())
            assert os.stat("tags.txt", dir_fd=where).st_ino == path.stat().st_ino
        finally:
            os.close(where)
        assert kept.read() == "v1\n"


@EITHER_PATH
def test_s47_the_time_of_a_directory(daemons: MakeDaemon, flux: Flux) -> None:
    flux.set_tags("app", b"v1\n")
    shown = daemons("--read-only").list_path("app").parent
    for there, beneath in ((shown, flux.directory("app")), (shown.parent, flux.base / "team")):
        assert there.stat().st_mtime_ns == beneath.stat().st_mtime_ns
    flux.set_tags("app", b"v2\n")
    flux.set_tags("other", b"v2\n")
    eventually(lambda: shown.stat().st_mtime_ns == flux.directory("app").stat().st_mtime_ns)
    eventually(lambda: shown.parent.stat().st_mtime_ns == (flux.base / "team").stat().st_mtime_ns)


def test_s47_a_fresh_read_follows_a_rename_at_once(daemons: MakeDaemon, flux: Flux) -> None:
    path = daemons("--read-only").list_path("app")
    took = []
    for number in range(300):
        plain = f"v{number}\n".encode()
        flux.set_tags("app", plain)
        begun = time.perf_counter()
        becomes(path, plain)
        took.append(time.perf_counter() - begun)
    p50, p99 = (1000 * percentile(took, share) for share in (0.5, 0.99))
    print(f"rename to fresh read: p50 {p50:.2f} ms, p99 {p99:.2f} ms, most {1000 * max(took):.2f} ms")
    assert p50 < 250, f"{p50:.2f} ms"


@EITHER_PATH
def test_s47_s7_no_read_is_torn_beside_flux(daemons: MakeDaemon, flux: Flux) -> None:
    """Readers in pieces while Flux switches between plain and compressed lists, for some seconds."""
    path = daemons("--read-only").list_path("app")
    flux.set_tags("app", tags(300, "a.").encode())
    contents = {tags(300 + 100 * number, f"{letter}.") for number, letter in enumerate("abcdef")}
    ends = time.monotonic() + 3
    torn: list[str] = []
    counts = {"reads": 0, "writes": 0}

    def read(size: int) -> None:
        while time.monotonic() < ends:
            text = in_pieces(path, size).decode()
            counts["reads"] += 1
            if text not in contents:
                torn.append(text[:20])

    threads = [threading.Thread(target=read, args=(size,)) for size in (256, 1000, 1 << 20)]
    for thread in threads:
        thread.start()
    while time.monotonic() < ends:
        for number, letter in enumerate("abcdef"):
            plain = tags(300 + 100 * number, f"{letter}.").encode()
            flux.set_compressed("app", gzip.compress(plain, 1)) if number % 2 else flux.set_tags("app", plain)
            counts["writes"] += 1
    for thread in threads:
        thread.join()
    print(f"{counts['reads']} reads beside {counts['writes']} replacements, {len(torn)} torn")
    assert not torn and counts["reads"] > 50


def test_s48_dropped_events_are_made_up_for(daemons: MakeDaemon, flux: Flux) -> None:
    """More events than the kernel queues while the daemon is stopped."""
    flux.set_tags("app", b"v1\n")
    flux.set_tags("gone", b"v1\n")
    daemon = daemons("--read-only")
    path, gone, new = (daemon.list_path(name) for name in ("app", "gone", "new"))
    late = daemon.list_path("app", "late")
    assert path.read_bytes() == b"v1\n" and gone.read_bytes() == b"v1\n"
    assert refused(new.stat) == refused(late.stat) == errno.ENOENT
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 50_000:
        pytest.skip(f"fs.inotify.max_queued_events is {limit}")
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        directory = flux.directory("app")
        for number in range(limit // 2 + 10):
            os.mkdir(directory / f"{number}")
            os.rmdir(directory / f"{number}")
        shutil.rmtree(flux.directory("gone"))
        shutil.rmtree(flux.directory("app"))
        flux.set_tags("app", b"v2\n")
        flux.set_tags("new", b"v2\n")
        flux.set_tags("app", b"v2\n", "late")
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    daemon.await_message("inotify lost events")
    for one in (path, new, late):
        becomes(one, b"v2\n")
    becomes(gone, None)
    for number in range(3, 6):
        for name, namespace in (("app", "team"), ("gone", "team"), ("new", "team"), ("app", "late")):
            flux.set_tags(name, f"v{number}\n".encode(), namespace)
        for one in (path, gone, new, late):
            becomes(one, f"v{number}\n".encode())


def _with_watches(count: int) -> tuple[str, ...]:
    """A command prefix that leaves a program so many inotify watches: a user namespace has a limit of its own."""
    prepare = f'echo {count} > /proc/sys/user/max_inotify_watches && exec "$@"'
    return ("unshare", "--user", "--map-root-user", "--mount", "--fork", "sh", "-c", prepare, "sh")


@pytest.mark.parametrize("count", [0, 3])
def test_s48_without_watches_changes_show_after_a_second(daemons: MakeDaemon, flux: Flux, count: int) -> None:
    if shell("$@", None, *_with_watches(count), "true").returncode != 0:
        pytest.skip("no user namespaces here")
    for name in "abcd":
        flux.set_tags(name, b"v1\n")
    daemon = daemons("--read-only", wrapper=_with_watches(count), expected=("no inotify watches are left",))
    inside = ["nsenter", "-t", str(daemon.pid), "-U", "-m", "--preserve-credentials", "sh", "-c"]

    def told(command: str) -> str:
        return subprocess.run(
            [*inside, f"cd {daemon.point}/imagerepository && {command}"], capture_output=True, text=True
        ).stdout

    assert told("cat */*/tags.txt") == "v1\n" * 4
    daemon.await_message(r"no inotify watches are left.*fs\.inotify\.max_user_watches")
    for name in "abcd":
        flux.set_tags(name, b"v2\n")
    flux.set_tags("new", b"v2\n", "other")
    eventually(lambda: told("cat */*/tags.txt") == "v2\n" * 5)
    shutil.rmtree(flux.base / "team")
    eventually(lambda: told("ls") == "other\n")
    (daemon.store / ".storage-wipe-in-progress").touch()
    daemon.await_message("until it is ready again")
    assert told("ls") == ""
    (daemon.store / ".storage-wipe-in-progress").unlink()
    eventually(lambda: told("ls") == "other\n")


# -- waiting


def _unready(kind: str, store: Path) -> None:
    if kind == "missing":
        return
    store.mkdir()
    if kind == "wiping":
        (store / ".storage-version").write_text("2\n")
        (store / ".storage-wipe-in-progress").touch()
        (store / "imagerepository" / "team" / "app").mkdir(parents=True)
        (store / "imagerepository" / "team" / "app" / "tags.txt").write_text("half\n")
    if kind == "badger":
        for name in ("MANIFEST", "KEYREGISTRY", "000001.vlog", "000001.sst", "00001.mem", "DISCARD"):
            (store / name).write_bytes(b"badger")
    if kind == "lost+found":
        (store / "lost+found").mkdir()


KINDS = ["missing", "empty", "lost+found", "wiping", "badger"]


@pytest.mark.parametrize("kind", KINDS)
def test_s52_a_store_that_is_not_ready_is_waited_for(daemons: MakeDaemon, tmp_path: Path, kind: str) -> None:
    store = tmp_path / "store"
    _unready(kind, store)
    before = listing(store) if store.exists() else None
    daemon = daemons("--read-only", start=False)
    daemon.start(wait=False)
    daemon.await_line("waits for its store")
    daemon.await_message("not there yet|not ready")
    path = daemon.list_path("app")
    for call in (path.stat, path.read_bytes, lambda: os.listdir(daemon.point), daemon.point.joinpath("x").stat):
        assert refused(call) == errno.EAGAIN
    assert daemon.point.is_dir()
    assert "Resource temporarily unavailable" in shell("ls $1", None, daemon.point).stderr
    assert shell("df $1", None, daemon.point).returncode == 0
    assert (listing(store) if store.exists() else None) == before
    if store.exists():
        succeed("find $1 -mindepth 1 -delete", None, store)
    Flux.store(store).set_tags("app", b"v1\n")
    daemon.await_line(" shows ")
    assert path.read_text() == "v1\n"
    assert daemon.stop() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_s52_wait_bounds_it(daemons: MakeDaemon, tmp_path: Path, kind: str) -> None:
    _unready(kind, tmp_path / "store")
    for seconds in ("0", "1"):
        daemon = daemons("--read-only", f"--wait={seconds}", start=False, expected=("not there yet|not ready",))
        begun = time.monotonic()
        assert daemon.start(wait=False).wait() == 7
        assert time.monotonic() - begun >= float(seconds)
        assert any("not there yet" in line or "not ready" in line for line in daemon.messages())
        assert not os.path.ismount(daemon.point)


@pytest.mark.parametrize("kind", ["home", "version"])
def test_s52_a_directory_that_is_no_store_is_refused(daemons: MakeDaemon, tmp_path: Path, kind: str) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ("letter.txt" if kind == "home" else ".storage-version")).write_text("7\n")
    daemon = daemons("--read-only", start=False, expected=("is no tag store",))
    assert daemon.start(wait=False).wait() == 3


def _must_wait(call: Callable[[], object]) -> bool:
    try:
        call()
    except OSError as error:
        return error.errno == errno.EAGAIN
    return False


def _blocked(daemon: Daemon) -> None:
    """Names are answered with EAGAIN and nothing is empty."""
    daemon.await_message("until it is ready again everything is answered with EAGAIN")
    path = daemon.list_path("app")
    for call in (
        path.stat,
        path.read_bytes,
        lambda: os.listdir(daemon.point),
        lambda: os.listdir(path.parent),
        lambda: os.listdir(path.parent.parent),
        lambda: os.listdir(daemon.point / "imagerepository"),
    ):
        # What the kernel keeps is invalidated a moment after the log line.
        eventually(functools.partial(_must_wait, call))
    assert shell("ls -R $1", None, daemon.point).stdout.strip() in ("", f"{daemon.point}:")
    assert shell("df $1", None, daemon.point).returncode == 0


@EITHER_PATH
@pytest.mark.parametrize("mode", ["--read-only", "--codec=auto"])
def test_s53_a_store_that_is_wiped_beneath(daemons: MakeDaemon, flux: Flux, tmp_path: Path, mode: str) -> None:
    store = tmp_path / "store"
    flux.set_tags("app", tags(2000).encode())
    daemon = daemons(mode)
    path = daemon.list_path("app")
    where = os.open(path.parent, os.O_RDONLY)
    try:
        with path.open() as reader:
            assert reader.read(3) == "v1."
            (store / ".storage-wipe-in-progress").touch()
            _blocked(daemon)
            assert refused(lambda: os.stat("tags.txt", dir_fd=where)) == errno.EAGAIN
            assert refused(lambda: os.listdir(where)) == errno.EAGAIN
            if mode != "--read-only":
                assert refused(lambda: path.write_text("v2\n")) == errno.EAGAIN
            (store / ".storage-version").unlink()
            shutil.rmtree(flux.base)
            assert refused(path.stat) == errno.EAGAIN
            Flux.store(store).set_tags("app", b"rescanned\n")
            assert refused(path.stat) == errno.EAGAIN
            (store / ".storage-wipe-in-progress").unlink()
            eventually(lambda: is_ready(daemon.point / ".storage-version"))
            assert path.read_text() == "rescanned\n"
            assert reader.read() == tags(2000)[3:]
        for number in range(3):
            flux.set_tags("app", f"v{number}\n".encode())
            becomes(path, f"v{number}\n".encode())
    finally:
        os.close(where)
    if mode != "--read-only":
        path.write_text("written\n")
        eventually(lambda: (flux.directory("app") / "tags.txt").read_text() == "written\n")
    assert daemon.stop() == 0


@pytest.mark.parametrize("mode", ["--read-only", "--codec=auto"])
def test_s53_a_store_that_is_moved_away(daemons: MakeDaemon, flux: Flux, tmp_path: Path, mode: str) -> None:
    store = tmp_path / "store"
    flux.set_tags("app", b"v1\n")
    daemon = daemons(mode)
    path = daemon.list_path("app")
    assert path.read_text() == "v1\n"
    store.rename(tmp_path / "away")
    _blocked(daemon)
    store.mkdir()
    assert refused(path.stat) == errno.EAGAIN
    (store / "imagerepository").mkdir()
    assert refused(path.stat) == errno.EAGAIN
    (store / "imagerepository").rmdir()
    store.rmdir()
    (tmp_path / "away").rename(store)
    eventually(lambda: is_ready(daemon.point / ".storage-version"))
    assert path.read_text() == "v1\n"
    flux.set_tags("app", b"v2\n")
    becomes(path, b"v2\n")
    assert daemon.stop() == 0


@EITHER_PATH
@pytest.mark.parametrize("mode", ["--read-only", "--codec=auto"])
def test_s53_a_store_that_is_removed(daemons: MakeDaemon, flux: Flux, tmp_path: Path, mode: str) -> None:
    flux.set_tags("app", b"v1\n")
    daemon = daemons(mode)
    path = daemon.list_path("app")
    assert path.read_text() == "v1\n"
    (tmp_path / "store" / ".storage-version").unlink()
    _blocked(daemon)
    shutil.rmtree(tmp_path / "store")
    eventually(lambda: refused(path.stat) == errno.EAGAIN)
    Flux.store(tmp_path / "store").set_tags("app", b"v2\n")
    eventually(lambda: is_ready(daemon.point / ".storage-version"))
    assert path.read_text() == "v2\n"
    assert daemon.stop() == 0


def _read(path: Path) -> bytes | None:
    """None while the store is not ready."""
    with suppress(BlockingIOError):
        return path.read_bytes()
    return None


@pytest.mark.parametrize(
    ("how", "flags"),
    [
        *((how, flags) for how in ("unmounted", "mounted over") for flags in ("", "--read-only", "--no-fast-path")),
        ("above renamed", "--read-only"),
        ("link turned", ""),
    ],
)
def test_s53_a_path_that_leads_elsewhere_shows_what_is_there(
    how: str, flags: str, daemons: MakeDaemon, tmp_path: Path
) -> None:
    volume, other = tmp_path / "volume", tmp_path / "other"
    for directory, plain in ((volume, b"v1\n"), (other, b"v2\n")):
        directory.mkdir()
        if how == "unmounted":
            subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
        Flux.store(directory / "store").set_tags("app", plain)
    link = tmp_path / "link"
    link.symlink_to(volume)
    try:
        daemon = daemons(*flags.split(), store=(link if how == "link turned" else volume) / "store")
        daemon.expected.append("answered with EAGAIN")
        path = daemon.list_path("app")
        assert path.read_text() == "v1\n"
        if how == "unmounted":
            subprocess.run(["umount", "-l", volume], check=True)
            _blocked(daemon)
            subprocess.run(["mount", "--bind", other, volume], check=True)
        elif how == "mounted over":
            subprocess.run(["mount", "--bind", other, volume], check=True)
        elif how == "above renamed":
            volume.rename(tmp_path / "elsewhere")
            _blocked(daemon)
            other.rename(volume)
        else:
            (tmp_path / "new").symlink_to(other)
            (tmp_path / "new").rename(link)
        eventually(lambda: _read(path) == b"v2\n")
        daemon.stop()
    finally:
        for directory in (volume, other):
            subprocess.run(["umount", "-l", directory], check=False, capture_output=True)


def test_s53_a_store_that_is_unready_beneath_a_writer(daemons: MakeDaemon, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", volume], check=True)
    try:
        daemon = daemons(store=volume)
        path = daemon.make("app")
        path.write_text("v1\n")
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
        os.write(descriptor, b"v2\n")
        (volume / ".storage-version").rename(volume / "version")
        _blocked(daemon)
        daemon.expected.append("not committed")
        assert refused(os.close, descriptor) == errno.EAGAIN
        (volume / "version").rename(volume / ".storage-version")
        eventually(lambda: is_ready(daemon.point / ".storage-version"))
        assert path.read_text() == "v1\n"
        daemon.stop()
    finally:
        subprocess.run(["umount", "-l", volume], check=True)
