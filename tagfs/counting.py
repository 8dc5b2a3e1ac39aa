"""Counting: how many lists, tags and bytes a store holds, counted in the background and kept true by changes.  Async.

Owns: the figures, the pace of counting; what is counted anew when.
Does not know: who reads the figures, FUSE.
Invariant: there are no figures before the store was counted from end to end, so that none is ever too small.
"""

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from time import time

import trio

from tagfs import taglist
from tagfs.errors import ListCorrupt, ListMissing, RepositoryMissing, StoreWaiting
from tagfs.names import RepositoryKey, is_namespace, is_repository
from tagfs.store import Store

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Lists that a thread reads before readers of the mount go first, who meanwhile wait for it up to 5 ms a request: what
Python's threads leave one another."""

PAUSE = 0.02
"""Seconds of that: about 5,000 lists in a quarter of a minute."""

PAUSE_OF_CHANGED = 0.002
"""Seconds after one list that has changed.  It has just been written, so that it is read here, without a thread."""

AGAIN = 600.0
"""Seconds after which all is counted anew where changes beneath are not all told."""


@dataclass(slots=True)
class Held:
    """What a list, or a store, holds."""

    lists: int = 0
    tags: int = 0
    plain_bytes: int = 0
    stored_bytes: int = 0
    corrupt_lists: int = 0

    def add(self, other: "Held", sign: int = 1) -> None:
        for field in _FIELDS:
            setattr(self, field, getattr(self, field) + sign * getattr(other, field))


_FIELDS = tuple(field.name for field in fields(Held))


