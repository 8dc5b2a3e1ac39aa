"""Faults: every operation of the store x every call it makes of the disk x everything that can go wrong there.

Afterwards the store is opened again, and shows the old lists or the new ones, whole.  The matrix is made from the calls
of a run in which nothing goes wrong.  The controls at the end show that the same checks find a loss where there is one.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from tagfs import sentinel
from tagfs.directory import DirectoryStore
from tagfs.disk import Disk
from tagfs.durability import done
from tagfs.errors import CommitUncertain, ListMissing, StoreWaiting, TagfsError
from tagfs.names import BASE, LIST, LOST_AND_FOUND, STAGE_DIRECTORY, RepositoryKey
from tagfs.policy import Policy
from tagfs.store import Stage, Store, Version
from tests.support.faulty_disk import Fault, FaultyDisk, PowerCut, Wrong
from tests.support.places import fast_directory, open_descriptors
from tests.support.simulated_disk import SimulatedDisk
from tests.support.stores import (
    KEY,
    LARGE,
    NEIGHBOUR,
    OTHER_LARGE,
    OTHER_SMALL,
    SMALL,
    STRANGER,
    Contents,
    codec_of,
    contents,
    open_store,
    plant,
    policy_of,
)

OLD = 1_000_000_000_000_000_000
OLDER = OLD - 5_000_000_000
FUTURE = 4 * OLD

MUTATING = {
    "create",
    "write",
    "sync",
    "sync_dir",
    "sync_filesystem",
    "rename",
    "unlink",
    "make_dir",
    "remove_dir",
    "set_mtime",
}
MAY_RUN_OUT_OF_SPACE = {"create", "write", "sync", "sync_dir", "rename", "make_dir", "set_mtime"}


class Loss(AssertionError):
    """A list, or the whole of the store, was lost or harmed."""


@dataclass(frozen=True)
class View:
    """What a writer finds that opens the store: its format, the names at its top, its lists."""

    format: int
    names: frozenset[str]
    lists: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class Operation:
    """`build` makes what is there before and durable, `warm` is done by the same store before, acknowledged and not
    synced further; `act` is what goes wrong.

    Args:
        commits: an OSError other than CommitUncertain says that the old list is in place.
        waits: meanwhile the store may be not ready for readers.
    """

    name: str
    build: Callable[[Disk], None]
    act: Callable[[DirectoryStore], object]
    warm: Callable[[DirectoryStore], object] = lambda store: None
    format: int = 3
    commits: bool = False
    waits: bool = False


# -- the operations


def with_neighbours(*planted: tuple[str, bytes, int | None], format_: int = 3) -> Callable[[Disk], None]:
    """A store in which KEY's directory, if any is `planted`, holds those files, and other keys have lists."""

    def build(disk: Disk) -> None:
        plant(disk, ".storage-version", b"%d\n" % format_)
        plant(disk, f"{NEIGHBOUR.directory}/{LIST}", SMALL)
        codec = codec_of(format_)
        plant(disk, f"{STRANGER.directory}/{LIST}{codec.suffix}", codec.encode(LARGE))
        for name, content, mtime_ns in planted:
            plant(disk, f"{KEY.directory}/{name}", content, mtime_ns)

    return build


def stored(plain: bytes, suffix: str = "", mtime_ns: int | None = None, hidden: bool = False) -> tuple:
    prefix = ".tagfs-hidden." if hidden else ""
    codec = {"": bytes, ".zst": codec_of(3).encode, ".gz": codec_of(2).encode}[suffix]
    return f"{prefix}{LIST}{suffix}", codec(plain), mtime_ns


def replaces(plain: bytes, mtime_ns: int | None = None) -> Callable[[DirectoryStore], object]:
    return lambda store: store.replace(KEY, plain, mtime_ns)


def badger(disk: Disk) -> None:
    for name in ("MANIFEST", "KEYREGISTRY", "DISCARD", "LOCK", "000001.vlog", "000001.sst", "00001.mem"):
        plant(disk, name, b"badger")


