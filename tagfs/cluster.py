"""Cluster: the inventory that a Kubernetes cluster gives: its ImageRepository objects.  Async.

Owns: which objects are meant (namespaces, label selector); what is known of them and since when; departures.
Does not know: how the API is spoken; stores.
Invariant: a departure is given out only after a fresh look found its key missing, whatever a watch has told.
"""

import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import trio

from tagfs.answers import Collection, Metadata, is_passing
from tagfs.errors import (
    ApiBusy,
    ApiFailed,
    ApiRefused,
    ApiUnreachable,
    CredentialsMissing,
    InventoryIncomplete,
    NameRefused,
    ResourceMissing,
    RightsMissing,
    VersionExpired,
)
from tagfs.inventory import Inventory
from tagfs.kube import WATCH_PATIENCE, Kube
from tagfs.names import RepositoryKey
from tagfs.pacing import Backoff

log = logging.getLogger(__name__)

GROUP = "image.toolkit.fluxcd.io"
RESOURCE = "imagerepositories"
VERSIONS = ("v1", "v1beta2")
"""Served versions that are understood, the preferred one first; only metadata is read, the same in both."""

RETRY_FIRST, RETRY_LIMIT = 0.5, 30.0
"""Seconds until what failed is tried again."""

FRESH = 5.0
"""Seconds for which a look that missed a key is good."""

ONE_BY_ONE = 4
"""Departures up to which each is looked for by itself; for more, a list of their namespace is cheaper."""

GATHER = 0.2
"""Seconds in which further departures join those, as when a namespace is deleted object by object."""

STEADY = 5.0
"""Seconds after which a watch that ends is no failure."""

_REFUSED_NAMES_LIMIT = 100


class KubernetesInventory(Inventory):
    """The ImageRepository objects that this instance is responsible for.

    Args:
        namespaces: those whose objects count; empty: all of the cluster.
        label_selector: as Flux's `--watch-label-selector` takes it.
    """

    name = "kubernetes"

    def __init__(self, kube: Kube, namespaces: tuple[str, ...] = (), label_selector: str = "") -> None:
        self._kube = kube
        self.throttled = kube.throttled
        self._label_selector = label_selector
        self._scopes = [_Scope(namespace) for namespace in sorted(set(namespaces))] or [_Scope(None)]
        self._served: str | None = None
        self._refused_names: set[str] = set()
        # INVARIANT: a key is in one of these at most: gone as a watch has it; gone by a fresh look (and when that was).
        self._suspects: dict[RepositoryKey, None] = {}
        self._departed: dict[RepositoryKey, float] = {}
        self._is_suspicious = trio.Event()

    @property
    def is_synced(self) -> bool:
        return all(scope.is_followed for scope in self._scopes)

    async def keys(self) -> frozenset[RepositoryKey]:
        found: set[RepositoryKey] = set()
        for scope in self._scopes:
            found |= await self._listed(scope.namespace)
        self.last_complete = trio.current_time()
        return frozenset(found)

    @asynccontextmanager
    async def departures(self) -> AsyncIterator[AsyncIterator[RepositoryKey]]:
        async with trio.open_nursery() as nursery:
            for scope in self._scopes:
                nursery.start_soon(self._follow, scope)
            async with aclosing(self._departures()) as departures:
                yield departures
            nursery.cancel_scope.cancel()
        for scope in self._scopes:
            scope.is_followed = False

    # -- following

    async def _follow(self, scope: "_Scope") -> None:
        """List and watch, and begin again, for ever."""
        while True:
            retry_after = None
            try:
                if scope.version is None:
                    await self._learn(scope)
                await self._watch(scope)
            except VersionExpired as error:
                scope.version, scope.is_followed = None, False
                log.info("%s: what happened meanwhile is no longer known, so all is listed anew: %s", scope, error)
            except (ApiFailed, CredentialsMissing) as error:
                if isinstance(error, ResourceMissing):
                    self._served = scope.version = None
                scope.failed(error)
                retry_after = getattr(error, "retry_after", None)
            await scope.backoff.wait(retry_after)
            self.restarts += 1

    async def _learn(self, scope: "_Scope") -> None:
        """List a scope; what was known and is not there any more has departed."""
        listing = await self._kube.list(await self._collection(scope.namespace), self._key)
        for key in scope.known - listing.items:
            self._suspect(key)
        for key in (self._suspects.keys() | self._departed.keys()) & listing.items:
            self._came_back(key)
        scope.known, scope.version = listing.items, listing.version
        if len(self._scopes) == 1:
            self.last_complete = trio.current_time()

    async def _watch(self, scope: "_Scope") -> None:
        """Take note of what happens until the watch ends."""
        assert scope.version is not None
        since = trio.current_time()
        is_silent = True
        try:
            async with self._kube.watch(await self._collection(scope.namespace), scope.version) as watch:
                scope.succeeded()
                while changes := await watch.changes():
                    is_silent = False
                    for change in changes:
                        self._note(scope, change.metadata, change.is_there)
                        scope.version = change.version
        except ApiUnreachable:
            if is_silent and trio.current_time() - since >= WATCH_PATIENCE:
                # Perhaps it waits for a version that the server, restored from a backup, has yet to reach.
                scope.version = None
            raise
        finally:
            if trio.current_time() - since >= STEADY:
                scope.backoff.reset()

    def _note(self, scope: "_Scope", metadata: Metadata | None, is_there: bool) -> None:
        key = self._key(metadata) if metadata is not None else None
        if key is None:
            return
        if is_there:
            scope.known.add(key)
            self._came_back(key)
        else:
            scope.known.discard(key)
            self._suspect(key)

    def _suspect(self, key: RepositoryKey) -> None:
        if key not in self._departed:
            self._suspects[key] = None
            self._is_suspicious.set()

    def _came_back(self, key: RepositoryKey) -> None:
        self._suspects.pop(key, None)
        self._departed.pop(key, None)

    # -- departures

    async def _departures(self) -> AsyncGenerator[RepositoryKey, None]:
        backoff = Backoff(RETRY_FIRST, RETRY_LIMIT)
        while True:
            while self._departed:
                key = next(iter(self._departed))
                at = self._departed.pop(key)
                if trio.current_time() - at <= FRESH:
                    yield key
                else:
                    self._suspect(key)
            if not self._suspects:
                self._is_suspicious = trio.Event()
                await self._is_suspicious.wait()
            try:
                await self._confirm()
                backoff.reset()
            except InventoryIncomplete as error:
                log.debug("%d objects may have departed: %s", len(self._suspects), error)
                await backoff.wait()

    async def _confirm(self) -> None:
        """Look for what a watch has told to be gone; what is there all the same has come back."""
        if len(self._suspects) > ONE_BY_ONE:
            await trio.sleep(GATHER)
        if not self._suspects:
            return
        first = next(iter(self._suspects))
        suspects = [key for key in self._suspects if key.namespace == first.namespace]
        one = ""
        if len(suspects) <= ONE_BY_ONE:
            suspects, one = [first], f"metadata.name={first.name}"
        at = trio.current_time()
        there = await self._listed(first.namespace, one)
        for key in suspects:
            # Whoever came back while this looked is no suspect any more.
            if key in self._suspects:
                del self._suspects[key]
                if key not in there:
                    self._departed[key] = at

    # -- what is asked for

    async def _listed(self, namespace: str | None, field_selector: str = "") -> set[RepositoryKey]:
        """Those of a namespace, or of all, that ought to exist, by a fresh look; InventoryIncomplete."""
        try:
            return (await self._kube.list(await self._collection(namespace, field_selector), self._key)).items
        except (ApiFailed, CredentialsMissing) as error:
            if isinstance(error, ResourceMissing):
                self._served = None
            raise InventoryIncomplete(_told(error)) from error

    async def _collection(self, namespace: str | None, field_selector: str = "") -> Collection:
        if self._served is None:
            self._served = await self._kube.served_version(GROUP, RESOURCE, VERSIONS)
        below = f"/namespaces/{namespace}" if namespace is not None else ""
        return Collection(f"/apis/{GROUP}/{self._served}{below}/{RESOURCE}", self._label_selector, field_selector)

    def _key(self, metadata: Metadata) -> RepositoryKey | None:
        """The key of an object; None for one that can have no list, and so loses none by not being counted."""
        try:
            return RepositoryKey(sys.intern(metadata.namespace), metadata.name)
        except NameRefused as error:
            shown = f"{metadata.namespace}/{metadata.name}"
            if shown not in self._refused_names and len(self._refused_names) < _REFUSED_NAMES_LIMIT:
                self._refused_names.add(shown)
                log.warning("an ImageRepository that can have no list: %s", error)
            return None


