"""Work that says where it blocks, and one syncfs for the fsyncs of many."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tagfs import durability
from tagfs.disk import Disk
from tagfs.durability import TOGETHER_FROM, Call, Together, Unsynced, Work, do_all, done

EXT4 = 0xEF53
XFS = 0x58465342


class Recorded(Disk):
    """Says what was synced; descriptors in `lost` are told once that a write was lost, as is the file system."""

    def __init__(self, kind: int = EXT4, tells: bool = True) -> None:
        self.told: list[str] = []
        self.lost: set[int] = set()
        self.is_filesystem_told = False
        self._kind = kind
        self._tells = tells

    def kind(self, directory: int) -> int:
        return self._kind

    def tells_of_lost_writes(self, release: str | None = None) -> bool:
        return self._tells

    def sync(self, file: int) -> None:
        self.told.append(f"sync {file}")
        if file in self.lost:
            self.lost.remove(file)
            raise OSError(errno.EIO, "lost")

    def sync_dir(self, directory: int) -> None:
        self.told.append(f"sync_dir {directory}")

    def sync_filesystem(self, directory: int) -> None:
        self.told.append("syncfs")
        if self.lost and not self.is_filesystem_told:
            self.is_filesystem_told = True
            raise OSError(errno.EIO, "lost")


def unsynced(disk: Disk, together: Together, count: int, first: int = 10) -> list[Unsynced]:
    return [Unsynced(together, disk, (file,), (file + 100,)) for file in range(first, first + count)]


def test_what_waits_is_made_durable_by_one_call() -> None:
    disk = Recorded()
    assert do_all(unsynced(disk, Together(disk, 3), 5)) == [None] * 5
    assert disk.told == ["syncfs"]


def test_one_alone_is_synced_by_itself() -> None:
    """What other programs have changed on the file system is none of its business."""
    disk = Recorded()
    assert do_all(unsynced(disk, Together(disk, 3), 1)) == [None]
    assert disk.told == ["sync 10", "sync_dir 110"]


@pytest.mark.parametrize(("kind", "tells"), [(XFS, True), (EXT4, False)])
def test_a_file_system_that_is_not_known_to_do_it_well_is_asked_for_each_file(kind: int, tells: bool) -> None:
    disk = Recorded(kind, tells)
    together = Together(disk, 3)
    assert not together.is_usable
    assert do_all(unsynced(disk, together, 3)) == [None] * 3
    assert disk.told == [f"sync{what}" for file in (10, 11, 12) for what in (f" {file}", f"_dir {file + 100}")]


def test_a_lost_write_is_told_to_the_one_who_lost_it_and_to_no_other() -> None:
    disk = Recorded()
    disk.lost = {12}
    errors = do_all(unsynced(disk, Together(disk, 3), 4))
    assert [str(error) for error in errors] == ["None", "None", "[Errno 5] lost", "None"]
    assert disk.told[0] == "syncfs"


def test_a_lost_write_of_a_later_group_is_not_forgotten() -> None:
    """The kernel has told it to the first group already, and tells the file system of it no more."""
    disk = Recorded()
    together = Together(disk, 3)
    disk.lost = {20}
    assert do_all(unsynced(disk, together, 3)) == [None] * 3
    errors = do_all(unsynced(disk, together, 3, first=20))
    assert [error is None for error in errors] == [False, True, True]
    assert disk.told.count("syncfs") == 1


def test_after_a_slow_one_each_is_synced_by_itself_for_a_while() -> None:
    now = 100.0

    class Slow(Recorded):
        def sync_filesystem(self, directory: int) -> None:
            nonlocal now
            super().sync_filesystem(directory)
            now += durability.SLOW + 1

    disk = Slow()
    together = Together(disk, 3, clock=lambda: now)
    for _ in range(2):
        assert do_all(unsynced(disk, together, 2)) == [None] * 2
    assert disk.told == ["syncfs", "sync 10", "sync_dir 110", "sync 11", "sync_dir 111"]
    assert not together.is_usable
    now += durability.REST
    assert together.is_usable
    assert do_all(unsynced(disk, together, 2)) == [None] * 2
    now += durability.REST
    assert not together.is_usable
    now += durability.REST
    assert together.is_usable


def test_a_group_is_more_than_one() -> None:
    assert TOGETHER_FROM > 1


# -- work


def steps(told: list[str], *blocking: Callable[[], object]) -> Work[str]:
    for number, call in enumerate(blocking):
        try:
            yield Call(call)
            told.append(f"{number} done")
        except OSError as error:
            told.append(f"{number} failed: {error.strerror}")
    return "result"


def test_work_is_done_in_its_order_and_gives_its_result() -> None:
    told: list[str] = []
    assert done(steps(told, lambda: told.append("a"), lambda: told.append("b"))) == "result"
    assert told == ["a", "0 done", "b", "1 done"]


def test_an_error_comes_where_the_work_blocked() -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "broken")

    told: list[str] = []
    assert done(steps(told, fail, lambda: None)) == "result"
    assert told == ["0 failed: broken", "1 done"]


def test_an_error_that_the_work_does_not_know_ends_it() -> None:
    def fail() -> None:
        raise ValueError("no such thing")

    told: list[str] = []
    with pytest.raises(ValueError, match="no such thing"):
        done(steps(told, fail, lambda: None))
    assert told == []


def test_work_that_never_blocks_gives_its_result() -> None:
    assert done(steps([])) == "result"


# -- the real disk


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def test_the_kind_of_a_file_system_is_the_one_that_the_kernel_says(directory: int, tmp_path: Path) -> None:
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    on = max((one for one in mounts if tmp_path.is_relative_to(one[4])), key=lambda one: len(one[4]))
    told = {"ext4": EXT4, "xfs": XFS, "tmpfs": 0x01021994, "overlay": 0x794C7630, "btrfs": 0x9123683E}
    name = on[on.index("-") + 1]
    if name not in told:
        pytest.skip(f"the number of {name} is not in this test")
    assert Disk().kind(directory) == told[name]


@pytest.mark.parametrize(
    ("release", "tells"),
    [("5.7.19-generic", False), ("5.8.0", True), ("6.1.0-39-amd64", True), ("4.18.0-553.el8", False), ("10.0", True)],
)
def test_linux_tells_of_lost_writes_since_5_8(release: str, tells: bool) -> None:
    assert Disk().tells_of_lost_writes(release) is tells