def empty_but_for_lost_and_found(disk: Disk) -> None:
    plant(disk, f"{LOST_AND_FOUND}/#1234", b"found")


def empty_with_an_unfinished_sentinel(disk: Disk) -> None:
    plant(disk, ".storage-version-tagfs", b"")
    plant(disk, ".storage-version-3141592", b"2")


def half_wiped(disk: Disk) -> None:
    with_neighbours(format_=2)(disk)
    plant(disk, ".storage-wipe-in-progress")
    plant(disk, "000001.vlog", b"badger")


def half_wiped_without_a_version(disk: Disk) -> None:
    badger(disk)
    plant(disk, ".storage-wipe-in-progress")
    plant(disk, ".storage-version-3141592", b"2\n")


def somebodys_home(disk: Disk) -> None:
    plant(disk, "home/documents/letter", b"dear")
    plant(disk, ".storage-version", b"4\n")


def prepares(store: DirectoryStore) -> None:
    sentinel.prepare(store.disk, store.root, "/", 3, wipe_foreign=True)


def begins_anew(store: Store) -> None:
    store.replace(KEY, SMALL)
    store.remove(KEY)
    store.remove_repository(KEY)


def makes_directories(store: Store) -> None:
    store.make_namespace("new")
    store.make_repository(RepositoryKey("new", "new"))


COMMITS = [
    Operation("replace-in-an-empty-store", lambda disk: plant(disk, ".storage-version", b"3\n"), replaces(SMALL)),
    Operation("replace-new", with_neighbours(), replaces(LARGE)),
    Operation("replace-small-by-small", with_neighbours(stored(SMALL)), replaces(OTHER_SMALL)),
    Operation("replace-large-by-large", with_neighbours(stored(LARGE, ".zst")), replaces(OTHER_LARGE)),
    Operation("replace-same-with-mtime", with_neighbours(stored(SMALL)), replaces(OTHER_SMALL, OLD)),
    Operation("replace-growing", with_neighbours(stored(SMALL)), replaces(LARGE)),
    Operation("replace-growing-with-mtime", with_neighbours(stored(SMALL)), replaces(LARGE, OLD)),
    Operation("replace-shrinking", with_neighbours(stored(LARGE, ".zst")), replaces(SMALL)),
    Operation("replace-shrinking-with-mtime", with_neighbours(stored(LARGE, ".zst")), replaces(SMALL, OLD)),
    Operation("replace-growing-gzip", with_neighbours(stored(SMALL), format_=2), replaces(LARGE), format=2),
    Operation("replace-shrinking-gzip", with_neighbours(stored(LARGE, ".gz"), format_=2), replaces(SMALL), format=2),
    Operation("replace-gzip-by-zstd", with_neighbours(stored(LARGE, ".gz")), replaces(OTHER_LARGE, OLD)),
    Operation("replace-from-the-future", with_neighbours(stored(LARGE, ".zst", FUTURE)), replaces(SMALL)),
    Operation(
        "replace-both-variants", with_neighbours(stored(SMALL, "", OLD), stored(LARGE, ".gz", OLDER)), replaces(b"")
    ),
    Operation(
        "replace-three-variants",
        with_neighbours(stored(SMALL, "", OLD), stored(LARGE, ".gz", OLDER), stored(OTHER_LARGE, ".zst", OLD)),
        replaces(OTHER_SMALL, OLDER),
    ),
    Operation("replace-hidden", with_neighbours(stored(LARGE, ".zst", FUTURE, hidden=True)), replaces(SMALL)),
    Operation("replace-next", with_neighbours(), replaces(LARGE), warm=replaces(SMALL)),
    Operation(
        "replace-beside",
        with_neighbours(),
        replaces(LARGE),
        warm=lambda store: store.replace(RepositoryKey(KEY.namespace, "beside"), SMALL),
    ),
    Operation("replace-after-removal", with_neighbours(), replaces(LARGE), warm=begins_anew),
    Operation(
        "replace-in-a-made-directory",
        with_neighbours(),
        lambda store: store.replace(RepositoryKey("new", "new"), SMALL),
        warm=makes_directories,
    ),
    Operation(
        "publish-a-stage",
        with_neighbours(stored(SMALL)),
        lambda store: store.publish(store.stage(KEY, LARGE)),
        warm=lambda store: store.discard(store.stage(KEY, OTHER_LARGE)),
    ),
]

