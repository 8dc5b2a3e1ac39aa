"""Stores that no tagfs has left so, seen through a mount: never a crash, never another file's content, never an empty
directory where there were lists, always a line in the log, EIO for the bad one, and its neighbours readable."""

import errno
import gzip
import os
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import zstandard

from tests.conftest import MakeDaemon
from tests.support.daemon import Daemon, eventually
from tests.support.volumes import Volume, ext4

pytestmark = pytest.mark.mount

MODES = pytest.mark.parametrize("flags", [(), ("--read-only",)], ids=["read-write", "read-only"])

GOOD = b"".join(b"1.0.%d\n" % number for number in range(3000))
SECRET = Path("/etc/shadow")
LIMIT_FLAGS = ("--max-list-size", "1")
LIMIT = 1 << 20

GZIP, ZSTD = "tags.txt.gz", "tags.txt.zst"


def zipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def zstd(content: bytes, write_content_size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True, write_content_size=write_content_size).compress(content)


def flipped(stored: bytes, at: int) -> bytes:
    return stored[:at] + bytes([stored[at] ^ 0x10]) + stored[at + 1 :]


def gzip_promising(content: bytes, size: int) -> bytes:
    return zipped(content)[:-4] + struct.pack("<I", size & 0xFFFFFFFF)


def zstd_promising(size: int) -> bytes:
    """A frame header with an 8-byte content size, and a block of one repeated byte."""
    header = b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + struct.pack("<Q", size)
    block = (1 | 1 << 1 | 1000 << 3).to_bytes(3, "little") + b"a"
    return header + block


def raw_deflate_bomb() -> bytes:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([squeezer.compress(b"a\n" * (1 << 20)) for _ in range(32)]) + squeezer.flush()


