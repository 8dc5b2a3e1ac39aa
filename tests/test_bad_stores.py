"""Bad stores: whatever lies in the directory, a list is read whole or refused, and its neighbours are readable."""

import errno
import gzip
import itertools
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagfs import taglist
from tagfs.codec import GZIP, PLAIN, ZSTD, Codec
from tagfs.directory import DirectoryStore
from tagfs.disk import Disk
from tagfs.errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    ListCorrupt,
    ListMissing,
    RepositoryMissing,
    StoreRefused,
    TagfsError,
)
from tagfs.names import BASE, RepositoryKey
from tests.support.places import fast_directory, open_descriptors
from tests.support.rights import as_nobody, belongs_to_nobody
from tests.support.stores import KEY, LARGE, NEIGHBOUR, OTHER_SMALL, SMALL, STRANGER, open_store, policy_of

LIMIT = 1 << 20
SECRET = "/etc/shadow" if os.path.exists("/etc/shadow") else "/etc/passwd"


class Bad:
    """A store with two good lists, and a key whose files a test spoils."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.directory = path / KEY.directory
        self.store = open_store(Disk(), str(path), 3, policy_of(3, list_limit=LIMIT))
        self.store.replace(NEIGHBOUR, SMALL)
        self.store.replace(STRANGER, LARGE)
        self.directory.mkdir(parents=True)

    def put(self, codec: Codec, stored: bytes) -> Path:
        file = self.directory / f"tags.txt{codec.suffix}"
        file.write_bytes(stored)
        return file

    def require_neighbours(self) -> None:
        assert self.store.read(NEIGHBOUR) == SMALL
        assert self.store.read(STRANGER) == LARGE
        assert set(self.store.scan()) >= {NEIGHBOUR, STRANGER}

    def require_corrupt(self, name: str) -> None:
        """The list is there, its file is named, and what is stored can be replaced."""
        for _ in range(2):
            version = self.store.examine(KEY)
            assert version.stored_size >= 0
            with pytest.raises(ListCorrupt) as caught:
                self.store.read(KEY)
            assert caught.value.path == f"{KEY.directory}/{name}"
            assert str(caught.value).startswith(caught.value.path)
        assert not self.store.is_stored_as(KEY, SMALL)
        self.require_neighbours()

    def require_curable(self) -> None:
        self.store.replace(KEY, OTHER_SMALL)
        assert self.store.read(KEY) == OTHER_SMALL
        assert self.store.examine(KEY).fault is None
        self.require_neighbours()


@pytest.fixture
def bad() -> Iterator[Bad]:
    with fast_directory() as path:
        before = open_descriptors()
        bad = Bad(path)
        yield bad
        bad.store.close()
        assert open_descriptors() == before


@pytest.fixture
def outside() -> Iterator[Path]:
    with fast_directory() as path:
        yield path


every_compressed = pytest.mark.parametrize("codec", [GZIP, ZSTD], ids=lambda codec: codec.name)


# -- contents


@every_compressed
@pytest.mark.parametrize("plain", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_a_truncated_list_is_corrupt(bad: Bad, codec: Codec, plain: bytes) -> None:
    stored = codec.encode(plain)
    for size in {0, 1, 4, 6, 10, len(stored) // 2, len(stored) - 8, len(stored) - 4, len(stored) - 1}:
        bad.put(codec, stored[:size])
        bad.require_corrupt(f"tags.txt{codec.suffix}")
    bad.require_curable()


@every_compressed
def test_a_flipped_bit_is_never_a_tag(bad: Bad, codec: Codec) -> None:
    stored = codec.encode(LARGE)
    for at in range(0, len(stored) * 8, 7):
        flipped = bytearray(stored)
        flipped[at // 8] ^= 1 << at % 8
        bad.put(codec, bytes(flipped))
        with suppress(ListCorrupt):
            assert bad.store.read(KEY) == LARGE
    bad.require_neighbours()


LIES = {
    "zstd-larger": (ZSTD, ZSTD.encode(SMALL)[:5] + b"\xff" + ZSTD.encode(SMALL)[6:]),
    "zstd-smaller": (ZSTD, ZSTD.encode(SMALL)[:5] + b"\x01" + ZSTD.encode(SMALL)[6:]),
    "zstd-nothing": (ZSTD, ZSTD.encode(SMALL)[:5] + b"\x00" + ZSTD.encode(SMALL)[6:]),
    "zstd-huge": (ZSTD, struct.pack("<IBQ", 0xFD2FB528, 0b11_1_00_1_00, 1 << 62) + b"\x01\0\0"),
    "zstd-over-the-limit": (ZSTD, struct.pack("<IBI", 0xFD2FB528, 0b10_1_00_1_00, LIMIT + 1) + b"\x01\0\0"),
    "zstd-trailing": (ZSTD, ZSTD.encode(SMALL) + b"v9\n"),
    "zstd-two-frames": (ZSTD, ZSTD.encode(SMALL) + ZSTD.encode(SMALL)),
    "zstd-skippable": (ZSTD, struct.pack("<II", 0x184D2A50, 4) + b"abcd"),
    "zstd-is-gzip": (ZSTD, GZIP.encode(SMALL)),
    "zstd-is-plain": (ZSTD, SMALL),
    "gzip-larger": (GZIP, GZIP.encode(SMALL)[:-4] + struct.pack("<I", 99)),
    "gzip-smaller": (GZIP, GZIP.encode(SMALL)[:-4] + struct.pack("<I", 1)),
    "gzip-huge": (GZIP, GZIP.encode(SMALL)[:-4] + b"\xff" * 4),
    "gzip-bomb": (GZIP, gzip.compress(bytes(LIMIT + 1))),
    "gzip-bomb-that-lies": (GZIP, gzip.compress(bytes(32 << 20))[:-4] + struct.pack("<I", 14)),
    "gzip-trailing": (GZIP, GZIP.encode(SMALL) + b"v9\n"),
    "gzip-two-members": (GZIP, GZIP.encode(SMALL) + GZIP.encode(SMALL)),
    "gzip-is-zstd": (GZIP, ZSTD.encode(SMALL)),
    "gzip-is-plain": (GZIP, SMALL * 3),
    "plain-over-the-limit": (PLAIN, b"v\n" * (LIMIT // 2 + 1)),
}


@pytest.mark.parametrize(("codec", "stored"), LIES.values(), ids=LIES.keys())
def test_a_lie_is_corrupt(bad: Bad, codec: Codec, stored: bytes) -> None:
    bad.put(codec, stored)
    bad.require_corrupt(f"tags.txt{codec.suffix}")
    bad.require_curable()


def test_the_newest_variant_counts_even_where_it_is_corrupt(bad: Bad) -> None:
    """The older one is another list: to show it would be to go back in time."""
    os.utime(bad.put(PLAIN, SMALL), ns=(1, 1))
    bad.put(ZSTD, b"not zstd")
    bad.require_corrupt("tags.txt.zst")
    bad.require_curable()


@every_compressed
def test_a_corrupt_list_can_be_removed_hidden_and_put_back(bad: Bad, codec: Codec) -> None:
    bad.put(codec, b"noise")
    bad.store.set_mtime(KEY, 10**18)
    bad.store.hide(KEY)
    assert bad.store.recover(KEY)
    bad.require_corrupt(f"tags.txt{codec.suffix}")
    bad.store.remove(KEY)
    with pytest.raises(ListMissing):
        bad.store.read(KEY)


@given(
    st.sampled_from([PLAIN, GZIP, ZSTD]),
    st.one_of(st.binary(max_size=300), st.sampled_from([b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"])),
    st.binary(max_size=30),
)
def test_noise_is_a_list_or_corrupt(codec: Codec, noise: bytes, more: bytes) -> None:
    with fast_directory() as path:
        bad = Bad(path)
        bad.put(codec, noise + more)
        if codec is PLAIN:
            assert bad.store.read(KEY) == noise + more
        else:
            bad.require_corrupt(f"tags.txt{codec.suffix}")
        bad.store.close()


# -- files that are none


@pytest.mark.parametrize("name", ["tags.txt", "tags.txt.gz", "tags.txt.zst"])
@pytest.mark.parametrize("target", [SECRET, "loop", "..", "nowhere", "/proc/self/mem", "/dev/zero", "neighbour"])
def test_a_list_that_is_a_link_is_none(bad: Bad, name: str, target: str) -> None:
    if target == "loop":
        target = name
    elif target == "neighbour":
        target = str(bad.path / NEIGHBOUR.directory / "tags.txt")
    (bad.directory / name).symlink_to(target)
    for call in (bad.store.examine, bad.store.read, bad.store.remove, bad.store.hide):
        with pytest.raises(ListMissing):
            call(KEY)
    assert not bad.store.is_stored_as(KEY, b"")
    bad.require_neighbours()
    bad.require_curable()
    assert (bad.path / NEIGHBOUR.directory / "tags.txt").read_bytes() == SMALL


def make_socket(path: Path) -> None:
    above = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{above}/{path.name}")
    finally:
        os.close(above)


OTHER_KINDS: dict[str, Callable[[Path], object]] = {
    "directory": Path.mkdir,
    "full-directory": lambda path: (path / "tags.txt").mkdir(parents=True),
    "fifo": os.mkfifo,
    "socket": make_socket,
}


@pytest.mark.parametrize("name", ["tags.txt", "tags.txt.gz", "tags.txt.zst"])
@pytest.mark.parametrize("make", OTHER_KINDS.values(), ids=OTHER_KINDS.keys())
def test_a_list_that_is_no_file_is_none(bad: Bad, name: str, make: Callable[[Path], object]) -> None:
    make(bad.directory / name)
    with pytest.raises(ListMissing):
        bad.store.read(KEY)
    is_directory = (bad.directory / name).is_dir()
    if is_directory and name == "tags.txt":
        with pytest.raises(IsADirectoryError):
            bad.store.replace(KEY, SMALL)
        with pytest.raises(DirectoryNotEmpty):
            bad.store.remove_repository(KEY)
    else:
        bad.require_curable()
    assert bad.store.stages.names() == []
    bad.require_neighbours()


@pytest.mark.skipif(os.geteuid() != 0, reason="to make a device takes root")
def test_a_list_that_is_a_device_is_none(bad: Bad) -> None:
    try:
        os.mknod(bad.directory / "tags.txt", 0o020600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("devices may not be made here")
    with pytest.raises(ListMissing):
        bad.store.read(KEY)
    bad.require_curable()


@pytest.mark.parametrize("change", ["fifo", "link", "gone"])
def test_a_list_that_becomes_none_between_the_look_and_the_opening(outside: Path, change: str) -> None:
    class Racing(Disk):
        is_racing = False

        def open_file(self, directory: int, name: str) -> int:
            if self.is_racing and name == "tags.txt":
                os.unlink(name, dir_fd=directory)
                if change == "fifo":
                    os.mkfifo(name, dir_fd=directory)
                elif change == "link":
                    os.symlink(SECRET, name, dir_fd=directory)
            return super().open_file(directory, name)

    disk = Racing()
    store = open_store(disk, str(outside))
    store.replace(KEY, SMALL)
    disk.is_racing = True
    with pytest.raises(ListMissing if change == "gone" else ListCorrupt):
        store.read(KEY)
    disk.is_racing = False
    store.close()


@pytest.mark.parametrize("plain", [SMALL, LARGE], ids=["plain", "zstd"])
def test_a_variant_that_vanishes_between_calls_is_looked_for_again(outside: Path, plain: bytes) -> None:
    """A writer beneath switches variants: the one that was seen is gone, the other was not there yet."""

    class Switching(Disk):
        switch: Callable[[], object] | None = None

        def open_file(self, directory: int, name: str) -> int:
            if self.switch is not None and name.startswith("tags.txt"):
                switch, self.switch = self.switch, None
                switch()
            return super().open_file(directory, name)

    disk = Switching()
    store = open_store(disk, str(outside))
    store.replace(KEY, plain)
    writer = open_store(Disk(), str(outside))
    other = LARGE if plain is SMALL else SMALL
    disk.switch = lambda: writer.replace(KEY, other)
    assert store.read(KEY) == other
    store.close()
    writer.close()


@pytest.mark.parametrize("to", [0, 1, 3, 12])
@pytest.mark.parametrize("codec", [PLAIN, GZIP, ZSTD], ids=lambda codec: codec.name)
def test_a_file_that_shrinks_while_it_is_open_is_corrupt(outside: Path, codec: Codec, to: int) -> None:
    class Shrinking(Disk):
        def read(self, file: int, size: int, offset: int = 0) -> bytes:
            with suppress(OSError):
                if codec is not PLAIN or size == len(SMALL):
                    shrink()
            return super().read(file, size, offset)

    def shrink() -> None:
        if target.exists():
            os.truncate(target, to)

    target = outside / KEY.directory / f"tags.txt{codec.suffix}"
    store = open_store(Shrinking(), str(outside))
    target.parent.mkdir(parents=True)
    target.write_bytes(codec.encode(SMALL))
    with pytest.raises(ListCorrupt):
        store.read(KEY)
    store.close()


# -- directories that are none


@pytest.mark.parametrize("level", ["namespace", "repository"])
@pytest.mark.parametrize("target", ["outside", "loop", "nowhere", "/etc", "neighbour"])
def test_a_directory_that_is_a_link_is_none(bad: Bad, outside: Path, level: str, target: str) -> None:
    key = RepositoryKey("linked", "podinfo") if level == "namespace" else RepositoryKey(KEY.namespace, "linked")
    (outside / "podinfo").mkdir()
    (outside / "podinfo" / "tags.txt").write_bytes(b"stolen\n")
    link = bad.path / BASE / "linked" if level == "namespace" else bad.path / key.directory
    if target == "outside":
        link.symlink_to(outside if level == "namespace" else outside / "podinfo")
    elif target == "neighbour":
        link.symlink_to(KEY.namespace if level == "namespace" else NEIGHBOUR.name)
    else:
        link.symlink_to("linked" if target == "loop" else target)
    calls: list[Callable[[], object]] = [
        lambda: bad.store.examine(key),
        lambda: bad.store.read(key),
        lambda: bad.store.remove(key),
        lambda: bad.store.hide(key),
        lambda: bad.store.set_mtime(key, 1),
        lambda: bad.store.remove_repository(key),
        lambda: bad.store.replace(key, SMALL),
    ]
    if level == "namespace":
        calls += [lambda: bad.store.repositories("linked"), lambda: bad.store.remove_namespace("linked")]
        with pytest.raises(AlreadyExists):
            bad.store.make_namespace("linked")
    else:
        with pytest.raises(AlreadyExists):
            bad.store.make_repository(key)
    for call in calls:
        with pytest.raises(RepositoryMissing):
            call()
    assert not bad.store.recover(key)
    bad.store.drop_hidden(key)
    assert key not in set(bad.store.scan())
    assert "linked" not in bad.store.namespaces()
    assert (outside / "podinfo" / "tags.txt").read_bytes() == b"stolen\n"
    assert link.is_symlink()
    bad.require_neighbours()


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo], ids=["file", "fifo"])
@pytest.mark.parametrize("level", ["namespace", "repository"])
def test_a_directory_that_is_a_file_is_none(bad: Bad, level: str, make: Callable[[Path], object]) -> None:
    key = RepositoryKey("file", "podinfo") if level == "namespace" else RepositoryKey(KEY.namespace, "file")
    make(bad.path / (f"{BASE}/file" if level == "namespace" else key.directory))
    for call in (bad.store.read, bad.store.remove, lambda key: bad.store.replace(key, SMALL)):
        with pytest.raises(RepositoryMissing):
            call(key)
    assert key not in set(bad.store.scan())
    bad.require_neighbours()


def test_a_base_that_is_a_link_is_an_error_and_no_empty_store(bad: Bad, outside: Path) -> None:
    (bad.path / BASE).rename(bad.path / "real")
    for target in ("real", str(outside), "/etc", BASE):
        (bad.path / BASE).symlink_to(target)
        for call in (bad.store.namespaces, lambda: list(bad.store.scan()), lambda: bad.store.read(NEIGHBOUR)):
            with pytest.raises(StoreRefused):
                call()
        (bad.path / BASE).unlink()


# -- litter


def test_ten_thousand_foreign_files_cost_a_reader_nothing(bad: Bad) -> None:
    bad.put(PLAIN, SMALL)
    for n in range(10_000):
        (bad.directory / f"litter-{n}").touch()
    started = time.perf_counter()
    for _ in range(100):
        assert bad.store.read(KEY) == SMALL
    assert time.perf_counter() - started < 5
    bad.store.replace(KEY, LARGE)
    bad.store.remove(KEY)
    bad.store.remove_repository(KEY)
    assert not bad.directory.exists()
    bad.require_neighbours()


STRANGE_NAMES = [
    b"UPPER",
    b"with space",
    b"-dash",
    b"dot.",
    b".hidden",
    b"caf\xc3\xa9",
    b"\xff\xfe",
    b"line\nfeed",
    b"tags.txt",
    b"lost+found",
    b"n" * 64,
    b"r" * 254,
    b"x" * 255,
]


@pytest.mark.parametrize("name", STRANGE_NAMES, ids=repr)
def test_directories_of_other_names_are_not_shown(bad: Bad, name: bytes) -> None:
    top = os.fsencode(bad.path / BASE)
    os.makedirs(os.path.join(top, name, b"podinfo"))
    os.mkdir(os.path.join(top, os.fsencode(KEY.namespace), name))
    shown = bad.store.namespaces()
    assert set(shown) == {KEY.namespace, STRANGER.namespace}
    is_repository = name in (b"n" * 64, b"tags.txt")
    assert (os.fsdecode(name) in bad.store.repositories(KEY.namespace)) is is_repository
    bad.require_neighbours()


def test_names_at_the_limits_are_shown(bad: Bad) -> None:
    key = RepositoryKey("n" * 63, "r" * 253)
    (bad.path / key.directory).mkdir(parents=True)
    (bad.path / key.directory / "tags.txt").write_bytes(SMALL)
    assert bad.store.read(key) == SMALL
    assert key in set(bad.store.scan())


def test_foreign_files_beside_the_lists_are_left_alone(bad: Bad) -> None:
    for name in ("README", ".tagfs-quarantine/1", "lost+found/#1", f"{BASE}/notes", f"{BASE}/{KEY.namespace}/notes"):
        (bad.path / name).parent.mkdir(exist_ok=True)
        (bad.path / name).write_text("x")
    bad.require_neighbours()
    bad.require_curable()
    bad.store.remove(KEY)
    bad.store.remove_repository(KEY)
    bad.store.remove(NEIGHBOUR)
    bad.store.remove_repository(NEIGHBOUR)
    with pytest.raises(DirectoryNotEmpty):
        bad.store.remove_namespace(KEY.namespace)
    for name in ("README", ".tagfs-quarantine/1", "lost+found/#1", f"{BASE}/notes", f"{BASE}/{KEY.namespace}/notes"):
        assert (bad.path / name).read_text() == "x"


def test_a_native_list_is_shown_as_it_is_even_where_its_tags_are_not_valid(bad: Bad) -> None:
    """Another program wrote it; that it is no list is for a check to say."""
    plain = b"a b\n\n.x\nno newline"
    bad.put(PLAIN, plain)
    assert bad.store.read(KEY) == plain
    assert len(list(taglist.faults(plain))) == 4


# -- rights


def opened_by_nobody(path: Path) -> DirectoryStore:
    disk = Disk()
    return DirectoryStore(disk, disk.open_root(str(path)), 3, policy_of(3))


def refused(call: Callable[[], object], *, allowed: tuple[type[Exception], ...] = (PermissionError,)) -> None:
    try:
        call()
    except allowed:
        return
    raise AssertionError("it was not refused")


@pytest.mark.skipif(os.geteuid() != 0, reason="to be another user takes root")
@pytest.mark.parametrize("level", ["base", "namespace", "repository", "list"])
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111], ids=oct)
def test_what_may_not_be_read_is_an_error_and_not_missing(bad: Bad, level: str, mode: int) -> None:
    bad.put(ZSTD, ZSTD.encode(LARGE))
    belongs_to_nobody(bad.path)
    spoiled = {
        "base": bad.path / BASE,
        "namespace": bad.directory.parent,
        "repository": bad.directory,
        "list": bad.directory / "tags.txt.zst",
    }[level]
    spoiled.chmod(mode)

    def act() -> None:
        store = opened_by_nobody(bad.path)
        if level == "list":
            if mode == 0o444:
                assert store.read(KEY) == LARGE
            else:
                assert store.examine(KEY).fault == "Permission denied"
                refused(lambda: store.read(KEY), allowed=(ListCorrupt,))
            assert store.read(NEIGHBOUR) == SMALL
            store.replace(KEY, SMALL)
            assert store.read(KEY) == SMALL
        elif mode == 0o111 and level != "repository":
            # What may be entered need not be listed to get to a list.
            assert store.read(KEY) == LARGE
            refused(lambda: list(store.scan()))
        else:
            refused(lambda: store.read(KEY))
            refused(lambda: store.examine(KEY))
            refused(lambda: store.replace(KEY, SMALL))
            refused(lambda: store.remove(KEY))
            if (level, mode) in (("base", 0o000), ("namespace", 0o000)):
                refused(lambda: list(store.scan()))
            if level == "repository":
                assert store.read(NEIGHBOUR) == SMALL
        if level in ("namespace", "repository", "list"):
            assert store.read(STRANGER) == LARGE
        store.close()

    assert as_nobody(act) == 0
    if level != "list":
        spoiled.chmod(0o700)
    bad.require_neighbours()


@pytest.mark.skipif(os.geteuid() != 0, reason="to be another user takes root")
def test_a_store_that_may_not_be_written_is_read_and_refuses_to_be_changed(bad: Bad) -> None:
    bad.put(PLAIN, SMALL)
    for at, directories, files in os.walk(bad.path):
        for name in (".", *directories):
            os.chmod(os.path.join(at, name), 0o755)
        for name in files:
            os.chmod(os.path.join(at, name), 0o644)

    def act() -> None:
        store = opened_by_nobody(bad.path)
        assert store.read(KEY) == SMALL
        for call in (
            lambda: store.replace(KEY, LARGE),
            lambda: store.remove(KEY),
            lambda: store.hide(KEY),
            lambda: store.set_mtime(KEY, 1),
            lambda: store.make_namespace("new"),
            lambda: store.make_repository(RepositoryKey(KEY.namespace, "new")),
        ):
            refused(call)
        store.close()

    assert as_nobody(act) == 0
    bad.require_neighbours()
    assert bad.store.read(KEY) == SMALL


# -- a disk that is gone


def test_a_store_that_vanishes_is_an_error_at_every_call(bad: Bad) -> None:
    for at, directories, files in os.walk(bad.path, topdown=False):
        for name in files:
            os.unlink(os.path.join(at, name))
        for name in directories:
            os.rmdir(os.path.join(at, name))
    bad.path.rmdir()
    calls: list[Callable[[], object]] = [
        bad.store.namespaces,
        lambda: bad.store.read(KEY),
        lambda: bad.store.stage(KEY, SMALL),
        lambda: bad.store.remove(KEY),
        lambda: list(bad.store.scan()),
    ]
    for call in calls:
        with pytest.raises((TagfsError, OSError)) as caught:
            call()
        assert not isinstance(caught.value, (ListMissing, RepositoryMissing))
    bad.path.mkdir()


def test_out_of_descriptors_is_an_error_that_passes(bad: Bad) -> None:
    bad.put(ZSTD, ZSTD.encode(LARGE))
    held: list[int] = []
    with pytest.raises(OSError, match="Too many open files"):
        held.extend(os.open("/dev/null", os.O_RDONLY) for _ in itertools.count())
    seen = set()
    while held:
        try:
            assert bad.store.read(KEY) == LARGE
            break
        except OSError as error:
            seen.add(error.errno)
        os.close(held.pop())
    for descriptor in held:
        os.close(descriptor)
    assert seen == {errno.EMFILE}
    bad.require_neighbours()
