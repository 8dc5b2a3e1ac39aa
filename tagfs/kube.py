"""Kube: a thin client of the Kubernetes API: discovery, lists page by page, watches; metadata only.  Async.

Owns: requests, their timeouts and their repetition.
Does not know: image repositories, what a list or a watch is for.
Invariant: a list is whole, as of one moment, or an error.

Each session has a connection of its own, made with credentials and certificates as they are then: nothing idles
until a router has forgotten it, and what rotates is read again.
"""

import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import httpcore2
import msgspec
import trio

from tagfs import __version__, answers, errors, heap
from tagfs.answers import Change, Collection, Metadata
from tagfs.connections import Connections
from tagfs.kubeconfig import Access
from tagfs.pacing import Allowance, Backoff

log = logging.getLogger(__name__)

QPS, BURST = 50.0, 300
"""Requests a second in the long run, and at once: Flux's defaults."""

PAGE_SIZE = 500
"""Objects in a page, as kubectl asks for: about a megabyte of metadata."""

TRIES = 5
"""How often one request of a list is made; with back-off that is some ten seconds of patience."""

STARTS = 4
"""How often a list is begun whose continuation expires; each time with larger pages."""

CONNECT_PATIENCE, ANSWER_PATIENCE = 10.0, 30.0
"""Seconds of silence."""

WATCH_PATIENCE = 150.0
"""Seconds of silence on a watch: API servers send a bookmark each minute."""

WATCH_SECONDS = (300, 600)
"""How long a watch is asked for; at random, so that not all clients come back at once."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Listing(Generic[_T]):
    """All of a collection, as of `version`."""

    items: set[_T]
    version: str


class Kube:
    """One cluster, asked as one user, at a limited rate."""

    def __init__(self, access: Access, qps: float = QPS, burst: int = BURST) -> None:
        self.access = access
        self._allowance = Allowance(qps, burst)
        self.throttled = self._allowance.throttled

    @asynccontextmanager
    async def session(self) -> AsyncIterator["Session"]:
        """A connection of its own; one request at a time."""
        session = Session(self.access, self._allowance)
        try:
            yield session
        finally:
            await session.close()

    async def served_version(self, group: str, resource: str, wanted: tuple[str, ...]) -> str:
        """The first of `wanted` in which the cluster serves `resource`; ResourceMissing where it serves none."""
        async with self.session() as session:
            found = await session.decoded(answers.GROUP, f"/apis/{group}")
            served = [one.version for one in found.versions]
            for version in wanted:
                if version in served:
                    resources = await session.decoded(answers.RESOURCES, f"/apis/{group}/{version}")
                    if resources.has(resource):
                        return version
        raise errors.ResourceMissing(
            404, f"{resource} of {group} is not served as {' or '.join(wanted)} (the group is, as {', '.join(served)})"
        )

    async def list(self, collection: Collection, convert: Callable[[Metadata], _T | None]) -> Listing[_T]:
        """All of `collection` as of now, each made to what `convert` makes of it, None left out.

        Raises:
            ApiFailed, CredentialsMissing: after trying again what is worth it.
        """
        size = PAGE_SIZE
        for start in range(1, STARTS + 1):
            try:
                async with self.session() as session:
                    listing = await _pages(session, collection, convert, size)
                if len(listing.items) > PAGE_SIZE:
                    # The pages, some megabytes.
                    heap.give_back()
                return listing
            except errors.VersionExpired:
                # What the server offers instead, to go on with the rest as of now, would be a list of no moment.
                if start == STARTS:
                    raise
                log.debug("%s: a list expired while it was read; again, in larger pages", collection.path)
                size *= 4
        raise AssertionError("the last start returns or raises")

    @asynccontextmanager
    async def watch(self, collection: Collection, version: str) -> AsyncIterator["Watch"]:
        """What changes in `collection` from `version` on."""
        target = collection.target(
            watch="true",
            allowWatchBookmarks="true",
            resourceVersion=version,
            timeoutSeconds=str(random.randint(*WATCH_SECONDS)),
        )
        async with (
            self.session() as session,
            session.answer(target, answers.METADATA, WATCH_PATIENCE) as response,
            aclosing(response.aiter_stream()) as chunks,
        ):
            yield Watch(chunks)


class Watch:
    """Changes as they come."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._partial = b""

    async def changes(self) -> list[Change]:
        """The next ones; none when the watch has ended.

        Raises:
            VersionExpired: only a fresh list tells what there is.
            ApiFailed
        """
        with _translated("the watch"):
            async for chunk in self._chunks:
                *lines, self._partial = (self._partial + chunk).split(b"\n")
                if len(self._partial) > answers.SIZE_LIMIT:
                    raise errors.AnswerInvalid(f"an event of more than {answers.SIZE_LIMIT} bytes")
                if changes := [answers.change(line) for line in lines if line.strip()]:
                    return changes
        return []


