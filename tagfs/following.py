"""Following: every change of a store's lists, each with what it did.  Async.

Owns: watching all directories, looking at what changed, looking again where changes are not told.
Does not know: who is told, FUSE.
Invariant: what is told of a list follows from what was told of it before; nothing is left out, several changes in a
row may be told as one.
"""

import logging
from collections.abc import Awaitable, Callable

import trio

from tagfs import events
from tagfs.changes import Change, Changes, Unwatched, watched
from tagfs.directory import DirectoryStore
from tagfs.errors import ListCorrupt, ListMissing, ListTooLarge, RepositoryMissing, StoreWaiting
from tagfs.events import Difference
from tagfs.names import BASE, RepositoryKey, is_namespace, is_repository
from tagfs.past import Past

log = logging.getLogger(__name__)

AT_ONCE = 64
"""Lists that are looked at before others have their turn: about 10 ms."""

LOOK_AGAIN = 5.0
"""Seconds between two looks at what cannot be watched."""

_MOVED = "the store's directory was moved, removed or unmounted"

Told = list[tuple[RepositoryKey, Difference]]


async def _at_once(key: RepositoryKey) -> None:
    """Nobody but another program writes to the store."""


async def _nothing_kept(told: Told) -> None:
    """No kernel keeps anything of the store."""


