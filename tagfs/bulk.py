"""Bulk: many lists replaced by the only writer of a store, made durable in groups.  Blocking.

Owns: which lists go together; what became of each.
Does not know: where lists are from.
Invariant: a list is acknowledged when it is durable, and not before; a reader sees each one old or new, at every crash.

All lists of a group are written beside, then one syncfs(2) makes them durable, then they are renamed into place, and
one more makes that durable: two waits for the disk, where one by one there are two for each list.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from tagfs.directory import DirectoryStore
from tagfs.durability import Blocking, Unsynced, Work
from tagfs.names import RepositoryKey
from tagfs.store import Stage, Version

GROUP = 64
"""Lists in a group: 5,000 lists take 2.6 s so, one by one 24 s (measured)."""


class Outcome(NamedTuple):
    """What became of a list: its durable version, or the error because of which the old one is still there."""

    key: RepositoryKey
    version: Version | None
    error: Exception | None = None


_Going = tuple[RepositoryKey, Work[Version], Blocking]
"""Work on a list that has come to where it blocks."""


class Bulk:
    """Writes lists to `store`; whoever uses it is the store's only writer.

    Unlike a mount, it waits for a whole file system also where that is not ext4: nobody waits for a single list.
    """

    def __init__(self, store: DirectoryStore, group: int = GROUP) -> None:
        self._store = store
        self._group = group
        self._waiting: dict[RepositoryKey, tuple[Stage, int | None]] = {}

    def replace(self, key: RepositoryKey, plain: bytes, mtime_ns: int | None = None) -> list[Outcome]:
        """Let `plain`, a valid list, become that of `key` with its group; -> what became of those that were due.

        Raises:
            ListTooLarge, OSError: it could not be written beside; the others are not concerned.
        """
        due = self.flush() if key in self._waiting else []
        self._waiting[key] = self._store.stage(key, plain), mtime_ns
        if len(self._waiting) >= self._group:
            due += self.flush()
        return due

    def flush(self) -> list[Outcome]:
        """Commit what waits; -> what became of each.  All that is acknowledged is durable."""
        waiting, self._waiting = self._waiting, {}
        outcomes: list[Outcome] = []
        going: list[_Going] = []
        with ExitStack() as ending:
            for stage, _ in waiting.values():
                ending.callback(self._store.discard, stage)
            for stage, mtime_ns in waiting.values():
                work = self._store.publication(stage, mtime_ns)
                ending.callback(work.close)
                _advance(stage.key, work, None, going, outcomes)
            while going:
                errors = self._wait([blocking for _, _, blocking in going])
                before, going = going, []
                for (key, work, _), error in zip(before, errors, strict=True):
                    _advance(key, work, error, going, outcomes)
        return outcomes

    def discard(self) -> None:
        """Give up what waits."""
        waiting, self._waiting = self._waiting, {}
        for stage, _ in waiting.values():
            self._store.discard(stage)

    def _wait(self, group: Sequence[Blocking]) -> list[Exception | None]:
        disk = self._store.disk
        if len(group) > 1 and all(isinstance(one, Unsynced) for one in group) and disk.tells_of_lost_writes():
            try:
                disk.sync_filesystem(self._store.root)
                return [None] * len(group)
            except OSError:
                pass  # each file tells whether it is the one
        return [_error_of(one) for one in group]


def _advance(
    key: RepositoryKey, work: Work[Version], error: Exception | None, going: list[_Going], outcomes: list[Outcome]
) -> None:
    """Let a work go on to where it blocks next, or to its end."""
    try:
        going.append((key, work, next(work) if error is None else work.throw(error)))
    except StopIteration as end:
        outcomes.append(Outcome(key, end.value))
    except Exception as failure:
        outcomes.append(Outcome(key, None, failure))


def _error_of(one: Blocking) -> Exception | None:
    try:
        one.do()
    except Exception as error:
        return error
    return None
