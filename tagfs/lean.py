"""Lean: what pyfuse3's session loop takes from trio, without a round of the scheduler for each request.  Async.

Owns: the lock and the wait of the tasks that take requests; how long they may keep the loop from all other tasks.
Does not know: what a request is.

pyfuse3 looks its trio up in a name of its own module, so that its asyncio mode can put another there.  A `Lean` stands
there for trio and changes two things.  The lock is not handed to the next task in turn: the task that gave it back may
take it again, so that one task goes on answering while the spare one sleeps.  And the wait for the device first looks
whether a request is there already, or comes within a moment, before it goes to sleep in trio's own wait.
"""

import select
from collections.abc import Callable
from time import monotonic
from types import TracebackType

import trio

PATIENCE = 0.002
"""Seconds for which requests that follow one another may keep other tasks waiting: the time of about 30 requests."""

MOMENT = 1
"""Milliseconds to wait for the next request of a program that was just answered; most come within 20 µs.  The loop
stands still for them, so only where nothing is under way that would end meanwhile."""


class Lock:
    """A lock that its holder may take again at once, however many others wait."""

    __slots__ = ("_is_called", "_is_held", "_waiting")

    def __init__(self) -> None:
        self._is_held = False
        # INVARIANT: while tasks wait and nobody holds it, one of them is called: it was woken and has yet to run.
        self._is_called = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._is_held:
            await self._waiting.park()
            self._is_called = False
        self._is_held = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_held = False
        if self._waiting and not self._is_called:
            self._is_called = True
            self._waiting.unpark()


class Lean:
    """Stands for the modules `trio` and `trio.lowlevel` in one mount's pyfuse3.

    Args:
        is_busy: whether something is under way that the loop will be told of.
    """

    Lock = Lock
    ClosedResourceError = trio.ClosedResourceError
    open_nursery = staticmethod(trio.open_nursery)
    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)

    def __init__(self, is_busy: Callable[[], bool]) -> None:
        self.lowlevel = self
        self._is_busy = is_busy
        self._poll = select.poll()
        self._polled: int | None = None
        # INVARIANT: until then requests may be answered one after another; other tasks have run PATIENCE before it.
        self._until = 0.0
        self._is_hot = False

    async def wait_readable(self, descriptor: int) -> None:
        """Return when the device has a request, or is at its end; ClosedResourceError once it is closed."""
        if descriptor != self._polled:
            self._poll = select.poll()
            self._poll.register(descriptor, select.POLLIN)
            self._polled = descriptor
        if monotonic() >= self._until:
            await trio.lowlevel.checkpoint()
            self._until = monotonic() + PATIENCE
        # An end of the device wakes poll(2) too; reading then tells which end it is.
        if self._poll.poll(MOMENT if self._is_hot and not self._is_busy() else 0):
            self._is_hot = True
            return
        self._is_hot = False
        await trio.lowlevel.wait_readable(descriptor)
        self._is_hot = True
        self._until = monotonic() + PATIENCE

    def notify_closing(self, descriptor: int) -> None:
        """Wake who waits for a device that is about to be closed."""
        self._polled = None
        trio.lowlevel.notify_closing(descriptor)