class Following:
    """Follows one store until it is cancelled, or the store is no longer ready (StoreWaiting), or fails (OSError).

    Args:
        past: what was told of each list.
        is_resumed: `past` is of this store, and what has changed since is told first.
        tell: called with changes, in their order.
        ready: called once from when on everything is told, with the number of directories that cannot be watched.
        namespaces: the only ones that are followed, or None for all.
        quiet: returns when a mount's commits of a list have settled.
        forget: returns when the kernel has forgotten what it kept of these lists: who is told reads the new one.
        elsewhere: returns when the store is not where it was; never, where a mount minds that.
    """

    def __init__(
        self,
        store: DirectoryStore,
        past: Past,
        tell: Callable[[Told], None],
        ready: Callable[[int], None],
        is_resumed: bool = False,
        namespaces: frozenset[str] | None = None,
        quiet: Callable[[RepositoryKey], Awaitable[None]] = _at_once,
        forget: Callable[[Told], Awaitable[None]] = _nothing_kept,
        elsewhere: Callable[[], Awaitable[None]] = trio.sleep_forever,
    ) -> None:
        self._store = store
        self._past = past
        self._tell = tell
        self._ready = ready
        self._namespaces = namespaces
        self._quiet = quiet
        self._forget = forget
        self._elsewhere = elsewhere
        self._is_silent = not is_resumed
        self._is_ready = False
        self._news = trio.Event()
        self._is_all_stale = True
        self._stale_namespaces: set[str] = set()
        self._stale: dict[RepositoryKey, None] = {}
        self._unwatched: set[tuple[str, ...]] = set()
        self._unlisted: set[str] = set()

    async def run(self) -> None:
        changes = watched(self._store.opened, self._store.root)
        failure: list[BaseException] = []
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, changes)
                nursery.start_soon(self._mind_the_path)
                nursery.start_soon(self._look_again)
                await self._work(changes)
        except* (StoreWaiting, OSError) as group:
            failure += group.exceptions
        finally:
            changes.close()
        for error in failure:
            raise error

    # -- what is to be looked at

    async def _listen(self, changes: Changes | Unwatched) -> None:
        while True:
            for change in await changes.happened():
                self._note(change)
            if changes.is_lost:
                raise StoreWaiting(_MOVED)

    async def _mind_the_path(self) -> None:
        await self._elsewhere()
        raise StoreWaiting(_MOVED)

    def _note(self, change: Change) -> None:
        path, name = change.path, change.name
        if path is None:
            self._is_all_stale = self._is_all_stale or change.is_lost or name == BASE
        elif len(path) == 0:
            self._stale_namespaces.add(name)
        elif len(path) == 1:
            self._note_list(path[0], name)
        else:
            self._note_list(*path)
        self._news.set()

    def _note_list(self, namespace: str, name: str) -> None:
        if self._is_shown(namespace) and is_repository(name):
            self._stale[RepositoryKey(namespace, name)] = None

    def _is_shown(self, namespace: str) -> bool:
        return is_namespace(namespace) and (self._namespaces is None or namespace in self._namespaces)

    async def _look_again(self) -> None:
        while True:
            await trio.sleep(LOOK_AGAIN)
            for path in self._unwatched:
                self._note(Change(path[:-1], path[-1]) if path else Change(None, BASE))
            for namespace in self._unlisted:
                self._note(Change((), namespace))

    # -- looking

    async def _work(self, changes: Changes | Unwatched) -> None:
        while True:
            if self._is_all_stale:
                self._is_all_stale = False
                await self._list_namespaces(changes)
            elif self._stale_namespaces:
                await self._list_repositories(changes, self._stale_namespaces.pop())
            elif self._stale:
                batch = list(self._stale)[:AT_ONCE]
                for key in batch:
                    del self._stale[key]
                await self._look_at(changes, batch)
            else:
                if not self._is_ready:
                    self._is_ready, self._is_silent = True, False
                    self._ready(len(self._unwatched))
                await self._news.wait()
                self._news = trio.Event()

    async def _list_namespaces(self, changes: Changes | Unwatched) -> None:
        # Watched before it is listed: what comes meanwhile is told.
        self._cover(changes, ())
        names = await trio.to_thread.run_sync(self._store.namespaces)
        known = {key.namespace for key in self._past}
        self._stale_namespaces |= {name for name in known.union(names) if self._is_shown(name)}

    async def _list_repositories(self, changes: Changes | Unwatched, namespace: str) -> None:
        if not self._is_shown(namespace):
            return
        self._cover(changes, (namespace,))
        try:
            names = await trio.to_thread.run_sync(self._store.repositories, namespace)
        except RepositoryMissing:
            names = []
            self._unlisted.discard(namespace)
        except OSError as error:
            # It must not end what is told of its neighbours; it is looked at again.
            if namespace not in self._unlisted:
                log.error("%s cannot be listed, what comes into it is not told: %s", namespace, error)
            self._unlisted.add(namespace)
            names = []
        else:
            self._unlisted.discard(namespace)
        for key in self._past:
            if key.namespace == namespace:
                self._stale[key] = None
        for name in names:
            self._note_list(namespace, name)

    async def _look_at(self, changes: Changes | Unwatched, keys: list[RepositoryKey]) -> None:
        for key in keys:
            self._cover(changes, (key.namespace, key.name))
            await self._quiet(key)
        told = await trio.to_thread.run_sync(self._differences, keys)
        if told and not self._is_silent:
            await self._forget(told)
            self._tell(told)

    def _cover(self, changes: Changes | Unwatched, path: tuple[str, ...]) -> None:
        if changes.cover(path):
            self._unwatched.discard(path)
            return
        try:
            with self._store.opened(*path):
                self._unwatched.add(path)
        except RepositoryMissing:
            self._unwatched.discard(path)
        except OSError:
            self._unwatched.add(path)

    # -- in a thread, one at a time

    def _differences(self, keys: list[RepositoryKey]) -> Told:
        found = [(key, self._difference(key)) for key in keys]
        return [(key, difference) for key, difference in found if difference is not None]

    def _difference(self, key: RepositoryKey) -> Difference | None:
        """What has become of a list since it was told last; None where nothing has."""
        known = self._past.get(key)
        revision = None if known is None else known.revision
        try:
            snapshot = self._store.open(key)
        except (ListMissing, RepositoryMissing):
            if known is None:
                return None
            self._past.drop(key)
            old = known.plain()
            return events.gone(revision) if old is None else events.difference(old, None)
        except OSError as error:
            return self._unreadable(key, (), error)
        identity = snapshot.version.identity
        try:
            if known is not None and known.identity == identity:
                return None
            plain = snapshot.content()
        except (ListCorrupt, ListTooLarge, OSError) as error:
            return self._unreadable(key, identity, error)
        finally:
            snapshot.close()
        self._past.keep(key, identity, plain)
        if known is None:
            return events.difference(None, plain)
        old = known.plain()
        if old is None:
            changed = events.unknown_before(plain, revision)
            return None if changed.revision == revision else changed
        return None if old == plain else events.difference(old, plain)

    def _unreadable(self, key: RepositoryKey, identity: tuple[int, ...], error: Exception) -> Difference | None:
        known = self._past.get(key)
        if known is not None and known.identity == identity:
            return None
        self._past.keep(key, identity, None)
        return events.unreadable(None if known is None else known.revision, str(error))
