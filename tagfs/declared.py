"""Declared: the inventory that trees of manifests give.  Async.

Owns: waiting until nobody changes them; what is said of them in the log.
Does not know: how manifests are read; stores.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tagfs.errors import ManifestsChanging
from tagfs.inventory import Inventory
from tagfs.manifests import Found, Manifests
from tagfs.names import RepositoryKey

log = logging.getLogger(__name__)

PATIENCE = 15.0
"""Seconds for which manifests that are being changed are waited for; LOOK_AGAIN between two looks."""
LOOK_AGAIN = 0.5


class ManifestsInventory(Inventory):
    """What trees of manifests declare; nobody tells of departures."""

    name = "manifests"

    def __init__(self, manifests: Manifests) -> None:
        self._manifests = manifests
        self._told: set[RepositoryKey] = set()

    async def keys(self) -> frozenset[RepositoryKey]:
        deadline = trio.current_time() + PATIENCE
        while True:
            try:
                found = await trio.to_thread.run_sync(self._manifests.read, abandon_on_cancel=True)
            except ManifestsChanging:
                if trio.current_time() >= deadline:
                    raise
                await trio.sleep(LOOK_AGAIN)
            else:
                self._tell_repeated(found)
                self.last_complete = trio.current_time()
                return frozenset(found.keys)

    @asynccontextmanager
    async def departures(self) -> AsyncIterator[AsyncIterator[RepositoryKey]]:
        yield _NoDepartures()

    def _tell_repeated(self, found: Found) -> None:
        for key, (first, second) in found.repeated.items():
            if key not in self._told:
                self._told.add(key)
                log.warning("%s is declared twice, which is one list: %s and %s", key, first, second)


class _NoDepartures(AsyncIterator[RepositoryKey]):
    async def __anext__(self) -> RepositoryKey:
        await trio.sleep_forever()
