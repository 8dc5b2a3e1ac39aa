"""Sweeps and departures over each store, under trio's clock: what goes, what stays, when, and what is said."""

import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tagfs.commits import Commits
from tagfs.disk import Disk
from tagfs.errors import InventoryIncomplete, RepositoryMissing, StoreWaiting
from tagfs.guard import WINDOW
from tagfs.memory import MemoryStore
from tagfs.names import RepositoryKey
from tagfs.plan import Rules
from tagfs.removal import MADE_LATELY, Mark, MountRemoval, Outcome, StoreRemoval, entries
from tagfs.replacing import WritableTree
from tagfs.store import Store
from tagfs.sweep import Sweep
from tagfs.sweeper import FIRST, JITTER, RETRY_LIMIT, Sweeper
from tests.support.faulty_disk import Fault, FaultyDisk, Wrong
from tests.support.inventories import ToldInventory
from tests.support.places import fast_directory
from tests.support.stores import open_store

LONG_AGO = 1_000_000_000
MINUTE = 60.0

A, B, C = RepositoryKey("a", "x"), RepositoryKey("a", "y"), RepositoryKey("b", "x")


@pytest.fixture
def place() -> Iterator[Path]:
    with fast_directory() as path:
        yield path


@pytest.fixture(params=["memory", "directory"])
def store(request: pytest.FixtureRequest, place: Path) -> Iterator[Store]:
    made: Store = MemoryStore() if request.param == "memory" else open_store(Disk(), str(place))
    yield made
    made.close()


def put(store: Store, *keys: RepositoryKey) -> None:
    """Give keys a list that nothing takes for written meanwhile."""
    for key in keys:
        store.replace(key, b"v1\n", LONG_AGO)
    settle(store)


def settle(store: Store) -> None:
    """Return when what is written now is before any sweep that is begun later."""
    written = [store.examine(entry.key).ctime_ns for entry in entries(store) if entry.key and entry.has_list]
    while Mark.now().wall_ns <= max(written, default=0):
        pass


def there(store: Store) -> set[RepositoryKey]:
    return {entry.key for entry in entries(store) if entry.key is not None and entry.has_list}


def many(count: int, namespace: str = "many") -> list[RepositoryKey]:
    return [RepositoryKey(namespace, f"r{number}") for number in range(count)]


@asynccontextmanager
async def running(sweeper: Sweeper, store: Store) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sweeper.run, StoreRemoval(store))
        await wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


def told(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if part in record.getMessage()]


@pytest.fixture(autouse=True)
def no_surprises(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[str], None]]:
    """What is said above INFO and not expected fails a test."""
    caplog.set_level(logging.INFO)
    expected: list[str] = []
    yield expected.append
    loud = [record.getMessage() for record in caplog.get_records("call") if record.levelno > logging.INFO]
    assert not [line for line in loud if not any(part in line for part in expected)]


# -- one sweep


