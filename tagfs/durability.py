"""Durability: what has to be on the disk before something goes on, alone or with what others wait for.  Blocking.

Owns: work that says where it blocks; when one syncfs(2) stands for many fsync(2), so that no error is lost.
Does not know: lists, threads.
Measured in docs/decisions/0010-groups-of-commits.md.
"""

from collections.abc import Callable, Generator, Sequence
from time import monotonic
from typing import NamedTuple, TypeVar

from tagfs.disk import Disk

_T = TypeVar("_T")

TOGETHER_FROM = 2
"""How many have to wait: syncfs also writes what other programs have changed on that file system."""

SLOW = 0.5
"""Seconds that a syncfs takes only where another program has changed a lot."""

REST = 5.0
"""Seconds in which each is synced by itself after a slow one, doubled after each further one up to LONGEST_REST."""

LONGEST_REST = 600.0

_GROUPED_KINDS = frozenset({0xEF53})
"""File systems whose syncfs is one commit of the journal, by their numbers in `statfs(2)`: ext4.  Others were not
measured."""


class Call(NamedTuple):
    """Something that blocks, of which nothing else is known."""

    call: Callable[[], object]

    def do(self) -> None:
        self.call()


class Together:
    """Makes files of one file system durable, many at once where that is better; one group at a time.

    `root` is a directory of it, opened before any of them was written.
    """

    def __init__(self, disk: Disk, root: int, clock: Callable[[], float] = monotonic) -> None:
        self._disk = disk
        self._clock = clock
        self._root = root
        self._is_able: bool | None = None
        self._not_before = 0.0
        self._rest = REST

    @property
    def is_usable(self) -> bool:
        """Whether many may be made durable at once, now."""
        if self._is_able is None:
            self._is_able = self._disk.kind(self._root) in _GROUPED_KINDS and self._disk.tells_of_lost_writes()
        return self._is_able and self._clock() >= self._not_before

    def sync(self, group: Sequence["Unsynced"]) -> list[Exception | None]:
        """Make a group durable; -> for each, the error because of which it is not.

        The kernel tells of a lost write once to each descriptor.  What `root` is told of may be the loss of a file that
        a later group holds, so from then on each file is asked by itself.
        """
        if len(group) >= TOGETHER_FROM and self.is_usable:
            began = self._clock()
            try:
                self._disk.sync_filesystem(self._root)
                return [None] * len(group)
            except OSError:
                self._is_able = False
            finally:
                self._note(self._clock() - began)
        return [error_of(one) for one in group]

    def _note(self, seconds: float) -> None:
        if seconds > SLOW:
            self._not_before = self._clock() + self._rest
            self._rest = min(2 * self._rest, LONGEST_REST)
        else:
            self._rest = REST


class Unsynced(NamedTuple):
    """Open files and directories that have to be durable."""

    together: Together
    disk: Disk
    files: tuple[int, ...] = ()
    directories: tuple[int, ...] = ()

    def do(self) -> None:
        for file in self.files:
            self.disk.sync(file)
        for directory in self.directories:
            self.disk.sync_dir(directory)


Blocking = Call | Unsynced

Work = Generator[Blocking, None, _T]
"""Work that may be done anywhere but for what it yields: that blocks, and the work goes on when it is done, or with its
error."""


def done(work: Work[_T]) -> _T:
    """Do all of a work here and now; -> its result."""
    try:
        blocking = next(work)
    except StopIteration as end:
        result: _T = end.value
        return result
    return done_from(work, blocking)


def done_from(work: Work[_T], blocking: Blocking) -> _T:
    """Do here and now what is left of a work, from `blocking` on, which it has yielded; -> its result."""
    try:
        while True:
            try:
                blocking.do()
            except BaseException as error:
                blocking = work.throw(error)
            else:
                blocking = next(work)
    except StopIteration as end:
        result: _T = end.value
        return result


def do_all(group: Sequence[Blocking]) -> list[Exception | None]:
    """Do what blocks; -> for each its error.  More than one at once are `Unsynced` of the same file system."""
    if len(group) > 1 and isinstance(group[0], Unsynced):
        return group[0].together.sync([one for one in group if isinstance(one, Unsynced)])
    return [error_of(one) for one in group]


def error_of(one: Blocking) -> Exception | None:
    """Do what blocks; -> its error."""
    try:
        one.do()
    except Exception as error:
        return error
    return None
