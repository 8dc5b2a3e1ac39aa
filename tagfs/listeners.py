"""Listeners: the pipe of a program that listens, and the lines that wait for it.  Async.

Owns: in which order lines are written, what is lost where a reader is slow.
Does not know: what lines say, how a pipe was opened.
Invariant: a listener is told every line in order, or an overflow in place of all that it was not told.
"""

import os
from collections import deque
from collections.abc import Callable

import trio

MOST_WAITING = 4 << 20
"""Bytes of lines that wait for a slow listener, beside the 64 KiB in its pipe; what all wait for is kept once."""


class Queue:
    """The lines that wait for one listener.

    Args:
        overflow: makes the line that stands for a number of lost ones.
        most: bytes that may wait.
    """

    def __init__(self, overflow: Callable[[int], bytes], most: int = MOST_WAITING) -> None:
        self._overflow = overflow
        self._most = most
        self._lines: deque[bytes] = deque()
        # INVARIANT: the bytes of all lines; `written` of those of the first one are written.
        self._size = 0
        self._written = 0
        # INVARIANT: how many lines the last one stands for, which is an overflow; 0 where it is none.
        self._lost = 0

    def add(self, line: bytes) -> None:
        """Let a line wait.  Where there is no room, all are lost that no byte is written of yet."""
        is_begun = self._written > 0
        if self._lost and not (is_begun and len(self._lines) == 1):
            self._lines.pop()
            self._lose(1)
        elif self._lines and self._size + len(line) > self._most:
            kept = [self._lines[0]] if is_begun else []
            lost = len(self._lines) - len(kept)
            self._lines = deque(kept)
            self._lose(lost + 1)
        else:
            self._lines.append(line)
            self._size += len(line)
            self._lost = 0

    def _lose(self, count: int) -> None:
        self._lost += count
        self._lines.append(self._overflow(self._lost))
        self._size = sum(map(len, self._lines))

    def first(self) -> memoryview | None:
        """What is to be written next; None where nothing is."""
        return memoryview(self._lines[0])[self._written :] if self._lines else None

    def wrote(self, count: int) -> None:
        """Take note that so many bytes of `first` were written."""
        self._written += count
        if self._written == len(self._lines[0]):
            self._size -= len(self._lines.popleft())
            self._written = 0
            if not self._lines:
                self._lost = 0


class Listener:
    """A program that has a pipe open."""

    def __init__(self, descriptor: int, overflow: Callable[[int], bytes]) -> None:
        self.descriptor = descriptor
        self.queue = Queue(overflow)
        self._news = trio.Event()

    def tell(self, line: bytes) -> None:
        self.queue.add(line)
        self._news.set()

    async def serve(self) -> None:
        """Write until the reader has gone."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, nursery.cancel_scope)
            # Nothing can be read from this end: what wakes is that nobody reads the other one any more.
            await trio.lowlevel.wait_readable(self.descriptor)
            nursery.cancel_scope.cancel()

    async def _write(self, scope: trio.CancelScope) -> None:
        while True:
            part = self.queue.first()
            if part is None:
                await self._news.wait()
                self._news = trio.Event()
                continue
            try:
                self.queue.wrote(os.write(self.descriptor, part))
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.descriptor)
            except BrokenPipeError:
                scope.cancel()
                return

    def close(self) -> None:
        trio.lowlevel.notify_closing(self.descriptor)
        os.close(self.descriptor)
