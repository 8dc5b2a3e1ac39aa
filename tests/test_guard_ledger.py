"""What a guard remembers of earlier processes: a restart within a mass deletion grants no fresh share."""

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tagfs.disk import Disk
from tagfs.errors import InventoryIncomplete, LedgerUnreadable
from tagfs.guard import LEDGER_LIMIT, WINDOW, Guard, Ledger
from tagfs.names import SWEEP_LEDGER
from tagfs.plan import Rules
from tagfs.removal import Mark, StoreRemoval
from tagfs.store import Store
from tagfs.sweep import Sweep
from tagfs.sweeper import Sweeper
from tests.support.faulty_disk import Fault, FaultyDisk, Wrong
from tests.support.inventories import ToldInventory
from tests.support.stores import open_store
from tests.test_sweep import MINUTE, many, no_surprises, place, put, running, store, there, told  # noqa: F401

# ruff: noqa: F811 - fixtures are imported, and then named by each test.

CLOCK = 1_800_000_000.0
KEYS = many(40)

minutes = st.integers(0, 1 << 26)
pairs = st.lists(st.tuples(minutes, st.integers(0, 1000)), max_size=70).map(tuple)


# -- the ledger


@given(st.builds(Ledger, pairs, pairs, st.booleans()))
def test_a_ledger_is_read_as_it_was_written(ledger: Ledger) -> None:
    assert Ledger.decoded(ledger.encoded()) == ledger


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 40,
        b"[]",
        b"{}",
        b'{"deleted": [], "sizes": []}',
        b'{"deleted": [], "sizes": [], "holding": 1}',
        b'{"deleted": [[1]], "sizes": [], "holding": false}',
        b'{"deleted": [1], "sizes": [], "holding": false}',
        b'{"deleted": [[1, -1]], "sizes": [], "holding": false}',
        b'{"deleted": [[1, true]], "sizes": [], "holding": false}',
        b'{"deleted": [[1, 1e9]], "sizes": [], "holding": false}',
        b'{"deleted": [[1, 99999999999]], "sizes": [], "holding": false}',
        b'{"deleted": {}, "sizes": [], "holding": false}',
        b"[" * 50_000,
        b'{"deleted": [], "sizes": [], "holding": false}' + b" " * LEDGER_LIMIT,
    ],
)
def test_what_is_no_ledger_is_refused(content: bytes) -> None:
    with pytest.raises(LedgerUnreadable):
        Ledger.decoded(content)


@given(
    st.lists(st.tuples(st.integers(0, 1800), st.integers(0, 30)), max_size=8),
    st.integers(0, 3000),
    st.integers(0, 100),
)
def test_a_guard_that_takes_over_has_never_more_room(steps: list[tuple[int, int]], pause: int, percent: int) -> None:
    """Nor does it forget anything within the hour that the other would remember."""
    guard, present, now = Guard(Rules(percent)), 100, 0.0
    for wait, wanted in steps:
        now += wait
        count = min(wanted, guard.room(present, now) or 0)
        guard.reserve(count)
        for _ in range(count):
            guard.deleted(now)
        present -= count
    ledger = guard.ledger(now, CLOCK + now)
    assert len(ledger.encoded()) < LEDGER_LIMIT
    now += pause
    room = guard.room(present, now)
    heir = Guard(Rules(percent))
    # Its own clock begins anywhere.
    heir.take_over(Ledger.decoded(ledger.encoded()), now - 12345, CLOCK + now)
    taken_over = heir.room(present, now - 12345)
    if room is not None:
        assert taken_over is not None and taken_over <= room
    much_later = now + WINDOW + 61
    assert heir.room(present, much_later - 12345) == Guard(Rules(percent)).room(present, much_later)


def test_a_clock_that_was_set_back_forgets_nothing() -> None:
    guard = Guard(Rules())
    assert guard.room(100, 0.0) == 50
    guard.reserve(50)
    for _ in range(50):
        guard.deleted(0.0)
    ledger = guard.ledger(0.0, CLOCK)
    heir = Guard(Rules())
    heir.take_over(ledger, 0.0, CLOCK - 30 * 86400)
    assert heir.room(50, 0.0) == 0
    assert heir.room(50, WINDOW + 1) == 25


def test_a_machine_that_begins_in_1970_can_read_what_it_wrote() -> None:
    guard = Guard(Rules())
    guard.room(100, 1000.0)
    guard.reserve(50)
    for _ in range(50):
        guard.deleted(1000.0)
    ledger = Ledger.decoded(guard.ledger(2000.0, 30.0).encoded())
    heir = Guard(Rules())
    heir.take_over(ledger, 0.0, 31.0)
    assert heir.room(50, 0.0) == 0


