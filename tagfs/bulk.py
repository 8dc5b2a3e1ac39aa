"""Bulk: many lists replaced by the only writer of a store, made durable in groups.  Blocking.

Owns: which lists go together; what became of each.
Does not know: where lists are from.
Invariant: a list is acknowledged when it is durable, and not before; a reader sees each one old or new, at every crash.

All lists of a group are written beside, then they have to be durable, then they are renamed into place, and that has to
be durable.  One syncfs(2) is both: what the group before has renamed, and what this one has written.  So a group costs
one wait for the disk, where one by one there are two for each list.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import NamedTuple

from tagfs.directory import DirectoryStore
from tagfs.durability import Blocking, Unsynced, Work, error_of
from tagfs.names import RepositoryKey
from tagfs.store import Stage, Version

GROUP = 64
"""Lists in a group: three descriptors are open for each of two groups, and a process may have 1,024."""


class Outcome(NamedTuple):
    """What became of a list: its durable version, or the error because of which the old one is still there."""

    key: RepositoryKey
    version: Version | None
    error: Exception | None = None


class _Going:
    """Work on a list, and where it blocks, once it has begun."""

    __slots__ = ("blocking", "work")

    def __init__(self, work: Work[Version]) -> None:
        self.work = work
        self.blocking: Blocking | None = None


class Bulk:
    """Writes lists to `store`; whoever uses it is the store's only writer.

    Unlike a mount, it waits for a whole file system also where that is not ext4: nobody waits for a single list.
    """

    def __init__(self, store: DirectoryStore, group: int = GROUP) -> None:
        self._store = store
        self._group = group
        # INVARIANT: a list is written beside here, or its work is in `_going`, or its outcome was told.
        self._waiting: dict[RepositoryKey, tuple[Stage, int | None]] = {}
        self._going: dict[RepositoryKey, _Going] = {}

    def replace(self, key: RepositoryKey, plain: bytes, mtime_ns: int | None = None) -> list[Outcome]:
        """Let `plain`, a valid list, become that of `key` with its group; -> what became of those that were due.

        Raises:
            ListTooLarge, OSError: it could not be written beside; the others are not concerned.
        """
        due = self.flush() if key in self._waiting or key in self._going else []
        self._waiting[key] = self._store.stage(key, plain), mtime_ns
        if len(self._waiting) >= self._group:
            due += self._step()
        return due

    def flush(self) -> list[Outcome]:
        """Commit what waits; -> what became of each.  All that is acknowledged is durable."""
        outcomes = self._step()
        while self._going:
            outcomes += self._step()
        return outcomes

    def discard(self) -> None:
        """Give up what was not acknowledged; a list that is renamed already stays."""
        waiting, self._waiting = self._waiting, {}
        going, self._going = self._going, {}
        with ExitStack() as ending:
            for stage, _ in waiting.values():
                ending.callback(self._store.discard, stage)
            for one in going.values():
                ending.callback(one.work.close)

    def _step(self) -> list[Outcome]:
        """Have all that was begun go on past one wait for the disk; -> what became of those that came to an end."""
        outcomes: list[Outcome] = []
        try:
            for key in list(self._waiting):
                self._going[key] = _Going(self._store.publication(*self._waiting.pop(key)))
                self._advance(key, None, outcomes)
            errors = self._wait([one.blocking for one in self._going.values() if one.blocking is not None])
            for key, error in zip(list(self._going), errors, strict=True):
                self._advance(key, error, outcomes)
        except BaseException:
            self.discard()
            raise
        return outcomes

    def _advance(self, key: RepositoryKey, error: Exception | None, outcomes: list[Outcome]) -> None:
        """Let a work go on to where it blocks next, or to its end."""
        going = self._going[key]
        try:
            going.blocking = next(going.work) if error is None else going.work.throw(error)
            return
        except StopIteration as end:
            outcomes.append(Outcome(key, end.value))
        except Exception as failure:
            outcomes.append(Outcome(key, None, failure))
        del self._going[key]

    def _wait(self, group: Sequence[Blocking]) -> list[Exception | None]:
        disk = self._store.disk
        if len(group) > 1 and all(isinstance(one, Unsynced) for one in group) and disk.tells_of_lost_writes():
            # What else it may tell of, all of it is in this group; each file tells whether it is the one.
            with suppress(OSError):
                disk.sync_filesystem(self._store.root)
                return [None] * len(group)
        return [error_of(one) for one in group]
