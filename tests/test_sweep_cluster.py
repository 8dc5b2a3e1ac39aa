"""Sweeps and departures by what a cluster says, on a fake API server and, in `make test-kubernetes`, on a real one."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock as Clock

from tagfs.memory import MemoryStore
from tagfs.names import RepositoryKey
from tagfs.plan import Rules
from tagfs.removal import StoreRemoval, entries
from tagfs.sweep import Sweep
from tagfs.sweeper import Sweeper
from tests.support.clusters import Cluster, keys_of, until

# ruff: noqa: F811 - the fixtures of a cluster, fake or real, are imported, and then named by each test.
from tests.test_inventory_contract import SHARD, authority, clock, cluster, server, which  # noqa: F401

pytestmark = pytest.mark.timeout(600)

LONG_AGO = 1_000_000_000
INTERVAL = 2.0


def put(store: MemoryStore, *keys: RepositoryKey) -> None:
    for key in keys:
        store.replace(key, b"v1\n", LONG_AGO)


def there(store: MemoryStore) -> set[RepositoryKey]:
    return {entry.key for entry in entries(store) if entry.key is not None and entry.has_list}


@asynccontextmanager
async def sweeping(
    cluster: Cluster,
    store: MemoryStore,
    interval: float = INTERVAL,
    selector: str = "",
    rules: Rules | None = None,
) -> AsyncIterator[Sweeper]:
    """Sweep by the cluster; at no time is a list gone whose object lives."""
    inventory = cluster.inventory(label_selector=selector)
    sweeper = Sweeper(inventory, rules or Rules(), interval)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sweeper.run, StoreRemoval(store))
        await until(lambda: inventory.is_synced)
        yield sweeper
        nursery.cancel_scope.cancel()


async def test_a_deleted_object_s_list_goes_at_once(clock: Clock, cluster: Cluster) -> None:
    keys, store = keys_of("apps", 30), MemoryStore()
    await cluster.create(keys)
    put(store, *keys)
    seconds = []
    async with sweeping(cluster, store, interval=0):
        for number, key in enumerate(keys[3:8]):
            before = trio.current_time()
            await cluster.delete(key)
            await until(lambda: key not in there(store))  # noqa: B023 - called here
            seconds.append(trio.current_time() - before)
            assert there(store) == {*keys} - {*keys[3 : 4 + number]}
    assert min(seconds) < 1


async def test_a_relabelled_one_leaves_its_shard(clock: Clock, cluster: Cluster) -> None:
    keys, store = keys_of("apps", 6), MemoryStore()
    await cluster.create(keys, {SHARD: "shard1"})
    put(store, *keys)
    async with sweeping(cluster, store, interval=0, selector=f"{SHARD}=shard1"):
        await cluster.relabel(keys[0], {SHARD: "shard2"})
        await until(lambda: there(store) == {*keys[1:]})


async def test_two_shards_with_a_store_each_hold_their_own(clock: Clock, cluster: Cluster) -> None:
    """Two of the default's are re-assigned to a shard: its sweep deletes exactly those, the shard's none."""
    defaults, sharded = keys_of("apps", 6), keys_of("infra", 4)
    default, shard = MemoryStore(), MemoryStore()
    await cluster.create(defaults)
    await cluster.create(sharded, {SHARD: "shard1"})
    put(default, *defaults)
    put(shard, *sharded)
    sweeps = [
        (Sweep(cluster.inventory(label_selector=selector), Rules()), StoreRemoval(store))
        for selector, store in ((f"!{SHARD}", default), (f"{SHARD}=shard1", shard))
    ]
    assert [(await sweep.run(removal)).deleted for sweep, removal in sweeps] == [[], []]
    for key in defaults[:2]:
        await cluster.relabel(key, {SHARD: "shard1"})
        put(shard, key)
    assert [(await sweep.run(removal)).deleted for sweep, removal in sweeps] == [defaults[:2], []]
    assert (there(default), there(shard)) == ({*defaults[2:]}, {*sharded, *defaults[:2]})


async def test_a_namespace_of_500_that_is_deleted_is_held_at_half(
    clock: Clock,
    cluster: Cluster,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gone, staying, store = keys_of("gone", 500), keys_of("staying", 100), MemoryStore()
    await cluster.create([*gone, *staying])
    put(store, *gone, *staying)
    async with sweeping(cluster, store) as sweeper:
        await until(lambda: sweeper.counters.sweeps > 0)
        await cluster.delete_all("gone")
        await until(lambda: sweeper.counters.held == 200)
        assert len(there(store)) == 300
        sweeps = sweeper.counters.sweeps
        await until(lambda: sweeper.counters.sweeps > sweeps + 3)
        assert len(there(store)) == 300
        assert {*staying} <= there(store)
        assert any("held" in record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
        await cluster.create(gone)
        await until(lambda: sweeper.counters.held == 0)
    async with sweeping(cluster, store, rules=Rules(allow_mass_deletion=True)) as sweeper:
        await cluster.delete_all("gone")
        await until(lambda: there(store) == {*staying})


async def test_a_definition_that_is_deleted_costs_no_more_than_the_share_and_it_recovers(
    clock: Clock,
    cluster: Cluster,
) -> None:
    keys, store = keys_of("apps", 60), MemoryStore()
    await cluster.create(keys)
    put(store, *keys)
    async with sweeping(cluster, store) as sweeper:
        await until(lambda: sweeper.counters.sweeps > 0)
        await cluster.delete_definition()
        await until(lambda: sweeper.counters.incomplete > 1)
        assert len(there(store)) >= 30
        await cluster.create_definition()
        await cluster.create(keys[:-1])
        put(store, *keys)
        sweeps = sweeper.counters.sweeps
        await until(lambda: sweeper.counters.sweeps > sweeps + 1)
        assert {*keys[:-1]} <= there(store)


async def test_outages_delete_nothing_and_end_by_themselves(clock: Clock, cluster: Cluster) -> None:
    keys, store = keys_of("apps", 30), MemoryStore()
    orphan = RepositoryKey("apps", "orphan")
    await cluster.create(keys)
    put(store, *keys)
    async with sweeping(cluster, store) as sweeper:
        await until(lambda: sweeper.counters.sweeps > 0)
        for begin, end in (
            (cluster.stop, cluster.start),
            (cluster.withdraw_rights, cluster.grant_rights),
            (cluster.compact, cluster.rotate_token),
        ):
            put(store, orphan)
            await begin()
            assert {*keys} <= there(store)
            await trio.sleep(1)
            await end()
            await until(lambda: there(store) == {*keys})
