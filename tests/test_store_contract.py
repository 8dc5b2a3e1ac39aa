"""Store: every promise of the interface, kept by every store."""

import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tagfs import sentinel
from tagfs.codec import GZIP, PLAIN
from tagfs.directory import DirectoryStore
from tagfs.disk import Disk
from tagfs.errors import (
    AlreadyExists,
    CommitUncertain,
    DirectoryNotEmpty,
    ListCorrupt,
    ListMissing,
    ListTooLarge,
    NameRefused,
    RepositoryMissing,
    StoreRefused,
    StoreWaiting,
)
from tagfs.memory import MemoryStore
from tagfs.names import BASE, RepositoryKey
from tagfs.store import Store
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
    THRESHOLD,
    contents,
    files_of,
    open_store,
    plant,
    policy_of,
    write_natively,
)

LIMIT = 1 << 16
OLD = 1_000_000_000_000_000_000
"""A time in 2001, in nanoseconds."""


@dataclass(frozen=True)
class Made:
    """A kind of store; `open` opens the same one again."""

    name: str
    open: Callable[[], Store]


def _memory(stack: ExitStack) -> Callable[[], Store]:
    store = MemoryStore(LIMIT)
    return lambda: store


def _real(format_: int, threshold: int) -> Callable[[ExitStack], Callable[[], Store]]:
    def make(stack: ExitStack) -> Callable[[], Store]:
        path = stack.enter_context(fast_directory())
        return lambda: open_store(Disk(), str(path), format_, policy_of(format_, threshold, LIMIT))

    return make


def _simulated(format_: int, threshold: int, granularity_ns: int = 1) -> Callable[[ExitStack], Callable[[], Store]]:
    def make(stack: ExitStack) -> Callable[[], Store]:
        disk = SimulatedDisk(granularity_ns)
        return lambda: open_store(disk, "/", format_, policy_of(format_, threshold, LIMIT))

    return make


