"""Lanes: the threads in which steps block; what waits to be durable goes together.  Async.

Owns: how many block at once; what goes into one group; the threads.
Does not know: steps, their order.

The threads are its own, because trio's cost 0.1 ms a call, and one writer makes two calls a list.
"""

import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import monotonic

import trio

from tagfs.durability import Blocking, Call, Unsynced, do_all

THREADS = 8
"""What blocks at once: eight fsyncs in flight keep a disk busy (272 lists/s one by one, 1,151 with eight)."""

MOST_IN_A_GROUP = 64
"""Of a larger one the first would wait longer than the last gains."""

MOMENT = 0.0002
"""Seconds of going on with what threads have done, after which the requests of readers have their turn: a group of
sixteen renames is many times that."""

IDLE = 30.0
"""Seconds after which a thread that has nothing to do ends."""

Resume = Callable[[Exception | None], None]
"""Called on the loop when what blocked is done, with its error."""

_Group = list[tuple[Blocking, Resume]]


class Lanes:
    """Runs what blocks in threads, as many as there is work for, up to THREADS.

    Where a file system makes many files durable at once, there is one such group at a time: what comes meanwhile is the
    next.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._token = trio.lowlevel.current_trio_token()
        self._calls: deque[tuple[Call, Resume]] = deque()
        self._unsynced: deque[tuple[Unsynced, Resume]] = deque()
        # INVARIANT: groups that were handed to threads and have not been collected; those that syncfs is called for.
        self._under_way = 0
        self._together = 0
        self._was_call = False
        # INVARIANT: what is in those groups.
        self.in_flight = 0
        self._is_collecting = False
        self._idle: trio.Event | None = None
        self._handed: SimpleQueue[tuple[_Group, bool]] = SimpleQueue()
        self._ended: deque[tuple[_Group, bool, list[Exception | None]]] = deque()
        # INVARIANT: what blocked, is done, and is to be gone on with; nothing is handed out before that.
        self._resumed: deque[tuple[Resume, Exception | None]] = deque()
        self._is_told = False
        self._lock = threading.Lock()
        # INVARIANT: changed, and called, under the lock.
        self._ring: Callable[[], None] | None = None
        # INVARIANT: as many as wait for what is handed, or are at work on it; changed under the lock.
        self._threads = 0

    def add(self, blocking: Blocking, resume: Resume) -> None:
        if isinstance(blocking, Call):
            self._calls.append((blocking, resume))
        else:
            self._unsynced.append((blocking, resume))
        if not self._is_collecting:
            self._hand_out()

    def attend(self, ring: Callable[[], None] | None) -> None:
        """Have `ring` called, in a thread, when something has ended, for a loop that keeps from trio for a moment and
        then calls `collect`; None: it does no longer, nobody is rung from now on, and trio is woken again."""
        with self._lock:
            self._ring = ring
        if ring is None:
            # In this order: who has not seen that nobody attends any more has put it there before.
            if self._ended:
                self.collect()
            self._keep_the_loop()

    def _keep_the_loop(self) -> None:
        """While a thread will call it."""
        if self._under_way and self._ring is None and self._idle is None:
            self._idle = trio.Event()
            self._nursery.start_soon(self._stay, self._idle)

    def _hand_out(self) -> None:
        while self._under_way < THREADS and (self._calls or self._may_sync()):
            is_together = False
            # By turns: where each is synced by itself, writers would keep all threads from calls.
            if self._may_sync() and not (self._calls and not self._was_call):
                self._was_call = False
                is_together = self._unsynced[0][0].together.is_usable
                group: _Group = self._group() if is_together else [self._unsynced.popleft()]
            else:
                self._was_call = True
                group = [self._calls.popleft()]
            self._under_way += 1
            self._together += is_together
            self.in_flight += len(group)
            self._keep_the_loop()
            self._hand(group, is_together)

    def _may_sync(self) -> bool:
        return bool(self._unsynced) and (self._together == 0 or not self._unsynced[0][0].together.is_usable)

    def _group(self) -> _Group:
        group: _Group = [self._unsynced.popleft()]
        together = group[0][0].together if isinstance(group[0][0], Unsynced) else None
        while self._unsynced and len(group) < MOST_IN_A_GROUP and self._unsynced[0][0].together is together:
            group.append(self._unsynced.popleft())
        return group

    def _hand(self, group: _Group, is_together: bool) -> None:
        with self._lock:
            self._handed.put((group, is_together))
            if self._threads >= self._under_way:
                return
            self._threads += 1
        threading.Thread(target=self._work, name="tagfs-lane", daemon=True).start()

    async def _stay(self, idle: trio.Event) -> None:
        """Also while the mount ends."""
        with trio.CancelScope(shield=True):
            await idle.wait()

    def collect(self) -> None:
        """Go on, on the loop, with what threads have done."""
        self._is_told = False
        self._is_collecting = True
        while self._ended:
            group, is_together, errors = self._ended.popleft()
            self._under_way -= 1
            self._together -= is_together
            self.in_flight -= len(group)
            self._resumed.extend((resume, error) for (_, resume), error in zip(group, errors, strict=True))
        end = monotonic() + MOMENT
        while self._resumed:
            resume, error = self._resumed.popleft()
            resume(error)
            if self._resumed and monotonic() >= end:
                self._is_told = True
                self._token.run_sync_soon(self.collect)
                return
        self._is_collecting = False
        self._hand_out()
        if self._under_way == 0 and self._idle is not None:
            self._idle.set()
            self._idle = None

    # -- in a thread

    def _work(self) -> None:
        while True:
            try:
                group, is_together = self._handed.get(timeout=IDLE)
            except Empty:
                with self._lock:
                    if not self._handed.empty():
                        continue
                    self._threads -= 1
                    return
            try:
                errors = do_all([one for one, _ in group])
            except BaseException as error:
                self._token.run_sync_soon(_raise, error)
                return
            self._ended.append((group, is_together, errors))
            # After it was appended: whoever collects says first that nobody is told.
            if not self._is_told:
                self._is_told = True
                with self._lock:
                    if self._ring is not None:
                        self._ring()
                    else:
                        self._token.run_sync_soon(self.collect)


def _raise(error: BaseException) -> None:
    raise error
