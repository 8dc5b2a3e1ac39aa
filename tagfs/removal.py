"""Removal: how an orphan goes, from a store or from beneath a mount.  Async.

Owns: what is listed of a store; that nothing goes which is being written, or has been since the look that missed it.
Does not know: which keys are orphans, inventories, when.
"""

import itertools
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import trio

from tagfs.commits import Commits
from tagfs.errors import DirectoryNotEmpty, ListMissing, RepositoryMissing
from tagfs.guard import LEDGER_LIMIT, Ledger
from tagfs.handles import Step
from tagfs.names import BASE, RepositoryKey
from tagfs.plan import Disk
from tagfs.replacing import WritableTree
from tagfs.store import Store
from tagfs.view import Invalidation

log = logging.getLogger(__name__)

MADE_LATELY = 60.0
"""Seconds for which a directory that a program has just made, and put nothing into yet, is left alone."""

RECENT = 5.0
"""Seconds: a departure may be that old when it is told, so what was written in them may be a successor's."""

LISTED_AT_ONCE = 256
"""Repositories that are listed before readers of the mount go first, and for how many seconds those do."""
LISTING_PAUSE = 0.005

_NS = 1_000_000_000
_CLOCK_REALTIME_COARSE = 5
"""The clock that file systems stamp with (the kernel's `include/uapi/linux/time.h`); Python has no name for it."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment: `wall_ns` as the file system stamps what is written, `clock` of time.monotonic."""

    wall_ns: int
    clock: float

    @classmethod
    def now(cls, age: float = 0.0) -> "Mark":
        """The moment `age` seconds ago; nothing that is written from now on is stamped with an earlier one."""
        return cls(time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) - int(age * _NS), time.monotonic() - age)


class Outcome(Enum):
    """What became of an orphan."""

    DELETED = "its list was deleted"
    BARE = "its directory had no list, and was removed"
    LEFT = "it is being written, or was meanwhile, so it may live"
    GONE = "it was gone already"


class Removal(ABC):
    """What is swept."""

    @contextmanager
    def marked(self) -> Iterator[Mark]:
        """The moment before which what is deleted must have been written last; good while the context lasts."""
        yield Mark.now()

    @abstractmethod
    async def listing(self) -> Disk:
        """What the store holds; raises OSError, StoreWaiting."""

    @abstractmethod
    async def has(self, key: RepositoryKey) -> bool:
        """Whether it has a directory, with a list or without one; raises OSError, StoreWaiting."""

    @abstractmethod
    async def remove(self, key: RepositoryKey, mark: Mark) -> Outcome:
        """Delete the list of an orphan and its directory; raises OSError, StoreWaiting."""

    @abstractmethod
    async def prune(self, namespace: str, mark: Mark, is_emptied: bool) -> bool:
        """Remove a namespace without repositories; -> whether it is gone now.

        One that the sweep itself has not emptied stays where it was made lately: its maker goes on in it.
        """

    @abstractmethod
    async def ledger(self) -> Ledger | None:
        """What the guard of an earlier sweep left; LedgerUnreadable, StoreWaiting, OSError."""

    @abstractmethod
    async def write_ledger(self, ledger: Ledger) -> None:
        """Leave it to the next guard, durably; StoreWaiting, OSError."""


class StoreRemoval(Removal):
    """On the store itself, whose only writer this process is; `before` is called before each deletion."""

    def __init__(self, store: Store, before: Callable[[RepositoryKey], None] = lambda key: None) -> None:
        self._store = store
        self._before = before

    async def listing(self) -> Disk:
        return collect(entries(self._store))

    async def has(self, key: RepositoryKey) -> bool:
        return is_there(self._store, key)

    async def remove(self, key: RepositoryKey, mark: Mark) -> Outcome:
        self._before(key)
        return remove_orphan(self._store, key, mark)

    async def prune(self, namespace: str, mark: Mark, is_emptied: bool) -> bool:
        return remove_namespace(self._store, namespace, mark, is_emptied)

    async def ledger(self) -> Ledger | None:
        return _decoded(self._store.ledger(LEDGER_LIMIT + 1))

    async def write_ledger(self, ledger: Ledger) -> None:
        self._store.write_ledger(ledger.encoded())


