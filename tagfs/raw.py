"""Raw: the part that every channel has which speaks on /dev/fuse itself.  Async.

Owns: the descriptor, sending answers and notifications, how many requests there were and how long they took.
Does not know: how requests are read, in which order, and what they are answered with.
"""

import errno
import logging
import os

import trio

from tagfs import device, wire
from tagfs.channel import Channel
from tagfs.settings import MountSettings
from tagfs.timings import Timings
from tagfs.tree import Tree
from tagfs.wire import Malformed, Opcode

log = logging.getLogger(__name__)

ENDED = (errno.ENODEV, errno.ECONNABORTED)
"""Of the device: it was unmounted; somebody cut the connection (fusectl)."""

PASSING = (errno.EINTR, errno.EAGAIN, errno.ENOENT)
"""Of the device: nothing to read now; or, for an answer, nobody waits for it any more."""

LISTED = 1 << 16
"""Bytes of a listing at once, at most: some 400 entries, each a look at the store, before others have their turn."""

UNANSWERED = (Opcode.FORGET, Opcode.BATCH_FORGET)

COUNTED = 64
"""Opcodes that are counted one by one; the others are counted together."""

_NONE = -1
"""A number that no descriptor has."""


class RawChannel(Channel):
    """Speaks the protocol of `wire` for a tree that belongs to `uid` and `gid`."""

    def __init__(self, uid: int, gid: int) -> None:
        self.tree: Tree | None = None
        self.waiting: str | None = "the store is not open yet"
        self._device = _NONE
        self._uid = uid
        self._gid = gid
        self._scope = trio.CancelScope()
        self._counts = [0] * (COUNTED + 1)
        self._timings: Timings | None = None

    @property
    def requests(self) -> dict[str, int]:
        """How many requests there were of each operation, by its name."""
        found: dict[str, int] = {}
        for opcode, count in enumerate(self._counts):
            if count:
                found[name_of(opcode)] = found.get(name_of(opcode), 0) + count
        return found

    def measure(self, timings: Timings) -> None:
        self._timings = timings

    def mount(self, settings: MountSettings) -> None:
        if settings.device is None:
            point = os.path.realpath(settings.mountpoint)
            self.take(device.mount(device.Request(point, settings.store, settings.read_only, settings.allow_other)))
        else:
            self.take(settings.device)

    def take(self, descriptor: int) -> None:
        """Answer on this descriptor of /dev/fuse, which is closed in the end."""
        os.set_blocking(descriptor, False)
        self._device = descriptor

    def terminate(self) -> None:
        """Let `serve` return."""
        self._scope.cancel()

    def close(self) -> None:
        os.close(self._device)
        self._device = _NONE

    def _send(self, *parts: bytes | memoryview) -> None:
        try:
            os.writev(self._device, parts)
        except OSError as error:
            # Whoever asked was killed, or the mount has ended, which the next read tells.
            if error.errno not in PASSING and error.errno not in ENDED:
                log.error("an answer: %s", error)

    def _begin(self, request: bytes) -> tuple[int, int, int] | None:
        """Count a request; -> (opcode, unique, node id), None where it cannot be answered."""
        try:
            header = wire.header(request)
        except Malformed as error:
            log.error("a request that cannot be answered: %s", error)
            return None
        opcode = header[0]
        self._counts[opcode if opcode < COUNTED else COUNTED] += 1
        return header

    def _forget(self, opcode: int, request: bytes, node: int) -> None:
        if self.tree is not None:
            self.tree.forget(wire.forgotten(opcode, request, node))

    # -- notifications, sent from the notifier's thread

    def forget_entry(self, directory: int, name: bytes) -> None:
        os.write(self._device, wire.forget_entry(directory, name))

    def forget_node(self, node: int) -> None:
        os.write(self._device, wire.forget_node(node))


def name_of(opcode: int) -> str:
    """By which a kind of request is counted."""
    return Opcode(opcode).name.lower() if opcode in _NAMED else "other"


_NAMED = frozenset(Opcode)