async def test_orphans_go_and_the_living_stay(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    put(store, A, B, C)
    swept = await Sweep(ToldInventory([A, B]), Rules()).run(StoreRemoval(store))
    assert there(store) == {A, B}
    assert store.namespaces() == ["a"]
    assert (swept.deleted, swept.pruned) == ([C], ["b"])
    assert told(caplog, "b/x: an orphan, deleted")
    assert told(
        caplog, "sweep: 3 lists, 2 expected; orphans: 1 deleted, 0 held, 0 left, 0 failed; namespaces: 1 removed"
    )


async def test_a_directory_without_a_list_goes_unless_it_was_made_just_now(place: Path) -> None:
    store = open_store(Disk(), str(place))
    put(store, A)
    for name in ("old", "new"):
        store.make_repository(RepositoryKey("a", name))
    os.utime(place / "imagerepository/a/old", (0, 0))
    swept = await Sweep(ToldInventory([A]), Rules()).run(StoreRemoval(store))
    assert sorted(store.repositories("a")) == ["new", "x"]
    assert (swept.deleted, swept.left) == ([RepositoryKey("a", "old")], [RepositoryKey("a", "new")])
    store.close()


async def test_an_empty_namespace_goes_unless_it_was_made_just_now(place: Path) -> None:
    store = open_store(Disk(), str(place))
    put(store, A)
    for namespace in ("old", "new", "expected"):
        store.make_namespace(namespace)
    lately = os.stat(place).st_mtime - MADE_LATELY - 1
    for namespace in ("old", "expected"):
        os.utime(place / "imagerepository" / namespace, (lately, lately))
    await Sweep(ToldInventory([A, RepositoryKey("expected", "x")]), Rules()).run(StoreRemoval(store))
    assert sorted(store.namespaces()) == ["a", "expected", "new"]
    store.close()


async def test_without_an_inventory_no_orphan_goes(store: Store) -> None:
    put(store, A)
    if isinstance(store, MemoryStore):
        store.make_namespace("empty")
    await Sweep(None, Rules()).run(StoreRemoval(store))
    assert there(store) == {A}
    assert store.namespaces() == ["a"]


async def test_an_inventory_that_is_not_complete_deletes_nothing(store: Store) -> None:
    put(store, A, B)
    inventory = ToldInventory()
    inventory.fault = "403"
    with pytest.raises(InventoryIncomplete):
        await Sweep(inventory, Rules(allow_empty_inventory=True)).run(StoreRemoval(store))
    assert there(store) == {A, B}


async def test_a_store_that_is_taken_away_ends_the_sweep(place: Path) -> None:
    store = open_store(Disk(), str(place))
    put(store, A, B)
    sweep = Sweep(ToldInventory([C], before=(place / ".storage-version").unlink), Rules())
    with pytest.raises(StoreWaiting):
        await sweep.run(StoreRemoval(store))
    assert sorted(path.parent.name for path in place.glob("imagerepository/a/*/tags.txt")) == ["x", "y"]
    store.close()


async def test_the_disk_is_listed_before_the_inventory(store: Store) -> None:
    """What is created while the inventory is asked is not on the disk yet, or expected."""
    put(store, A)
    inventory = ToldInventory([A], before=lambda: put(store, B, C))
    await Sweep(inventory, Rules()).run(StoreRemoval(store))
    assert there(store) == {A, B, C}


async def test_a_list_that_is_written_while_the_inventory_is_asked_stays(store: Store) -> None:
    """Its object was created again after it was looked for, under the same name."""
    put(store, A, B)
    inventory = ToldInventory([A], before=lambda: store.replace(B, b"v2\n"))
    swept = await Sweep(inventory, Rules()).run(StoreRemoval(store))
    assert there(store) == {A, B}
    assert swept.left == [B]


async def test_what_is_gone_meanwhile_is_no_error(store: Store) -> None:
    put(store, A, B)

    def go() -> None:
        store.remove(B)
        store.remove_repository(B)

    swept = await Sweep(ToldInventory([A], before=go), Rules()).run(StoreRemoval(store))
    assert (swept.deleted, swept.left, swept.errors) == ([], [], {})


async def test_an_error_on_one_key_is_told_and_the_others_go(
    place: Path, caplog: pytest.LogCaptureFixture, no_surprises: Callable[[str], None]
) -> None:
    store = open_store(Disk(), str(place))
    put(store, A, B, C)

    class Failing(StoreRemoval):
        async def remove(self, key: RepositoryKey, mark: Mark) -> Outcome:
            if key == B:
                raise OSError(5, "Input/output error")
            return await super().remove(key, mark)

    no_surprises("a/y: an orphan, not deleted: [Errno 5]")
    sweep = Sweep(ToldInventory([RepositoryKey("z", "z")]), Rules())
    swept = await sweep.run(Failing(store))
    assert there(store) == {B}
    assert swept.deleted == [A, C]
    assert list(swept.errors) == [B]
    assert (sweep.counters.errors, sweep.counters.deleted) == (1, 2)
    assert sweep.counters.last_success is None
    assert swept.pruned == ["b"]
    store.close()


async def test_each_call_of_the_disk_may_fail(no_surprises: Callable[[str], None]) -> None:
    """Nothing alive is lost, and the next sweep ends what this one has begun."""
    no_surprises("not deleted")
    no_surprises("not removed")
    no_surprises("not swept")
    no_surprises("a restart may forget a mass deletion")
    at = calls = 0
    while at <= calls:
        with fast_directory() as place:
            disk = FaultyDisk(Disk())
            store = open_store(disk, str(place))
            put(store, A, B, C)
            os.utime(place / "imagerepository/a/y", (0, 0))
            sweep = Sweep(ToldInventory([A]), Rules())
            disk.arm(Fault(at, Wrong.EIO))
            with suppress(OSError):
                await sweep.run(StoreRemoval(store))
            calls = len(disk.calls)
            disk.arm(None)
            assert A in there(store)
            for path in place.glob("imagerepository/*/*"):
                os.utime(path, (0, 0))
            for path in place.glob("imagerepository/*"):
                os.utime(path, (0, 0))
            await sweep.run(StoreRemoval(store))
            assert (there(store), store.namespaces(), store.repositories("a")) == ({A}, ["a"], ["x"])
            store.close()
        at += 1
    assert at > 50


async def test_an_unreadable_orphan_goes(place: Path) -> None:
    store = open_store(Disk(), str(place))
    put(store, A, B)
    (place / "imagerepository/a/y/tags.txt").rename(place / "imagerepository/a/y/tags.txt.zst")
    settle(store)
    await Sweep(ToldInventory([A]), Rules()).run(StoreRemoval(store))
    assert store.repositories("a") == ["x"]
    store.close()


async def test_what_a_killed_writer_had_hidden_goes_with_its_orphan(place: Path) -> None:
    store = open_store(Disk(), str(place))
    put(store, A, B)
    store.hide(B)
    os.utime(place / "imagerepository/a/y", (0, 0))
    await Sweep(ToldInventory([A]), Rules()).run(StoreRemoval(store))
    assert store.repositories("a") == ["x"]
    store.close()


# -- guards


async def test_an_empty_inventory_deletes_nothing(store: Store, no_surprises: Callable[[str], None]) -> None:
    put(store, A, B)
    no_surprises("--sweep-allow-empty-inventory")
    sweep = Sweep(ToldInventory(), Rules())
    swept = await sweep.run(StoreRemoval(store))
    assert there(store) == {A, B}
    assert len(swept.plan.held) == sweep.counters.held == 2
    await Sweep(ToldInventory(), Rules(allow_empty_inventory=True)).run(StoreRemoval(store))
    assert there(store) == set()


async def test_a_mass_deletion_is_held_until_it_is_allowed(
    store: Store, autojump_clock: MockClock, no_surprises: Callable[[str], None]
) -> None:
    keys = many(30)
    put(store, *keys)
    no_surprises("are held")
    inventory = ToldInventory(keys[:14])
    sweep = Sweep(inventory, Rules())
    for _ in range(3):
        await sweep.run(StoreRemoval(store))
        assert there(store) == set(keys)
        await trio.sleep(WINDOW)
    inventory.there |= {keys[20]}
    swept = await sweep.run(StoreRemoval(store))
    assert (len(swept.deleted), len(swept.plan.held)) == (0, 15), "what was held stays held"
    inventory.there |= set(keys)
    await sweep.run(StoreRemoval(store))
    inventory.there -= set(keys[:15])
    await sweep.run(StoreRemoval(store))
    assert there(store) == set(keys[15:]), "what came back is held no longer"
    await Sweep(ToldInventory([A]), Rules(allow_mass_deletion=True)).run(StoreRemoval(store))
    assert there(store) == set()


async def test_sweeps_within_an_hour_count_together(
    store: Store, autojump_clock: MockClock, no_surprises: Callable[[str], None]
) -> None:
    keys = many(40)
    put(store, *keys)
    inventory = ToldInventory(keys[15:])
    sweep = Sweep(inventory, Rules())
    await sweep.run(StoreRemoval(store))
    assert len(there(store)) == 25
    await trio.sleep(WINDOW / 2)
    inventory.there -= set(keys[15:21])
    no_surprises("are held")
    await sweep.run(StoreRemoval(store))
    assert len(there(store)) == 25
    inventory.there |= {keys[20]}
    await trio.sleep(WINDOW / 2)
    swept = await sweep.run(StoreRemoval(store))
    assert len(swept.plan.held) == 5


async def test_what_was_left_or_failed_does_not_count(store: Store, autojump_clock: MockClock) -> None:
    keys = many(30)
    put(store, *keys)
    inventory = ToldInventory(keys[15:], before=lambda: [store.replace(key, b"v2\n") for key in keys[:15]])
    sweep = Sweep(inventory, Rules())
    swept = await sweep.run(StoreRemoval(store))
    assert len(swept.left) == 15
    settle(store)
    calm = ToldInventory(keys[15:])
    sweep._inventory = calm
    await sweep.run(StoreRemoval(store))
    assert there(store) == set(keys[15:])


async def test_a_sweep_that_is_cut_short_gives_back_what_it_has_not_deleted(store: Store) -> None:
    keys = many(30)
    put(store, *keys)

    class Slow(StoreRemoval):
        async def remove(self, key: RepositoryKey, mark: Mark) -> Outcome:
            if key == keys[5]:
                await trio.sleep_forever()
            return await super().remove(key, mark)

    sweep = Sweep(ToldInventory(keys[15:]), Rules())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sweep.run, Slow(store))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    gone = 30 - len(there(store))
    assert 0 < gone < 15
    await sweep.run(StoreRemoval(store))
    assert there(store) == set(keys[15:])