class MountRemoval(Removal):
    """Beneath a mount: in the order of its commits.  What is open stays readable.

    Args:
        forget: tells the kernel what to forget.
    """

    def __init__(self, tree: WritableTree, commits: Commits, forget: Callable[[Iterable[Invalidation]], None]) -> None:
        self._tree = tree
        self._store = tree.store
        self._commits = commits
        self._forget = forget

    @contextmanager
    def marked(self) -> Iterator[Mark]:
        mark = Mark.now()
        with self._tree.written.kept(mark.clock):
            yield mark

    async def listing(self) -> Disk:
        found: list[_Entry] = []
        listed = entries(self._store)
        while batch := await trio.to_thread.run_sync(lambda: list(itertools.islice(listed, LISTED_AT_ONCE))):
            found += batch
            await trio.sleep(LISTING_PAUSE)
        return collect(iter(found))

    async def has(self, key: RepositoryKey) -> bool:
        await self._commits.quiet(key)
        return is_there(self._store, key)

    async def remove(self, key: RepositoryKey, mark: Mark) -> Outcome:
        await self._commits.quiet(key)
        # No await from here until the step is in its line: whoever opens the list for writing later waits for it.
        if self._tree.is_in_use(key) or self._tree.written.is_touched(key, mark.clock):
            return Outcome.LEFT
        outcome = Outcome.LEFT

        def settle(result: Outcome) -> None:
            nonlocal outcome
            outcome = result
            if result is not Outcome.LEFT:
                self._forget(self._tree.removed((key.namespace, key.name)))

        def fail(_: BaseException) -> None:
            # Some of it may be gone.
            self._forget(self._tree.removed((key.namespace, key.name)))

        store = self._store
        step = Step(key, lambda: remove_orphan(store, key, mark), settle, fail)
        with trio.CancelScope(shield=True):
            await self._commits.run(step)
        return outcome

    async def prune(self, namespace: str, mark: Mark, is_emptied: bool) -> bool:
        is_gone = remove_namespace(self._store, namespace, mark, is_emptied)
        if is_gone:
            # The kernel may keep it for a second: who has seen it there can still make a repository in it.
            self._tree.removed((namespace,))
        return is_gone

    async def ledger(self) -> Ledger | None:
        return _decoded(await trio.to_thread.run_sync(self._store.ledger, LEDGER_LIMIT + 1))

    async def write_ledger(self, ledger: Ledger) -> None:
        await trio.to_thread.run_sync(self._store.write_ledger, ledger.encoded())


@dataclass(frozen=True, slots=True)
class _Entry:
    namespace: str
    key: RepositoryKey | None = None
    has_list: bool = False


def entries(store: Store) -> Iterator[_Entry]:
    """Every namespace, then its keys; what vanishes meanwhile, or cannot be read, may be missing."""
    for namespace in sorted(store.namespaces()):
        try:
            for key, has_list in store.holdings(namespace):
                yield _Entry(namespace, key, has_list)
        except RepositoryMissing:
            continue
        except OSError as error:
            # Not seen whole, and so not taken for empty.
            log.error("%s/%s: not swept: %s", BASE, namespace, error.strerror or error)
            continue
        yield _Entry(namespace)


def collect(found: Iterator[_Entry]) -> Disk:
    lists: list[RepositoryKey] = []
    bare: list[RepositoryKey] = []
    namespaces: list[str] = []
    for entry in found:
        if entry.key is None:
            namespaces.append(entry.namespace)
        else:
            (lists if entry.has_list else bare).append(entry.key)
    return Disk(frozenset(lists), frozenset(bare), frozenset(namespaces))


def is_there(store: Store, key: RepositoryKey) -> bool:
    try:
        store.directory_mtime_ns(key.namespace, key.name)
    except RepositoryMissing:
        return False
    return True


def remove_orphan(store: Store, key: RepositoryKey, mark: Mark) -> Outcome:
    """Delete the list of a key, durably, and its directory."""
    outcome = Outcome.DELETED
    try:
        if store.examine(key).ctime_ns >= mark.wall_ns:
            return Outcome.LEFT
        store.remove(key)
    except RepositoryMissing:
        return Outcome.GONE
    except ListMissing:
        if _is_made_lately(store, mark, key.namespace, key.name):
            return Outcome.LEFT
        outcome = Outcome.BARE
    try:
        store.remove_repository(key)
    except RepositoryMissing:
        pass
    except DirectoryNotEmpty as error:
        if outcome is Outcome.BARE:
            return Outcome.LEFT
        log.warning("%s; its list was an orphan and is deleted", error)
    return outcome


def remove_namespace(store: Store, namespace: str, mark: Mark, is_emptied: bool) -> bool:
    try:
        if not is_emptied and _is_made_lately(store, mark, namespace):
            return False
        store.remove_namespace(namespace)
    except DirectoryNotEmpty:
        return False
    except RepositoryMissing:
        pass
    return True


def _decoded(content: bytes | None) -> Ledger | None:
    return Ledger.decoded(content) if content is not None else None


def _is_made_lately(store: Store, mark: Mark, namespace: str, name: str | None = None) -> bool:
    return store.directory_mtime_ns(namespace, name) >= mark.wall_ns - int(MADE_LATELY * _NS)
