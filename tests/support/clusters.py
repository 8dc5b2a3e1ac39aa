"""Clusters to test against: what a test may do to one, be it the fake or the real one.

A test holds a Cluster and an inventory on it, changes the one and watches the other.  `alive` is what really exists.
"""

import errno
import random
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from tagfs.cluster import KubernetesInventory
from tagfs.inventory import Inventory
from tagfs.kube import Kube
from tagfs.kubeconfig import Access
from tagfs.names import RepositoryKey

PATIENCE = 60.0
"""Seconds, on the test's clock, within which whatever a test waits for happens."""

Labels = Mapping[str, str]
NONE: Labels = {}


class Cluster(ABC):
    """A cluster that serves ImageRepository objects to one user with the rights of `deploy/rbac/cluster.yaml`."""

    def __init__(self) -> None:
        self.alive: dict[RepositoryKey, Labels] = {}

    @property
    @abstractmethod
    def access(self) -> Access:
        """As that user; its token is read from a file."""

    def inventory(self, namespaces: tuple[str, ...] = (), label_selector: str = "") -> KubernetesInventory:
        return KubernetesInventory(Kube(self.access), namespaces, label_selector)

    @abstractmethod
    async def create(self, keys: Iterable[RepositoryKey], labels: Labels = NONE) -> None: ...

    @abstractmethod
    async def relabel(self, key: RepositoryKey, labels: Labels) -> None: ...

    @abstractmethod
    async def delete(self, key: RepositoryKey) -> None: ...

    @abstractmethod
    async def delete_all(self, namespace: str) -> None:
        """As when the namespace is deleted: one object after another."""

    @abstractmethod
    async def stop(self) -> None:
        """The API server ends, with all its connections."""

    @abstractmethod
    async def start(self) -> None: ...

    @abstractmethod
    async def compact(self) -> None:
        """Forget what has happened so far, so that a watch from an earlier version is answered with 410."""

    @abstractmethod
    def forget(self) -> None:
        """The same without a restart, so that a list cannot be continued; at once, without letting others run."""

    @abstractmethod
    async def rotate_token(self) -> None:
        """Another token in the file; the old one is refused from now on."""

    @abstractmethod
    async def withdraw_rights(self) -> None: ...

    @abstractmethod
    async def grant_rights(self) -> None: ...

    @abstractmethod
    async def delete_definition(self) -> None:
        """The custom resource's definition goes, and all its objects with it."""

    @abstractmethod
    async def create_definition(self) -> None: ...


class Follower:
    """What an inventory tells to have departed, as it tells it."""

    def __init__(self) -> None:
        self.departed: list[RepositoryKey] = []
        self.wrong: list[RepositoryKey] = []
        """Told although it was there, and meant, at that moment."""
        self._news = trio.Event()

    async def until_departed(self, *keys: RepositoryKey) -> None:
        with trio.fail_after(PATIENCE):
            while missing := set(keys).difference(self.departed):
                assert missing
                self._news = trio.Event()
                await self._news.wait()

    def tell(self, key: RepositoryKey) -> None:
        self.departed.append(key)
        self._news.set()


@asynccontextmanager
async def following(
    cluster: Cluster, inventory: Inventory, is_meant: Callable[[Labels], bool] = lambda labels: True
) -> AsyncIterator[Follower]:
    """Read an inventory's departures; at the end none of them was wrong.

    Args:
        is_meant: whether an object with these labels is one of the inventory's.
    """
    follower = Follower()

    async def read() -> None:
        async with inventory.departures() as departures:
            async for key in departures:
                if key in cluster.alive and is_meant(cluster.alive[key]):
                    follower.wrong.append(key)
                follower.tell(key)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await until(lambda: inventory.is_synced)
        yield follower
        nursery.cancel_scope.cancel()
    assert not follower.wrong


async def until(condition: Callable[[], bool]) -> None:
    """Return when it is true; TooSlowError when it is not in time."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await trio.sleep(0.1)


def keys_of(namespace: str, count: int) -> list[RepositoryKey]:
    return [RepositoryKey(namespace, f"app-{number:04}") for number in range(count)]


def free_ports(count: int, host: str) -> list[int]:
    """Below those that the kernel gives to whoever connects: while a server is stopped nobody gets its port."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    free: list[int] = []
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in random.sample(range(first // 2, first), first // 2):
        with suppress(OSError), socket.create_server((host, port), family=family):
            free.append(port)
        if len(free) == count:
            return free
    raise OSError(errno.EADDRINUSE, f"no port of {host} is free")