# -- now and then


async def test_sweeps_are_soon_after_the_start_and_then_at_intervals(store: Store, autojump_clock: MockClock) -> None:
    times: list[float] = []
    inventory = ToldInventory([A], before=lambda: times.append(trio.current_time()))
    put(store, A)
    began = trio.current_time()
    async with running(Sweeper(inventory, Rules(), 10 * MINUTE), store):
        await trio.sleep(65 * MINUTE)
    assert FIRST[0] <= times[0] - began <= FIRST[1]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(gaps) >= 5
    assert all(JITTER[0] * 600 <= gap <= JITTER[1] * 600 for gap in gaps)
    assert len(set(gaps)) > 1


async def test_an_interval_of_zero_disables_it_and_says_so(
    store: Store, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, A, B)
    inventory = ToldInventory([A])
    sweeper = Sweeper(inventory, Rules(), 0)
    async with running(sweeper, store):
        await trio.sleep(20 * 3600)
        assert (inventory.looks, there(store)) == (0, {A, B})
        assert told(caplog, "disabled")
        sweeper.request()
        await trio.sleep(20 * 3600)
        assert (inventory.looks, there(store)) == (1, {A})


async def test_a_request_sweeps_at_once_and_one_during_a_sweep_once_more(
    store: Store, autojump_clock: MockClock
) -> None:
    inventory = ToldInventory([A])
    inventory.seconds = 10
    sweeper = Sweeper(inventory, Rules(), 60 * MINUTE)
    async with running(sweeper, store):
        sweeper.request()
        await trio.sleep(5)
        assert inventory.looks == 1
        for _ in range(5):
            sweeper.request()
        await trio.sleep(1)
        assert inventory.looks == 1, "never two at once"
        await trio.sleep(30)
        assert inventory.looks == 2


