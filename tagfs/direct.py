"""Direct: a read-only mount's requests, answered straight on /dev/fuse.  Async.

Owns: reading requests, answering them from the tree.
Does not know: how the device was mounted, codecs, the disk.

Most of the time the kernel answers programs from what it keeps, and nothing of this runs: `open` and `opendir` are
answered ENOSYS once, then it does without them, keeps directories too, and asks for what it has forgotten alone.
"""

import errno
import logging
import os
import select
import time
from collections.abc import Callable
from functools import partial

import trio

from tagfs import wire
from tagfs.errnos import errno_of
from tagfs.errors import StoreWaiting, VersionGone
from tagfs.inodes import ROOT_ID
from tagfs.raw import ENDED, LISTED, PASSING, UNANSWERED, RawChannel, name_of
from tagfs.stateless import StatelessTree
from tagfs.timings import DONE
from tagfs.view import FOREVER, Attributes, directory_mode
from tagfs.wire import Malformed, Opcode

log = logging.getLogger(__name__)

LINGER = 0.001
"""Seconds.  How long the loop waits for the next request itself: a program sends it 10 to 50 µs after an answer, and
being woken by trio's own wait costs as much as a request.  Other tasks wait so long for their turn, at most."""

SPIN = 100e-6
"""Seconds of that in which it does not even sleep, while requests follow one another: to fall asleep and be woken takes
more of the processor than to look again and again for so long, and has the program wait."""

TURN = 0.002
"""Seconds of requests after which other tasks have their turn, however many more there are."""

REST_AFTER = 10.0
"""Seconds without a request after which bytes that were kept for the next one go; they may take twice as long."""

_ENTRY_SIZE = partial(wire.record_size, with_entry=True)
_NAME_SIZE = partial(wire.record_size, with_entry=False)

Answer = bytes | memoryview | None
"""What follows the header; None where nothing is answered."""