BAD_FILES: dict[str, tuple[str, bytes]] = {
    "gzip-empty": (GZIP, b""),
    "gzip-header-only": (GZIP, zipped(GOOD)[:10]),
    "gzip-half": (GZIP, zipped(GOOD)[: len(zipped(GOOD)) // 2]),
    "gzip-without-trailer": (GZIP, zipped(GOOD)[:-8]),
    "gzip-one-byte-less": (GZIP, zipped(GOOD)[:-1]),
    "gzip-bit-in-magic": (GZIP, flipped(zipped(GOOD), 1)),
    "gzip-bit-in-data": (GZIP, flipped(zipped(GOOD), 500)),
    "gzip-bit-in-crc": (GZIP, flipped(zipped(GOOD), len(zipped(GOOD)) - 6)),
    "gzip-promises-less": (GZIP, gzip_promising(GOOD, 10)),
    "gzip-promises-more": (GZIP, gzip_promising(GOOD, len(GOOD) + 1)),
    "gzip-promises-4-gib": (GZIP, gzip_promising(GOOD, 0xFFFFFFFF)),
    "gzip-bomb": (GZIP, raw_deflate_bomb()),
    "gzip-bomb-that-lies": (GZIP, raw_deflate_bomb()[:-4] + struct.pack("<I", 100)),
    "gzip-trailing-garbage": (GZIP, zipped(GOOD) + b"garbage"),
    "gzip-is-plain": (GZIP, GOOD),
    "zstd-empty": (ZSTD, b""),
    "zstd-header-only": (ZSTD, zstd(GOOD)[:6]),
    "zstd-half": (ZSTD, zstd(GOOD)[: len(zstd(GOOD)) // 2]),
    "zstd-one-byte-less": (ZSTD, zstd(GOOD)[:-1]),
    "zstd-bit-in-magic": (ZSTD, flipped(zstd(GOOD), 2)),
    "zstd-bit-in-size": (ZSTD, flipped(zstd(GOOD), 6)),
    "zstd-bit-in-data": (ZSTD, flipped(zstd(GOOD), len(zstd(GOOD)) // 2)),
    "zstd-bit-in-checksum": (ZSTD, flipped(zstd(GOOD), len(zstd(GOOD)) - 2)),
    "zstd-promises-more": (ZSTD, zstd_promising(5000)),
    "zstd-promises-exabytes": (ZSTD, zstd_promising(1 << 60)),
    "zstd-promises-nothing": (ZSTD, zstd_promising(0)),
    "zstd-without-size": (ZSTD, zstd(GOOD, write_content_size=False)),
    "zstd-bomb": (ZSTD, zstd(b"a\n" * (1 << 24))),
    "zstd-trailing-garbage": (ZSTD, zstd(GOOD) + b"garbage"),
    "zstd-is-plain": (ZSTD, GOOD),
    "plain-too-large": ("tags.txt", b"a\n" * (LIMIT // 2 + 1)),
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of format 3 with one good list."""
    store = tmp_path / "store"
    put(store, "good", ZSTD, zstd(GOOD))
    (store / ".storage-version").write_text("3\n")
    return store


def put(store: Path, name: str, file: str, content: bytes) -> Path:
    directory = store / "imagerepository" / "team" / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / file).write_bytes(content)
    return directory / file


def error_of(ask: Callable[[], object]) -> int | None:
    """The errno of a refusal; None where there is none."""
    try:
        ask()
    except OSError as error:
        return error.errno
    return None


def loud(daemon: Daemon) -> list[str]:
    return [message for level in ("WARNING", "ERROR", "CRITICAL") for message in daemon.messages(level)]


def has_told(daemon: Daemon, part: str) -> bool:
    return any(part in message for message in daemon.messages())


def require_alive(daemon: Daemon) -> None:
    assert daemon.process is not None and daemon.process.poll() is None, "the daemon is dead"
    assert daemon.list_path("good").read_bytes() == GOOD


@MODES
def test_a_list_that_cannot_be_decoded_is_an_error_and_its_neighbours_are_not(
    flags: tuple[str, ...], store: Path, daemons: MakeDaemon
) -> None:
    for name, (file, content) in BAD_FILES.items():
        put(store, name, file, content)
    daemon = daemons(*flags, *LIMIT_FLAGS, expected=(r"imagerepository/team/.*tags\.txt",))
    assert sorted(os.listdir(daemon.point / "imagerepository/team")) == sorted([*BAD_FILES, "good"])
    for name, (file, _) in BAD_FILES.items():
        path = daemon.list_path(name)
        assert os.listdir(path.parent) == ["tags.txt"], name
        assert path.stat().st_size >= 0
        assert error_of(path.read_bytes) == errno.EIO, name
        assert error_of(path.read_bytes) == errno.EIO, f"{name}, again"
        eventually(partial(has_told, daemon, f"team/{name}/{file}"), f"a line in the log of {name}")
    require_alive(daemon)
    said = [message for message in daemon.messages() if "gzip-half" in message]
    assert len(said) == 1, f"said more than once: {said}"


def test_a_bad_list_is_replaced_and_deleted_as_any_other(store: Path, daemons: MakeDaemon) -> None:
    for name, (file, content) in BAD_FILES.items():
        put(store, name, file, content)
    daemon = daemons(*LIMIT_FLAGS, expected=(r"imagerepository/team/.*tags\.txt",))
    for number, name in enumerate(BAD_FILES):
        path = daemon.list_path(name)
        if number % 3 == 0:
            path.write_bytes(GOOD)
        elif number % 3 == 1:
            scratch = path.with_name("tags.txt1")
            scratch.write_bytes(GOOD)
            scratch.rename(path)
        else:
            path.unlink()
            assert error_of(path.read_bytes) == errno.ENOENT
            path.write_bytes(GOOD)
        assert path.read_bytes() == GOOD, name
    for name in BAD_FILES:
        assert [file.name for file in daemon.stored(name)] == [ZSTD]


@MODES
def test_what_is_no_file_is_no_list(flags: tuple[str, ...], store: Path, daemons: MakeDaemon) -> None:
    """Links of all kinds, directories, sockets, pipes and devices, in place of a list and of what is above one."""
    base = store / "imagerepository"
    secret = store.parent / "secret"
    secret.write_text("root:x\n")
    (store.parent / "elsewhere/app").mkdir(parents=True)
    (store.parent / "elsewhere/app/tags.txt").write_text("stolen\n")
    places = {"link": SECRET, "link-to-list": secret, "loop": Path("tags.txt"), "dangling": Path("/nowhere/at/all")}
    for name, target in places.items():
        for file in ("tags.txt", GZIP, ZSTD):
            directory = base / "team" / f"{name}-{file.rpartition('.')[2]}"
            directory.mkdir()
            (directory / file).symlink_to(file if name == "loop" else target)
    kinds = ["directory", "socket", "pipe", "device"]
    for kind in kinds:
        directory = base / "team" / kind
        directory.mkdir()
        make_special(directory / "tags.txt", kind)
    (base / "team" / "linked-repository").symlink_to(store.parent / "elsewhere/app")
    (base / "team" / "loop").symlink_to("loop")
    (base / "linked-namespace").symlink_to(store.parent / "elsewhere")
    (base / "file-as-namespace").write_text("v1\n")
    (base / "team" / "file-as-repository").write_text("v1\n")
    os.mkfifo(base / "team" / "pipe-as-repository")
    daemon = daemons(*flags, expected=(r"Is a directory",))
    shown = {path for path in daemon.point.rglob("*") if path.name == "tags.txt"}
    assert shown == {daemon.list_path("good")}
    for directory in (base / "team").iterdir():
        path = daemon.list_path(directory.name)
        if directory.name != "good":
            assert error_of(path.read_bytes) in (errno.ENOENT, errno.ENOTDIR), directory.name
    for name in ("linked-namespace", "file-as-namespace"):
        assert error_of(lambda one=name: os.listdir(daemon.point / "imagerepository" / one)) == errno.ENOENT, name  # type: ignore[misc]
    assert os.listdir(daemon.point / "imagerepository") == ["team"]
    require_alive(daemon)
    if not flags:
        for name in ("link-txt", "loop-gz", "dangling-zst", "pipe", "socket"):
            path = daemon.list_path(name)
            path.write_bytes(GOOD)
            assert path.read_bytes() == GOOD, name
        scratch = daemon.list_path("directory").with_name("tags.txt1")
        scratch.write_bytes(b"v1\n")
        assert error_of(lambda: scratch.rename(daemon.list_path("directory"))) == errno.EIO
        require_alive(daemon)
    assert secret.read_text() == "root:x\n"
    assert (store.parent / "elsewhere/app/tags.txt").read_text() == "stolen\n"


def make_special(path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir()
        (path / "inner").write_text("v1\n")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        with suppress(PermissionError):
            os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))
    else:
        there = os.getcwd()
        os.chdir(path.parent)  # A socket's path has at most 107 bytes.
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
        finally:
            os.chdir(there)


@MODES
def test_links_in_place_of_what_the_store_is_made_of_are_not_followed(
    flags: tuple[str, ...], store: Path, daemons: MakeDaemon
) -> None:
    elsewhere = store.parent / "elsewhere"
    (store / "imagerepository").rename(elsewhere)
    (store / "imagerepository").symlink_to(elsewhere)
    (store / ".tagfs-stage").symlink_to(elsewhere)
    daemon = daemons(*flags, expected=(r".",))
    listing = error_of(lambda: os.listdir(daemon.point / "imagerepository"))
    assert listing == errno.EIO, "a link in place of all lists is neither followed nor an empty directory"
    if not flags:
        assert error_of(lambda: daemon.make("new").write_bytes(GOOD)) is not None
    assert sorted(path.name for path in elsewhere.rglob("*") if path.is_file()) == [ZSTD]
    eventually(partial(loud, daemon), "a line in the log")
    assert daemon.process is not None and daemon.process.poll() is None


@MODES
def test_ten_thousand_foreign_files_cost_nothing_but_patience(
    flags: tuple[str, ...], store: Path, daemons: MakeDaemon
) -> None:
    directory = store / "imagerepository/team/good"
    for number in range(10_000):
        (directory / f"foreign-{number}").touch()
    daemon = daemons(*flags)
    assert os.listdir(daemon.list_path("good").parent) == ["tags.txt"]
    assert [path.name for path in daemon.point.rglob("tags.txt")] == ["tags.txt"]
    require_alive(daemon)
    if not flags:
        daemon.list_path("good").unlink()
        daemon.list_path("good").parent.rmdir()
        assert not directory.exists()
        daemon.make("good").write_bytes(GOOD)
        require_alive(daemon)


LABEL, SUBDOMAIN = "n" * 63, ".".join(["r" * 63] * 3) + "." + "r" * 61


@MODES
def test_names_at_the_limit_are_shown_and_names_over_it_are_not(
    flags: tuple[str, ...], store: Path, daemons: MakeDaemon
) -> None:
    base = store / "imagerepository"
    good = [(LABEL, SUBDOMAIN), (LABEL, "a"), ("a", SUBDOMAIN), ("0", "0")]
    over = [
        (LABEL + "n", "a"),
        ("a", SUBDOMAIN + "r"),
        ("-a", "a"),
        ("a-", "a"),
        ("A", "a"),
        ("a", "a..b"),
        ("a.b", "a"),
    ]
    odd = [("a", "\udcff\udcfe"), ("a", "new\nline"), ("a", "spa ce"), ("\udcff", "a"), ("a", "ü")]
    for namespace, name in [*good, *over, *odd]:
        directory = base / namespace / name
        directory.mkdir(parents=True)
        (directory / "tags.txt").write_text("v1\n")
    daemon = daemons(*flags)
    shown = {(path.parts[-3], path.parts[-2]) for path in daemon.point.rglob("tags.txt")}
    assert shown == {*good, ("team", "good")}
    for namespace, name in [*over, *odd]:
        assert error_of(daemon.list_path(name, namespace).read_bytes) == errno.ENOENT, (namespace, name)
    require_alive(daemon)
    if not flags:
        for namespace, name in over:
            assert error_of(lambda a=namespace, b=name: daemon.make(b, a)) in (errno.EINVAL, errno.EEXIST, None)  # type: ignore[misc]
        daemon.make("r" * 63 + "." + "r" * 63, "n" * 62).write_text("v1\n")
        require_alive(daemon)


# -- a daemon without rights

NOBODY = 65534


@pytest.fixture
def without_rights() -> tuple[str, ...]:
    """A wrapper that runs a daemon without root's right to read and write whatever there is."""
    wrapper = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--")
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root, with setpriv(1), can run a daemon with fewer rights")
    tried = subprocess.run([*wrapper, sys.executable, "-c", ""], check=False, capture_output=True)
    if tried.returncode != 0:
        pytest.skip(f"rights cannot be given up here: {tried.stderr.decode().strip()}")
    return wrapper


def take_away(*paths: Path) -> None:
    for path in paths:
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o700 if path.is_dir() else 0o600)


def give_back(*paths: Path) -> None:
    for path in paths:
        os.chown(path, 0, 0)


@MODES
def test_what_the_daemon_may_not_read_is_an_error(
    flags: tuple[str, ...], store: Path, daemons: MakeDaemon, without_rights: tuple[str, ...]
) -> None:
    put(store, "secret", "tags.txt", b"v1\n")
    put(store, "closed", "tags.txt", b"v1\n")
    base = store / "imagerepository"
    take_away(base / "team/secret/tags.txt", base / "team/closed")
    daemon = daemons(*flags, wrapper=without_rights, start=False, expected=(r"Permission denied",)).start()
    daemon.wrapper = ()  # setpriv has become the daemon.
    for name in ("secret", "closed"):
        assert error_of(daemon.list_path(name).read_bytes) == errno.EIO, name
        assert name in os.listdir(daemon.point / "imagerepository/team")
    assert error_of(lambda: os.listdir(daemon.list_path("closed").parent)) == errno.EIO
    assert "good" in os.listdir(daemon.point / "imagerepository/team")
    eventually(partial(has_told, daemon, "Permission denied"), "a line in the log")
    require_alive(daemon)


def is_readable(path: Path) -> bool:
    return error_of(path.read_bytes) is None


@MODES
def test_a_store_that_may_no_longer_be_entered_is_an_error_until_it_may(
    flags: tuple[str, ...], store: Path, daemons: MakeDaemon, without_rights: tuple[str, ...]
) -> None:
    daemon = daemons(*flags, wrapper=without_rights, start=False, expected=(r".",)).start()
    daemon.wrapper = ()
    for path, name in ((store / "imagerepository", "first"), (store, "second")):
        put(store, name, "tags.txt", b"v1\n")  # what was read before may be the kernel's
        take_away(path)
        assert error_of(daemon.list_path(name).read_bytes) in (errno.EIO, errno.EAGAIN), path
        assert error_of(partial(os.listdir, daemon.list_path(name).parent)) in (errno.EIO, errno.EAGAIN), path
        if not flags:
            assert error_of(lambda: daemon.list_path("good").write_bytes(b"v1\n")) in (errno.EIO, errno.EAGAIN)
        eventually(partial(loud, daemon), "a line in the log")
        give_back(path)
        eventually(partial(is_readable, daemon.list_path(name)), "the lists, once they may be read")
        require_alive(daemon)


# -- a store that goes away


@dataclass(frozen=True, slots=True)
class Served:
    """A daemon on a volume, with some lists, of which one is open."""

    volume: Volume
    daemon: Daemon
    opened: int

    @property
    def store(self) -> Path:
        return self.volume.path / "store"


@pytest.fixture(params=[(), ("--read-only",)], ids=["read-write", "read-only"])
def served(request: pytest.FixtureRequest, daemons: MakeDaemon, tmp_path: Path) -> Iterator[Served]:
    with ext4(tmp_path) as volume:
        store = volume.path / "store"
        for number in range(20):
            put(store, f"list{number}", "tags.txt", b"v1\n")
        put(store, "good", ZSTD, zstd(GOOD))
        (store / ".storage-version").write_text("3\n")
        daemon = daemons(*request.param, store=store, point=tmp_path / "point", expected=(r".",))
        require_alive(daemon)
        opened = os.open(daemon.list_path("good"), os.O_RDONLY)
        assert os.pread(opened, 10, 0) == GOOD[:10]
        try:
            yield Served(volume, daemon, opened)
        finally:
            os.close(opened)
            daemon.end()


def require_visible_failure(served: Served) -> None:
    """Reading, listing and looking up end in an error that does not say that there is nothing."""
    daemon = served.daemon
    for ask in (
        lambda: os.listdir(daemon.point / "imagerepository/team"),
        lambda: os.listdir(daemon.point / "imagerepository"),
        daemon.list_path("list7").read_bytes,
        daemon.list_path("list8").stat,
    ):
        number = error_of(ask)
        assert number in (errno.EIO, errno.EAGAIN, errno.ESTALE, errno.EACCES), number and errno.errorcode[number]
    assert os.pread(served.opened, len(GOOD), 0) == GOOD, "what was open and read is no longer shown"
    assert daemon.process is not None and daemon.process.poll() is None, "the daemon is dead"
    eventually(partial(loud, daemon), "a line in the log")


def is_refused(daemon: Daemon) -> bool:
    return error_of(lambda: os.listdir(daemon.point / "imagerepository/team")) is not None


def test_a_disk_that_is_detached_is_an_error_and_never_an_empty_directory(served: Served) -> None:
    served.volume.cut()
    Path("/proc/sys/vm/drop_caches").write_text("2")
    eventually(lambda: is_refused(served.daemon) or served.daemon.list_path("list9").read_bytes() == b"v1\n")
    if is_refused(served.daemon):
        assert os.pread(served.opened, len(GOOD), 0) == GOOD
    path = served.daemon.list_path("list3")
    assert error_of(lambda: path.write_bytes(b"v2\n")) is not None
    for number in range(20):
        text: bytes | None = None
        with suppress(OSError):
            text = served.daemon.list_path(f"list{number}").read_bytes()
        assert text in (None, b"v1\n")
        with suppress(OSError):
            assert len(os.listdir(served.daemon.point / "imagerepository/team")) == 21
    assert served.daemon.process is not None and served.daemon.process.poll() is None, "the daemon is dead"
    eventually(partial(loud, served.daemon), "a line in the log")


def test_a_store_that_is_unmounted_lazily_is_still_shown_or_an_error(served: Served) -> None:
    served.volume.unmount(lazy=True)
    assert not served.store.exists()
    for number in range(20):
        text: bytes | None = None
        with suppress(OSError):
            text = served.daemon.list_path(f"list{number}").read_bytes()
        assert text in (None, b"v1\n")
    with suppress(OSError):
        assert len(os.listdir(served.daemon.point / "imagerepository/team")) == 21
    assert os.pread(served.opened, len(GOOD), 0) == GOOD
    assert served.daemon.process is not None and served.daemon.process.poll() is None


@pytest.mark.parametrize("how", ["removed", "moved", "renamed base", "wiped", "another version"])
def test_a_store_that_is_taken_away_is_an_error_and_never_an_empty_directory(how: str, served: Served) -> None:
    store, base = served.store, served.store / "imagerepository"
    if how == "removed":
        shutil.rmtree(store)
    elif how == "moved":
        store.rename(store.with_name("moved"))
    elif how == "renamed base":
        base.rename(store / "elsewhere")
    elif how == "wiped":
        (store / ".storage-wipe-in-progress").touch()
        shutil.rmtree(base)
    else:
        (store / ".storage-version").write_text("17\n")
        shutil.rmtree(base)
    if how == "renamed base":
        # A store without a list is a store.  Whoever renamed it has a mount without lists, and none of another's.
        eventually(lambda: os.listdir(served.daemon.point / "imagerepository") == [] or is_refused(served.daemon))
        assert served.daemon.process is not None and served.daemon.process.poll() is None
        return
    eventually(lambda: is_refused(served.daemon), "an error where the lists were")
    require_visible_failure(served)