def test_what_is_begun_counts_as_deleted() -> None:
    guard = Guard(Rules())
    assert guard.room(100, 0.0) == 50
    guard.reserve(50)
    heir = Guard(Rules())
    heir.take_over(guard.ledger(0.0, CLOCK), 0.0, CLOCK)
    assert heir.room(60, 0.0) == 10
    assert heir.room(50, 0.0) == 0


def test_a_ledger_of_a_stream_of_50_000_departures_costs_no_more_than_one_of_few() -> None:
    guard, now = Guard(Rules(100)), 0.0
    for number in range(50_000):
        now += 0.01
        guard.room(50_000 - number, now)
        guard.reserve(1)
        guard.deleted(now)
    assert len(guard._deleted) <= 501
    assert len(guard._sizes) <= 501
    ledger = guard.ledger(now, CLOCK)
    assert sum(count for _, count in ledger.deleted) == 50_000
    assert len(ledger.deleted) <= 10
    assert ledger.sizes[0][1] == 50_000


# -- one process after another


async def test_each_restart_grants_no_fresh_share(
    store: Store, autojump_clock: MockClock, no_surprises: Callable[[str], None]
) -> None:
    """As a timer, or a mount that is started again and again while a namespace is deleted object by object."""
    put(store, *KEYS)
    no_surprises("are held")
    inventory = ToldInventory(KEYS)
    for _ in range(12):
        for key in sorted(inventory.there)[:3]:
            inventory.there.discard(key)
        await Sweep(inventory, Rules()).run(StoreRemoval(store))
    assert len(there(store)) == 40 - 18, "of 40 half may go, in steps of three"


async def test_what_was_held_is_held_after_a_restart(
    store: Store, autojump_clock: MockClock, no_surprises: Callable[[str], None]
) -> None:
    put(store, *KEYS)
    no_surprises("are held")
    inventory = ToldInventory(KEYS[30:])
    await Sweep(inventory, Rules()).run(StoreRemoval(store))
    await trio.sleep(5 * WINDOW)
    inventory.there |= set(KEYS[3:])
    sweep = Sweep(inventory, Rules())
    swept = await sweep.run(StoreRemoval(store))
    assert (swept.deleted, len(swept.plan.held)) == ([], 3), "three of forty would be no mass by themselves"
    assert sweep.counters.held == 3
    dry = await Sweep(inventory, Rules()).run(StoreRemoval(store), is_dry=True)
    assert len(dry.plan.held) == 3
    allowed = await Sweep(inventory, Rules(allow_mass_deletion=True)).run(StoreRemoval(store))
    assert len(allowed.deleted) == 3
    inventory.there -= set(KEYS[3:20])
    swept = await Sweep(inventory, Rules()).run(StoreRemoval(store))
    assert swept.deleted == sorted(KEYS[3:20]), "what was allowed is held no longer, and does not count"


async def test_what_was_held_and_came_back_is_forgotten(
    store: Store, autojump_clock: MockClock, no_surprises: Callable[[str], None]
) -> None:
    put(store, *KEYS)
    no_surprises("are held")
    inventory = ToldInventory(KEYS[30:])
    await Sweep(inventory, Rules()).run(StoreRemoval(store))
    inventory.there |= set(KEYS)
    await Sweep(inventory, Rules()).run(StoreRemoval(store))
    inventory.there -= set(KEYS[:5])
    swept = await Sweep(inventory, Rules()).run(StoreRemoval(store))
    assert len(swept.deleted) == 5


async def test_an_empty_inventory_says_nothing_of_what_is_held(
    store: Store, autojump_clock: MockClock, no_surprises: Callable[[str], None]
) -> None:
    put(store, *KEYS)
    no_surprises("are held")
    await Sweep(ToldInventory(KEYS[30:]), Rules()).run(StoreRemoval(store))
    inventory = ToldInventory()
    sweep = Sweep(inventory, Rules())
    await sweep.run(StoreRemoval(store))
    inventory.there |= set(KEYS[1:])
    swept = await sweep.run(StoreRemoval(store))
    assert (swept.deleted, swept.plan.held) == ([], (KEYS[0],))


async def test_departures_after_a_restart_are_held_too(
    store: Store,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    no_surprises: Callable[[str], None],
) -> None:
    put(store, *KEYS)
    no_surprises("held")
    inventory = ToldInventory(KEYS)
    async with running(Sweeper(inventory, Rules(), 0), store):
        inventory.departs(*KEYS[:25])
        await trio.sleep(MINUTE)
    assert len(there(store)) == 20
    inventory = ToldInventory(KEYS[25:])
    sweeper = Sweeper(inventory, Rules(), 0)
    async with running(sweeper, store):
        inventory.departs(*KEYS[25:30])
        await trio.sleep(MINUTE)
        assert len(there(store)) == 20
        assert len([line for line in caplog.records if line.levelno == logging.ERROR]) == 2, "one in each process"
        sweeper.request()
        await trio.sleep(MINUTE)
        assert (len(there(store)), sweeper.counters.held) == (20, 10)


