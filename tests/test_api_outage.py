"""An API server that is gone for an hour, as who has the pager sees it: the store, readiness, metrics, the log."""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from tagfs.commits import Commits
from tagfs.direct import Direct
from tagfs.figures import Owners
from tagfs.memory import MemoryStore
from tagfs.metrics import Exposition
from tagfs.monitoring import LAG_BOUNDS, Monitoring
from tagfs.names import RepositoryKey
from tagfs.plan import Rules
from tagfs.removal import StoreRemoval, entries
from tagfs.session import Session
from tagfs.settings import MountSettings
from tagfs.sweeper import Sweeper
from tagfs.timings import Distribution
from tests.support.clusters import keys_of, until
from tests.support.fake_api import FakeCluster, fake_cluster

LONG_AGO = 1_000_000_000
HOUR = 3600.0
SETTINGS = MountSettings("/store", "/mount")

NEAR = 30.0
"""Seconds by which what is rounded, or read a moment later, may differ."""

AGES = ("tagfs_sweep_last_success_timestamp_seconds", "tagfs_inventory_last_complete_timestamp_seconds")


class Sight:
    """What machines are told of a sweeper, as a mount tells it."""

    def __init__(self, sweeper: Sweeper, nursery: trio.Nursery) -> None:
        channel, commits = Direct(0, 0), Commits(nursery)
        channel.waiting = None  # the store is shown
        session = Session(SETTINGS, channel)
        owners = Owners(SETTINGS, channel, commits, session, sweeper, Distribution(LAG_BOUNDS))
        self._exposition = Exposition(owners.figures)
        self.missing = Monitoring(SETTINGS, channel, commits, session, sweeper).missing

    def value(self, name: str, **labels: str) -> float:
        [value] = [
            sample.value
            for family in text_string_to_metric_families(self._exposition.text().decode())
            for sample in family.samples
            if (sample.name, sample.labels) == (name, labels)
        ]
        return float(value)

    def ages(self) -> list[float]:
        """Of the last good sweep and inventory, as the alerts have them: `time() - name`."""
        return [time.time() - self.value(name) for name in AGES]


@asynccontextmanager
async def sweeping(cluster: FakeCluster, store: MemoryStore) -> AsyncIterator[tuple[Sweeper, Sight]]:
    """Sweep as often as a mount does by default."""
    sweeper = Sweeper(cluster.inventory(), Rules(), SETTINGS.gc_interval)
    async with trio.open_nursery() as nursery:
        sight = Sight(sweeper, nursery)
        nursery.start_soon(sweeper.run, StoreRemoval(store))
        yield sweeper, sight
        nursery.cancel_scope.cancel()


def there(store: MemoryStore) -> set[RepositoryKey]:
    return {entry.key for entry in entries(store) if entry.key is not None and entry.has_list}


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Which warnings and errors there were since the last look."""
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return found


@pytest.fixture
def clock() -> MockClock:
    """Jumps only when nothing has happened for so long: answers of the fake come at once, but from the kernel."""
    return MockClock(autojump_threshold=0.02)


@pytest.mark.slow
async def test_an_api_server_that_is_gone_for_an_hour_costs_no_list_and_is_told_once(
    clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys, orphan, store = keys_of("apps", 30), RepositoryKey("apps", "orphan"), MemoryStore()
    for key in keys:
        store.replace(key, b"v1\n", LONG_AGO)
    async with fake_cluster(tmp_path) as cluster:
        await cluster.create(keys)
        async with sweeping(cluster, store) as (sweeper, sight):
            assert sight.missing() == ["inventory: kubernetes has not told yet what ought to exist"]
            await until(lambda: sweeper.counters.sweeps == 1 and not sight.missing())
            assert sight.value("tagfs_inventory_synced") == 1
            assert told(caplog) == []

            before = sight.ages()
            await cluster.stop()
            # Both would go at once if the cluster said so.
            store.replace(orphan, b"v1\n", LONG_AGO)
            await cluster.delete(keys[0])
            for _ in range(12):
                await trio.sleep(HOUR / 12)
                assert there(store) == {*keys, orphan}
                assert sight.missing() == [], "lists are shown, and right"

            assert sight.ages() == pytest.approx([age + HOUR for age in before], abs=NEAR)
            assert sight.value("tagfs_inventory_synced") == 0
            assert sight.value("tagfs_sweeps_total", result="done") == 1
            assert sight.value("tagfs_sweeps_total", result="incomplete") > HOUR / SETTINGS.gc_interval
            assert sight.value("tagfs_sweep_deletions_total") == 0
            assert sight.value("tagfs_inventory_watch_restarts_total") > 60
            lost, undone = sorted(told(caplog))
            assert lost.startswith("all imagerepositories: cannot be followed, trying again: ")
            assert undone.startswith("sweep: nothing is deleted, the inventory is not complete: ")

            await cluster.start()
            with trio.fail_after(SETTINGS.gc_interval):
                while there(store) != {*keys[1:]} or sweeper.counters.sweeps == 1:  # noqa: ASYNC110 - it tells nobody
                    await trio.sleep(1)
                # A sweep asks by itself; who follows departures comes back on its own.
                while sight.value("tagfs_inventory_synced") != 1:  # noqa: ASYNC110
                    await trio.sleep(1)
            assert sight.value("tagfs_sweep_deletions_total") == 2
            assert max(sight.ages()) < SETTINGS.gc_interval
            assert sight.missing() == []
            assert told(caplog) == []
