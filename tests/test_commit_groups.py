"""Several lists that are made durable together: the power is lost at each call, or a call fails.

As in `test_store_faults`, the disk is simulated, and every state that it may be found in afterwards is looked at.
"""

from contextlib import suppress

import pytest

from tagfs.directory import DirectoryStore
from tagfs.durability import Blocking, Work, do_all
from tagfs.errors import ListMissing, TagfsError
from tagfs.names import RepositoryKey
from tagfs.store import Version
from tests.support.faulty_disk import Fault, FaultyDisk, PowerCut, Wrong
from tests.support.simulated_disk import SimulatedDisk
from tests.support.stores import LARGE, OTHER_LARGE, OTHER_SMALL, SMALL, codec_of, open_store, plant, policy_of

SWITCHING = RepositoryKey("team", "switching")
STEADY = RepositoryKey("team", "steady")
NEW = RepositoryKey("others", "new")

OLD: dict[RepositoryKey, bytes | None] = {SWITCHING: SMALL, STEADY: OTHER_LARGE, NEW: None}
AFTER: dict[RepositoryKey, bytes] = {SWITCHING: LARGE, STEADY: LARGE, NEW: OTHER_SMALL}

MUTATING = {"create", "write", "sync", "sync_dir", "sync_filesystem", "rename", "unlink", "make_dir", "set_mtime"}


class Grouping(FaultyDisk):
    """Says of itself that a syncfs is well done."""

    def kind(self, directory: int) -> int:
        return 0xEF53

    def tells_of_lost_writes(self, release: str | None = None) -> bool:
        return True


class NoSyncfs(SimulatedDisk):
    def sync_filesystem(self, directory: int) -> None:
        pass


class Run:
    """Commits AFTER as one group; `acknowledged` are the keys whose commit has ended well, `failed` the others."""

    def __init__(self, inner: SimulatedDisk) -> None:
        plant(inner, ".storage-version", b"3\n")
        plant(inner, f"{SWITCHING.directory}/tags.txt", SMALL)
        plant(inner, f"{STEADY.directory}/tags.txt.zst", codec_of(3).encode(OTHER_LARGE))
        top = inner.open_root("/")
        SimulatedDisk.sync_filesystem(inner, top)
        inner.close(top)
        self.disk = Grouping(inner)
        self.store = DirectoryStore(self.disk, self.disk.open_root("/"), 3, policy_of(3))
        self.acknowledged: set[RepositoryKey] = set()
        self.failed: dict[RepositoryKey, Exception] = {}
        self._works: list[Work[Version]] = []
        self._waiting: list[tuple[RepositoryKey, Work[Version], Blocking]] = []

    def act(self, fault: Fault | None) -> None:
        self.disk.arm(fault)
        try:
            for key, plain in AFTER.items():
                try:
                    work = self.store.publication(self.store.stage(key, plain))
                except OSError as failure:
                    self.failed[key] = failure
                    continue
                self._works.append(work)
                self._go_on(key, work, None)
            while self._waiting:
                group, self._waiting = self._waiting, []
                for (key, work, _), error in zip(group, do_all([one for _, _, one in group]), strict=True):
                    self._go_on(key, work, error)
        except PowerCut:
            for work in self._works:
                with suppress(PowerCut):
                    work.close()

    def _go_on(self, key: RepositoryKey, work: Work[Version], error: Exception | None) -> None:
        try:
            self._waiting.append((key, work, next(work) if error is None else work.throw(error)))
        except StopIteration:
            self.acknowledged.add(key)
        except (OSError, TagfsError) as failure:
            self.failed[key] = failure


def lists(disk: SimulatedDisk) -> dict[RepositoryKey, bytes | None]:
    store = open_store(disk, "/", wipe_foreign=True)
    found: dict[RepositoryKey, bytes | None] = {}
    try:
        for key in AFTER:
            try:
                found[key] = store.read(key)
            except (ListMissing, TagfsError):
                found[key] = None
    finally:
        store.close()
    return found


def losses(run: Run, inner: SimulatedDisk) -> list[str]:
    """What a power loss now may cost: an acknowledged list, or one that is neither the old nor the new one."""
    lost = []
    for label, survivor in inner.survivors():
        for key, found in lists(survivor).items():
            allowed = [AFTER[key]] if key in run.acknowledged else [AFTER[key], OLD[key]]
            if found not in allowed:
                lost.append(f"{label}: {key} is {found!r:.30}")
    return lost


def clean_calls() -> list[str]:
    run = Run(SimulatedDisk())
    run.act(None)
    return list(run.disk.calls)


CALLS = clean_calls()


def test_a_group_is_made_durable_by_one_sync_for_each_phase() -> None:
    """The files and new directories, the renames, and what the switched variant has left: the last is alone in it."""
    assert [call for call in CALLS if call.startswith("sync")] == ["sync_filesystem", "sync_filesystem", "sync_dir"]
    assert CALLS.index("sync_filesystem") < CALLS.index("rename")


def test_a_group_is_whole_after_a_power_loss() -> None:
    inner = SimulatedDisk()
    run = Run(inner)
    run.act(None)
    assert run.acknowledged == set(AFTER)
    assert losses(run, inner) == []
    run.store.close()


@pytest.mark.parametrize("at", [at for at, call in enumerate(CALLS) if call in MUTATING], ids=lambda at: CALLS[at])
def test_a_group_that_is_cut_off_leaves_each_list_old_or_new(at: int) -> None:
    inner = SimulatedDisk()
    run = Run(inner)
    run.act(Fault(at, Wrong.CUT))
    assert losses(run, inner) == []


@pytest.mark.parametrize("at", [at for at, call in enumerate(CALLS) if call in MUTATING], ids=lambda at: CALLS[at])
def test_a_call_that_fails_costs_no_list_of_a_group(at: int) -> None:
    inner = SimulatedDisk()
    run = Run(inner)
    run.act(Fault(at, Wrong.EIO))
    assert run.acknowledged | set(run.failed) == set(AFTER)
    assert len(run.failed) <= 1, "one call is one list's, and a sync of all falls back on each"
    assert losses(run, inner) == []
    run.store.close()


def test_a_sync_that_does_nothing_is_found_out() -> None:
    inner = NoSyncfs()
    run = Run(inner)
    run.act(None)
    assert run.acknowledged == set(AFTER)
    assert losses(run, inner)
