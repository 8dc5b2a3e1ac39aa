"""Connections: the sockets that requests to an API server go over.  Async.

Owns: that each is closed when its session ends, however it ends; noticing that the other end has vanished.
Does not know: HTTP, who asks what.
"""

import socket
from collections.abc import Iterable

import trio
from httpcore2 import SOCKET_OPTION, AsyncNetworkStream, TrioBackend

_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""A watch whose other end has vanished is noticed within a minute."""


class Connections(TrioBackend):
    """Opens connections for a pool, and closes what the pool has lost.

    httpcore2 loses a connection whose TLS handshake is cancelled: it closes it for an Exception only, which Cancelled
    is not, and its pool does not know it yet.
    """

    def __init__(self) -> None:
        self._opened: list[AsyncNetworkStream] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> AsyncNetworkStream:
        stream = await super().connect_tcp(host, port, timeout, local_address, ())
        self._opened.append(stream)
        for option in (*_KEEPALIVE, *(socket_options or ())):
            stream.get_extra_info("socket").setsockopt(*option)
        return stream

    async def close(self) -> None:
        """Close all; those that are closed already stay so."""
        opened, self._opened = self._opened, []
        with trio.CancelScope(shield=True):
            for stream in opened:
                await stream.aclose()
