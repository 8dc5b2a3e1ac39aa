"""A small API server: pages, watches, bookmarks, and every way to fail, on a port of the loopback interface.

It passes the contract tests that the real one passes (`tests/test_inventory_contract.py`), and answers to order what
the real one answers once in a year: `faults`.
"""

import base64
import bisect
import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import h11
import trio
import trustme

from tagfs.cluster import GROUP, RESOURCE
from tagfs.credentials import Material, Presented, Trust
from tagfs.kubeconfig import Access
from tagfs.names import RepositoryKey
from tests.support.clusters import NONE, Cluster, Labels, free_ports

BOOKMARK_INTERVAL = 60.0

_T = TypeVar("_T")

HOST = "127.0.0.1"
SERVER_NAME = "api.test"
"""Also in its certificate, for who asks with that name."""

_PATH = re.compile(rf"/apis/{re.escape(GROUP)}/(?P<version>v[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?/{RESOURCE}")
_REQUIREMENT = re.compile(
    r"(?P<absent>!)?(?P<key>[\w./-]+)(?:\s*(?P<sign>==?|!=)\s*(?P<value>[\w.-]*)|\s+(?P<set>in|notin)\s+\((?P<values>[^()]*)\))?"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What one request meets instead of its answer.

    `status` None cuts the connection, and where `after` bytes of the answer have been sent; `hangs` lets it wait.
    """

    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    hangs: bool = False
    after: int = 0
    on: Callable[[dict[str, str]], bool] = lambda parameters: True

    @classmethod
    def refusal(cls, status: int, message: str = "to order", **more: Any) -> "Fault":
        headers = tuple((name.replace("_", "-"), str(value)) for name, value in more.pop("headers", {}).items())
        return cls(status, headers, _status(status, message), **more)


@dataclass(frozen=True, slots=True)
class Event:
    version: int
    key: RepositoryKey
    before: Labels | None
    after: Labels | None


@dataclass(slots=True)
class Request:
    """One that was answered, for a test to look at."""

    path: str
    parameters: dict[str, str]
    token: str
    at: float
    host: str
    certificate: str | None
    """The common name of the client's certificate."""


@dataclass
class _Connection:
    stream: trio.abc.Stream
    state: h11.Connection = field(default_factory=lambda: h11.Connection(h11.SERVER))

    @property
    def client(self) -> str | None:
        if not isinstance(self.stream, trio.SSLStream) or not (certificate := self.stream.getpeercert()):
            return None
        return next(str(value) for part in certificate["subject"] for name, value in part if name == "commonName")

    async def send(self, event: h11.Response | h11.Data | h11.EndOfMessage) -> None:
        await self.stream.send_all(self.state.send(event) or b"")

    async def next(self) -> Any:
        while (event := self.state.next_event()) is h11.NEED_DATA:
            self.state.receive_data(bytes(await self.stream.receive_some(1 << 16)))
        return event


class _Cut(trio.abc.Stream):
    """A connection that ends when `limit` bytes have been sent, in a reset where `is_reset`."""

    def __init__(self, stream: trio.SocketStream, limit: int, is_reset: bool) -> None:
        self._stream = stream
        self._left = limit
        if is_reset:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        data = memoryview(data)[: self._left]
        self._left -= len(data)
        await self._stream.send_all(data)
        if not self._left:
            await trio.aclose_forcefully(self._stream)
            raise trio.BrokenResourceError

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self._stream.aclose()


class FakeCluster(Cluster):
    """Lives as long as its nursery.

    `requests` is what was asked, `faults` what the next requests meet that they are meant for; `cut` is after how many
    bytes each connection ends, and whether in a reset; `ballast` is in the annotations of each object of a list.
    """

    def __init__(
        self, nursery: trio.Nursery, directory: Path, authority: trustme.CA | None = None, host: str = HOST
    ) -> None:
        super().__init__()
        self.served = ["v1", "v1beta2"]
        self.has_bookmarks = True
        self.is_allowed = True
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.cut: tuple[int, bool] | None = None
        self.ballast = ""
        self.token = "token-1"
        self._host = host
        self._directory = directory
        self._authority = authority
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()
        self._port = 0
        self._version = 1000
        self._oldest = 1000
        self._events: list[Event] = []
        self._snapshots: dict[int, list[tuple[RepositoryKey, Labels]]] = {}
        self._news = trio.Event()
        self._has_definition = True
        (directory / "token").write_text(self.token)
        if authority is not None:
            authority.cert_pem.write_to_path(directory / "ca.crt")

    @property
    def access(self) -> Access:
        token = Presented(token=Material("the test", path=str(self._directory / "token")))
        trust = Trust(Material("the test", path=str(self._directory / "ca.crt")))
        return Access(self.url, "the fake", token, trust)

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'http' if self._authority is None else 'https'}://{host}:{self._port}"

    # -- what happens to it

    async def create(self, keys: Iterable[RepositoryKey], labels: Labels = NONE) -> None:
        for key in keys:
            assert key not in self.alive
            self._happen(key, dict(labels))

    async def relabel(self, key: RepositoryKey, labels: Labels) -> None:
        assert key in self.alive
        self._happen(key, dict(labels))

    async def delete(self, key: RepositoryKey) -> None:
        assert key in self.alive
        self._happen(key, None)

    async def delete_all(self, namespace: str) -> None:
        for key in [key for key in self.alive if key.namespace == namespace]:
            self._happen(key, None)
            await trio.lowlevel.checkpoint()

    async def stop(self) -> None:
        self._scope.cancel()
        await self._stopped.wait()

    async def start(self) -> None:
        self._scope, self._stopped = trio.CancelScope(), trio.Event()
        await self._nursery.start(self._serve)

    async def compact(self) -> None:
        self.forget()
        await self.stop()
        await self.start()

    def forget(self) -> None:
        self._oldest = self._version
        self._snapshots.clear()

    async def rotate_token(self) -> None:
        self.refuse_token()
        self.write_token()

    def refuse_token(self) -> None:
        """The old token is refused, and the file does not have the new one yet."""
        self.token = f"token-{int(self.token.partition('-')[2]) + 1}"

    def write_token(self) -> None:
        (self._directory / "token").write_text(self.token + "\n")

    async def withdraw_rights(self) -> None:
        self.is_allowed = False

    async def grant_rights(self) -> None:
        self.is_allowed = True

    async def delete_definition(self) -> None:
        for key in list(self.alive):
            self._happen(key, None)
        self._has_definition = False
        await self.stop()
        await self.start()

    async def create_definition(self) -> None:
        self._has_definition = True

    def _happen(self, key: RepositoryKey, labels: Labels | None) -> None:
        self._version += 1
        self._events.append(Event(self._version, key, self.alive.get(key), labels))
        if labels is None:
            del self.alive[key]
        else:
            self.alive[key] = labels
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    # -- how it answers

    async def _serve(self, task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
        with self._scope:
            self._port = self._port or free_ports(1, self._host)[0]
            [listener] = await trio.open_tcp_listeners(self._port, host=self._host)
            await trio.serve_listeners(self._converse, [listener], task_status=task_status)
        self._stopped.set()

    async def _converse(self, stream: trio.SocketStream) -> None:
        try:
            connection = _Connection(self._secured(_Cut(stream, *self.cut) if self.cut is not None else stream))
            while isinstance(request := await connection.next(), h11.Request):
                while not isinstance(await connection.next(), h11.EndOfMessage):
                    pass
                await self._answer(connection, request)
                if connection.state.our_state is not h11.DONE:
                    break
                connection.state.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            pass
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    def _secured(self, stream: trio.abc.Stream) -> trio.abc.Stream:
        if self._authority is None:
            return stream
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _certificate(self._authority).configure_cert(context)
        self._authority.configure_trust(context)
        context.verify_mode = ssl.CERT_OPTIONAL
        return trio.SSLStream(stream, context, server_side=True, https_compatible=True)

    async def _answer(self, connection: _Connection, request: h11.Request) -> None:
        url = urlsplit(request.target.decode())
        parameters = {name: values[0] for name, values in parse_qs(url.query).items()}
        headers = dict(request.headers)
        token = headers.get(b"authorization", b"").decode().removeprefix("Bearer ")
        host = headers.get(b"host", b"").decode()
        self.requests.append(Request(url.path, parameters, token, trio.current_time(), host, connection.client))
        fault = next((fault for fault in self.faults if fault.on(parameters)), None)
        if fault is not None:
            self.faults.remove(fault)
            if fault.hangs:
                await trio.sleep_forever()
            if fault.status is not None:
                await _send(connection, fault.status, fault.body, fault.headers)
                return
            if not fault.after:
                raise trio.BrokenResourceError
        if token != self.token:
            await _send(connection, 401, _status(401, "Unauthorized"))
        elif url.path == f"/apis/{GROUP}" and self._has_definition:
            versions = [{"groupVersion": f"{GROUP}/{version}", "version": version} for version in self.served]
            await _send(connection, 200, json.dumps({"kind": "APIGroup", "versions": versions}).encode())
        elif url.path in [f"/apis/{GROUP}/{version}" for version in self.served] and self._has_definition:
            resources = [{"name": RESOURCE, "namespaced": True}, {"name": f"{RESOURCE}/status", "namespaced": True}]
            await _send(connection, 200, json.dumps({"kind": "APIResourceList", "resources": resources}).encode())
        elif (match := _PATH.fullmatch(url.path)) and match["version"] in self.served and self._has_definition:
            if not self.is_allowed:
                await _send(connection, 403, _status(403, f'{RESOURCE}.{GROUP} is forbidden: User "tagfs" cannot'))
                return
            try:
                is_chosen = chosen(parameters, match["namespace"])
            except ValueError as error:
                await _send(connection, 400, _status(400, f"unable to parse requirement: {error}"))
                return
            accept = headers.get(b"accept", b"").decode()
            if "watch" in parameters:
                assert "as=PartialObjectMetadata;" in accept
                await self._watch(connection, parameters, is_chosen)
            else:
                assert "as=PartialObjectMetadataList;" in accept
                status, body = self._page(parameters, is_chosen)
                await _send(connection, status, body, cut_after=fault.after if fault is not None else 0)
        else:
            await _send(connection, 404, b"404 page not found\n")

    def _page(self, parameters: dict[str, str], is_chosen: "Chosen") -> tuple[int, bytes]:
        limit = int(parameters.get("limit", "0")) or len(self.alive)
        version, start = self._version, 0
        if rest := parameters.get("continue"):
            version, start = json.loads(base64.b64decode(rest))
            if version not in self._snapshots:
                return 410, _status(410, "The provided continue parameter is too old", reason="Expired")
        elif version not in self._snapshots:
            self._snapshots[version] = sorted(self.alive.items())
        found = [(key, labels) for key, labels in self._snapshots[version] if is_chosen(key, labels)]
        metadata: dict[str, Any] = {"resourceVersion": str(version)}
        if start + limit < len(found):
            metadata["continue"] = base64.b64encode(json.dumps([version, start + limit]).encode()).decode()
            metadata["remainingItemCount"] = len(found) - start - limit
        items = [_object(key, labels, version, self.ballast) for key, labels in found[start : start + limit]]
        document = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
        return 200, json.dumps(document | {"items": items}).encode()

    async def _watch(self, connection: _Connection, parameters: dict[str, str], is_chosen: "Chosen") -> None:
        await connection.send(h11.Response(status_code=200, headers=[("Transfer-Encoding", "chunked")]))
        since = int(parameters["resourceVersion"])
        if since < self._oldest:
            status = json.loads(_status(410, f"too old resource version: {since} ({self._oldest})", reason="Expired"))
            await _say(connection, "ERROR", status)
        else:
            with trio.move_on_after(int(parameters["timeoutSeconds"])):
                position = bisect.bisect(self._events, since, key=lambda event: event.version)
                while True:
                    if position == len(self._events):
                        if not await self._is_news() and self.has_bookmarks:
                            await _say(connection, "BOOKMARK", {"metadata": {"resourceVersion": str(self._version)}})
                        continue
                    event = self._events[position]
                    position += 1
                    was = event.before is not None and is_chosen(event.key, event.before)
                    is_now = event.after is not None and is_chosen(event.key, event.after)
                    if was or is_now:
                        kind = "MODIFIED" if was and is_now else "ADDED" if is_now else "DELETED"
                        labels = event.after if event.after is not None else event.before or {}
                        await _say(connection, kind, _object(event.key, labels, event.version))
        await connection.send(h11.EndOfMessage())

    async def _is_news(self) -> bool:
        """Wait until something happens, or False where nothing does for a while."""
        news = self._news
        with trio.move_on_after(BOOKMARK_INTERVAL):
            await news.wait()
            return True
        return False


Chosen = Callable[[RepositoryKey, Labels], bool]


def chosen(parameters: dict[str, str], namespace: str | None) -> Chosen:
    """Whether an object is selected; ValueError for a selector that is none."""
    requirements = []
    text = parameters.get("labelSelector", "")
    for part in re.split(r",(?![^(]*\))", text) if text else []:
        match = _REQUIREMENT.fullmatch(part.strip())
        if match is None or (match["absent"] and (match["sign"] or match["set"])):
            raise ValueError(part)
        requirements.append(match)
    name = parameters.get("fieldSelector", "").removeprefix("metadata.name=")

    def is_chosen(key: RepositoryKey, labels: Labels) -> bool:
        return (
            namespace in (None, key.namespace)
            and (not name or name == key.name)
            and all(_holds(requirement, labels) for requirement in requirements)
        )

    return is_chosen


def _holds(requirement: re.Match[str], labels: Labels) -> bool:
    value = labels.get(requirement["key"])
    if requirement["set"]:
        is_in = value in [choice.strip() for choice in requirement["values"].split(",")]
        return is_in == (requirement["set"] == "in")
    if requirement["sign"]:
        return (value == requirement["value"]) == (requirement["sign"] != "!=")
    return (value is None) == bool(requirement["absent"])


def _object(key: RepositoryKey, labels: Labels, version: int, ballast: str = "") -> dict[str, Any]:
    metadata = {"name": key.name, "namespace": key.namespace, "labels": labels, "resourceVersion": str(version)}
    metadata["annotations"] = {"ballast": ballast}
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}


