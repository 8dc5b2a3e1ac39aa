"""Notifier: tells the kernel what to forget, from a thread of its own.  Async.

Owns: the thread and its queue.
Does not know: why.

A notification can wait for a lock that a client holds while it waits for this daemon (the kernel's
`fuse_reverse_inval_entry` takes the directory's inode lock), so it is never sent from the loop, and the thread is
stopped while the loop still answers.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterable

import trio

from tagfs.view import Invalidation

log = logging.getLogger(__name__)


class Notifier:
    """Sends invalidations in the order in which they are given.

    Args:
        forget_entry: (directory's node id, name) -> tells the kernel to forget an entry.
        forget_attributes: node id -> tells it to forget the attributes of a node.
    """

    def __init__(self, forget_entry: Callable[[int, bytes], None], forget_attributes: Callable[[int], None]) -> None:
        self._forget_entry = forget_entry
        self._forget_attributes = forget_attributes
        # All of one moment together: the thread is woken once for it.
        self._queue: queue.SimpleQueue[tuple[Invalidation, ...] | Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._given = 0
        self._tried = 0
        self.sent = 0

    @property
    def waiting(self) -> int:
        """How much is yet to be sent."""
        return self._given - self._tried

    def send(self, invalid: Iterable[Invalidation]) -> None:
        batch = tuple(invalid)
        if not batch:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="notifier", daemon=True)
            self._thread.start()
        self._given += len(batch)
        self._queue.put(batch)

    async def caught_up(self) -> None:
        """Return when all that was given until now is sent; never, where this is closed meanwhile."""
        if self._thread is not None:
            reached, token = trio.Event(), trio.lowlevel.current_trio_token()
            self._queue.put(lambda: token.run_sync_soon(reached.set))
            await reached.wait()

    async def close(self) -> None:
        """Return when all that was given is sent.  The loop must still be answering the kernel."""
        if self._thread is not None:
            self._queue.put(None)
            await trio.to_thread.run_sync(self._thread.join)
            self._thread = None

    def _work(self) -> None:
        while (given := self._queue.get()) is not None:
            if not isinstance(given, tuple):
                given()
                continue
            for one in given:
                self._tell(one)
                self._tried += 1

    def _tell(self, one: Invalidation) -> None:
        try:
            if one.name is None:
                self._forget_attributes(one.id)
            else:
                self._forget_entry(one.id, one.name)
            self.sent += 1
        except FileNotFoundError:
            pass  # the kernel did not know it
        except OSError as error:
            log.debug("notification of node %d: %s", one.id, error)
        except Exception as error:
            # The thread must live: without it the kernel would keep old lists for ever.
            log.error("notification of node %d: an error that should not happen", one.id, exc_info=error)