class Session:
    """Requests over one connection."""

    def __init__(self, access: Access, allowance: Allowance) -> None:
        self._access = access
        self._allowance = allowance
        self._connections = Connections()
        self._pool: httpcore2.AsyncConnectionPool | None = None
        self._headers: list[tuple[str, str]] = []

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        with trio.CancelScope(shield=True):
            if pool is not None:
                await pool.aclose()
            await self._connections.close()

    async def decoded(self, decoder: "msgspec.json.Decoder[_T]", target: str, accept: str = answers.PLAIN) -> _T:
        """The whole answer to a request; asked again, on another connection, where that may help."""
        body = await self._insist(target, accept)
        try:
            return decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise errors.AnswerInvalid(f"{self._access.server}{target}: {error}") from None

    async def _insist(self, target: str, accept: str) -> bytes:
        backoff = Backoff(0.5, 8.0)
        while True:
            try:
                async with self.answer(target, accept, ANSWER_PATIENCE) as response:
                    return await _body(response)
            except errors.ApiFailed as error:
                if backoff.failures == TRIES - 1 or not answers.is_passing(error):
                    raise
                retry_after = getattr(error, "retry_after", None)
            await self.close()
            await backoff.wait(retry_after)

    @asynccontextmanager
    async def answer(self, target: str, accept: str, silence: float) -> AsyncIterator[httpcore2.Response]:
        """The answer to a GET once it has begun with 200; `silence` bounds the wait for each further part of it."""
        with _translated(self._access.server):
            for renew in (False, True):
                await self._allowance.take()
                async with (await self._connected(renew)).stream(
                    "GET",
                    self._access.server + target,
                    headers=[*self._headers, ("Accept", accept)],
                    extensions=self._extensions(silence),
                ) as response:
                    if response.status == 200:
                        yield response
                        return
                    error = answers.refusal(response.status, response.headers, await _body(response))
                self._allowance.throttled["server"] += isinstance(error, errors.ApiBusy)
                if renew or not isinstance(error, errors.CredentialsRefused):
                    raise error

    async def _connected(self, renew: bool) -> httpcore2.AsyncConnectionPool:
        """The connection, made if there is none; anew, with other credentials, after a refusal."""
        if renew:
            await self.close()
        if self._pool is None:
            credentials = self._access.credentials
            if credentials.is_slow:
                identity = await trio.to_thread.run_sync(credentials.identity, renew, abandon_on_cancel=True)
            else:
                identity = credentials.identity(renew)
            server = urlsplit(self._access.server)
            self._headers = [("Host", server.netloc), ("User-Agent", f"tagfs/{__version__}")]
            self._headers += self._access.impersonation
            if identity.authorization is not None:
                self._headers.append(("Authorization", identity.authorization))
            self._pool = httpcore2.AsyncConnectionPool(
                ssl_context=self._access.trust.context(identity) if server.scheme == "https" else None,
                max_connections=1,
                network_backend=self._connections,
            )
        return self._pool

    def _extensions(self, silence: float) -> dict[str, Any]:
        timeout = {"connect": CONNECT_PATIENCE, "pool": CONNECT_PATIENCE, "write": ANSWER_PATIENCE, "read": silence}
        name = self._access.trust.server_name
        return {"timeout": timeout} | ({"sni_hostname": name} if name else {})


async def _pages(
    session: Session, collection: Collection, convert: Callable[[Metadata], _T | None], size: int
) -> Listing[_T]:
    items: set[_T] = set()
    rest = version = ""
    while True:
        target = collection.target(limit=str(size), **{"continue": rest})
        page = await session.decoded(answers.PAGE, target, answers.METADATA_LIST)
        if page.kind != "PartialObjectMetadataList" or not page.metadata.resource_version:
            raise errors.AnswerInvalid(f"{collection.path}: the answer is {page.kind or 'nothing'}, and no list")
        if version and page.metadata.resource_version != version:
            raise errors.AnswerInvalid(f"{collection.path}: the pages of a list are of different versions")
        version = page.metadata.resource_version
        items.update(item for one in page.items or () if (item := convert(one.metadata)) is not None)
        rest = page.metadata.rest
        if not rest:
            return Listing(items, version)


async def _body(response: httpcore2.Response) -> bytes:
    body = bytearray()
    async with aclosing(response.aiter_stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > answers.SIZE_LIMIT:
                raise errors.AnswerInvalid(f"an answer of more than {answers.SIZE_LIMIT} bytes")
    return bytes(body)


@contextmanager
def _translated(whom: str) -> Iterator[None]:
    """What the HTTP client raises -> ApiUnreachable with the innermost cause, which names port or certificate."""
    try:
        yield
    except httpcore2.TimeoutException as error:
        raise errors.ApiUnreachable(f"{whom}: silent for too long ({type(error).__name__})") from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        # The pool cuts the chain of causes at its own error, so there it is the context that tells.
        cause: BaseException = error.__cause__ or error.__context__ or error
        while (deeper := _deeper(cause)) is not None:
            cause = deeper
        raise errors.ApiUnreachable(f"{whom}: {str(cause) or type(cause).__name__}") from error


def _deeper(error: BaseException) -> BaseException | None:
    return error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__