def _status(code: int, message: str, reason: str = "") -> bytes:
    document = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return json.dumps(document | {"message": message, "reason": reason, "code": code}).encode()


async def _send(
    connection: _Connection, status: int, body: bytes, headers: tuple[tuple[str, str], ...] = (), cut_after: int = 0
) -> None:
    await connection.send(h11.Response(status_code=status, headers=[*headers, ("Content-Length", str(len(body)))]))
    if cut_after:
        await connection.send(h11.Data(data=body[:cut_after]))
        raise trio.BrokenResourceError
    await connection.send(h11.Data(data=body))
    await connection.send(h11.EndOfMessage())


async def _say(connection: _Connection, kind: str, document: dict[str, Any]) -> None:
    await connection.send(h11.Data(data=json.dumps({"type": kind, "object": document}).encode() + b"\n"))


_certificates: dict[int, trustme.LeafCert] = {}


def _certificate(authority: trustme.CA) -> trustme.LeafCert:
    if id(authority) not in _certificates:
        _certificates[id(authority)] = authority.issue_cert(HOST, "::1", SERVER_NAME)
    return _certificates[id(authority)]


@asynccontextmanager
async def fake_cluster(
    directory: Path, authority: trustme.CA | None = None, host: str = HOST
) -> AsyncIterator[FakeCluster]:
    """A fake that serves, with TLS where there is an authority to issue its certificate."""
    async with trio.open_nursery() as nursery:
        cluster = FakeCluster(nursery, directory, authority, host)
        await cluster.start()
        yield cluster
        nursery.cancel_scope.cancel()