CHANGES = [
    Operation("discard", with_neighbours(stored(SMALL)), lambda store: store.discard(store.stage(KEY, LARGE))),
    Operation("remove-small", with_neighbours(stored(SMALL)), lambda store: store.remove(KEY)),
    Operation(
        "remove-two-variants",
        with_neighbours(stored(SMALL, "", OLD), stored(LARGE, ".zst", OLDER)),
        lambda store: store.remove(KEY),
    ),
    Operation("remove-after-replace", with_neighbours(), lambda store: store.remove(KEY), warm=replaces(LARGE)),
    Operation("hide", with_neighbours(stored(SMALL)), lambda store: store.hide(KEY)),
    Operation(
        "hide-two-variants",
        with_neighbours(stored(SMALL, "", OLD), stored(LARGE, ".gz", OLDER)),
        lambda store: store.hide(KEY),
    ),
    Operation(
        "hide-over-hidden",
        with_neighbours(stored(SMALL, "", OLD), stored(LARGE, ".zst", FUTURE, hidden=True)),
        lambda store: store.hide(KEY),
    ),
    Operation("recover", with_neighbours(stored(LARGE, ".zst", hidden=True)), lambda store: store.recover(KEY)),
    Operation(
        "recover-beside-a-successor",
        with_neighbours(stored(SMALL, "", OLD), stored(LARGE, ".zst", hidden=True)),
        lambda store: store.recover(KEY),
    ),
    Operation(
        "recover-one-of-two",
        with_neighbours(stored(SMALL, "", OLD, hidden=True), stored(LARGE, ".zst", OLDER, hidden=True)),
        lambda store: store.recover(KEY),
    ),
    Operation("drop-hidden", with_neighbours(stored(SMALL, hidden=True)), lambda store: store.drop_hidden(KEY)),
    Operation("set-mtime", with_neighbours(stored(SMALL)), lambda store: store.set_mtime(KEY, OLD)),
    Operation(
        "set-mtime-two-variants",
        with_neighbours(stored(SMALL, "", OLD), stored(LARGE, ".zst", OLDER)),
        lambda store: store.set_mtime(KEY, OLDER - 1),
    ),
    Operation(
        "drop-stale-two-variants",
        with_neighbours(stored(SMALL, "", OLD), stored(LARGE, ".zst", OLDER)),
        lambda store: store.drop_stale(KEY),
    ),
    Operation("tell-an-unchanged-list", with_neighbours(stored(SMALL)), lambda store: store.is_stored_as(KEY, SMALL)),
    Operation(
        "remove-repository",
        with_neighbours(("notes", b"x", None), ("tags.txt1", b"y", None)),
        lambda store: store.remove_repository(KEY),
    ),
]

SWITCHES = [operation for operation in [*COMMITS, *CHANGES] if re.search("ing|variants|future", operation.name)]
"""In which two variants, or two times, meet."""

SENTINELS = [
    Operation("prepare-empty", lambda disk: None, prepares, waits=True),
    Operation("prepare-lost-and-found", empty_but_for_lost_and_found, prepares, waits=True),
    Operation("prepare-unfinished-sentinel", empty_with_an_unfinished_sentinel, prepares, waits=True),
    Operation("prepare-badger", badger, prepares, waits=True),
    Operation("prepare-half-wiped", half_wiped, prepares, format=2, waits=True),
    Operation("prepare-half-wiped-without-version", half_wiped_without_a_version, prepares, waits=True),
    Operation("prepare-foreign", somebodys_home, prepares, waits=True),
    Operation(
        "upgrade",
        with_neighbours(stored(LARGE, ".gz"), format_=2),
        lambda store: sentinel.write_version(store.disk, store.root, 3),
        format=2,
    ),
]

