"""A small HTTP server: what it answers, and what no client can do to it."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import h11
import pytest
import trio
from trio.testing import MockClock, open_stream_to_socket_listener

from tagfs import endpoints, values
from tagfs.endpoints import HEAD_LIMIT, IDLE, MOST_CONNECTIONS, PATIENCE, Answer, Endpoints
from tagfs.errors import SettingRefused


async def hello(headers: Mapping[bytes, bytes]) -> Answer:
    return Answer(200, b"hello " + headers.get(b"x-name", b"nobody"))


async def broken(headers: Mapping[bytes, bytes]) -> Answer:
    raise RuntimeError("to order")


async def large(headers: Mapping[bytes, bytes]) -> Answer:
    return Answer(200, bytes(64 << 20))


class Client:
    """A connection, and what comes back on it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.CLIENT)

    async def ask(self, method: str, target: str, headers: tuple[tuple[str, str], ...] = ()) -> tuple[int, bytes]:
        request = h11.Request(method=method, target=target, headers=[("Host", "x"), *headers])
        await self.stream.send_all((self.http.send(request) or b"") + (self.http.send(h11.EndOfMessage()) or b""))
        return await self.answer()

    async def answer(self) -> tuple[int, bytes]:
        status, body = 0, b""
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                self.http.receive_data(await self.stream.receive_some(65536))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return status, body
            else:
                raise AssertionError(event)

    def again(self) -> "Client":
        self.http.start_next_cycle()
        return self


@asynccontextmanager
async def serving() -> AsyncIterator["Server"]:
    served = Endpoints(("127.0.0.1", 0), {"/hello": hello, "/broken": broken, "/large": large})
    await served.listen()
    server = Server(served)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.serve)
        yield server
        nursery.cancel_scope.cancel()
    for client in server.clients:
        await client.stream.aclose()


class Server:
    def __init__(self, served: Endpoints) -> None:
        self.served = served
        self.clients: list[Client] = []

    async def client(self) -> Client:
        client = Client(await open_stream_to_socket_listener(self.served._listeners[0]))
        self.clients.append(client)
        return client

    async def ask(self, method: str, target: str, headers: tuple[tuple[str, str], ...] = ()) -> tuple[int, bytes]:
        client = await self.client()
        async with client.stream:
            return await client.ask(method, target, headers)

    async def raw(self, request: bytes) -> bytes:
        """All that comes back until the server closes."""
        client = await self.client()
        async with client.stream:
            await client.stream.send_all(request)
            return b"".join([part async for part in client.stream])


async def test_what_is_there_is_answered_to_get_and_head() -> None:
    async with serving() as server:
        assert await server.ask("GET", "/hello?x=1", (("X-Name", "you"),)) == (200, b"hello you")
        assert await server.ask("HEAD", "/hello") == (200, b"")


async def test_a_head_tells_the_length_of_the_get() -> None:
    async with serving() as server:
        told = await server.raw(b"HEAD /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"\r\nContent-Length: 12\r\n" in told
        assert told.endswith(b"\r\n\r\n")


async def test_anything_else_is_404_or_405() -> None:
    async with serving() as server:
        status, body = await server.ask("GET", "/other")
        assert status == 404 and b"/hello" in body
        assert (await server.ask("DELETE", "/hello"))[0] == 405
        assert (await server.ask("GET", "/hello/../broken"))[0] == 404


async def test_several_requests_come_over_one_connection() -> None:
    async with serving() as server:
        client = await server.client()
        for _ in range(3):
            assert await client.ask("GET", "/hello") == (200, b"hello nobody")
            client.again()


async def test_requests_that_are_sent_at_once_are_answered_in_turn() -> None:
    request = b"GET /hello HTTP/1.1\r\nHost: x\r\n%b\r\n"
    async with serving() as server:
        told = await server.raw(request % b"X-Name: a\r\n" + request % b"X-Name: b\r\nConnection: close\r\n")
        assert told.index(b"hello a") < told.index(b"hello b")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET /hello HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /hello HTTP/1.1\r\nHost: x\r\nX: " + b"a" * HEAD_LIMIT, b"431"),
    ],
)
async def test_a_bad_request_is_told_so_and_ends_nothing_else(request_: bytes, status: bytes) -> None:
    async with serving() as server:
        assert (await server.raw(request_)).startswith(b"HTTP/1.1 " + status)
        assert (await server.ask("GET", "/hello"))[0] == 200