class ServedCluster:
    """A fake in a thread of its own, for tests that block: they hand it what to do."""

    def __init__(self, directory: Path, authority: trustme.CA) -> None:
        self._directory = directory
        self._authority = authority
        self._is_served = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,), name="fake API server")

    def __enter__(self) -> "ServedCluster":
        self._thread.start()
        self._is_served.wait()
        return self

    def __exit__(self, *_: object) -> None:
        trio.from_thread.run_sync(self._ending.set, trio_token=self._token)
        self._thread.join()

    async def _run(self) -> None:
        self._ending = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        async with fake_cluster(self._directory, self._authority) as self.fake:
            self._is_served.set()
            await self._ending.wait()

    def do(self, work: Callable[..., Awaitable[_T]], *arguments: Any) -> _T:
        """Run a method of `fake`."""
        return trio.from_thread.run(work, *arguments, trio_token=self._token)

    def kubeconfig(self) -> Path:
        """A file that names it, and the token and the authority by their files."""
        path = self._directory / "kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "current-context": "it",
                    "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
                    "clusters": [
                        {"name": "it", "cluster": {"server": self.fake.url, "certificate-authority": "ca.crt"}}
                    ],
                    "users": [{"name": "it", "user": {"tokenFile": "token"}}],
                }
            )
        )
        return path