OPERATIONS = [*COMMITS, *CHANGES, *SENTINELS]


# -- one run


class Run:
    """An operation on a disk of its own."""

    def __init__(self, operation: Operation, inner: Disk, path: str, store_kind: type[DirectoryStore]) -> None:
        self.operation = operation
        self.inner = inner
        self.path = path
        operation.build(inner)
        top = inner.open_root(path)
        inner.sync_filesystem(top)
        inner.close(top)
        self.disk = FaultyDisk(inner)
        self.store = store_kind(self.disk, self.disk.open_root(path), operation.format, policy_of(operation.format))
        operation.warm(self.store)

    def act(self, fault: Fault | None) -> BaseException | None:
        """Do it; -> what it raised."""
        self.disk.arm(fault)
        try:
            self.operation.act(self.store)
        except (OSError, TagfsError, PowerCut) as error:
            return error
        finally:
            if fault is None or fault.wrong not in (Wrong.CUT, Wrong.TORN_CUT):
                self.calls = list(self.disk.calls)
                self.disk.arm(None)
        return None


def writers_view(disk: Disk, path: str = "/") -> View:
    """What a writer finds; the store is made ready and hidden lists are put back, as a mount does."""
    store = open_store(disk, path, wipe_foreign=True)
    try:
        lists = contents(store)
        unfinished = {STAGE_DIRECTORY, BASE}
        names = {name for name, _ in disk.names(store.root) if name not in unfinished and "version-" not in name}
        return View(store.format, frozenset(names), tuple(sorted(lists.items())))
    finally:
        store.close()


def readers_view(disk: Disk, path: str = "/") -> Contents | None:
    """What a reader is shown; None where it has to wait.  Writes nothing."""
    root = disk.open_root(path)
    try:
        format_ = sentinel.require_ready(disk, root, path)
    except (StoreWaiting, TagfsError):
        disk.close(root)
        return None
    store = DirectoryStore(disk, root, format_, Policy())
    try:
        return lists_of(store)
    finally:
        store.close()


def lists_of(store: Store) -> Contents:
    found = {}
    for key in store.scan():
        try:
            found[str(key)] = store.read(key)
        except ListMissing:
            continue
    return found


@dataclass(frozen=True)
class Expected:
    """What a clean run was like."""

    calls: tuple[str, ...]
    before: View
    after: View
    reader_before: Contents | None
    reader_after: Contents | None


@cache
def expected(operation: Operation) -> Expected:
    before = Run(operation, SimulatedDisk(), "/", DirectoryStore)
    reader_before = readers_view(before.inner)
    writer_before = writers_view(before.inner)
    after = Run(operation, SimulatedDisk(), "/", DirectoryStore)
    error = after.act(None)
    assert error is None, f"{operation.name}: {error!r}"
    reader_after = readers_view(after.inner)
    return Expected(tuple(after.calls), writer_before, writers_view(after.inner), reader_before, reader_after)


def require(truth: bool, what: str) -> None:
    if not truth:
        raise Loss(what)


def require_old_or_new(operation: Operation, disk: Disk, path: str, only_new: bool, when: str) -> None:
    """Both what a reader is shown as it is, and what a writer makes of it."""
    clean = expected(operation)
    shown = readers_view(disk, path)
    allowed = [clean.reader_after] if only_new else [clean.reader_before, clean.reader_after]
    if operation.waits and not only_new:
        allowed.append(None)
    require(shown in allowed, f"{when}: a reader is shown {shown}")
    found = writers_view(disk, path)
    require(found in ([clean.after] if only_new else [clean.before, clean.after]), f"{when}: a writer finds {found}")
    require(writers_view(disk, path) == found, f"{when}: opened once more it is something else")