async def test_an_inventory_that_fails_is_asked_again_with_patience(
    store: Store, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, no_surprises: Callable[[str], None]
) -> None:
    put(store, A, B)
    times: list[float] = []
    inventory = ToldInventory([A], before=lambda: times.append(trio.current_time()))
    inventory.fault = "503"
    no_surprises("not complete: 503")
    sweeper = Sweeper(inventory, Rules(), 60 * MINUTE)
    async with running(sweeper, store):
        await trio.sleep(60 * MINUTE)
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert gaps[0] <= 5
        assert RETRY_LIMIT / 2 <= gaps[-1] <= RETRY_LIMIT
        assert there(store) == {A, B}
        assert sweeper.counters.incomplete == len(times)
        inventory.fault = None
        await trio.sleep(RETRY_LIMIT)
        assert there(store) == {A}


async def test_a_defect_ends_no_sweeper(
    store: Store, autojump_clock: MockClock, no_surprises: Callable[[str], None]
) -> None:
    put(store, A, B)
    inventory = ToldInventory([A])
    inventory.defect = ZeroDivisionError()
    no_surprises("should not happen")
    async with running(Sweeper(inventory, Rules(), 10 * MINUTE), store):
        await trio.sleep(10 * MINUTE)
        inventory.defect = None
        await trio.sleep(10 * MINUTE)
    assert there(store) == {A}