async def test_departures_of_several_processes_count_together(
    store: Store, autojump_clock: MockClock, no_surprises: Callable[[str], None]
) -> None:
    put(store, *KEYS)
    no_surprises("held: it has departed")
    inventory = ToldInventory(KEYS)
    for start in range(0, 40, 5):
        async with running(Sweeper(inventory, Rules(), 0), store):
            inventory.departs(*KEYS[start : start + 5])
            await trio.sleep(MINUTE)
    assert len(there(store)) == 20


async def test_a_sweep_that_is_killed_has_written_down_what_it_began(store: Store, autojump_clock: MockClock) -> None:
    put(store, *KEYS)

    class Killed(StoreRemoval):
        async def remove(self, key, mark):
            if key == KEYS[9]:
                content = store.ledger(LEDGER_LIMIT)
                assert content is not None
                found.append(Ledger.decoded(content))
            return await super().remove(key, mark)

    found: list[Ledger] = []
    await Sweep(ToldInventory(KEYS[15:]), Rules()).run(Killed(store))
    assert sum(count for _, count in found[0].deleted) == 15


# -- the file


async def test_a_ledger_that_cannot_be_understood_holds_what_it_may_have_held(
    place: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, no_surprises: Callable[[str], None]
) -> None:
    store = open_store(Disk(), str(place))
    put(store, *KEYS)
    (place / SWEEP_LEDGER).write_bytes(b"\0" * 30)
    no_surprises("held")
    inventory = ToldInventory(KEYS[1:])
    swept = await Sweep(inventory, Rules()).run(StoreRemoval(store))
    assert (swept.deleted, swept.plan.held) == ([], (KEYS[0],))
    assert told(caplog, f"{SWEEP_LEDGER}: cannot be understood")
    inventory.there |= {KEYS[0]}
    await Sweep(inventory, Rules()).run(StoreRemoval(store))
    assert json.loads((place / SWEEP_LEDGER).read_bytes())["holding"] is False
    store.close()


@pytest.mark.parametrize("kind", ["directory", "link", "fifo"])
async def test_what_stands_where_the_ledger_belongs_is_told_and_nothing_is_deleted(place: Path, kind: str) -> None:
    store = open_store(Disk(), str(place))
    put(store, *KEYS)
    path = place / SWEEP_LEDGER
    {
        "directory": path.mkdir,
        "link": lambda: path.symlink_to(place / ".storage-version"),
        "fifo": lambda: os.mkfifo(path),
    }[kind]()
    with pytest.raises(OSError, match=SWEEP_LEDGER):
        await Sweep(ToldInventory(KEYS[1:]), Rules()).run(StoreRemoval(store))
    assert there(store) == set(KEYS)
    store.close()


async def test_a_ledger_that_cannot_be_written_keeps_no_sweep_from_making_room(
    place: Path, no_surprises: Callable[[str], None]
) -> None:
    disk = FaultyDisk(Disk())
    store = open_store(disk, str(place))
    put(store, *KEYS)
    no_surprises("a restart may forget")

    class Full(StoreRemoval):
        async def write_ledger(self, ledger: Ledger) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    swept = await Sweep(ToldInventory(KEYS[5:]), Rules()).run(Full(store))
    assert len(swept.deleted) == 5
    store.close()


async def test_a_ledger_is_the_old_one_or_the_new_one_at_each_failure(place: Path) -> None:
    disk = FaultyDisk(Disk())
    store = open_store(disk, str(place))
    store.write_ledger(b"old")
    at = calls = 0
    while at <= calls:
        for wrong in (Wrong.EIO, Wrong.TORN):
            disk.arm(Fault(at, wrong))
            try:
                store.write_ledger(b"new")
                expected = {b"new"}
            except OSError:
                expected = {b"old", b"new"}
            calls = max(calls, len(disk.calls))
            disk.arm(None)
            assert store.ledger(100) in expected
            assert store.stages.names() == []
            store.write_ledger(b"old")
        at += 1
    assert at > 5
    store.close()


async def test_a_sweep_that_deletes_nothing_writes_nothing(place: Path, no_surprises: Callable[[str], None]) -> None:
    store = open_store(Disk(), str(place))
    put(store, *KEYS)
    await Sweep(ToldInventory(KEYS), Rules()).run(StoreRemoval(store))
    inventory = ToldInventory()
    inventory.fault = "503"
    with pytest.raises(InventoryIncomplete):
        await Sweep(inventory, Rules()).run(StoreRemoval(store))
    await Sweep(ToldInventory(KEYS[1:]), Rules()).run(StoreRemoval(store), is_dry=True)
    assert not (place / SWEEP_LEDGER).exists()
    assert Mark.now().wall_ns > 0
    store.close()