def refuse(operation: Operation, fault: Fault, inner: Disk, path: str, store_kind: type[DirectoryStore]) -> None:
    """The call fails: the store goes on with the old or the new list, and doing it again succeeds."""
    clean = expected(operation)
    run = Run(operation, inner, path, store_kind)
    error = run.act(fault)
    require(not isinstance(error, PowerCut), "no power is lost here")
    shown = readers_view(run.disk, path)
    if operation in COMMITS and error is not None:
        committed = isinstance(error, CommitUncertain)
        require(
            shown == (clean.reader_after if committed else clean.reader_before),
            f"{error!r} and a reader is shown {shown}",
        )
    if error is None:
        require(shown == clean.reader_after, f"it succeeds, and a reader is shown {shown}")
    again = run.act(None)
    require(again is None or isinstance(again, ListMissing), f"once more: {again!r}")
    run.store.close()
    require_old_or_new(operation, inner, path, only_new=True, when="after it was done again")


def refuse_for_good(operation: Operation, fault: Fault, inner: Disk, path: str) -> None:
    """The call fails and nobody tries again: the store is opened anew."""
    run = Run(operation, inner, path, DirectoryStore)
    error = run.act(fault)
    run.store.close()
    require_old_or_new(operation, inner, path, only_new=error is None, when="opened again")


def cut(
    operation: Operation, fault: Fault | None, inner: SimulatedDisk, store_kind: type[DirectoryStore] = DirectoryStore
) -> int:
    """The power is lost at the call, or after the end; -> how many states of the disk it may have left."""
    run = Run(operation, inner, "/", store_kind)
    error = run.act(fault)
    count = 0
    for label, survivor in inner.survivors():
        count += 1
        require_old_or_new(operation, survivor, "/", only_new=error is None, when=label)
        require(survivor.open_descriptors == 0, "a descriptor is left open")
    return count


# -- the matrix


def faults(operation: Operation, kinds: set[Wrong], calls: Sequence[str] = ()) -> Iterator[Fault]:
    for at, call in enumerate(calls or expected(operation).calls):
        for wrong in Wrong:
            if wrong not in kinds:
                continue
            if wrong in (Wrong.TORN, Wrong.TORN_CUT) and call != "write":
                continue
            if wrong is Wrong.ENOSPC and call not in MAY_RUN_OUT_OF_SPACE:
                continue
            if wrong is Wrong.EIO and call == "close":
                continue
            if wrong is Wrong.CUT and call not in MUTATING:
                continue
            yield Fault(at, wrong)


def matrix(kinds: set[Wrong]) -> list:
    return [
        pytest.param(
            operation,
            fault,
            id=f"{operation.name}-{fault.at:02}-{expected(operation).calls[fault.at]}-{fault.wrong.name}",
        )
        for operation in OPERATIONS
        for fault in faults(operation, kinds)
    ]


REFUSED = {Wrong.EIO, Wrong.ENOSPC, Wrong.TORN}
CUTS = {Wrong.CUT, Wrong.TORN_CUT}
every_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)


@pytest.mark.parametrize(("operation", "fault"), matrix(REFUSED))
def test_refused(operation: Operation, fault: Fault) -> None:
    disk = SimulatedDisk()
    refuse(operation, fault, disk, "/", DirectoryStore)
    assert disk.open_descriptors == 0
    if expected(operation).calls[fault.at] in MUTATING:
        refuse_for_good(operation, fault, SimulatedDisk(), "/")


@every_operation
def test_refused_on_the_real_disk(operation: Operation) -> None:
    for fault in faults(operation, REFUSED):
        with fast_directory() as path:
            before = open_descriptors()
            refuse(operation, fault, RootedDisk(str(path)), str(path), DirectoryStore)
            assert open_descriptors() == before, f"{fault} leaks a descriptor"


class RootedDisk(Disk):
    """The real disk, whose "/" is a directory of the test."""

    def __init__(self, path: str) -> None:
        self._path = path

    def open_root(self, path: str) -> int:
        return super().open_root(self._path)


@pytest.mark.parametrize(("operation", "fault"), matrix(CUTS))
def test_power_loss_at_a_call(operation: Operation, fault: Fault) -> None:
    assert cut(operation, fault, SimulatedDisk()) > 0


