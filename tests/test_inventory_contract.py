"""What an inventory of a cluster promises, on a fake API server and, in `make test-kubernetes`, on a real one."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trustme
from trio.testing import MockClock as Clock

from tagfs.answers import Collection, Metadata
from tagfs.cluster import GROUP, RESOURCE
from tagfs.errors import InventoryIncomplete
from tagfs.kube import Kube
from tagfs.names import RepositoryKey
from tests.kubernetes.real_api import (
    RIGHTS,
    START_PATIENCE,
    ApiServer,
    RealCluster,
    objects_path,
    program,
    real_cluster,
)
from tests.support.clusters import Cluster, following, keys_of, until
from tests.support.daemon import eventually
from tests.support.fake_api import fake_cluster

pytestmark = pytest.mark.timeout(600)

SHARD = "sharding.fluxcd.io/key"
SELECTORS = {
    f"{SHARD}=shard1": {"shard1"},
    f"!{SHARD}": {""},
    f"{SHARD} in (shard1, shard2)": {"shard1", "shard2"},
    f"{SHARD} notin (shard1)": {"shard2", ""},
    f"{SHARD}!=shard1,{SHARD}": {"shard2"},
}


SERVER = pytest.StashKey[ApiServer]()

KINDS = ["fake", *([pytest.param("real", marks=pytest.mark.kubernetes)] if program() is not None else [])]


@pytest.fixture(params=KINDS)
def which(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def clock(which: str) -> Clock:
    """The fake's time flies where nothing else happens; pytest-trio sees it only among a test's own arguments."""
    return Clock(autojump_threshold=0.02) if which == "fake" else Clock(rate=1)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> ApiServer:
    """One for the whole run: a fixture that several modules import is made once for each of them."""
    path = program()
    if path is None:
        pytest.skip("make test-kubernetes builds a real API server and runs this on it")
    if SERVER not in pytestconfig.stash:
        pytestconfig.stash[SERVER] = started = ApiServer(path, tmp_path_factory.mktemp("kubernetes"))
        pytestconfig.add_cleanup(started.end)
        started.start_etcd()
        started.start()
        eventually(started.is_ready, "the API server to be ready", START_PATIENCE)
    return pytestconfig.stash[SERVER]


@pytest.fixture
async def cluster(
    which: str, clock: object, authority: trustme.CA, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Cluster]:
    if which == "fake":
        async with fake_cluster(tmp_path, authority) as fake:
            yield fake
    else:
        async with real_cluster(request.getfixturevalue("server"), tmp_path) as real:
            yield real


@pytest.fixture
async def real(server: ApiServer, tmp_path: Path) -> AsyncIterator[RealCluster]:
    async with real_cluster(server, tmp_path) as real:
        yield real


async def create_shards(cluster: Cluster) -> dict[str, set[RepositoryKey]]:
    """Six objects of each of two shards and of none."""
    shards = {shard: set(keys_of(f"apps-{shard or 'none'}", 6)) for shard in ("shard1", "shard2", "")}
    for shard, keys in shards.items():
        await cluster.create(keys, {SHARD: shard} if shard else {})
    return shards


# -- keys


async def test_no_object_is_an_empty_inventory(clock: Clock, cluster: Cluster) -> None:
    assert await cluster.inventory().keys() == frozenset()


async def test_a_thousand_objects_come_in_pages_and_whole(clock: Clock, cluster: Cluster) -> None:
    expected = [*keys_of("apps", 600), *keys_of("platform", 400), *keys_of("zoo", 1)]
    await cluster.create(expected)
    inventory = cluster.inventory()
    assert inventory.last_complete is None
    assert await inventory.keys() == set(expected)
    assert inventory.last_complete is not None


@pytest.mark.parametrize("selector", SELECTORS)
async def test_a_selector_chooses_as_in_kubectl(clock: Clock, cluster: Cluster, selector: str) -> None:
    shards = await create_shards(cluster)
    expected = set().union(*(shards[shard] for shard in SELECTORS[selector]))
    assert await cluster.inventory(label_selector=selector).keys() == expected


async def test_a_selector_that_is_none_is_an_error(clock: Clock, cluster: Cluster) -> None:
    with pytest.raises(InventoryIncomplete, match=r"400.*selector"):
        await cluster.inventory(label_selector="a b c").keys()


async def test_namespaces_choose(clock: Clock, cluster: Cluster) -> None:
    await cluster.create([*keys_of("a", 2), *keys_of("b", 2), *keys_of("c", 2)])
    assert await cluster.inventory(namespaces=("a",)).keys() == set(keys_of("a", 2))
    assert await cluster.inventory(namespaces=("a", "c")).keys() == {*keys_of("a", 2), *keys_of("c", 2)}
    assert await cluster.inventory(namespaces=("nobody",)).keys() == frozenset()


async def test_two_shards_and_the_rest_are_all(clock: Clock, cluster: Cluster) -> None:
    shards = await create_shards(cluster)
    selectors = [f"{SHARD}=shard1", f"{SHARD}=shard2", f"!{SHARD}"]
    found = [await cluster.inventory(label_selector=selector).keys() for selector in selectors]
    assert found == list(shards.values())


# -- departures


async def test_a_deletion_is_told_within_a_second(clock: Clock, cluster: Cluster) -> None:
    keys, seconds = keys_of("apps", 20), []
    await cluster.create(keys)
    async with following(cluster, cluster.inventory()) as follower:
        for key in keys[7:12]:
            before = trio.current_time()
            await cluster.delete(key)
            await follower.until_departed(key)
            seconds.append(trio.current_time() - before)
    assert min(seconds) < 1, "on a machine that is busy with something else one of them may well take longer"
    assert follower.departed == keys[7:12]


async def test_who_leaves_the_shard_departs_and_who_stays_does_not(clock: Clock, cluster: Cluster) -> None:
    shards = await create_shards(cluster)
    staying, leaving, *others = sorted(shards["shard1"])
    inventory = cluster.inventory(label_selector=f"{SHARD}=shard1")
    async with following(cluster, inventory, lambda labels: labels.get(SHARD) == "shard1") as follower:
        await cluster.relabel(staying, {SHARD: "shard1", "team": "x"})
        await cluster.relabel(sorted(shards["shard2"])[0], {SHARD: "shard1"})
        await cluster.relabel(leaving, {SHARD: "shard2"})
        await follower.until_departed(leaving)
        await cluster.relabel(others[0], {})
        await follower.until_departed(others[0])
    assert follower.departed == [leaving, others[0]]
    assert await inventory.keys() == {*shards["shard1"], sorted(shards["shard2"])[0]} - {leaving, others[0]}


async def test_other_namespaces_are_not_followed(clock: Clock, cluster: Cluster) -> None:
    await cluster.create([*keys_of("a", 2), *keys_of("b", 2), *keys_of("c", 2)])
    async with following(cluster, cluster.inventory(namespaces=("a", "b"))) as follower:
        for namespace in ("c", "a", "b"):
            await cluster.delete(keys_of(namespace, 1)[0])
        await follower.until_departed(keys_of("a", 1)[0], keys_of("b", 1)[0])
    assert len(follower.departed) == 2


async def test_a_namespace_of_500_goes_and_its_neighbour_stays(clock: Clock, cluster: Cluster) -> None:
    gone, staying = keys_of("gone", 500), keys_of("staying", 100)
    await cluster.create([*gone, *staying])
    inventory = cluster.inventory()
    async with following(cluster, inventory) as follower:
        await cluster.delete_all("gone")
        await follower.until_departed(*gone)
    assert sorted(follower.departed) == gone
    assert await inventory.keys() == set(staying)


# -- failures, and recovery by itself


async def test_a_server_that_stops_and_comes_back(
    clock: Clock, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    keys = keys_of("apps", 30)
    await cluster.create(keys)
    inventory = cluster.inventory()
    async with following(cluster, inventory) as follower:
        await cluster.stop()
        with pytest.raises(InventoryIncomplete):
            await inventory.keys()
        await until(lambda: not inventory.is_synced)
        await cluster.start()
        await cluster.delete(keys[0])
        await follower.until_departed(keys[0])
        await until(lambda: inventory.is_synced)
        assert await inventory.keys() == set(keys[1:])
    assert follower.departed == [keys[0]]
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) <= 1, "an outage is said once"


async def test_a_deletion_that_is_no_longer_known_when_the_watch_is_resumed(
    clock: Clock, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    keys = keys_of("apps", 30)
    await cluster.create(keys)
    caplog.set_level(logging.INFO)
    inventory = cluster.inventory()
    async with following(cluster, inventory) as follower:
        # Without rights it cannot resume before what it has missed is forgotten.
        await cluster.withdraw_rights()
        await cluster.stop()
        await cluster.start()
        await cluster.delete(keys[0])
        await cluster.create(keys_of("later", 3))
        await cluster.compact()
        await cluster.grant_rights()
        await cluster.delete(keys[1])
        await follower.until_departed(keys[0], keys[1])
        await until(lambda: inventory.is_synced)
        assert await inventory.keys() == {*keys[2:], *keys_of("later", 3)}
    assert sorted(follower.departed) == keys[:2]
    assert "listed anew" in caplog.text


async def test_a_list_that_expires_between_its_pages_is_whole_all_the_same(clock: Clock, cluster: Cluster) -> None:
    before, meanwhile = keys_of("apps", 700), RepositoryKey("zoo", "new")
    await cluster.create(before)
    collection = Collection(f"/apis/{GROUP}/v1/{RESOURCE}")
    kube = Kube(cluster.access)
    first = (await kube.list(collection, lambda metadata: metadata.name)).version
    seen = 0

    def convert(metadata: Metadata) -> RepositoryKey:
        nonlocal seen
        seen += 1
        if seen == 500:
            cluster.forget()
        return RepositoryKey(metadata.namespace, metadata.name)

    await cluster.create([meanwhile])
    listing = await kube.list(collection, convert)
    assert listing.items == {*before, meanwhile}
    assert listing.version != first


async def test_a_token_that_rotates(clock: Clock, cluster: Cluster) -> None:
    keys = keys_of("apps", 3)
    await cluster.create(keys)
    inventory = cluster.inventory()
    async with following(cluster, inventory) as follower:
        await cluster.rotate_token()
        assert await inventory.keys() == set(keys)
        await cluster.delete(keys[0])
        await follower.until_departed(keys[0])


async def test_rights_that_are_withdrawn(clock: Clock, cluster: Cluster) -> None:
    keys = keys_of("apps", 30)
    await cluster.create(keys)
    inventory = cluster.inventory()
    async with following(cluster, inventory) as follower:
        await cluster.withdraw_rights()
        await cluster.delete(keys[0])
        with pytest.raises(InventoryIncomplete, match="403"):
            await inventory.keys()
        with pytest.raises(InventoryIncomplete, match="403"):
            await cluster.inventory().keys()
        assert follower.departed == []
        await cluster.grant_rights()
        await follower.until_departed(keys[0])
        assert await inventory.keys() == set(keys[1:])
    assert follower.departed == [keys[0]]


async def test_a_definition_that_is_deleted_is_no_empty_inventory(clock: Clock, cluster: Cluster) -> None:
    keys = keys_of("apps", 30)
    await cluster.create(keys)
    inventory = cluster.inventory()
    async with following(cluster, inventory) as follower:
        await cluster.delete_definition()
        for asked in (inventory, cluster.inventory()):
            with pytest.raises(InventoryIncomplete, match="404"):
                await asked.keys()
        await until(lambda: not inventory.is_synced)
        await cluster.create_definition()
        await cluster.create(keys[:-1])
        await follower.until_departed(keys[-1])
        await until(lambda: inventory.is_synced)
        assert await inventory.keys() == set(keys[:-1])
        await cluster.delete(keys[0])
        await follower.until_departed(keys[0])


# -- rights, which only a real API server grants


async def ask_as(cluster: RealCluster, method: str, path: str) -> int:
    """The status of a request of the service account."""
    authorization = f"Bearer {cluster.token}"
    return (await cluster.administrator.ask(method, path, None, range(600), Authorization=authorization)).status


@pytest.mark.kubernetes
async def test_the_rights_of_the_manifests_are_the_least(real: RealCluster) -> None:
    key = RepositoryKey("apps", "web")
    await real.create([key])
    assert await real.inventory().keys() == {key}
    whole, one = objects_path("apps"), f"{objects_path('apps')}/web"
    for path in (whole, one, f"{whole}?watch=true&timeoutSeconds=1"):
        assert await ask_as(real, "GET", path) == 200, path
    for method, path in [("DELETE", one), ("PUT", one), ("PATCH", one), ("POST", whole), ("DELETE", whole)]:
        assert await ask_as(real, method, path) == 403, method
    for path in (f"{one}/status", "/api/v1/secrets", "/api/v1/namespaces/apps/secrets", "/api/v1/namespaces"):
        assert await ask_as(real, "GET", path) == 403, path


@pytest.mark.kubernetes
async def test_the_rights_of_one_namespace_are_enough_for_it(real: RealCluster) -> None:
    await real.create([*keys_of("apps", 3), *keys_of("other", 3)])
    await real.withdraw_rights()
    await real.administrator.apply(RIGHTS / "namespace.yaml")
    inventory = real.inventory(namespaces=("apps",))
    await real.until_answered(200, "apps")
    assert await inventory.keys() == set(keys_of("apps", 3))
    for namespaces in ((), ("other",), ("apps", "other")):
        with pytest.raises(InventoryIncomplete, match=r"403.*get, list and watch"):
            await real.inventory(namespaces=namespaces).keys()
    async with following(real, inventory) as follower:
        await real.delete(keys_of("apps", 1)[0])
        await follower.until_departed(keys_of("apps", 1)[0])
