"""Duplex: the channel of read-write mounts, on /dev/fuse itself.  Async.

Owns: reading requests, in which order they are answered; those that wait.
Does not know: how the device was mounted, what a request is answered with.
"""

import errno
import logging
import mmap
import os
import select
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import trio

from tagfs import wire, wirewrite
from tagfs.answering import Answer, Answering, Refused, Waiting
from tagfs.commits import Commits, Pending
from tagfs.errnos import errno_of
from tagfs.raw import ENDED, PASSING, UNANSWERED, name_of
from tagfs.timings import DONE
from tagfs.wire import Malformed, Opcode

log = logging.getLogger(__name__)

LINGER_MS = 1
"""How long the loop waits for the next request itself: a program sends it 10 µs after an answer, and being woken by
trio's own wait costs as much as a request.  Not while tasks have something to do, or will have when a step ends."""

TURN = 0.002
"""Seconds of requests after which other tasks have their turn, however many more there are."""

CALM_TURN = 0.01
"""The same where no request waits for them."""

AHEAD = 8
"""Requests of readers that are answered before one of a writer, at most."""

MOST_HELD = 256
"""Requests that may wait for steps at once, each with a few descriptors; the kernel keeps those that come then."""

MOST_READ = 64
"""Requests of writers that were read and have yet to be answered, at most: each can be a megabyte."""

_WRITERS = frozenset(
    {
        Opcode.SETATTR,
        Opcode.MKDIR,
        Opcode.UNLINK,
        Opcode.RMDIR,
        Opcode.RENAME,
        Opcode.RENAME2,
        Opcode.WRITE,
        Opcode.FSYNC,
        Opcode.CREATE,
    }
)
"""Requests of which each can take as long as many of a reader's, which are answered before them; a FLUSH of what is
written to is one too.  Whoever asks waits for the answer before it asks for more, so nothing that one program does is
turned round.  RELEASE is not among them: nobody waits for its answer, and the LOOKUP behind it must find its commit."""