@every_operation
def test_power_loss_after_the_end(operation: Operation) -> None:
    assert cut(operation, None, SimulatedDisk()) > 0


@pytest.mark.parametrize("operation", SWITCHES, ids=lambda operation: operation.name)
def test_power_loss_where_time_stamps_are_coarse(operation: Operation) -> None:
    for fault in faults(operation, CUTS):
        cut(operation, fault, SimulatedDisk(granularity_ns=1_000_000_000))


@pytest.mark.parametrize("operation", SENTINELS, ids=lambda operation: operation.name)
def test_a_wipe_that_is_interrupted_twice(operation: Operation) -> None:
    """What a power loss at any call leaves is opened, and the power is lost again at any call."""
    clean = expected(operation)
    first: dict[object, SimulatedDisk] = {}
    for fault in faults(operation, CUTS):
        run = Run(operation, SimulatedDisk(), "/", DirectoryStore)
        run.act(fault)
        assert isinstance(run.inner, SimulatedDisk)
        for _, survivor in run.inner.survivors():
            first[survivor.fingerprint()] = survivor
    second: dict[object, SimulatedDisk] = {}
    for survivor in first.values():
        for disk in interrupted(survivor):
            second[disk.fingerprint()] = disk
    assert len(second) > 1
    for disk in second.values():
        assert readers_view(disk) in (None, clean.reader_before, clean.reader_after)
        assert writers_view(disk) in (clean.before, clean.after)


def interrupted(disk: SimulatedDisk) -> Iterator[SimulatedDisk]:
    """Every state that a power loss during `prepare` of this disk may leave."""
    at, is_cut = 0, True
    while is_cut:
        copy = disk.power_loss()
        faulty = FaultyDisk(copy)
        root = faulty.open_root("/")
        faulty.arm(Fault(at, Wrong.CUT))
        try:
            sentinel.prepare(faulty, root, "/", 3, wipe_foreign=True)
            is_cut = False
        except PowerCut:
            at += 1
        for _, survivor in copy.survivors():
            yield survivor


def test_the_matrix_has_every_call_that_changes_a_disk() -> None:
    """An operation that stopped making its calls would pass everything."""
    called = {call for operation in OPERATIONS for call in expected(operation).calls}
    assert called >= MUTATING - {"sync_filesystem"}
    for operation in COMMITS:
        calls = expected(operation).calls
        order = [calls.index(call) for call in ("write", "sync", "rename")]
        assert order == sorted(order)
        assert "sync_dir" in calls[calls.index("rename") :]


# -- the controls


class NoSync(SimulatedDisk):
    def sync(self, file: int) -> None:
        pass


class NoSyncDir(SimulatedDisk):
    def sync_dir(self, directory: int) -> None:
        pass


class WritesInPlace(DirectoryStore):
    """Replaces a list where it is, with all the syncs that one could wish for."""

    def replace(self, key: RepositoryKey, plain: bytes, mtime_ns: int | None = None) -> Version:
        codec = self.policy.codec_for(len(plain))
        self.disk.close(self._open_or_make(key)[0])
        done(self._syncing(key))
        with self.opened(key.namespace, key.name) as directory:
            for variant in self._variants(directory):
                self.disk.unlink(directory, variant.name)
            file = self.disk.create(directory, LIST + codec.suffix)
            try:
                self.disk.write(file, codec.encode(plain))
                self.disk.sync(file)
            finally:
                self.disk.close(file)
            self.disk.sync_dir(directory)
        return self.examine(key)


class SyncsTooLate(SimulatedDisk):
    """Files are synced with the directory, after the rename."""

    def __init__(self, granularity_ns: int = 1) -> None:
        super().__init__(granularity_ns)
        self._late: list[int] = []
        self._is_renamed = False

    def sync(self, file: int) -> None:
        self._late.append(file)

    def rename(self, directory: int, name: str, to_directory: int, to_name: str) -> None:
        super().rename(directory, name, to_directory, to_name)
        self._is_renamed = True

    def sync_dir(self, directory: int) -> None:
        while self._is_renamed and self._late:
            super().sync(self._late.pop())
        super().sync_dir(directory)


