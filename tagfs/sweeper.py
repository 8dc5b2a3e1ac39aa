"""Sweeper: when sweeps are, and following what departs.  Async.

Owns: the interval, its jitter, trying again; requests; departures as they are told.
Does not know: what a sweep does.
Invariant: one sweep at a time; no error of a sweep or of an inventory ends the mount.
"""

import logging
import random
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf

import trio

from tagfs import heap
from tagfs.errors import InventoryIncomplete, TagfsError
from tagfs.inventory import Inventory
from tagfs.names import RepositoryKey
from tagfs.pacing import Backoff
from tagfs.plan import Rules
from tagfs.removal import RECENT, Mark, Removal
from tagfs.sweep import Counters, Sweep

log = logging.getLogger(__name__)

FIRST = (1.0, 5.0)
"""Seconds from the start to the first sweep, at random, as all pauses are: not all mounts ask a cluster at once."""
JITTER = (0.9, 1.1)

RETRY_FIRST, RETRY_LIMIT = 5.0, 300.0
"""Seconds until a sweep that failed is tried again; never longer than the interval."""


class Sweeper:
    """Sweeps now and then, when asked, and what departs at once.

    Args:
        inventory: None: no orphan is deleted.
        interval: seconds between sweeps; 0: only when asked.
        is_suspended: tell what would go, and delete nothing.
    """

    def __init__(
        self, inventory: Inventory | None, rules: Rules, interval: float = 0.0, is_suspended: bool = False
    ) -> None:
        self._inventory = self.inventory = inventory
        self._interval = interval
        self._is_suspended = is_suspended
        self._sweep = Sweep(inventory, rules, is_suspended)
        self._requested = trio.Event()
        self._has_told = False
        self._complaint = ""
        self._left: set[RepositoryKey] = set()
        self._is_left = trio.Event()

    @property
    def counters(self) -> Counters:
        return self._sweep.counters

    def request(self) -> None:
        """Sweep now; where a sweep is under way, once more after it."""
        self._requested.set()

    async def run(self, removal: Removal) -> None:
        """Sweep, for ever; raises nothing."""
        self._tell_how()
        async with trio.open_nursery() as nursery:
            if self._inventory is not None:
                nursery.start_soon(_lasting, partial(self._follow, removal, self._inventory))
                nursery.start_soon(_lasting, partial(self._look_again, removal, self._inventory))
            await self._repeat(removal)

    # -- now and then

    async def _repeat(self, removal: Removal) -> None:
        backoff = Backoff(RETRY_FIRST, min(RETRY_LIMIT, self._interval or RETRY_LIMIT))
        pause = min(random.uniform(*FIRST), self._interval) if self._interval else inf
        while True:
            with trio.move_on_after(pause):
                await self._requested.wait()
            self._requested = trio.Event()
            is_done = await self._try(removal)
            # The keys that were compared, a megabyte or more.
            heap.give_back()
            if is_done:
                backoff.reset()
                pause = self._interval * random.uniform(*JITTER) or inf
            else:
                pause = backoff.next()
                log.info("sweep: tried again in %.0f s", pause)

    async def _try(self, removal: Removal) -> bool:
        """Sweep once; -> whether that could be done."""
        try:
            await self._sweep.run(removal)
        except InventoryIncomplete as error:
            log.log(self._loudness(error), "sweep: nothing is deleted, the inventory is not complete: %s", error)
            self.counters.incomplete += 1
        except (TagfsError, OSError) as error:
            log.log(self._loudness(error), "sweep: nothing more is deleted: %s", error)
            self.counters.failed += 1
        except Exception as error:
            log.error("sweep: ended in an error that should not happen", exc_info=error)
            self.counters.failed += 1
        else:
            self._complaint = ""
            return True
        return False

    def _loudness(self, error: Exception) -> int:
        """The level to log it with: what has been told is no news until a sweep is done, or fails otherwise."""
        is_news, self._complaint = str(error) != self._complaint, str(error)
        return logging.ERROR if is_news else logging.INFO

    # -- as they become orphans

    async def _follow(self, removal: Removal, inventory: Inventory) -> None:
        async with inventory.departures() as departures:
            async for key in departures:
                self.counters.departures += 1
                if not await self._sweep.depart(removal, key, Mark.now(RECENT)):
                    self._left.add(key)
                    self._is_left.set()

    async def _look_again(self, removal: Removal, inventory: Inventory) -> None:
        """Look once more for what departed and had just been written, perhaps for a successor of the same name."""
        while True:
            await self._is_left.wait()
            await trio.sleep(RECENT + 1)
            self._is_left = trio.Event()
            left, self._left = self._left, set()
            with removal.marked() as mark:
                try:
                    left -= await inventory.keys()
                except InventoryIncomplete as error:
                    log.warning("%d departures are left to the next sweep: %s", len(left), error)
                    continue
                for key in sorted(left):
                    await self._sweep.depart(removal, key, mark)

    def _tell_how(self) -> None:
        """Say once what is not done."""
        if self._has_told:
            return
        self._has_told = True
        if self._inventory is None:
            log.info("no --inventory: no orphan is deleted, only empty namespaces are removed")
        if not self._interval:
            log.info("the sweep is disabled (--gc-interval 0): orphans stay until SIGUSR1 asks for one")
        if self._is_suspended:
            log.warning("the sweep is suspended (--sweep-suspend): what would go is told, and stays")


async def _lasting(task: Callable[[], Awaitable[None]]) -> None:
    """A defect in a task must not end the mount."""
    backoff = Backoff(RETRY_FIRST, RETRY_LIMIT)
    while True:
        try:
            await task()
        except Exception as error:
            log.error("departures: ended in an error that should not happen", exc_info=error)
        await backoff.wait()
