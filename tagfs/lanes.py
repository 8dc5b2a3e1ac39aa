"""Lanes: the threads in which steps block; what waits to be durable goes together.  Async.

Owns: how many block at once; what goes into one group.
Does not know: steps, their order.
"""

from collections import deque
from collections.abc import Callable

import trio

from tagfs.durability import Blocking, Call, Unsynced, do_all

THREADS = 8
"""What blocks at once: eight fsyncs in flight keep a disk busy (272 lists/s one by one, 1,151 with eight)."""

MOST_IN_A_GROUP = 64
"""Of a larger one the first would wait longer than the last gains."""

Resume = Callable[[Exception | None], None]
"""Called on the loop when what blocked is done, with its error."""


class Lanes:
    """Runs what blocks; as many lanes as there is work for, up to THREADS.

    Where a file system makes many files durable at once, there is one such group at a time: what comes meanwhile is the
    next.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._limiter = trio.CapacityLimiter(THREADS)
        self._calls: deque[tuple[Call, Resume]] = deque()
        self._unsynced: deque[tuple[Unsynced, Resume]] = deque()
        self._lanes = 0
        # INVARIANT: while anything may be taken, a lane looks, or all of them are at work and will look.
        self._is_looking = False
        self._groups = 0

    def add(self, blocking: Blocking, resume: Resume) -> None:
        if isinstance(blocking, Call):
            self._calls.append((blocking, resume))
        else:
            self._unsynced.append((blocking, resume))
        self._look()

    def _look(self) -> None:
        if not self._is_looking and self._lanes < THREADS and (self._calls or self._may_sync()):
            self._is_looking = True
            self._lanes += 1
            self._nursery.start_soon(self._lane)

    def _may_sync(self) -> bool:
        return bool(self._unsynced) and (self._groups == 0 or not self._unsynced[0][0].together.is_usable)

    async def _lane(self) -> None:
        """Lives as long as there is something for it to take; also while the mount ends."""
        with trio.CancelScope(shield=True):
            while True:
                self._is_looking = False
                if self._may_sync():
                    group = self._group()
                    is_group = group[0][0].together.is_usable
                    self._groups += is_group
                    self._look()
                    await self._do(group)
                    self._groups -= is_group
                elif self._calls:
                    call = self._calls.popleft()
                    self._look()
                    await self._do([call])
                else:
                    break
        self._lanes -= 1

    def _group(self) -> list[tuple[Unsynced, Resume]]:
        group = [self._unsynced.popleft()]
        together = group[0][0].together
        if together.is_usable:
            while self._unsynced and len(group) < MOST_IN_A_GROUP and self._unsynced[0][0].together is together:
                group.append(self._unsynced.popleft())
        return group

    async def _do(self, group: "list[tuple[Unsynced, Resume]] | list[tuple[Call, Resume]]") -> None:
        errors = await trio.to_thread.run_sync(do_all, [one for one, _ in group], limiter=self._limiter)
        self._is_looking = True
        for (_, resume), error in zip(group, errors, strict=True):
            resume(error)