class AppliesTheTimeAtOnce(DirectoryStore):
    """Gives the new variant its requested time while the stale one is still there."""

    def _outrank(self, stage: Any, stale: Any, mtime_ns: int | None) -> int | None:
        return super()._outrank(stage, [], mtime_ns)


class RemovesStaleFirst(DirectoryStore):
    def publish(self, stage: Stage, mtime_ns: int | None = None) -> Version:
        with self.opened(stage.key.namespace, stage.key.name) as directory:
            self._remove_stale(directory, [variant.name for variant in self._variants(directory)])
        return super().publish(stage, mtime_ns)


def losses(
    operations: list[Operation],
    disk_kind: type[SimulatedDisk] = SimulatedDisk,
    store_kind: type[DirectoryStore] = DirectoryStore,
) -> dict[str, int]:
    """Operation -> how many of its power losses, at a call or after the end, cost a list."""
    lost = {}
    for operation in operations:
        count = 0
        run = Run(operation, disk_kind(), "/", store_kind)
        run.act(None)
        for fault in [*faults(operation, CUTS, run.calls), None]:
            try:
                cut(operation, fault, disk_kind(), store_kind)
            except (Loss, TagfsError):
                count += 1
        lost[operation.name] = count
    return lost


REPLACING = [operation for operation in COMMITS if operation.name.startswith(("replace-small", "replace-large"))]
SWITCHING = [operation for operation in COMMITS if operation.name in ("replace-growing", "replace-shrinking")]
WITH_MTIME = [operation for operation in COMMITS if operation.name.endswith("ing-with-mtime")]


def test_control_nothing_is_lost_with_the_store_as_it_is() -> None:
    assert set(losses([*REPLACING, *SWITCHING, *WITH_MTIME]).values()) == {0}


def test_control_a_disk_that_does_not_sync_files_loses_lists() -> None:
    assert all(losses(REPLACING + SWITCHING, NoSync).values())


def test_control_a_disk_that_does_not_sync_directories_loses_lists() -> None:
    assert all(losses(REPLACING + SWITCHING, NoSyncDir).values())


def test_control_a_wipe_whose_directory_is_not_synced_is_not_done() -> None:
    assert all(losses([operation for operation in SENTINELS if "wiped" in operation.name], NoSyncDir).values())


def test_control_writing_in_place_loses_lists() -> None:
    assert all(losses(REPLACING + SWITCHING, store_kind=WritesInPlace).values())


def test_control_syncing_after_the_rename_loses_lists() -> None:
    assert all(losses(REPLACING, SyncsTooLate).values())


def test_control_removing_the_stale_variant_first_loses_lists() -> None:
    assert all(losses(SWITCHING, store_kind=RemovesStaleFirst).values())


def test_control_an_old_time_beside_a_stale_variant_brings_the_old_list_back() -> None:
    """Shown not by a power loss, which may leave either, but to a reader between the rename and the unlink."""
    for operation in WITH_MTIME:
        for store_kind, is_old_back in ((AppliesTheTimeAtOnce, True), (DirectoryStore, False)):
            clean = expected(operation)
            run = Run(operation, SimulatedDisk(), "/", store_kind)
            run.act(None)
            after_rename = run.calls.index("rename") + 1
            run = Run(operation, SimulatedDisk(), "/", store_kind)
            run.act(Fault(after_rename, Wrong.CUT))
            shown = readers_view(run.inner)
            assert shown == (clean.reader_before if is_old_back else clean.reader_after)


def test_control_a_leak_is_seen() -> None:
    class Leaks(DirectoryStore):
        def remove(self, key: RepositoryKey) -> None:
            self.disk.open_dir(self.root, BASE)
            super().remove(key)

    disk = SimulatedDisk()
    operation = next(operation for operation in CHANGES if operation.name == "remove-small")
    refuse(operation, Fault(3, Wrong.EIO), disk, "/", Leaks)
    assert disk.open_descriptors > 0
