"""Disk: one contract for the real disk and for the simulated one, and what a power loss leaves of the latter."""

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tagfs.disk import DIRECTORY_MODE, FILE_MODE, Disk
from tests.support.faulty_disk import Fault, FaultyDisk, PowerCut, Wrong
from tests.support.places import fast_directory, open_descriptors
from tests.support.simulated_disk import SimulatedDisk


class Ground:
    """A disk, its root, and how a test puts a symbolic link there."""

    def __init__(self, disk: Disk, path: str, symlink: Callable[[int, str, str], None]) -> None:
        self.disk = disk
        self.path = path
        self.root = disk.open_root(path)
        self.symlink = symlink

    def file(self, name: str, content: bytes = b"") -> None:
        file = self.disk.create(self.root, name)
        self.disk.write(file, content)
        self.disk.close(file)

    def content(self, name: str, directory: int | None = None) -> bytes:
        file = self.disk.open_file(self.root if directory is None else directory, name)
        try:
            return self.disk.read(file, 1 << 20)
        finally:
            self.disk.close(file)

    def directory(self, name: str) -> int:
        self.disk.make_dir(self.root, name)
        return self.disk.open_dir(self.root, name)

    def names(self) -> set[str]:
        return {name for name, _ in self.disk.names(self.root)}


@pytest.fixture(params=["real", "simulated", "faulty"])
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    if request.param == "real":
        with fast_directory() as path:
            ground = Ground(Disk(), str(path), lambda at, name, target: os.symlink(target, name, dir_fd=at))
            yield ground
            os.close(ground.root)
        return
    simulated = SimulatedDisk()
    disk = simulated if request.param == "simulated" else FaultyDisk(simulated)
    yield Ground(disk, "/", simulated.symlink)