class Duplex(Answering):
    """Answers for a tree that belongs to `uid` and `gid`, whose steps `commits` runs."""

    def __init__(self, uid: int, gid: int, commits: Commits) -> None:
        super().__init__(uid, gid, commits)
        self._nursery: trio.Nursery | None = None
        # Of the kernel's pages until they are used: most requests take one.
        self._buffer = mmap.mmap(-1, wirewrite.BUFFER_SIZE)
        self._bytes = memoryview(self._buffer)
        # INVARIANT: requests that were read and are to be answered in this order, with when that was.
        self._writers: deque[tuple[bytes, float]] = deque()
        # INVARIANT: the number of requests that wait for steps; of those that do in tasks.
        self._holds = 0
        self._tasks = 0
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._let_go = trio.lowlevel.ParkingLot()

    # -- the loop

    async def serve(self) -> None:
        """Answer until the device is unmounted, its connection cut, or `terminate` called; what waits for steps is
        answered when they end."""
        async with trio.open_nursery() as self._nursery:
            with self._scope:
                await self._serve()

    async def _serve(self) -> None:
        requests, anything = select.poll(), select.poll()
        requests.register(self._device, select.POLLIN)
        anything.register(self._device, select.POLLIN)
        anything.register(self._bell, select.POLLIN)
        ahead, since = 0, time.monotonic()
        self._commits.attend(self._ring)
        try:
            while True:
                # A step by itself ends soon, and costs less to wait for here; of more, those that wait are a group.
                depth = self._commits.depth
                patience = LINGER_MS if depth <= 1 and not self._writers and not self._tasks else 0
                may_read = ahead < AHEAD and len(self._writers) < MOST_READ and self._holds < MOST_HELD
                if may_read and (ready := (anything if depth == 1 else requests).poll(patience)):
                    if ready[-1][0] == self._bell:
                        os.eventfd_read(self._bell)
                        self._commits.collect()
                        continue
                    request = self._next()
                    if request is None:
                        return
                    if not request:
                        continue
                    if self._is_writers(request):
                        self._writers.append((request, self._now()))
                    else:
                        ahead += bool(self._writers)
                        self.answer(request)
                elif self._writers:
                    ahead = 0
                    self.answer(*self._writers.popleft())
                else:
                    await self._others(self._something)
                    since = time.monotonic()
                if time.monotonic() - since > (TURN if self._tasks or depth > 1 else CALM_TURN):
                    await self._others(trio.lowlevel.checkpoint)
                    since = time.monotonic()
        finally:
            self._commits.attend(None)

    def _ring(self) -> None:
        os.eventfd_write(self._bell, 1)

    async def _others(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Let other tasks have their turn."""
        self._commits.attend(None)
        await wait()
        self._commits.attend(self._ring)

    def _is_writers(self, request: bytes) -> bool:
        opcode = wire.opcode_of(request)
        return opcode in _WRITERS or (opcode == Opcode.FLUSH and self._is_written_to(request))

    async def _something(self) -> None:
        """Wait for the next request, or where too many are held for one of them to be answered."""
        if self._holds >= MOST_HELD:
            await self._let_go.park()
        else:
            await trio.lowlevel.wait_readable(self._device)

    def _next(self) -> bytes | None:
        """Read a request; empty where there is none after all, None at the end of the device."""
        try:
            size = os.readv(self._device, (self._bytes,))
        except OSError as error:
            if error.errno in PASSING:
                return b""
            if error.errno not in ENDED:
                log.error("reading a request: %s", error)
            return None
        return bytes(self._bytes[:size]) or None

    def _now(self) -> float:
        return time.perf_counter() if self._timings is not None else 0.0

    def answer(self, request: bytes, began: float | None = None) -> None:
        """Answer one request, whatever it is, or let a task do so; it came at `began`."""
        began = self._now() if began is None else began
        header = self._begin(request)
        if header is None:
            return
        opcode, unique, node = header
        number, body = DONE, None
        try:
            found = self._handle(opcode, request, node)
            if found is not None and not isinstance(found, bytes):
                self._hold(found, opcode, unique, began)
                return
            body = found
        except Exception as error:
            number = _number(opcode, error)
        self._reply(opcode, unique, began, number, body)

    def _hold(self, waiting: Waiting, opcode: int, unique: int, began: float) -> None:
        """Answer when what is to be waited for has ended."""

        def end(error: BaseException | None, body: Answer = b"") -> None:
            self._holds -= 1
            self._let_go.unpark()
            self._reply(opcode, unique, began, DONE if error is None else _number(opcode, error), body)

        async def finish(waiting: Coroutine[Any, Any, Answer]) -> None:
            try:
                body = await waiting
            except Exception as error:
                end(error)
            else:
                end(None, body)
            finally:
                self._tasks -= 1

        self._holds += 1
        if not isinstance(waiting, Pending):
            assert self._nursery is not None
            self._tasks += 1
            self._nursery.start_soon(finish, waiting)
        elif waiting.done.is_set():
            end(waiting.error)
        else:
            waiting.then = end

    def _reply(self, opcode: int, unique: int, began: float, number: int, body: Answer) -> None:
        if number != DONE:
            if opcode not in UNANSWERED:
                self._send(wire.refusal(unique, number))
        elif body is not None:
            self._send(wire.answer(unique, len(body)), body)
        if self._timings is not None:
            self._timings.of(name_of(opcode)).note(time.perf_counter() - began, number)

    def close(self) -> None:
        super().close()
        os.close(self._bell)
        self._bytes.release()
        self._buffer.close()


def _number(opcode: int, error: BaseException) -> int:
    if isinstance(error, Refused):
        return error.number
    if isinstance(error, Malformed):
        log.error("request %d of the kernel: %s", opcode, error)
        return errno.EINVAL
    return errno_of(error)