class Direct(RawChannel):
    """Answers for a tree that belongs to `uid` and `gid`."""

    def __init__(self, uid: int, gid: int) -> None:
        super().__init__(uid, gid)
        self._poller = select.epoll()
        # INVARIANT: those descriptors beside the device that the poller waits for.
        self._attended: dict[int, Callable[[], None]] = {}
        self._asked = trio.Event()
        # Where there is one processor, the program that will ask needs it.
        self._spin = SPIN if len(os.sched_getaffinity(0)) > 1 else 0.0
        self._spins_until = 0.0
        self._answers: dict[int, Callable[[bytes, int], Answer]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.FORGET: lambda request, node: self._forget(Opcode.FORGET, request, node),
            Opcode.BATCH_FORGET: lambda request, node: self._forget(Opcode.BATCH_FORGET, request, node),
            Opcode.GETATTR: self._getattr,
            Opcode.READ: self._read,
            Opcode.STATFS: self._statfs,
            Opcode.INIT: self._init,
            Opcode.READDIR: lambda request, node: self._listing(request, node, False),
            Opcode.READDIRPLUS: lambda request, node: self._listing(request, node, True),
            Opcode.DESTROY: lambda request, node: b"",
            Opcode.RELEASE: lambda request, node: b"",
            Opcode.RELEASEDIR: lambda request, node: b"",
        }

    def take(self, descriptor: int) -> None:
        super().take(descriptor)
        self._poller.register(descriptor, select.EPOLLIN)

    def close(self) -> None:
        if isinstance(self.tree, StatelessTree):
            self.tree.close()
        self._poller.close()
        super().close()

    # -- the loop

    async def serve(self) -> None:
        """Answer until the device is unmounted, its connection cut, or `terminate` called."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._rest)
            with self._scope:
                await self._serve()
            nursery.cancel_scope.cancel()

    async def _serve(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._poller.fileno())
            self._asked.set()
            deadline = time.monotonic() + TURN
            # The wait before the read: whoever was answered just now has not asked again yet.
            while ready := self._soon():
                for descriptor, _ in ready:
                    if descriptor in self._attended:
                        self._attended[descriptor]()
                    elif not self._answer_one():
                        return
                if time.monotonic() > deadline:
                    await trio.lowlevel.checkpoint()
                    deadline = time.monotonic() + TURN

    async def attend(self, descriptor: int, look: Callable[[], bool]) -> None:
        """As every channel does; beside requests, however many there are, and without a round of the scheduler."""
        ended = trio.Event()

        def act() -> None:
            if not look():
                leave()
                ended.set()

        def leave() -> None:
            if self._attended.pop(descriptor, None) is not None:
                self._poller.unregister(descriptor)

        self._attended[descriptor] = act
        self._poller.register(descriptor, select.EPOLLIN)
        try:
            act()
            await ended.wait()
        finally:
            leave()

    async def _rest(self) -> None:
        """Let go of what is kept for the next request, where none comes."""
        while True:
            await self._asked.wait()
            while self._asked.is_set():
                self._asked = trio.Event()
                await trio.sleep(REST_AFTER)
            if isinstance(self.tree, StatelessTree):
                self.tree.rest()

    def _soon(self) -> list[tuple[int, int]]:
        """The descriptors that are ready, or are at once; what may be asked for next is prepared meanwhile."""
        ahead = self.tree.ahead if isinstance(self.tree, StatelessTree) else None
        while not (ready := self._poller.poll(0)):
            if not (ahead is not None and ahead.work()) and time.monotonic() > self._spins_until:
                return self._poller.poll(LINGER)
        return ready

    def _answer_one(self) -> bool:
        """Read a request and answer it; -> whether there may be more."""
        try:
            request = os.read(self._device, wire.REQUEST_LIMIT)
        except OSError as error:
            if error.errno not in PASSING:
                if error.errno not in ENDED:
                    log.error("reading a request: %s", error)
                return False
            return True
        if not request:
            return False
        self.answer(request)
        return True

    def answer(self, request: bytes) -> None:
        """Answer one request, whatever it is."""
        began = time.perf_counter() if self._timings is not None else 0.0
        header = self._begin(request)
        if header is None:
            return
        opcode, unique, node = header
        number, body = DONE, None
        try:
            handler = self._answers.get(opcode)
            if handler is not None:
                body = handler(request, node)
            else:
                number = errno.EROFS if opcode in wire.CHANGING else errno.ENOSYS
        except Malformed as error:
            log.error("request %d of the kernel: %s", opcode, error)
            number = errno.EINVAL
        except Exception as error:
            number = errno_of(error)
        if number != DONE:
            if opcode not in UNANSWERED:
                self._send(wire.refusal(unique, number))
        elif body is not None:
            self._send(wire.answer(unique, len(body)), body)
            self._spins_until = time.monotonic() + self._spin
        if self._timings is not None:
            self._timings.of(name_of(opcode)).note(time.perf_counter() - began, number)

    # -- who may be asked

    def _named(self) -> StatelessTree:
        """The tree, for a request that names something; StoreWaiting."""
        if self.tree is None or self.waiting is not None:
            raise StoreWaiting(self.waiting or "")
        return self._held()

    def _held(self) -> StatelessTree:
        """The tree, for a request about something that may be open."""
        if self.tree is None:
            raise VersionGone("nothing is open")
        assert isinstance(self.tree, StatelessTree)
        return self.tree

    # -- the answers

    def _init(self, request: bytes, node: int) -> Answer:
        answer = wire.initiation(request)
        for opcode in wire.indispensable(request):
            self._answers[opcode] = lambda request, node: wire.opened()
        return answer

    def _lookup(self, request: bytes, node: int) -> Answer:
        found = self._named().sought(node, wire.name_of(request))
        return wire.entry(found, self._uid, self._gid) if isinstance(found, Attributes) else wire.absence(found)

    def _getattr(self, request: bytes, node: int) -> Answer:
        if node == ROOT_ID:
            root = Attributes(ROOT_ID, directory_mode(False), attr_timeout=FOREVER)
            return wire.attributes(root, self._uid, self._gid)
        tree = self._held()
        if tree.is_directory(node):
            tree = self._named()
        return wire.attributes(tree.attributes(node), self._uid, self._gid)

    def _read(self, request: bytes, node: int) -> Answer:
        offset, size = wire.read_of(request)
        return self._held().read_node(node, offset, size)

    def _listing(self, request: bytes, node: int, with_entries: bool) -> Answer:
        position, room = wire.read_of(request)
        room = min(room, LISTED)
        tree = self._named()
        records = []
        size_of = _ENTRY_SIZE if with_entries else _NAME_SIZE
        for following, name, child in tree.children(node, position, room, size_of):
            packed = b""
            if with_entries:
                packed = wire.entry(child, self._uid, self._gid)
            else:
                tree.forget([(child.id, 1)])
            records.append(wire.record(name, following, child.id, child.mode, packed))
        return b"".join(records)

    def _statfs(self, request: bytes, node: int) -> Answer:
        ready = self.tree is not None and self.waiting is None
        return wire.space(self._named().store.space() if ready else None)