@pytest.mark.parametrize("framing", [b"Content-Length: 1000000000", b"Transfer-Encoding: chunked"])
async def test_a_body_is_not_waited_for(framing: bytes) -> None:
    async with serving() as server:
        told = await server.raw(b"POST /hello HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n")
        assert told.startswith(b"HTTP/1.1 405")
        assert b"Connection: close" in told


async def test_an_error_of_an_answer_is_500_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        assert (await server.ask("GET", "/broken"))[0] == 500
        assert (await server.ask("GET", "/hello"))[0] == 200
    assert [record.message for record in caplog.records] == ["/broken: an error that should not happen"]


async def test_a_request_that_never_comes_whole_is_given_up(autojump_clock: MockClock) -> None:
    async with serving() as server:
        began = trio.current_time()
        assert await server.raw(b"GET /hello HTTP/1.1\r\nHos") == b""
        assert trio.current_time() - began == pytest.approx(PATIENCE, abs=1)


async def test_a_connection_may_idle_for_longer_than_between_two_scrapes(autojump_clock: MockClock) -> None:
    async with serving() as server:
        client = await server.client()
        assert (await client.ask("GET", "/hello"))[0] == 200
        await trio.sleep(IDLE - 10)
        assert (await client.again().ask("GET", "/hello"))[0] == 200
        began = trio.current_time()
        assert await client.stream.receive_some(1) == b""
        assert trio.current_time() - began == pytest.approx(IDLE, abs=1)


async def test_who_does_not_take_the_answer_is_given_up(autojump_clock: MockClock) -> None:
    async with serving() as server:
        client = await server.client()
        await client.stream.send_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await trio.sleep(PATIENCE + 1)
        with pytest.raises((h11.RemoteProtocolError, trio.BrokenResourceError)):
            await client.answer()


async def test_of_too_many_connections_the_most_silent_is_closed() -> None:
    async with serving() as server:
        clients = [await server.client() for _ in range(MOST_CONNECTIONS)]
        for client in clients:
            assert (await client.ask("GET", "/hello"))[0] == 200
            client.again()
        assert (await clients[0].ask("GET", "/hello"))[0] == 200
        assert (await server.ask("GET", "/hello"))[0] == 200
        assert await clients[1].stream.receive_some(1) == b""
        assert (await clients[0].again().ask("GET", "/hello"))[0] == 200


async def test_a_client_that_goes_away_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        client = await server.client()
        await client.stream.send_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await client.stream.receive_some(1) == b"H"
        await client.stream.aclose()
        assert (await server.ask("GET", "/hello"))[0] == 200
    assert not caplog.records


async def test_an_address_that_is_taken_is_refused() -> None:
    async with serving() as server:
        with pytest.raises(SettingRefused, match=f"nothing can listen on 127.0.0.1:{server.served.port}"):
            await Endpoints(("127.0.0.1", server.served.port), {}).listen()
    with pytest.raises(SettingRefused):
        await Endpoints(("no-such-host.invalid", 0), {}).listen()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9180", ("127.0.0.1", 9180)),
        (":9181", ("", 9181)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9180", ("::1", 9180)),
        ("[::]:9180", ("::", 9180)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, address: tuple[str, int]) -> None:
    assert values.address(text) == address


@pytest.mark.parametrize("text", ["", "9180", "host", "host:", "host:-1", "host:65536", "::1:9180", "a b:1", "host:٣"])
def test_what_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape("127.0.0.1:9180")):
        values.address(text)


async def test_an_address_without_a_host_is_every_interface() -> None:
    served = Endpoints(("", 0), {"/hello": hello})
    await served.listen()
    hosts = {listener.socket.getsockname()[0] for listener in served._listeners}
    assert hosts <= {"0.0.0.0", "::"} and hosts
    with pytest.raises(trio.TooSlowError), trio.fail_after(0):
        await served.serve()


def test_the_bounds_are_those_that_are_documented() -> None:
    assert (endpoints.MOST_CONNECTIONS, endpoints.PATIENCE, endpoints.IDLE) == (32, 10.0, 180.0)
