"""A mount's channel that a test asks in the kernel's place, over a socket instead of the device."""

import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import trio

from tagfs.direct import Direct
from tagfs.duplex import Duplex
from tagfs.inodes import ROOT_ID
from tagfs.names import BASE, RepositoryKey
from tests.support import wire as kernel

_C = TypeVar("_C", Direct, Duplex)

KEY = RepositoryKey("team", "app")


class Asked(Generic[_C]):
    """What is sent through `kernel` a channel reads from its device."""

    def __init__(self, channel: _C) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel = ours
        self.kernel.setblocking(False)
        self.channel: _C = channel
        self.channel.take(theirs.detach())

    def close(self) -> None:
        self.kernel.close()
        self.channel.close()

    def ask(self, request: bytes) -> kernel.Reply:
        """The one answer to a request that has nothing to wait for."""
        self.channel.answer(request)
        reply = kernel.Reply.parse(self.kernel.recv(1 << 21))
        assert reply.unique == 2
        assert not self.has_said_more()
        return reply

    async def answer(self) -> kernel.Reply:
        """The next answer."""
        await trio.lowlevel.wait_readable(self.kernel)
        return kernel.Reply.parse(self.kernel.recv(1 << 21))

    def has_said_more(self) -> bool:
        try:
            self.kernel.recv(1 << 21)
        except BlockingIOError:
            return False
        return True

    def lookup(self, *names: str) -> kernel.Entry:
        entry = kernel.Entry(ROOT_ID, 0, 0, 0)
        for name in names:
            reply = self.ask(kernel.lookup(entry.node, name.encode()))
            assert reply.number == 0
            entry = kernel.Entry.parse(reply.body)
        return entry

    def directory(self, key: RepositoryKey = KEY) -> int:
        return self.lookup(BASE, key.namespace, key.name).node


@asynccontextmanager
async def serving(asked: Asked[Any]) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asked.channel.serve)
        yield
        asked.channel.terminate()


async def require_turns(asked: Asked[Any]) -> None:
    """This task has its turn while requests follow one another without end."""
    ends = threading.Event()

    def flood() -> None:
        asked.kernel.setblocking(True)
        while not ends.is_set():
            asked.kernel.send(kernel.request(17))
            asked.kernel.recv(1 << 21)

    async with serving(asked), trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, flood)
        with trio.fail_after(30):
            while asked.channel.requests.get("statfs", 0) < 1000:
                await trio.lowlevel.checkpoint()
        ends.set()