async def test_suspended_it_tells_and_deletes_nothing(
    store: Store, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, no_surprises: Callable[[str], None]
) -> None:
    put(store, A, B, C)
    inventory = ToldInventory([A, B])
    no_surprises("suspended")
    async with running(Sweeper(inventory, Rules(), MINUTE, is_suspended=True), store):
        await trio.sleep(5 * MINUTE)
        inventory.departs(B)
        await trio.sleep(5 * MINUTE)
    assert there(store) == {A, B, C}
    assert told(caplog, "b/x: an orphan, it would be deleted")
    assert told(caplog, "a/y: would be deleted: it has departed")


async def test_what_is_not_done_is_said_once(
    store: Store, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    sweeper = Sweeper(None, Rules(), MINUTE)
    for _ in range(2):
        async with running(sweeper, store):
            await trio.sleep(5 * MINUTE)
    assert len(told(caplog, "no --inventory")) == 1


# -- departures


async def test_a_departure_goes_at_once(store: Store, autojump_clock: MockClock) -> None:
    put(store, A, B)
    inventory = ToldInventory([A, B])
    sweeper = Sweeper(inventory, Rules(), 0)
    async with running(sweeper, store):
        inventory.departs(B)
        await trio.sleep(0.01 if isinstance(store, MemoryStore) else 10)
        assert there(store) == {A}
    assert sweeper.counters.departures == 1


async def test_a_departure_that_was_just_written_is_looked_for_again(store: Store, autojump_clock: MockClock) -> None:
    """Whoever writes it may be its successor's controller."""
    put(store, A)
    inventory = ToldInventory([A, B, C])
    async with running(Sweeper(inventory, Rules(), 0), store):
        store.replace(B, b"v1\n")
        store.replace(C, b"v1\n")
        settle(store)
        inventory.departs(B, C)
        await trio.sleep(1)
        assert there(store) == {A, B, C}
        inventory.there.add(C)
        await trio.sleep(10)
        assert there(store) == {A, C}


async def test_a_departure_without_a_list_is_nothing(store: Store, autojump_clock: MockClock) -> None:
    put(store, A)
    inventory = ToldInventory([A, B, C])
    sweeper = Sweeper(inventory, Rules(), 0)
    async with running(sweeper, store):
        inventory.departs(B, C)
        await trio.sleep(1)
    assert there(store) == {A}
    assert (sweeper.counters.departures, sweeper.counters.deleted) == (2, 0)


async def test_departures_of_what_is_not_in_the_store_cost_nothing_and_are_not_held(
    store: Store, autojump_clock: MockClock
) -> None:
    """A namespace of thousands goes, of which a young store or a shard's has none."""
    put(store, A, B)
    strangers = many(2000)
    inventory = ToldInventory([A, B, *strangers])
    sweeper = Sweeper(inventory, Rules(), 60 * MINUTE)
    async with running(sweeper, store):
        await trio.sleep(MINUTE)
        looks = inventory.looks
        inventory.departs(*strangers)
        await trio.sleep(MINUTE)
        assert sweeper.counters.departures == 2000
        assert (inventory.looks, sweeper.counters.held, sweeper.counters.deleted) == (looks, 0, 0)
    assert there(store) == {A, B}


async def test_a_stream_of_departures_is_held_at_the_share(
    store: Store, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, no_surprises: Callable[[str], None]
) -> None:
    """A namespace is deleted, or the custom resource: one event a time."""
    keys = many(40)
    put(store, *keys, A)
    inventory = ToldInventory([*keys, A])
    no_surprises("held: it has departed")
    no_surprises("are held")
    sweeper = Sweeper(inventory, Rules(), 10 * MINUTE)
    async with running(sweeper, store):
        await trio.sleep(MINUTE)
        inventory.departs(*keys)
        await trio.sleep(MINUTE)
        assert len(there(store)) == 21
        assert len([line for line in caplog.records if line.levelno == logging.ERROR]) == 1
        assert sweeper.counters.held == 20
        await trio.sleep(5 * WINDOW)
        assert len(there(store)) == 21, "time alone is no permission"
        inventory.there.update(keys)
        await trio.sleep(20 * MINUTE)
        assert sweeper.counters.held == 0


async def test_departures_and_sweeps_count_together(
    store: Store, autojump_clock: MockClock, no_surprises: Callable[[str], None]
) -> None:
    keys = many(40)
    put(store, *keys)
    inventory = ToldInventory(keys[15:])
    no_surprises("held")
    async with running(Sweeper(inventory, Rules(), 10 * MINUTE), store):
        await trio.sleep(MINUTE)
        assert len(there(store)) == 25
        inventory.departs(*keys[15:30])
        await trio.sleep(MINUTE)
        assert len(there(store)) == 20


async def test_the_last_departures_of_a_small_store_are_held(
    store: Store, autojump_clock: MockClock, no_surprises: Callable[[str], None]
) -> None:
    put(store, A, B)
    inventory = ToldInventory([A, B])
    no_surprises("the inventory is empty")
    async with running(Sweeper(inventory, Rules(), 0), store):
        inventory.departs(A, B)
        await trio.sleep(10)
        assert there(store) == {A, B}
    inventory = ToldInventory([A, B])
    async with running(Sweeper(inventory, Rules(allow_empty_inventory=True), 0), store):
        inventory.departs(A, B)
        await trio.sleep(10)
        assert there(store) == set()


async def test_a_store_that_grows_is_counted_anew_before_anything_is_held(
    store: Store, autojump_clock: MockClock
) -> None:
    put(store, A)
    keys = many(60)
    inventory = ToldInventory([A, *keys])
    async with running(Sweeper(inventory, Rules(), 60 * MINUTE), store):
        await trio.sleep(MINUTE)
        put(store, *keys[:22])
        inventory.departs(keys[0])
        await trio.sleep(2 * MINUTE)
        put(store, *keys)
        inventory.departs(*keys[1:30])
        await trio.sleep(MINUTE)
        assert there(store) == {A, keys[0], *keys[30:]}


async def test_a_departure_waits_where_the_inventory_cannot_be_asked(
    store: Store, autojump_clock: MockClock, no_surprises: Callable[[str], None]
) -> None:
    put(store, A, B)
    inventory = ToldInventory([A, B])
    inventory.fault = "404"
    no_surprises("left to the next sweep: 404")
    async with running(Sweeper(inventory, Rules(), 0), store):
        inventory.departs(B)
        await trio.sleep(10)
    assert there(store) == {A, B}


# -- what it costs


@pytest.mark.slow
async def test_a_sweep_of_50_000_keys_takes_less_than_2_seconds_of_cpu(place: Path) -> None:
    """Beneath a mount, of which each key is looked at; a few hundred of them go."""
    open_store(Disk(), str(place)).close()
    keys = [RepositoryKey(f"n{number % 100}", f"r{number}") for number in range(50_000)]
    for key in keys:
        os.makedirs(place / key.directory)
        (place / key.path).write_bytes(b"v1\n")
    store = open_store(Disk(), str(place))
    settle(store)
    taken: list[float] = []
    inventory = ToldInventory(keys[:49_800])
    async with trio.open_nursery() as nursery:
        tree = WritableTree(store, 1 << 20)
        removal = MountRemoval(tree, Commits(nursery), lambda invalid: None)
        for orphans in (200, 0):
            began = time.process_time()
            swept = await Sweep(inventory, Rules()).run(removal)
            taken.append(time.process_time() - began)
            assert len(swept.deleted) == orphans
        nursery.cancel_scope.cancel()
    print(f"50,000 keys, {taken[0]:.2f} s of CPU with 200 orphans, {taken[1]:.2f} s without")
    assert min(taken) < 2
    store.close()


# -- stores


def test_a_store_says_what_has_a_list(store: Store) -> None:
    put(store, A)
    store.make_repository(B)
    assert dict(store.holdings("a")) == {A: True, B: False}
    store.remove(A)
    assert dict(store.holdings("a")) == {A: False, B: False}
    with pytest.raises(RepositoryMissing):
        list(store.holdings("b"))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_list_is_one_and_a_link_is_none(place: Path, suffix: str) -> None:
    store = open_store(Disk(), str(place))
    put(store, A, B)
    store.make_repository(RepositoryKey("a", "z"))
    for name in ("x", "y"):
        (place / f"imagerepository/a/{name}/tags.txt").rename(place / f"imagerepository/a/{name}/tags.txt{suffix}")
    (place / "imagerepository/a/z/tags.txt").symlink_to("../x/tags.txt")
    (place / "imagerepository/a/file").touch()
    (place / "imagerepository/a/linked").symlink_to("x")
    assert dict(store.holdings("a")) == {A: True, B: True, RepositoryKey("a", "z"): False}
    store.close()
