"""How connections to an API server end: whenever a request is cancelled or its connection cut, no socket stays open."""

import gc
import itertools
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio
import trustme

from tagfs.answers import METADATA_LIST, Collection
from tagfs.cluster import GROUP, RESOURCE
from tagfs.errors import ApiUnreachable
from tagfs.kube import Kube
from tests.support.clusters import keys_of
from tests.support.fake_api import FakeCluster, fake_cluster

COLLECTION = Collection(f"/apis/{GROUP}/v1/{RESOURCE}")
COUNT = 3


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(params=["tls", "plain"])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path, authority: trustme.CA) -> AsyncIterator[FakeCluster]:
    async with fake_cluster(tmp_path, authority if request.param == "tls" else None) as cluster:
        await cluster.create(keys_of("apps", COUNT))
        yield cluster


async def read_a_list(kube: Kube) -> int:
    """Without trying again."""
    async with kube.session() as session, session.answer(COLLECTION.target(), METADATA_LIST, 10) as response:
        return len([chunk async for chunk in response.aiter_stream()])


async def list_all(kube: Kube) -> int:
    return len((await kube.list(COLLECTION, lambda metadata: metadata.name)).items)


async def watch(kube: Kube) -> int:
    """From before there was anything, so there is something at once."""
    async with kube.watch(COLLECTION, "1000") as watch:
        return len(await watch.changes())


ASKING: dict[str, Callable[[Kube], Awaitable[int]]] = {"list": list_all, "watch": watch}


@contextmanager
def no_socket_is_left() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        yield
        gc.collect()
    assert [str(one.message) for one in caught] == []


class Cancelling(trio.abc.Instrument):
    """Cancels a scope before the given step that any task makes, its own or the server's."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._scope = scope
        self._left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


@pytest.mark.parametrize("name", ASKING)
async def test_a_request_that_is_cancelled_at_any_moment(cluster: FakeCluster, name: str) -> None:
    kube = Kube(cluster.access)
    for step in itertools.count(1):
        with no_socket_is_left():
            with trio.CancelScope() as scope:
                cancelling = Cancelling(scope, step)
                trio.lowlevel.add_instrument(cancelling)
                try:
                    assert await ASKING[name](kube)
                finally:
                    trio.lowlevel.remove_instrument(cancelling)
        if not scope.cancelled_caught:
            break
    assert step > 10


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("name", ASKING)
async def test_a_connection_that_is_cut_at_any_moment(cluster: FakeCluster, name: str, is_reset: bool) -> None:
    ask = read_a_list if name == "list" else watch
    kube = Kube(cluster.access)
    cuts = 0
    for cuts in itertools.count():
        cluster.cut = 1 + 149 * cuts, is_reset
        with no_socket_is_left(), suppress(ApiUnreachable):
            if await ask(kube):
                break
    assert cuts > 1
