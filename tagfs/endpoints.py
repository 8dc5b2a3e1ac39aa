"""Endpoints: a small HTTP server for machines that look after this one.  Async.

Owns: listening, requests, their bounds: GET and HEAD of a few paths, small answers, clients that are slow or wrong.
Does not know: what is answered.
Invariant: no client ends a connection of another but by its age, and none ends the mount.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

import h11
import trio

from tagfs.errors import SettingRefused

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 32
"""When one more comes, the one that has been silent longest is closed."""

PATIENCE = 10.0
"""Seconds in which a request must have come whole once it has begun, and in which an answer must be taken."""

IDLE = 180.0
"""Seconds between two requests of a connection: Prometheus scrapes each minute, or less often."""

HEAD_LIMIT = 16 << 10
"""Bytes of a request."""

_READ_SIZE = 4096

TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    content_type: str = TEXT

    @classmethod
    def of(cls, status: HTTPStatus, sentence: str = "") -> "Answer":
        return cls(status, f"{sentence or status.phrase}\n".encode())


Route = Callable[[Mapping[bytes, bytes]], Awaitable[Answer]]
"""The headers of a request, their names in lower case -> the answer."""


class Endpoints:
    """Listens on one address, (host, port), host "" for every interface; `routes` are by their path."""

    def __init__(self, address: tuple[str, int], routes: Mapping[str, Route]) -> None:
        self._address = address
        self._routes = dict(routes)
        self._listeners: list[trio.SocketListener] = []
        # INVARIANT: those that are open, the one that has been silent longest first.
        self._open: dict[object, trio.CancelScope] = {}

    async def listen(self) -> None:
        """SettingRefused where nothing can listen there."""
        host, port = self._address
        try:
            self._listeners = await trio.open_tcp_listeners(port, host=host or None)
        except OSError as error:
            raise SettingRefused(f"nothing can listen on {host}:{port}: {error.strerror or error}") from error

    @property
    def port(self) -> int:
        """Of what listens: where 0 was asked for, a free one."""
        port: int = self._listeners[0].socket.getsockname()[1]
        return port

    async def serve(self) -> None:
        """Answer, for ever."""
        try:
            await trio.serve_listeners(self._serve, self._listeners)
        finally:
            for listener in self._listeners:
                listener.socket.close()

    async def _serve(self, stream: trio.SocketStream) -> None:
        connection = object()
        while len(self._open) >= MOST_CONNECTIONS:
            self._open.pop(next(iter(self._open))).cancel()
        with trio.CancelScope() as scope:
            self._open[connection] = scope
            try:
                async with stream:
                    await _Conversation(stream, self._answer, lambda: self._heard(connection)).run()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the client has gone
            except Exception as error:
                log.error("an HTTP connection ended in an error that should not happen", exc_info=error)
            finally:
                self._open.pop(connection, None)

    def _heard(self, connection: object) -> None:
        scope = self._open.pop(connection, None)
        if scope is not None:
            self._open[connection] = scope

    async def _answer(self, request: h11.Request) -> Answer:
        path = request.target.partition(b"?")[0].decode("ascii", "replace")
        route = self._routes.get(path)
        if route is None:
            return Answer.of(HTTPStatus.NOT_FOUND, f"not here; there is {', '.join(self._routes)}")
        if request.method not in (b"GET", b"HEAD"):
            return Answer.of(HTTPStatus.METHOD_NOT_ALLOWED)
        try:
            return await route(dict(request.headers))
        except Exception as error:
            log.error("%s: an error that should not happen", path, exc_info=error)
            return Answer.of(HTTPStatus.INTERNAL_SERVER_ERROR)


class _Conversation:
    """One connection: requests and their answers, one after another."""

    def __init__(
        self,
        stream: trio.SocketStream,
        answer: Callable[[h11.Request], Awaitable[Answer]],
        heard: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._answer = answer
        self._heard = heard
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)

    async def run(self) -> None:
        """Return when it is over: also when the client is too slow, and after a request that is none."""
        try:
            while await self._exchange():
                self._http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                status = HTTPStatus(error.error_status_hint)
                await self._send(Answer.of(status), is_last=True)

    async def _exchange(self) -> bool:
        """One request and its answer; -> whether another may follow."""
        request = await self._request()
        if request is None:
            return False
        # A body is neither wanted nor waited for; after it nothing more can be understood.
        has_body = any(
            name in (b"content-length", b"transfer-encoding") and value != b"0" for name, value in request.headers
        )
        if not has_body and self._http.next_event() is h11.NEED_DATA:
            has_body = True
        answer = await self._answer(request)
        if not await self._send(answer, request.method == b"HEAD", has_body):
            return False
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _request(self) -> h11.Request | None:
        """The next one; None where none comes whole in time."""
        with trio.move_on_after(IDLE if self._http.trailing_data[0] == b"" else PATIENCE) as scope:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                received = await self._stream.receive_some(_READ_SIZE)
                self._heard()
                self._http.receive_data(received)
                scope.deadline = min(scope.deadline, trio.current_time() + PATIENCE)
            return event if isinstance(event, h11.Request) else None
        return None

    async def _send(self, answer: Answer, is_head: bool = False, is_last: bool = False) -> bool:
        """-> whether it was taken in time."""
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            ("Cache-Control", "no-store"),
            *([("Allow", "GET, HEAD")] if answer.status == HTTPStatus.METHOD_NOT_ALLOWED else []),
            *([("Connection", "close")] if is_last else []),
        ]
        parts = [
            self._http.send(
                h11.Response(status_code=answer.status, headers=headers, reason=HTTPStatus(answer.status).phrase)
            )
        ]
        if not is_head:
            parts.append(self._http.send(h11.Data(data=answer.body)))
        parts.append(self._http.send(h11.EndOfMessage()))
        with trio.move_on_after(PATIENCE):
            await self._stream.send_all(b"".join(part for part in parts if part))
            return True
        return False