def refuses(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        call()
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


# -- the contract


def test_a_file_is_written_and_read(ground: Ground) -> None:
    file = ground.disk.create(ground.root, "file")
    ground.disk.write(file, b"abc")
    ground.disk.write(file, b"def")
    ground.disk.sync(file)
    ground.disk.close(file)
    assert ground.content("file") == b"abcdef"
    file = ground.disk.open_file(ground.root, "file")
    assert ground.disk.read(file, 2) == b"ab"
    assert ground.disk.read(file, 2, 3) == b"de"
    assert ground.disk.read(file, 20, 3) == b"def"
    assert ground.disk.read(file, 20, 30) == b""
    assert ground.disk.read(file, 0) == b""
    ground.disk.close(file)


def test_what_is_made_is_private(ground: Ground) -> None:
    ground.file("file", b"abc")
    ground.disk.make_dir(ground.root, "directory")
    of_file = ground.disk.stat(ground.root, "file")
    of_directory = ground.disk.stat(ground.root, "directory")
    assert of_file.st_mode == stat.S_IFREG | FILE_MODE
    assert of_directory.st_mode == stat.S_IFDIR | DIRECTORY_MODE
    assert (of_file.st_size, of_file.st_nlink) == (3, 1)
    assert of_file.st_blocks > 0
    assert of_file.st_ino != of_directory.st_ino
    assert of_file.st_dev == of_directory.st_dev


def test_status_by_name_and_by_descriptor_agree(ground: Ground) -> None:
    ground.file("file", b"abc")
    file = ground.disk.open_file(ground.root, "file")
    by_name, by_descriptor = ground.disk.stat(ground.root, "file"), ground.disk.stat_open(file)
    ground.disk.close(file)
    for name in ("st_mode", "st_ino", "st_dev", "st_nlink", "st_size", "st_blocks", "st_mtime_ns", "st_ctime_ns"):
        assert getattr(by_name, name) == getattr(by_descriptor, name)


def test_missing_names(ground: Ground) -> None:
    disk, root = ground.disk, ground.root
    for call in (
        lambda: disk.open_dir(root, "missing"),
        lambda: disk.open_file(root, "missing"),
        lambda: disk.stat(root, "missing"),
        lambda: disk.unlink(root, "missing"),
        lambda: disk.remove_dir(root, "missing"),
        lambda: disk.rename(root, "missing", root, "other"),
    ):
        refuses(errno.ENOENT, call)
    disk.remove_tree(root, "missing")


def test_taken_names(ground: Ground) -> None:
    ground.file("file")
    ground.disk.make_dir(ground.root, "directory")
    ground.symlink(ground.root, "link", "missing")
    for name in ("file", "directory", "link"):
        refuses(errno.EEXIST, lambda name=name: ground.disk.create(ground.root, name))  # type: ignore[misc]
        refuses(errno.EEXIST, lambda name=name: ground.disk.make_dir(ground.root, name))  # type: ignore[misc]


def test_a_link_is_never_followed(ground: Ground) -> None:
    ground.disk.make_dir(ground.root, "directory")
    ground.file("file", b"secret")
    ground.symlink(ground.root, "to-directory", "directory")
    ground.symlink(ground.root, "to-file", "file")
    refuses(errno.ENOTDIR, lambda: ground.disk.open_dir(ground.root, "to-directory"))
    refuses(errno.ELOOP, lambda: ground.disk.open_file(ground.root, "to-file"))
    assert stat.S_ISLNK(ground.disk.stat(ground.root, "to-directory").st_mode)
    assert ("to-directory", False) in ground.disk.names(ground.root)
    ground.disk.unlink(ground.root, "to-directory")
    ground.disk.remove_tree(ground.root, "to-file")
    assert ground.names() == {"directory", "file"}


def test_kinds_are_told_apart(ground: Ground) -> None:
    ground.file("file")
    ground.disk.make_dir(ground.root, "directory")
    refuses(errno.ENOTDIR, lambda: ground.disk.open_dir(ground.root, "file"))
    refuses(errno.EISDIR, lambda: ground.disk.unlink(ground.root, "directory"))
    refuses(errno.ENOTDIR, lambda: ground.disk.remove_dir(ground.root, "file"))
    refuses(errno.EISDIR, lambda: ground.content("directory"))
    assert sorted(ground.disk.names(ground.root)) == [("directory", True), ("file", False)]


def test_a_file_open_for_reading_is_not_written(ground: Ground) -> None:
    ground.file("file")
    file = ground.disk.open_file(ground.root, "file")
    refuses(errno.EBADF, lambda: ground.disk.write(file, b"x"))
    ground.disk.close(file)


def test_rename_replaces_and_the_old_file_stays_open(ground: Ground) -> None:
    ground.file("old", b"old")
    ground.file("new", b"new")
    file = ground.disk.open_file(ground.root, "old")
    ground.disk.rename(ground.root, "new", ground.root, "old")
    assert ground.names() == {"old"}
    assert ground.content("old") == b"new"
    assert ground.disk.read(file, 9) == b"old"
    assert ground.disk.stat_open(file).st_nlink == 0
    ground.disk.close(file)


def test_rename_into_another_directory(ground: Ground) -> None:
    inner = ground.directory("directory")
    ground.file("file", b"abc")
    number = ground.disk.stat(ground.root, "file").st_ino
    ground.disk.rename(ground.root, "file", inner, "moved")
    assert ground.names() == {"directory"}
    assert ground.content("moved", inner) == b"abc"
    assert ground.disk.stat(inner, "moved").st_ino == number
    ground.disk.close(inner)


def test_rename_keeps_kinds_apart(ground: Ground) -> None:
    ground.file("file")
    inner = ground.directory("directory")
    ground.disk.make_dir(ground.root, "empty")
    ground.disk.close(ground.disk.create(inner, "below"))
    refuses(errno.EISDIR, lambda: ground.disk.rename(ground.root, "file", ground.root, "empty"))
    refuses(errno.ENOTDIR, lambda: ground.disk.rename(ground.root, "empty", ground.root, "file"))
    refuses(errno.ENOTEMPTY, lambda: ground.disk.rename(ground.root, "empty", ground.root, "directory"))
    ground.disk.rename(ground.root, "directory", ground.root, "empty")
    assert ground.names() == {"file", "empty"}
    ground.disk.close(inner)


def test_rename_onto_itself_changes_nothing(ground: Ground) -> None:
    ground.file("file", b"abc")
    ground.disk.rename(ground.root, "file", ground.root, "file")
    assert ground.content("file") == b"abc"


def test_a_full_directory_is_not_removed(ground: Ground) -> None:
    inner = ground.directory("directory")
    ground.disk.close(ground.disk.create(inner, "file"))
    refuses(errno.ENOTEMPTY, lambda: ground.disk.remove_dir(ground.root, "directory"))
    ground.disk.unlink(inner, "file")
    ground.disk.remove_dir(ground.root, "directory")
    assert ground.names() == set()
    assert ground.disk.stat_open(inner).st_nlink == 0
    ground.disk.close(inner)


def test_nothing_is_made_in_a_removed_directory(ground: Ground) -> None:
    inner = ground.directory("directory")
    ground.file("file")
    ground.disk.remove_dir(ground.root, "directory")
    refuses(errno.ENOENT, lambda: ground.disk.create(inner, "file"))
    refuses(errno.ENOENT, lambda: ground.disk.make_dir(inner, "below"))
    refuses(errno.ENOENT, lambda: ground.disk.rename(ground.root, "file", inner, "file"))
    assert ground.disk.names(inner) == []
    ground.disk.close(inner)


def test_remove_tree_removes_all_and_nothing_that_is_linked(ground: Ground) -> None:
    outside = ground.directory("outside")
    ground.disk.close(ground.disk.create(outside, "precious"))
    tree = ground.directory("tree")
    ground.disk.make_dir(tree, "a")
    inner = ground.disk.open_dir(tree, "a")
    ground.disk.close(ground.disk.create(inner, "file"))
    ground.symlink(inner, "up", "../../outside")
    ground.symlink(tree, "loop", "loop")
    ground.disk.remove_tree(ground.root, "tree")
    assert ground.names() == {"outside"}
    assert ground.disk.names(outside) == [("precious", False)]
    for descriptor in (outside, tree, inner):
        ground.disk.close(descriptor)


def test_mtime_is_set(ground: Ground) -> None:
    ground.file("file")
    file = ground.disk.open_file(ground.root, "file")
    ground.disk.set_mtime(file, 1_234_567_890_123_456_789)
    ground.disk.close(file)
    assert ground.disk.stat(ground.root, "file").st_mtime_ns == 1_234_567_890_123_456_789


def test_a_change_of_entries_is_seen_in_the_mtime_of_a_directory(ground: Ground) -> None:
    inner = ground.directory("directory")
    before = ground.disk.stat_open(inner).st_mtime_ns
    while ground.disk.stat_open(inner).st_mtime_ns == before:  # The clock of time stamps may be a coarse one.
        ground.disk.close(ground.disk.create(inner, "file"))
        ground.disk.unlink(inner, "file")
    ground.disk.close(inner)


def test_the_mode_is_set(ground: Ground) -> None:
    ground.file("file")
    file = ground.disk.open_file(ground.root, "file")
    ground.disk.set_mode(file, 0o640)
    ground.disk.close(file)
    assert ground.disk.stat(ground.root, "file").st_mode == stat.S_IFREG | 0o640


def test_one_lock_at_a_time(ground: Ground) -> None:
    second = ground.disk.open_root(ground.path)
    assert ground.disk.lock(ground.root)
    assert ground.disk.lock(ground.root)
    assert not ground.disk.lock(second)
    third = ground.disk.open_root(ground.path)
    ground.disk.close(second)
    assert not ground.disk.lock(third)
    ground.disk.close(ground.root)
    ground.root = ground.disk.open_root(ground.path)
    assert ground.disk.lock(third)
    ground.disk.close(third)


def test_syncing_needs_something_open(ground: Ground) -> None:
    file = ground.disk.create(ground.root, "file")
    for call in (ground.disk.sync, ground.disk.sync_dir, ground.disk.sync_filesystem):
        call(ground.root)
        call(file)
    ground.disk.close(file)
    refuses(errno.EBADF, lambda: ground.disk.sync(file))
    refuses(errno.EBADF, lambda: ground.disk.sync_dir(file))
    refuses(errno.EBADF, lambda: ground.disk.sync_filesystem(file))
    refuses(errno.EBADF, lambda: ground.disk.close(file))


def test_space_is_told(ground: Ground) -> None:
    space = ground.disk.space(ground.root)
    assert 0 < space.f_bavail <= space.f_blocks
    assert space.f_namemax == 255


def test_a_directory_is_listed_again_and_again(ground: Ground) -> None:
    ground.file("file")
    for _ in range(3):
        assert ground.disk.names(ground.root) == [("file", False)]


@pytest.mark.parametrize("kind", [SimulatedDisk, FaultyDisk])
def test_every_call_is_simulated(kind: type[Disk]) -> None:
    """But for `remove_tree`, which is made of other calls."""
    calls = {name for name in vars(Disk) if not name.startswith("_")} - {"remove_tree"}
    assert calls <= set(vars(kind))


# -- the real disk


def test_a_fifo_and_a_socket_do_not_block(tmp_path: Path) -> None:
    disk = Disk()
    root = disk.open_root(str(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    file = disk.open_file(root, "fifo")
    refuses(errno.ESPIPE, lambda: disk.read(file, 1))
    disk.close(file)
    refuses(errno.ENXIO, lambda: disk.open_file(root, "socket"))
    refuses(errno.ENOTDIR, lambda: disk.open_dir(root, "fifo"))
    disk.close(root)


def test_descriptors_do_not_outlive_an_exec(tmp_path: Path) -> None:
    disk = Disk()
    root = disk.open_root(str(tmp_path))
    disk.make_dir(root, "directory")
    made = [root, disk.create(root, "file"), disk.open_file(root, "file"), disk.open_dir(root, "directory")]
    assert not any(os.get_inheritable(descriptor) for descriptor in made)
    for descriptor in made:
        disk.close(descriptor)


def test_the_root_alone_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    disk = Disk()
    disk.close(disk.open_root(str(tmp_path / "link")))


def test_a_tree_that_cannot_be_removed_leaks_nothing(tmp_path: Path) -> None:
    (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "b" / "file").touch()
    faulty = FaultyDisk(Disk())
    root = faulty.open_root(str(tmp_path))
    before = open_descriptors()
    for at in range(100):
        faulty.arm(Fault(at, Wrong.EIO))
        try:
            faulty.remove_tree(root, "tree")
        except OSError as error:
            assert error.errno == errno.EIO  # noqa: PT017
        assert open_descriptors() == before
        if not (tmp_path / "tree").exists():
            break
    assert list(tmp_path.iterdir()) == []
    os.close(root)


# -- what a power loss leaves


def test_only_what_was_synced_survives() -> None:
    disk = SimulatedDisk()
    ground = Ground(disk, "/", disk.symlink)
    inner = ground.directory("directory")
    file = disk.create(inner, "file")
    disk.write(file, b"abc")

    def survived() -> Ground:
        after = disk.power_loss()
        return Ground(after, "/", after.symlink)

    assert survived().names() == set()
    disk.sync_dir(ground.root)
    after = survived()
    assert after.disk.names(after.disk.open_dir(after.root, "directory")) == []
    disk.sync_dir(inner)
    after = survived()
    assert after.content("file", after.disk.open_dir(after.root, "directory")) == b""
    disk.sync(file)
    disk.write(file, b"def")
    after = survived()
    assert after.content("file", after.disk.open_dir(after.root, "directory")) == b"abc"


def contents_of_survivors(disk: SimulatedDisk, name: str) -> set[bytes | None]:
    found: set[bytes | None] = set()
    for _, survivor in disk.survivors():
        ground = Ground(survivor, "/", survivor.symlink)
        found.add(ground.content(name) if name in ground.names() else None)
    return found


def test_a_file_that_was_not_synced_may_be_anything_that_posix_allows() -> None:
    disk = SimulatedDisk()
    root = disk.open_root("/")
    file = disk.create(root, "file")
    disk.write(file, b"abcdef")
    assert contents_of_survivors(disk, "file") == {None, b"", b"abc", bytes(6), b"abcdef"}
    disk.sync(file)
    assert contents_of_survivors(disk, "file") == {None, b"abcdef"}
    disk.sync_dir(root)
    assert contents_of_survivors(disk, "file") == {b"abcdef"}


def test_a_rename_that_was_not_synced_may_have_happened_in_one_directory_only() -> None:
    disk = SimulatedDisk()
    ground = Ground(disk, "/", disk.symlink)
    inner = ground.directory("directory")
    file = disk.create(ground.root, "file")
    disk.write(file, b"abc")
    disk.sync(file)
    disk.sync_filesystem(ground.root)
    disk.rename(ground.root, "file", inner, "file")
    found = set()
    for _, survivor in disk.survivors():
        root = survivor.open_root("/")
        below = survivor.open_dir(root, "directory")
        found.add((len(survivor.names(root)) == 2, len(survivor.names(below)) == 1))
    assert found == {(True, False), (True, True), (False, False), (False, True)}


def test_changes_of_one_directory_keep_their_order() -> None:
    disk = SimulatedDisk()
    root = disk.open_root("/")
    for name in "abc":
        disk.close(disk.create(root, name))
    found = {frozenset(Ground(after, "/", after.symlink).names()) for _, after in disk.survivors()}
    assert found == {frozenset(), frozenset("a"), frozenset("ab"), frozenset("abc")}


def test_a_disk_that_was_synced_survives_as_it_is() -> None:
    disk = SimulatedDisk()
    ground = Ground(disk, "/", disk.symlink)
    ground.file("file", b"abc")
    ground.directory("directory")
    disk.sync_filesystem(ground.root)
    assert [after.fingerprint() for _, after in disk.survivors()] == [disk.fingerprint()]


def test_time_stamps_can_be_coarse() -> None:
    disk = SimulatedDisk(granularity_ns=1_000_000_000)
    root = disk.open_root("/")
    file = disk.create(root, "file")
    assert disk.stat_open(file).st_mtime_ns % 1_000_000_000 == 0
    disk.set_mtime(file, 1_999_999_999)
    assert disk.stat_open(file).st_mtime_ns == 1_000_000_000


# -- faults


@pytest.mark.parametrize(
    ("wrong", "content"),
    [
        (Wrong.EIO, b"abc"),
        (Wrong.ENOSPC, b"abc"),
        (Wrong.TORN, b"abcde"),
        (Wrong.CUT, b"abc"),
        (Wrong.TORN_CUT, b"abcde"),
    ],
)
def test_one_call_goes_wrong(wrong: Wrong, content: bytes) -> None:
    simulated = SimulatedDisk()
    disk = FaultyDisk(simulated)
    root = disk.open_root("/")
    file = disk.create(root, "file")
    disk.arm(Fault(1, wrong))
    disk.write(file, b"abc")
    with pytest.raises(PowerCut if wrong in (Wrong.CUT, Wrong.TORN_CUT) else OSError):
        disk.write(file, b"defg")
    assert disk.calls == ["write", "write"]
    assert Ground(simulated, "/", simulated.symlink).content("file") == content
    if wrong in (Wrong.CUT, Wrong.TORN_CUT):
        with pytest.raises(PowerCut):
            disk.close(file)
    else:
        disk.write(file, b"!")
        disk.close(file)


def test_a_path_below_leads_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"v1\n")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "link").symlink_to("file")
    disk = Disk()
    root = disk.open_root(str(tmp_path))
    file = disk.open_file_below(root, "real/file")
    assert disk.read(file, 10) == b"v1\n"
    for descriptor in (file, disk.open_below(root, "real")):
        disk.close(descriptor)
    for path in ("link/file", "real/link"):
        refuses(errno.ELOOP, lambda path=path: disk.open_file_below(root, path))  # type: ignore[misc]
    refuses(errno.ENOTDIR, lambda: disk.open_below(root, "link"))
    refuses(errno.ENOENT, lambda: disk.open_file_below(root, "real/missing"))
    disk.close(root)