STORES = {
    "memory": _memory,
    "real-2": _real(2, THRESHOLD),
    "real-2-all-gzip": _real(2, 1),
    "real-3": _real(3, THRESHOLD),
    "real-3-all-zstd": _real(3, 1),
    "real-3-all-plain": _real(3, LIMIT + 1),
    "simulated-2": _simulated(2, THRESHOLD),
    "simulated-3": _simulated(3, THRESHOLD),
    "simulated-3-coarse-clock": _simulated(3, THRESHOLD, 1_000_000_000),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with ExitStack() as stack:
        before = open_descriptors()
        made = STORES[request.param](stack)()
        yield made
        made.close()
        if isinstance(made, DirectoryStore) and isinstance(made.disk, SimulatedDisk):
            assert made.disk.open_descriptors == 0
        assert open_descriptors() == before


every_list = pytest.mark.parametrize("plain", [b"", SMALL, LARGE], ids=["empty", "small", "large"])


# -- replacing and reading


@every_list
def test_what_is_written_is_read(store: Store, plain: bytes) -> None:
    version = store.replace(KEY, plain)
    assert store.read(KEY) == plain
    assert version == store.examine(KEY) == store.examine(KEY, version)
    assert version.size == len(plain)
    assert version.stored_size <= max(version.size, 64)
    assert version.fault is None


@pytest.mark.parametrize("first", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
@pytest.mark.parametrize("second", [b"", OTHER_SMALL, OTHER_LARGE], ids=["empty", "small", "large"])
@pytest.mark.parametrize("mtime_ns", [None, OLD], ids=["now", "old"])
def test_a_list_is_replaced(store: Store, first: bytes, second: bytes, mtime_ns: int | None) -> None:
    store.replace(NEIGHBOUR, SMALL)
    old = store.replace(KEY, first)
    new = store.replace(KEY, second, mtime_ns)
    assert store.read(KEY) == second
    assert new.identity != old.identity
    assert new == store.examine(KEY) == store.examine(KEY, old)
    assert contents(store) == {str(KEY): second, str(NEIGHBOUR): SMALL}


@pytest.mark.parametrize("mtime_ns", [OLD, 0, 2 * OLD, 4 * OLD])
@pytest.mark.parametrize(
    "plains", [[SMALL], [LARGE], [SMALL, LARGE], [LARGE, SMALL]], ids=["small", "large", "growing", "shrinking"]
)
def test_a_requested_mtime_is_applied(store: Store, plains: list[bytes], mtime_ns: int) -> None:
    for plain in plains:
        version = store.replace(KEY, plain, mtime_ns)
        assert version.mtime_ns == mtime_ns
        assert store.examine(KEY).mtime_ns == mtime_ns
        assert store.read(KEY) == plain


def test_an_older_requested_mtime_does_not_bring_back_the_old_list(store: Store) -> None:
    store.replace(KEY, SMALL)
    store.replace(KEY, LARGE, OLD)
    assert store.read(KEY) == LARGE
    store.replace(KEY, SMALL, OLD - 1)
    assert store.read(KEY) == SMALL


def test_a_list_from_the_future_does_not_make_its_successor_one(store: Store) -> None:
    store.replace(KEY, SMALL, 4 * OLD)
    assert store.replace(KEY, LARGE).mtime_ns < 3 * OLD
    assert store.read(KEY) == LARGE


def test_no_two_versions_have_one_identity(store: Store) -> None:
    """Also not where sizes and requested times are equal, and inodes used again."""
    seen = {store.replace(KEY, plain, OLD).identity for plain in [b"a\n", b"b\n"] * 10}
    assert len(seen) == 20


def test_the_identity_stays_while_the_version_does(store: Store) -> None:
    version = store.replace(KEY, SMALL)
    store.replace(NEIGHBOUR, LARGE)
    assert store.examine(KEY) == version
    snapshot = store.open(KEY)
    assert snapshot.version == version
    snapshot.close()


def test_a_list_over_the_limit_is_refused_and_one_at_it_is_not(store: Store) -> None:
    at_limit = b"v\n" * (LIMIT // 2)
    store.replace(KEY, at_limit)
    with pytest.raises(ListTooLarge, match=str(LIMIT)):
        store.stage(KEY, at_limit + b"v\n")
    assert store.read(KEY) == at_limit


def test_replacing_makes_the_directories(store: Store) -> None:
    store.replace(KEY, SMALL)
    assert store.namespaces() == [KEY.namespace]
    assert store.repositories(KEY.namespace) == [KEY.name]


def test_names_at_their_limits(store: Store) -> None:
    key = RepositoryKey("n" * 63, "r" * 253)
    store.replace(key, SMALL)
    store.hide(key)
    assert store.recover(key)
    assert contents(store) == {str(key): SMALL}


# -- snapshots


@pytest.mark.parametrize("read_before", [True, False])
@pytest.mark.parametrize("change", ["replace", "switch", "remove", "hide", "remove-directory"])
def test_a_snapshot_stays_what_it_was(store: Store, read_before: bool, change: str) -> None:
    store.replace(KEY, SMALL)
    snapshot = store.open(KEY)
    version = snapshot.version
    if read_before:
        assert snapshot.content() == SMALL
    if change == "replace":
        store.replace(KEY, OTHER_SMALL)
    elif change == "switch":
        store.replace(KEY, LARGE)
    elif change == "hide":
        store.hide(KEY)
    else:
        store.remove(KEY)
    if change == "remove-directory":
        store.remove_repository(KEY)
    assert snapshot.content() == SMALL
    assert snapshot.content() == SMALL
    assert snapshot.version == version
    snapshot.close()
    snapshot.close()


@pytest.mark.parametrize("plain", [SMALL, LARGE], ids=["plain", "compressed"])
@pytest.mark.parametrize("was_read", [False, True])
def test_a_snapshot_that_is_surrendered_and_adopted_stays_what_it_was(
    store: Store, plain: bytes, was_read: bool
) -> None:
    store.replace(KEY, plain)
    snapshot = store.open(KEY, 1 << 16)
    version = snapshot.version
    if was_read:
        assert snapshot.decode() == plain
    for _ in range(3):
        given = snapshot.surrender()
        if given is not None:
            assert given[1] is was_read
            snapshot.close()
            snapshot = store.adopt(KEY, version, *given)
        store.replace(KEY, OTHER_SMALL)
    assert snapshot.version == version
    assert [snapshot.decode(), snapshot.decode()] == [plain, plain]
    snapshot.close()


def test_a_snapshot_that_is_never_read_is_closed(store: Store) -> None:
    store.replace(KEY, LARGE)
    store.open(KEY).close()


# -- stages


def test_a_stage_is_not_seen(store: Store) -> None:
    stage = store.stage(KEY, SMALL)
    assert (stage.key, stage.size) == (KEY, len(SMALL))
    assert contents(store) == {}
    assert store.namespaces() == []
    store.discard(stage)
    store.discard(stage)
    assert contents(store) == {}


def test_stages_of_one_key_are_published_in_any_order(store: Store) -> None:
    first, second, third = (store.stage(KEY, plain) for plain in (SMALL, LARGE, OTHER_SMALL))
    store.publish(third)
    store.publish(first)
    assert store.read(KEY) == SMALL
    store.discard(second)
    assert store.read(KEY) == SMALL


def test_a_published_stage_is_used_up(store: Store) -> None:
    stage = store.stage(KEY, SMALL)
    store.publish(stage)
    store.discard(stage)
    assert store.read(KEY) == SMALL
    with pytest.raises(AssertionError):
        store.publish(stage)
    assert store.read(KEY) == SMALL


def test_a_stage_outlives_the_directory_of_its_key(store: Store) -> None:
    store.replace(KEY, SMALL)
    stage = store.stage(KEY, LARGE)
    store.remove(KEY)
    store.remove_repository(KEY)
    store.remove_namespace(KEY.namespace)
    store.publish(stage)
    assert contents(store) == {str(KEY): LARGE}


# -- as it is stored


@every_list
def test_an_unchanged_list_is_told(store: Store, plain: bytes) -> None:
    assert not store.is_stored_as(KEY, plain)
    store.make_namespace(KEY.namespace)
    store.make_repository(KEY)
    assert not store.is_stored_as(KEY, plain)
    store.replace(KEY, plain)
    assert store.is_stored_as(KEY, plain)
    assert not store.is_stored_as(KEY, plain + b"v9\n")
    assert not store.is_stored_as(KEY, LARGE[::-1])
    assert not store.is_stored_as(NEIGHBOUR, plain)


# -- removing


@every_list
def test_a_removed_list_is_gone_and_its_directory_is_not(store: Store, plain: bytes) -> None:
    store.replace(KEY, plain)
    store.replace(NEIGHBOUR, SMALL)
    store.remove(KEY)
    with pytest.raises(ListMissing):
        store.read(KEY)
    assert sorted(store.repositories(KEY.namespace)) == sorted([KEY.name, NEIGHBOUR.name])
    assert contents(store) == {str(NEIGHBOUR): SMALL}


def test_a_removed_list_does_not_come_back_hidden(store: Store) -> None:
    store.replace(KEY, SMALL)
    store.hide(KEY)
    store.replace(KEY, LARGE)
    store.remove(KEY)
    assert not store.recover(KEY)
    assert contents(store) == {}


# -- hiding


@every_list
def test_a_hidden_list_is_out_of_sight_and_comes_back(store: Store, plain: bytes) -> None:
    version = store.replace(KEY, plain, OLD)
    store.hide(KEY)
    with pytest.raises(ListMissing):
        store.examine(KEY)
    assert store.repositories(KEY.namespace) == [KEY.name]
    assert store.recover(KEY)
    assert store.read(KEY) == plain
    assert store.examine(KEY).mtime_ns == version.mtime_ns
    assert not store.recover(KEY)


@every_list
def test_a_successor_drops_what_was_hidden(store: Store, plain: bytes) -> None:
    store.replace(KEY, plain)
    store.hide(KEY)
    store.replace(KEY, OTHER_LARGE, OLD)
    assert not store.recover(KEY)
    assert store.read(KEY) == OTHER_LARGE


def test_a_dropped_list_is_gone(store: Store) -> None:
    store.drop_hidden(KEY)
    store.replace(KEY, SMALL)
    store.drop_hidden(KEY)
    assert store.read(KEY) == SMALL
    store.hide(KEY)
    store.drop_hidden(KEY)
    store.drop_hidden(KEY)
    assert not store.recover(KEY)
    assert contents(store) == {}


def test_of_two_hidden_lists_the_later_one_comes_back(store: Store) -> None:
    store.replace(KEY, SMALL)
    store.hide(KEY)
    store.replace(KEY, LARGE, OLD)  # Older by its time, stored otherwise, and yet the later one.
    store.hide(KEY)
    assert store.recover(KEY)
    assert store.read(KEY) == LARGE
    assert not store.recover(KEY)
    store.remove(KEY)
    assert not store.recover(KEY)


def test_nothing_to_recover(store: Store) -> None:
    assert not store.recover(KEY)
    store.make_namespace(KEY.namespace)
    assert not store.recover(KEY)
    store.make_repository(KEY)
    assert not store.recover(KEY)


# -- times


@every_list
def test_a_time_is_set(store: Store, plain: bytes) -> None:
    store.replace(KEY, plain)
    store.set_mtime(KEY, OLD)
    assert store.examine(KEY).mtime_ns == OLD
    assert store.read(KEY) == plain


def test_the_time_of_a_list_is_that_of_its_writing(store: Store) -> None:
    first = store.replace(KEY, SMALL).mtime_ns
    assert store.replace(KEY, OTHER_SMALL).mtime_ns >= first


# -- directories


def test_directories_are_made_and_removed(store: Store) -> None:
    assert store.namespaces() == []
    store.make_namespace("apps")
    assert store.namespaces() == ["apps"]
    assert store.repositories("apps") == []
    store.make_repository(KEY)
    assert store.repositories("apps") == [KEY.name]
    assert contents(store) == {}
    with pytest.raises(DirectoryNotEmpty):
        store.remove_namespace("apps")
    store.remove_repository(KEY)
    assert store.repositories("apps") == []
    store.remove_namespace("apps")
    assert store.namespaces() == []


def test_a_repository_with_a_list_is_not_removed(store: Store) -> None:
    store.replace(KEY, SMALL)
    with pytest.raises(DirectoryNotEmpty):
        store.remove_repository(KEY)
    assert store.read(KEY) == SMALL
    store.hide(KEY)
    store.remove_repository(KEY)
    assert store.repositories(KEY.namespace) == []
    assert not store.recover(KEY)


def test_taken_names(store: Store) -> None:
    store.make_namespace("apps")
    store.make_repository(KEY)
    with pytest.raises(AlreadyExists):
        store.make_namespace("apps")
    with pytest.raises(AlreadyExists):
        store.make_repository(KEY)


@pytest.mark.parametrize("name", ["", ".", "..", "../apps", "a/b", "A", "a.b", "tags.txt", "a" * 64])
def test_no_namespace_of_another_name_is_made(store: Store, name: str) -> None:
    with pytest.raises(NameRefused):
        store.make_namespace(name)
    assert store.namespaces() == []


@pytest.mark.parametrize("name", ["", ".", "..", "../apps", "apps/podinfo", "missing"])
def test_no_other_name_leads_anywhere(store: Store, name: str) -> None:
    store.replace(KEY, SMALL)
    for call in (store.repositories, store.directory_mtime_ns, store.remove_namespace):
        with pytest.raises(RepositoryMissing):
            call(name)
    assert contents(store) == {str(KEY): SMALL}


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_what_is_missing(store: Store, depth: int) -> None:
    """Without the namespace, without the repository, without the list."""
    if depth > 0:
        store.make_namespace(KEY.namespace)
    if depth > 1:
        store.make_repository(KEY)
    expected = ListMissing if depth == 2 else RepositoryMissing
    for call in (store.examine, store.open, store.read, store.remove, store.hide):
        with pytest.raises(expected):
            call(KEY)
    with pytest.raises(expected):
        store.set_mtime(KEY, OLD)
    if depth < 2:
        with pytest.raises(RepositoryMissing):
            store.remove_repository(KEY)
        with pytest.raises(RepositoryMissing):
            store.directory_mtime_ns(KEY.namespace, KEY.name)
    if depth < 1:
        with pytest.raises(RepositoryMissing):
            store.make_repository(KEY)
        with pytest.raises(RepositoryMissing):
            store.remove_namespace(KEY.namespace)
        with pytest.raises(RepositoryMissing):
            store.repositories(KEY.namespace)
        with pytest.raises(RepositoryMissing):
            store.directory_mtime_ns(KEY.namespace)


def test_the_time_of_each_directory_is_told(store: Store) -> None:
    assert store.directory_mtime_ns() >= 0
    store.replace(KEY, SMALL)
    for path in ((), (KEY.namespace,), (KEY.namespace, KEY.name)):
        assert store.directory_mtime_ns(*path) >= 0


def test_a_namespace_that_is_entered_tells_the_same(store: Store) -> None:
    with pytest.raises(RepositoryMissing):
        store.enter(KEY.namespace)
    store.replace(KEY, SMALL)
    entered = store.enter(KEY.namespace)
    assert entered.mtime_ns(KEY.name) == store.directory_mtime_ns(KEY.namespace, KEY.name)
    assert [entered.name_after(name) for name in ("", KEY.name)] == [KEY.name, None]
    store.remove(KEY)
    store.remove_repository(KEY)
    with pytest.raises(RepositoryMissing):
        entered.mtime_ns(KEY.name)
    entered.close()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_directory_has_no_time_in_a_namespace_that_is_entered(tmp_path: Path, kind: str) -> None:
    store = open_store(Disk(), str(tmp_path))
    store.make_namespace(KEY.namespace)
    path = tmp_path / BASE / KEY.namespace / KEY.name
    path.symlink_to(tmp_path) if kind == "link" else path.touch()
    entered = store.enter(KEY.namespace)
    with pytest.raises(RepositoryMissing):
        entered.mtime_ns(KEY.name)
    entered.close()
    store.close()


def test_a_scan_finds_every_key_in_order(store: Store) -> None:
    assert list(store.scan()) == []
    store.replace(STRANGER, SMALL)
    store.replace(NEIGHBOUR, LARGE)
    store.make_repository(KEY)
    store.make_namespace("empty")
    assert list(store.scan()) == [KEY, NEIGHBOUR, STRANGER]


def test_space_is_told(store: Store) -> None:
    assert store.space().f_bsize > 0


def test_keys_are_written_in_threads_beside_readers(store: Store) -> None:
    """Each of the writers its own keys; a reader sees one of the two lists of a key, whole."""
    keys = [RepositoryKey(f"ns-{n % 3}", f"repository-{n}") for n in range(12)]
    lists = {key: (b"%d\n" % n, b"v%d.0\n" % n * 400) for n, key in enumerate(keys)}
    for key in keys:
        store.replace(key, lists[key][0])
    stop = threading.Event()

    def write(key: RepositoryKey) -> None:
        for turn in range(6):
            store.replace(key, lists[key][turn % 2])
        store.hide(key)
        assert store.recover(key)
        store.discard(store.stage(key, lists[key][0]))
        assert store.read(key) == lists[key][1]
        store.remove(key)
        store.replace(key, lists[key][0])

    def read() -> int:
        reads = 0
        for key in itertools.cycle(keys):
            if stop.is_set():
                return reads
            try:
                assert store.read(key) in lists[key]
            except ListMissing:  # While it is hidden or removed.
                continue
            reads += 1
        return reads

    with ThreadPoolExecutor(8) as threads:
        readers = [threads.submit(read) for _ in range(2)]
        writers = [threads.submit(write, key) for key in keys]
        try:
            for writer in writers:
                writer.result()
        finally:
            stop.set()
        assert all(reader.result() > 0 for reader in readers)
    assert contents(store) == {str(key): lists[key][0] for key in keys}


# -- the directory store alone


@pytest.fixture
def path() -> Iterator[Path]:
    with fast_directory() as path:
        yield path


@pytest.mark.parametrize("format_", [2, 3])
def test_a_store_is_opened_again_with_other_settings(path: Path, format_: int) -> None:
    lists = {str(KEY): SMALL, str(NEIGHBOUR): LARGE, str(STRANGER): b""}
    store: Store = open_store(Disk(), str(path), format_)
    for key in (KEY, NEIGHBOUR, STRANGER):
        store.replace(key, lists[str(key)])
    store.close()
    for threshold in (1, LIMIT, THRESHOLD):
        store = open_store(Disk(), str(path), format_, policy_of(format_, threshold))
        assert contents(store) == lists
        for key in (KEY, NEIGHBOUR, STRANGER):
            store.replace(key, lists[str(key)])
        assert contents(store) == lists
        store.close()


def test_an_unchanged_list_is_durable_once_it_is_told() -> None:
    """Its writer may have synced nothing, or have been killed between its rename and the sync of the directory."""
    for key in (KEY, RepositoryKey("other", "podinfo")):
        disk = SimulatedDisk()
        store = open_store(disk, "/")
        store.replace(NEIGHBOUR, SMALL)
        plant(disk, f"{key.directory}/tags.txt", SMALL)
        assert store.is_stored_as(key, SMALL)
        for _, survivor in disk.survivors():
            assert contents(open_store(survivor, "/")) == {str(NEIGHBOUR): SMALL, str(key): SMALL}


def test_a_list_that_is_known_to_be_durable_is_not_synced_again() -> None:
    disk = FaultyDisk(SimulatedDisk())
    store = open_store(disk, "/")
    store.replace(KEY, SMALL)
    plant(disk, f"{NEIGHBOUR.directory}/tags.txt", SMALL)
    assert store.is_stored_as(NEIGHBOUR, SMALL)
    disk.arm(None)
    assert store.is_stored_as(KEY, SMALL)
    assert store.is_stored_as(NEIGHBOUR, SMALL)
    assert not {"sync", "sync_dir"} & set(disk.calls)


OVER_UNSYNCED: dict[str, Callable[[DirectoryStore], object]] = {
    "set-mtime": lambda store: store.set_mtime(KEY, OLD),
    "hide": lambda store: store.hide(KEY),
    "recover": lambda store: store.recover(KEY),
    "drop-stale": lambda store: store.drop_stale(KEY),
}


@pytest.mark.parametrize("act", OVER_UNSYNCED.values(), ids=OVER_UNSYNCED.keys())
@pytest.mark.parametrize("older", ["tags.txt", ".tagfs-hidden.tags.txt"])
def test_an_older_variant_is_not_deleted_before_the_newer_one_is_durable(
    act: Callable[[DirectoryStore], object], older: str
) -> None:
    """Other programs rename theirs into place without a sync."""
    newer = GZIP.encode(LARGE)
    at = 0
    while True:
        disk = SimulatedDisk()
        plant(disk, ".storage-version", b"3\n")
        plant(disk, f"{KEY.directory}/{older}", SMALL, OLD)
        root = disk.open_root("/")
        disk.sync_filesystem(root)
        plant(disk, f"{KEY.directory}/tags.txt.gz", newer)
        faulty = FaultyDisk(disk)
        store = DirectoryStore(faulty, root, 3, policy_of(3))
        faulty.arm(Fault(at, Wrong.CUT))
        error: BaseException | None = None
        try:
            act(store)
        except PowerCut as cut:
            error = cut
        for label, survivor in disk.survivors():
            kept = []
            directory = survivor.open_root("/")
            for part in KEY.directory.split("/"):
                directory = survivor.open_dir(directory, part)
            for name, _ in survivor.names(directory):
                kept.append(survivor.read(survivor.open_file(directory, name), LIMIT))
            assert SMALL in kept or newer in kept, f"call {at}, {label}"
        if error is None:
            return
        at += 1


@pytest.mark.parametrize("torn", [b"", b"v1\nv2", bytes(9)], ids=["empty", "cut", "zeros"])
def test_a_variant_that_may_be_torn_does_not_cost_the_older_one(path: Path, torn: bytes) -> None:
    store = open_store(Disk(), str(path), 2)
    write_natively(path, KEY, LARGE, compressed=True, mtime_ns=OLD)
    write_natively(path, KEY, torn, compressed=False)
    for call in (lambda: store.set_mtime(KEY, OLD), lambda: store.hide(KEY)):
        with pytest.raises(ListCorrupt, match="torn"):
            call()
    assert not store.drop_stale(KEY)
    assert files_of(path, KEY) == ["tags.txt", "tags.txt.gz"]
    store.replace(KEY, SMALL)
    assert files_of(path, KEY) == ["tags.txt"]
    store.close()


def test_a_corrupt_variant_does_not_cost_the_older_one(path: Path) -> None:
    store = open_store(Disk(), str(path), 2)
    write_natively(path, KEY, SMALL, compressed=False, mtime_ns=OLD)
    write_natively(path, KEY, LARGE, compressed=True).write_bytes(GZIP.encode(LARGE)[:-9])
    for call in (lambda: store.set_mtime(KEY, OLD), lambda: store.hide(KEY)):
        with pytest.raises(ListCorrupt):
            call()
    assert not store.drop_stale(KEY)
    assert files_of(path, KEY) == ["tags.txt", "tags.txt.gz"]
    store.remove(KEY)
    assert files_of(path, KEY) == []
    store.close()


def test_stale_variants_are_dropped(path: Path) -> None:
    store = open_store(Disk(), str(path), 2)
    assert not store.drop_stale(KEY)
    write_natively(path, KEY, SMALL, compressed=False, mtime_ns=OLD)
    assert not store.drop_stale(KEY)
    write_natively(path, KEY, LARGE, compressed=True)
    assert store.drop_stale(KEY)
    assert files_of(path, KEY) == ["tags.txt.gz"]
    assert store.read(KEY) == LARGE
    store.close()


def test_an_inode_that_is_used_again_is_another_version(tmp_path: Path) -> None:
    """Some file systems give a freed number to the next file; size and requested time may be those of an older list."""
    store = open_store(Disk(), str(tmp_path))
    versions = [store.replace(KEY, plain, OLD) for plain in [b"a\n", b"b\n"] * 10]
    assert len({version.identity for version in versions}) == len(versions)
    store.close()


def test_files_and_directories_are_private(path: Path) -> None:
    store = open_store(Disk(), str(path))
    store.replace(KEY, SMALL)
    store.close()
    for at, directories, files in os.walk(path):
        for name in directories:
            assert (Path(at) / name).stat().st_mode & 0o777 == 0o700
        for name in files:
            assert (Path(at) / name).stat().st_mode & 0o777 == 0o600


def test_the_threshold_is_the_least_size_that_is_compressed(path: Path) -> None:
    store = open_store(Disk(), str(path), 3, policy_of(3, 10))
    store.replace(KEY, b"12345678\n")
    assert files_of(path, KEY) == ["tags.txt"]
    store.replace(KEY, b"123456789\n")
    assert files_of(path, KEY) == ["tags.txt.zst"]
    assert store.examine(KEY).codec is not PLAIN
    store.close()


def test_a_list_that_is_stored_otherwise_is_not_as_it_would_be(path: Path) -> None:
    store = open_store(Disk(), str(path), 2)
    for plain, compressed in ((SMALL, True), (LARGE, False)):
        write_natively(path, KEY, plain, compressed)
        assert store.read(KEY) == plain
        assert not store.is_stored_as(KEY, plain)
        store.replace(KEY, plain)
        assert store.is_stored_as(KEY, plain)
    write_natively(path, KEY, SMALL, compressed=False, mtime_ns=OLD)
    assert not store.is_stored_as(KEY, LARGE)  # The stale variant is still there.
    store.close()


def test_no_stage_is_left(path: Path) -> None:
    store = open_store(Disk(), str(path))
    store.replace(KEY, LARGE)
    store.discard(store.stage(KEY, SMALL))
    assert store.stages.names() == []
    store.close()


@pytest.mark.parametrize("gone", ["wiped", "closed", "closed after it was wiped"])
def test_giving_up_a_stage_of_a_store_that_is_gone_is_no_error(path: Path, gone: str) -> None:
    store = open_store(Disk(), str(path))
    stage = store.stage(KEY, LARGE)
    if "wiped" in gone:
        (path / ".storage-wipe-in-progress").touch()
        shutil.rmtree(path / ".tagfs-stage")
    if "closed" in gone:
        store.close()
    store.discard(stage)
    with pytest.raises(StoreWaiting):
        store.publish(store.stage(KEY, LARGE))
    if "closed" not in gone:
        store.close()


def test_a_store_that_was_closed_holds_no_stage_directory(path: Path) -> None:
    store = open_store(Disk(), str(path))
    store.replace(KEY, LARGE)
    store.close()
    assert sorted(os.listdir(path)) == [".storage-version", BASE]


def test_a_reader_does_not_remove_the_stage_directory_of_a_writer(path: Path) -> None:
    open_store(Disk(), str(path)).close()
    (path / ".tagfs-stage").mkdir()
    store = open_store(Disk(), str(path))
    assert store.namespaces() == []
    store.close()
    assert (path / ".tagfs-stage").is_dir()


def test_stages_of_a_writer_that_is_gone_are_told(path: Path) -> None:
    store = open_store(Disk(), str(path))
    store.stage(KEY, LARGE)
    store.close()
    store = open_store(Disk(), str(path))
    (name,) = store.stages.names()
    store.stages.unlink(name)
    store.stages.unlink(name)
    assert store.stages.names() == []
    store.close()


def test_a_stage_directory_that_is_removed_is_made_again(path: Path) -> None:
    store = open_store(Disk(), str(path))
    lost = store.stage(KEY, SMALL)
    (path / ".tagfs-stage" / next(iter(store.stages.names()))).unlink()
    (path / ".tagfs-stage").rmdir()
    with pytest.raises(FileNotFoundError):
        store.publish(lost)
    store.replace(KEY, LARGE)
    assert contents(store) == {str(KEY): LARGE}
    store.close()


def test_a_descriptor_of_a_removed_stage_directory_is_not_given_to_another_file(path: Path) -> None:
    """A thread may have asked for the stage directory and not yet used it."""
    store = open_store(Disk(), str(path))
    asked = store.stages.descriptor
    (path / ".tagfs-stage").rmdir()
    store.replace(KEY, SMALL)
    with pytest.raises(FileNotFoundError):
        os.stat("tags.txt", dir_fd=asked)
    assert os.fstat(asked).st_nlink == 0
    store.close()


def test_a_directory_that_was_removed_beneath_is_made_durable_again() -> None:
    disk = SimulatedDisk()
    store = open_store(disk, "/")
    store.replace(KEY, SMALL)
    disk.sync_filesystem(store.root)
    disk.remove_tree(store.root, BASE)
    disk.sync_filesystem(store.root)
    store.replace(KEY, LARGE)
    after = open_store(disk.power_loss(), "/")
    assert contents(after) == {str(KEY): LARGE}


@pytest.mark.parametrize("change", ["wiping", "badger", "other-version", "removed"])
def test_a_store_that_is_taken_away_says_so_and_shows_nothing_missing(path: Path, change: str) -> None:
    inner = path / "store"
    inner.mkdir()
    store = open_store(Disk(), str(inner), 2)
    store.replace(KEY, SMALL)
    stage = store.stage(KEY, LARGE)
    pinned = store.open(KEY)
    if change == "wiping":
        (inner / ".storage-wipe-in-progress").touch()
    elif change == "badger":
        (inner / ".storage-version").unlink()
        (inner / "MANIFEST").touch()
    elif change == "other-version":
        (inner / ".storage-version").write_text("3\n")
    else:
        (inner / ".storage-version").unlink()
    (inner / KEY.directory / "tags.txt").unlink()
    if change == "removed":
        for name in (KEY.directory, f"{BASE}/{KEY.namespace}", BASE):
            (inner / name).rmdir()
    calls: list[Callable[[], object]] = [
        store.namespaces,
        lambda: store.repositories(KEY.namespace),
        lambda: list(store.scan()),
        lambda: store.examine(KEY),
        lambda: store.read(KEY),
        lambda: store.read(STRANGER),
        lambda: store.stage(KEY, SMALL),
        lambda: store.publish(stage),
        lambda: store.is_stored_as(STRANGER, SMALL),
        lambda: store.set_mtime(KEY, OLD),
        lambda: store.remove(KEY),
        lambda: store.hide(KEY),
        lambda: store.make_namespace("new"),
        lambda: store.make_repository(NEIGHBOUR),
        lambda: store.remove_repository(KEY),
        lambda: store.remove_namespace(KEY.namespace),
        lambda: store.enter("missing"),
    ]
    for call in calls:
        with pytest.raises(StoreWaiting):
            call()
    assert store.directory_mtime_ns() > 0
    assert pinned.content() == SMALL
    assert not (inner / BASE / "new").exists()
    pinned.close()
    store.close()


def test_a_list_that_is_still_there_is_read_during_a_wipe(path: Path) -> None:
    store = open_store(Disk(), str(path), 2)
    store.replace(KEY, SMALL)
    (path / ".storage-wipe-in-progress").touch()
    assert store.read(KEY) == SMALL
    store.close()


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_a_base_that_is_no_directory_is_no_empty_store(path: Path, kind: str) -> None:
    store = open_store(Disk(), str(path))
    store.replace(KEY, SMALL)
    (path / BASE).rename(path / "elsewhere")
    if kind == "file":
        (path / BASE).touch()
    else:
        (path / BASE).symlink_to("elsewhere" if kind == "link" else "nowhere")
    for call in (store.namespaces, lambda: store.read(KEY), lambda: store.replace(KEY, LARGE)):
        with pytest.raises(StoreRefused):
            call()
    assert (path / "elsewhere" / KEY.namespace / KEY.name / "tags.txt").read_bytes() == SMALL
    store.close()


def test_a_stale_variant_that_vanishes_meanwhile_is_no_error(path: Path) -> None:
    """Another program may remove it between the look and the unlink."""

    class Vanishing(Disk):
        def unlink(self, directory: int, name: str) -> None:
            super().unlink(directory, name)
            super().unlink(directory, name)

    for switch in (SMALL, LARGE):
        store = open_store(Disk(), str(path))
        store.replace(KEY, LARGE if switch is SMALL else SMALL)
        store.close()
        store = open_store(Vanishing(), str(path))
        store.replace(KEY, switch)
        assert store.read(KEY) == switch
        store.close()


def test_an_error_after_the_rename_is_told_as_uncertain(path: Path) -> None:
    faulty = FaultyDisk(Disk())
    store = open_store(faulty, str(path))
    store.replace(KEY, SMALL)
    faulty.arm(None)
    store.replace(KEY, OTHER_SMALL)
    after_rename = faulty.calls.index("rename") + 1
    assert faulty.calls[after_rename] == "sync_dir"
    faulty.arm(Fault(after_rename, Wrong.EIO))
    with pytest.raises(CommitUncertain):
        store.replace(KEY, SMALL)
    assert store.read(KEY) == SMALL
    store.close()


def test_no_file_left_to_open_is_no_corrupt_list(path: Path) -> None:
    class Exhausted(Disk):
        is_exhausted = False

        def open_file(self, directory: int, name: str) -> int:
            if self.is_exhausted and name == "tags.txt":
                raise OSError(24, "Too many open files")
            return super().open_file(directory, name)

    disk = Exhausted()
    store = open_store(disk, str(path))
    store.replace(KEY, SMALL)
    disk.is_exhausted = True
    for call in (store.examine, store.read):
        with pytest.raises(OSError, match="Too many open files"):
            call(KEY)
    store.close()


def test_a_writer_holds_the_lock_while_another_waits(path: Path) -> None:
    disk = Disk()
    first, second = disk.open_root(str(path)), disk.open_root(str(path))
    assert disk.lock(first)
    assert not disk.lock(second)
    sentinel.wipe(disk, first, 3)  # The lock outlives a wipe: it is on the directory itself.
    assert not disk.lock(second)
    disk.close(first)
    assert disk.lock(second)
    disk.close(second)


@pytest.mark.parametrize("litter", [".tagfs-hidden.tags.txt", "tags.txt1234", "notes", "tags.txt.zst", "link"])
def test_what_is_no_list_goes_with_the_directory(path: Path, litter: str) -> None:
    store = open_store(Disk(), str(path), 2)
    store.make_namespace(KEY.namespace)
    store.make_repository(KEY)
    file = path / KEY.directory / litter
    if litter == "link":
        (path / "precious").write_text("x")
        file.symlink_to(path / "precious")
    else:
        file.write_text("x")
    store.remove_repository(KEY)
    assert store.repositories(KEY.namespace) == []
    assert litter != "link" or (path / "precious").read_text() == "x"
    store.close()


def test_a_directory_in_a_repository_keeps_it_and_all_that_is_in_it(path: Path) -> None:
    store = open_store(Disk(), str(path))
    store.make_namespace(KEY.namespace)
    store.make_repository(KEY)
    (path / KEY.directory / "tags.txt").mkdir()
    (path / KEY.directory / "notes").touch()
    with pytest.raises(DirectoryNotEmpty):
        store.remove_repository(KEY)
    assert files_of(path, KEY) == ["notes", "tags.txt"]
    store.close()