@dataclass(slots=True)
class _Scope:
    """What is followed by one watch: a namespace, or None for all; `version` None: to be listed first."""

    namespace: str | None
    known: set[RepositoryKey] = field(default_factory=set)
    version: str | None = None
    is_followed: bool = False
    is_complained_of: bool = False
    backoff: Backoff = field(default_factory=lambda: Backoff(RETRY_FIRST, RETRY_LIMIT))

    def succeeded(self) -> None:
        if self.is_complained_of:
            log.info("%s: followed again, %d objects", self, len(self.known))
        self.is_followed, self.is_complained_of = True, False

    def failed(self, error: ApiFailed | CredentialsMissing) -> None:
        """Say so once; a watch that was cut, and may be resumed at once, is no news."""
        is_news = not isinstance(error, ApiFailed) or not is_passing(error) or not self.is_followed
        if is_news and not self.is_complained_of:
            log.warning("%s: cannot be followed, trying again: %s", self, _told(error))
            self.is_complained_of = True
        self.is_followed = False

    def __str__(self) -> str:
        return f"{RESOURCE} of namespace {self.namespace}" if self.namespace is not None else f"all {RESOURCE}"


def _told(error: ApiFailed | CredentialsMissing) -> str:
    """A sentence for a person, with what to do about it where that is known."""
    if isinstance(error, RightsMissing):
        return f"{error} (get, list and watch on {RESOURCE}.{GROUP} are needed)"
    if isinstance(error, ResourceMissing):
        return f"{error} (are Flux's custom resources installed?)"
    if isinstance(error, ApiRefused) and not isinstance(error, ApiBusy) and error.status == 400:
        return f"{error} (is the label selector one that kubectl takes?)"
    return str(error)