class Counting:
    """Counts one store, for as long as it is shown.

    Args:
        cover: (path below the base) -> whether changes in that directory are told to `changed` from now on.  None:
            every change comes through the mount, and is told.
        namespaces: the only ones that count, or None for all.
    """

    def __init__(
        self,
        store: Store,
        cover: Callable[[tuple[str, ...]], bool] | None = None,
        namespaces: frozenset[str] | None = None,
    ) -> None:
        self._store = store
        self._cover = cover
        self._namespaces = namespaces
        self._is_followed = True
        # INVARIANT: what was counted of each list that is there, tersely: some 100 bytes each.
        self._counted: dict[str, dict[int, bytes]] = {}
        self._total = Held()
        self._is_complained_of = False
        self._all_at: float | None = None
        self._news = trio.Event()
        self._is_all_stale = True
        self._stale_namespaces: set[str] = set()
        self._stale: set[RepositoryKey] = set()

    @property
    def figures(self) -> Held | None:
        """What the store holds; None: not counted yet."""
        return self._total if self._all_at is not None else None

    @property
    def counted_at(self) -> float | None:
        """When all was last counted, seconds since 1970."""
        return self._all_at

    # -- what has changed

    def changed(self, path: tuple[str, ...], name: str = "") -> None:
        """Count anew what changed: `name` in the directory `path` below the base."""
        namespace, repository = (*path, name, "")[:2]
        if len(path) == 0 and not name:
            self._is_all_stale = True
        elif not repository:
            self._stale_namespaces.add(namespace)
        elif is_namespace(namespace) and is_repository(repository):
            self._stale.add(RepositoryKey(namespace, repository))
        self._news.set()

    def changed_key(self, key: RepositoryKey) -> None:
        self._stale.add(key)
        self._news.set()

    # -- counting

    async def run(self) -> None:
        """Count, and keep count, for ever; ends where the store is taken away, which is told elsewhere."""
        try:
            while True:
                if self._is_all_stale:
                    await self._count_all()
                elif self._stale_namespaces:
                    await self._count_namespace(self._stale_namespaces.pop())
                elif self._stale:
                    self._count_changed(self._stale.pop())
                    await trio.sleep(PAUSE_OF_CHANGED)
                else:
                    self._complain()
                    await self._wait()
        except StoreWaiting:
            return
        except OSError as error:
            log.error("counting ended early, its metrics are those of before: %s", error)

    async def _wait(self) -> None:
        """Until something has changed; or for a while, where that is not told."""
        self._news = trio.Event()
        with trio.move_on_after(float("inf") if self._is_followed else AGAIN) as scope:
            await self._news.wait()
        self._is_all_stale = self._is_all_stale or scope.cancelled_caught

    async def _count_all(self) -> None:
        began = trio.current_time()
        self._is_all_stale, self._is_followed = False, True
        self._watch(())
        there = await trio.to_thread.run_sync(self._store.namespaces)
        for namespace in sorted({*there, *self._counted}):
            await self._count_namespace(namespace)
        if self._all_at is None:
            held = self._total
            log.info(
                "counted: %d lists, %d tags, %d bytes in %d stored; %.1f s",
                *(held.lists, held.tags, held.plain_bytes, held.stored_bytes),
                trio.current_time() - began,
            )
        self._all_at = time()

    async def _count_namespace(self, namespace: str) -> None:
        if not is_namespace(namespace) or (self._namespaces is not None and namespace not in self._namespaces):
            return
        self._watch((namespace,))
        try:
            names = await trio.to_thread.run_sync(self._store.repositories, namespace)
        except RepositoryMissing:
            names = []
        known = {hash(name) for name in names}
        for gone in [one for one in self._counted.get(namespace, ()) if one not in known]:
            self._note(namespace, gone, None)
        keys = (RepositoryKey(namespace, name) for name in names)
        while batch := list(itertools.islice(keys, AT_ONCE)):
            await self._count(batch)
            await trio.sleep(PAUSE)

    async def _count(self, keys: list[RepositoryKey]) -> None:
        # Before: what changes after the look must be told.
        followed = [self._is_covered(key) for key in keys]
        found = await trio.to_thread.run_sync(lambda: [measured(self._store, key) for key in keys])
        for key, is_followed, held in zip(keys, followed, found, strict=True):
            self._is_followed = self._is_followed and (is_followed or held is None)
            self._note(key.namespace, hash(key.name), held)

    def _count_changed(self, key: RepositoryKey) -> None:
        if self._namespaces is None or key.namespace in self._namespaces:
            is_followed = self._is_covered(key)
            held = measured(self._store, key)
            self._is_followed = self._is_followed and (is_followed or held is None)
            self._note(key.namespace, hash(key.name), held)

    def _is_covered(self, key: RepositoryKey) -> bool:
        return self._cover is None or self._cover((key.namespace, key.name))

    def _watch(self, path: tuple[str, ...]) -> None:
        if self._cover is not None:
            self._cover(path)

    def _note(self, namespace: str, name: int, held: Held | None) -> None:
        """Take in what a list holds now; None: it is not there."""
        lists = self._counted.setdefault(namespace, {})
        before = lists.pop(name, None)
        if before is not None:
            self._total.add(_unpacked(before), -1)
        if held is not None:
            lists[name] = _packed(held)
            self._total.add(held)
        if not lists:
            del self._counted[namespace]

    def _complain(self) -> None:
        """Say once that lists cannot be read, and once that they can."""
        corrupt = self._total.corrupt_lists
        if corrupt and not self._is_complained_of:
            log.error("lists that cannot be read: %d; `tagfs check` names them", corrupt)
        elif not corrupt and self._is_complained_of:
            log.info("every list can be read again")
        self._is_complained_of = corrupt > 0


def measured(store: Store, key: RepositoryKey) -> Held | None:
    """What a list holds, all of it read; None where there is none.  StoreWaiting where the store is gone."""
    try:
        snapshot = store.open(key)
    except (ListMissing, RepositoryMissing):
        return None
    except OSError:
        return Held(lists=1, corrupt_lists=1)
    try:
        stored = snapshot.version.stored_size
        content = snapshot.content()
    except (ListCorrupt, OSError):
        return Held(lists=1, stored_bytes=snapshot.version.stored_size, corrupt_lists=1)
    finally:
        snapshot.close()
    return Held(1, taglist.count(content), len(content), stored)


def _packed(held: Held) -> bytes:
    """A tenth of the object."""
    return b" ".join(b"%d" % getattr(held, field) for field in _FIELDS)


def _unpacked(packed: bytes) -> Held:
    return Held(*map(int, packed.split()))
