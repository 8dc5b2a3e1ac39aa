"""An inventory whose truth a test decides, and which keeps its promises."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager

import trio

from tagfs.errors import InventoryIncomplete
from tagfs.inventory import Inventory
from tagfs.names import RepositoryKey


class ToldInventory(Inventory):
    """`there` is what ought to exist; `fault` why that cannot be told now; `looks` how often it was asked.

    Args:
        before: called at each look, before anything is told.
    """

    name = "told"

    def __init__(self, there: Iterable[RepositoryKey] = (), before: Callable[[], object] = lambda: None) -> None:
        self.there = set(there)
        self.fault: str | None = None
        self.defect: Exception | None = None
        self.looks = 0
        self.seconds = 0.0
        """How long a look takes."""
        self._before = before
        self._departed: deque[RepositoryKey] = deque()
        self._is_news = trio.Event()

    async def keys(self) -> frozenset[RepositoryKey]:
        self.looks += 1
        self._before()
        await trio.sleep(self.seconds)
        if self.defect is not None:
            raise self.defect
        if self.fault is not None:
            raise InventoryIncomplete(self.fault)
        return frozenset(self.there)

    def departs(self, *keys: RepositoryKey) -> None:
        """Let keys cease to be, and be told."""
        self.there.difference_update(keys)
        self._departed.extend(keys)
        self._is_news.set()

    @asynccontextmanager
    async def departures(self) -> AsyncIterator[AsyncIterator[RepositoryKey]]:
        async with aclosing(self._departures()) as departures:
            yield departures

    async def _departures(self) -> AsyncGenerator[RepositoryKey, None]:
        while True:
            while self._departed:
                if (key := self._departed.popleft()) not in self.there:
                    yield key
            self._is_news = trio.Event()
            await self._is_news.wait()
