"""Bulk: what is acknowledged is durable, lists are old or new at every crash, one that fails costs no other."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tagfs.bulk import Bulk, Outcome
from tagfs.directory import DirectoryStore
from tagfs.disk import Disk
from tagfs.errors import ListTooLarge
from tagfs.names import STAGE_DIRECTORY, RepositoryKey
from tests.support.faulty_disk import Fault, FaultyDisk, PowerCut, Wrong
from tests.support.places import open_descriptors
from tests.support.simulated_disk import SimulatedDisk
from tests.support.stores import (
    KEY,
    LARGE,
    NEIGHBOUR,
    OTHER_LARGE,
    OTHER_SMALL,
    SMALL,
    STRANGER,
    contents,
    open_store,
)

OLD = {KEY: SMALL, NEIGHBOUR: LARGE}
NEW = {KEY: LARGE, NEIGHBOUR: OTHER_LARGE, STRANGER: OTHER_SMALL, RepositoryKey("apps", "other"): b""}


def write(store: DirectoryStore, group: int) -> list[Outcome]:
    bulk = Bulk(store, group)
    outcomes = [outcome for key, plain in NEW.items() for outcome in bulk.replace(key, plain)]
    return outcomes + bulk.flush()


def filled(disk: Disk) -> None:
    store = open_store(disk, "/")
    for key, plain in OLD.items():
        store.replace(key, plain)
    store.close()


@pytest.mark.parametrize("group", [1, 2, 3, 64])
def test_every_list_is_written_and_told_once(tmp_path: Path, group: int) -> None:
    store = open_store(Disk(), str(tmp_path))
    outcomes = write(store, group)
    assert sorted(str(outcome.key) for outcome in outcomes) == sorted(map(str, NEW))
    assert all(outcome.error is None for outcome in outcomes)
    assert {outcome.key: outcome.version for outcome in outcomes} == {key: store.examine(key) for key in NEW}
    assert contents(store) == {str(key): plain for key, plain in NEW.items()}
    assert list((tmp_path / STAGE_DIRECTORY).iterdir()) == []
    store.close()


@pytest.mark.parametrize(("group", "waits"), [(64, 2), (4, 2), (2, 3)])
def test_groups_wait_for_the_disk_once_each_and_once_more(group: int, waits: int) -> None:
    disk = FaultyDisk(SimulatedDisk())
    store = open_store(disk, "/")
    disk.arm(None)
    write(store, group)
    assert [call for call in disk.calls if call.startswith("sync")] == ["sync_filesystem"] * waits
    store.close()


def test_a_group_is_acknowledged_when_the_next_one_is_written(tmp_path: Path) -> None:
    store = open_store(Disk(), str(tmp_path))
    bulk = Bulk(store, 2)
    told = [[outcome.key for outcome in bulk.replace(key, plain)] for key, plain in NEW.items()]
    first, second, *others = NEW
    assert told == [[], [], [], [first, second]]
    assert [outcome.key for outcome in bulk.flush()] == others
    store.close()


def test_the_same_key_twice_is_two_groups_and_the_later_list_wins(tmp_path: Path) -> None:
    store = open_store(Disk(), str(tmp_path))
    bulk = Bulk(store)
    assert bulk.replace(KEY, SMALL) == []
    assert [outcome.key for outcome in bulk.replace(KEY, LARGE)] == [KEY]
    assert store.read(KEY) == SMALL
    bulk.flush()
    assert store.read(KEY) == LARGE
    store.close()


def test_the_same_key_in_the_group_before_is_acknowledged_first(tmp_path: Path) -> None:
    store = open_store(Disk(), str(tmp_path))
    bulk = Bulk(store, 2)
    assert bulk.replace(KEY, SMALL) == bulk.replace(NEIGHBOUR, SMALL) == []
    assert [outcome.key for outcome in bulk.replace(KEY, LARGE)] == [KEY, NEIGHBOUR]
    assert [outcome.key for outcome in bulk.flush()] == [KEY]
    assert store.read(KEY) == LARGE
    store.close()


def test_what_is_discarded_leaves_nothing_behind(tmp_path: Path) -> None:
    store = open_store(Disk(), str(tmp_path))
    before = open_descriptors()
    bulk = Bulk(store, 2)
    for key in (KEY, NEIGHBOUR, STRANGER):
        bulk.replace(key, SMALL)
    bulk.discard()
    assert bulk.flush() == []
    assert list((tmp_path / STAGE_DIRECTORY).iterdir()) == []
    assert contents(store) == {str(KEY): SMALL, str(NEIGHBOUR): SMALL}, "what is renamed stays, not acknowledged"
    assert open_descriptors() == before + 2, "the stage directory and the sentinel, which the store keeps"
    store.close()


def test_a_list_that_is_too_large_costs_the_others_nothing() -> None:
    store = open_store(disk := SimulatedDisk(), "/")
    bulk = Bulk(store)
    bulk.replace(KEY, SMALL)
    with pytest.raises(ListTooLarge):
        bulk.replace(NEIGHBOUR, bytes(2 << 20))
    assert [outcome.key for outcome in bulk.flush()] == [KEY]
    store.close()
    assert disk.open_descriptors == 0


def _cases() -> Iterator[object]:
    for group in (2, 3):
        disk = FaultyDisk(SimulatedDisk())
        filled(disk)
        store = open_store(disk, "/")
        disk.arm(None)
        write(store, group)
        for at, call in enumerate(list(disk.calls)):
            for wrong in (Wrong.EIO, Wrong.CUT, *((Wrong.ENOSPC, Wrong.TORN_CUT) if call == "write" else ())):
                yield pytest.param(group, at, wrong, id=f"{group}-{at}-{call}-{wrong.name}")


@pytest.mark.parametrize(("group", "at", "wrong"), list(_cases()))
def test_at_each_call_that_fails_every_list_is_old_or_new_and_what_was_acknowledged_is_new(
    group: int, at: int, wrong: Wrong
) -> None:
    disk = FaultyDisk(inner := SimulatedDisk())
    filled(disk)
    store = open_store(disk, "/")
    bulk = Bulk(store, group)
    acknowledged: set[RepositoryKey] = set()
    given_up: set[RepositoryKey] = set()
    disk.arm(Fault(at, wrong))
    try:
        for key, plain in NEW.items():
            try:
                outcomes = bulk.replace(key, plain)
            except OSError:
                given_up.add(key)
                continue
            acknowledged |= {outcome.key for outcome in outcomes if outcome.error is None}
        outcomes = bulk.flush()
        acknowledged |= {outcome.key for outcome in outcomes if outcome.error is None}
    except PowerCut:
        assert wrong in (Wrong.CUT, Wrong.TORN_CUT)
        with suppress(PowerCut):
            bulk.discard()
    else:
        assert len(acknowledged | given_up) >= len(NEW) - 1, "one fault cost more than one list"
        disk.arm(None)
        store.close()
        assert inner.open_descriptors == 0
    for label, survivor in inner.survivors():
        after = open_store(survivor, "/")
        found = contents(after)
        after.close()
        for key, plain in NEW.items():
            old = OLD.get(key)
            allowed = [plain] if key in acknowledged else [plain, old]
            assert found.get(str(key)) in allowed, (label, str(key))


def test_control_without_the_first_sync_lists_are_lost() -> None:
    class Forgetful(SimulatedDisk):
        syncs = 0

        def sync_filesystem(self, directory: int) -> None:
            self.syncs += 1
            if self.syncs % 2 == 0:
                root = self.open_root("/")
                self._make_directories_durable()
                self.close(root)

        def _make_directories_durable(self) -> None:
            for node in self._nodes:
                if node.is_directory:
                    self._make_durable(node)

    store = open_store(disk := Forgetful(), "/")
    write(store, 64)
    torn = 0
    for _, survivor in disk.survivors():
        after = open_store(survivor, "/")
        for key, plain in NEW.items():
            try:
                torn += after.read(key) != plain
            except Exception:
                torn += 1
        after.close()
    assert torn
