"""Random operations on the directory store and on the memory store, side by side: what is visible is the same.

Beside the store other programs write: native variants, newer and older, temporaries, links, foreign files.  On the
simulated disk the power is lost now and then, and every acknowledged list is still there.
"""

import gzip
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from tagfs import sentinel
from tagfs.codec import CODECS, GZIP, PLAIN, ZSTD, Codec
from tagfs.directory import DirectoryStore, _StagedFile
from tagfs.disk import Disk
from tagfs.errors import DirectoryNotEmpty, ListCorrupt, ListMissing, RepositoryMissing, TagfsError
from tagfs.memory import MemoryStore
from tagfs.names import BASE, LIST, STAGE_DIRECTORY, RepositoryKey
from tagfs.policy import Policy, codecs_of
from tagfs.store import Snapshot, Stage, Store
from tests.support.places import SHARED_MEMORY, open_descriptors
from tests.support.simulated_disk import SimulatedDisk
from tests.support.stores import plant

LIMIT = 2000
NAMESPACES = ("apps", "flux-system")
KEYS = [RepositoryKey(namespace, name) for namespace in NAMESPACES for name in ("podinfo", "podinfo.canary")]
THRESHOLDS = (1, 100, LIMIT + 1)
SECOND = 1_000_000_000

keys = st.sampled_from(KEYS)
plains = st.builds(
    lambda number, lines: b"v%d.0\n" % number * lines, st.integers(0, 9), st.sampled_from([0, 1, 1, 30, 300, 500])
)
"""Empty, below and above each threshold, and over the limit."""

mtimes = st.one_of(
    st.none(), st.integers(0, 4).map(lambda n: (1_000_000_000 + n) * SECOND), st.just(4_000_000_000 * SECOND)
)
"""Few, so that they tie; one in the future."""


class Machine(RuleBasedStateMachine):
    """The rules that hold on every disk."""

    stages = Bundle("stages")
    snapshots = Bundle("snapshots")

    def make_disk(self) -> Disk:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.before = open_descriptors()
        self.disk = self.make_disk()
        self.model = MemoryStore(LIMIT)
        self.generation = 0
        # Keys whose time was asked for, so that the model knows it.
        self.timed: set[RepositoryKey] = set()
        # Namespaces and repositories that hold what keeps their directory from being removed.
        self.blocked: set[str] = set()
        # Keys that other programs wrote last, who sync nothing.
        self.unsure: set[RepositoryKey] = set()
        self.pinned: list[Snapshot] = []
        self.staged: list[_StagedFile] = []

    @initialize(format_=st.sampled_from([2, 3]), threshold=st.sampled_from(THRESHOLDS))
    def begin(self, format_: int, threshold: int) -> None:
        self.open(format_, threshold)

    def open(self, new_format: int, threshold: int) -> None:
        root = self.disk.open_root("/")
        format_, _ = sentinel.prepare(self.disk, root, "/", new_format)
        if new_format > format_:
            sentinel.write_version(self.disk, root, new_format)
            format_ = new_format
        self.policy = Policy(GZIP if format_ == 2 else ZSTD, threshold, LIMIT)
        self.store = DirectoryStore(self.disk, root, format_, self.policy)

    def close(self) -> None:
        for snapshot in self.pinned:
            snapshot.close()
        self.pinned.clear()
        for stage in self.staged:
            if not stage.is_closed:
                self.disk.close(stage.file)  # As if its writer was killed: the file stays.
        self.staged.clear()
        self.store.close()
        self.generation += 1

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.close()
        assert open_descriptors() == self.before

    def both(self, call: Callable[[Store], object]) -> bool:
        """Do it to both: both succeed with equal results, or both raise the same; -> whether they succeeded."""
        outcomes = [self.outcome(call, store) for store in (self.store, self.model)]
        assert outcomes[0] == outcomes[1]
        return outcomes[0][0] is None

    @staticmethod
    def outcome(call: Callable[[Store], object], store: Store) -> tuple[type | None, object]:
        try:
            return None, call(store)
        except TagfsError as error:
            return type(error), None

    def written(self, key: RepositoryKey, mtime_ns: int | None) -> None:
        self.timed.discard(key)
        self.unsure.discard(key)
        if mtime_ns is not None:
            self.timed.add(key)

    # -- lists

    @rule(key=keys, plain=plains, mtime_ns=mtimes)
    def replace(self, key: RepositoryKey, plain: bytes, mtime_ns: int | None) -> None:
        if self.both(lambda store: store.replace(key, plain, mtime_ns).size):
            self.written(key, mtime_ns)
            assert self.native_variants(key) == [self.policy.codec_for(len(plain))]
            assert self.store.is_stored_as(key, plain)

    @rule(target=stages, key=keys, plain=plains)
    def stage(self, key: RepositoryKey, plain: bytes) -> object:
        if len(plain) > LIMIT:
            self.both(lambda store: store.stage(key, plain).size)
            return multiple()
        stage = self.store.stage(key, plain)
        assert isinstance(stage, _StagedFile)
        self.staged.append(stage)
        return self.generation, stage, self.model.stage(key, plain)

    @rule(staged=consumes(stages), mtime_ns=mtimes)
    def publish(self, staged: tuple[int, Stage, Stage], mtime_ns: int | None) -> None:
        generation, stage, of_model = staged
        if generation == self.generation:
            self.both(lambda store: store.publish(stage if store is self.store else of_model, mtime_ns).size)
            self.written(stage.key, mtime_ns)

    @rule(staged=consumes(stages))
    def discard(self, staged: tuple[int, Stage, Stage]) -> None:
        generation, stage, of_model = staged
        if generation == self.generation:
            for _ in range(2):
                self.store.discard(stage)
                self.model.discard(of_model)

    @rule(key=keys)
    def remove(self, key: RepositoryKey) -> None:
        if self.both(lambda store: store.remove(key)):
            assert self.native_variants(key) == []

    @rule(key=keys)
    def hide(self, key: RepositoryKey) -> None:
        if not self.is_doubtful(key, lambda: self.store.hide(key)):
            self.both(lambda store: store.hide(key))

    def is_doubtful(self, key: RepositoryKey, call: Callable[[], object]) -> bool:
        """An empty list beside an older variant may be a torn one: what would delete the older one is refused."""
        if len(self.native_variants(key)) < 2 or self.model.read(key):
            return False
        with pytest.raises(ListCorrupt):
            call()
        assert len(self.native_variants(key)) > 1
        return True

    @rule(key=keys)
    def drop_stale(self, key: RepositoryKey) -> None:
        several = len(self.native_variants(key)) > 1
        assert self.store.drop_stale(key) is (several and self.model.read(key) != b"")
        assert len(self.native_variants(key)) < 2 or self.model.read(key) == b""

    @rule(key=keys)
    def recover(self, key: RepositoryKey) -> None:
        self.both(lambda store: store.recover(key))

    @rule(key=keys)
    def drop_hidden(self, key: RepositoryKey) -> None:
        self.both(lambda store: store.drop_hidden(key))

    @rule(key=keys, mtime_ns=mtimes.filter(bool))
    def set_mtime(self, key: RepositoryKey, mtime_ns: int) -> None:
        if self.is_doubtful(key, lambda: self.store.set_mtime(key, mtime_ns)):
            return
        if self.both(lambda store: store.set_mtime(key, mtime_ns)):
            self.timed.add(key)
            assert len(self.native_variants(key)) == 1

    @rule(key=keys, plain=plains)
    def compare_as_stored(self, key: RepositoryKey, plain: bytes) -> None:
        if self.store.is_stored_as(key, plain):
            assert self.model.is_stored_as(key, plain)

    @rule(target=snapshots, key=keys)
    def pin(self, key: RepositoryKey) -> object:
        try:
            plain = self.model.read(key)
        except (ListMissing, RepositoryMissing):
            return multiple()
        snapshot = self.store.open(key)
        self.pinned.append(snapshot)
        return self.generation, snapshot, plain

    @rule(pinned=snapshots)
    def read_pinned(self, pinned: tuple[int, Snapshot, bytes]) -> None:
        generation, snapshot, plain = pinned
        if generation == self.generation:
            assert snapshot.content() == plain

    # -- directories

    @rule(namespace=st.sampled_from(NAMESPACES))
    def make_namespace(self, namespace: str) -> None:
        self.both(lambda store: store.make_namespace(namespace))

    @rule(key=keys)
    def make_repository(self, key: RepositoryKey) -> None:
        self.both(lambda store: store.make_repository(key))

    @rule(namespace=st.sampled_from(NAMESPACES))
    def remove_namespace(self, namespace: str) -> None:
        if namespace in self.blocked and namespace in self.model.namespaces():
            with pytest.raises(DirectoryNotEmpty):
                self.store.remove_namespace(namespace)
        else:
            self.both(lambda store: store.remove_namespace(namespace))

    @rule(key=keys)
    def remove_repository(self, key: RepositoryKey) -> None:
        if str(key) in self.blocked and key in set(self.model.scan()):
            with pytest.raises(DirectoryNotEmpty):
                self.store.remove_repository(key)
        else:
            self.both(lambda store: store.remove_repository(key))

    # -- the store anew

    @rule(threshold=st.sampled_from(THRESHOLDS), new_format=st.sampled_from([2, 3]), tidy=st.booleans())
    def open_again(self, threshold: int, new_format: int, tidy: bool) -> None:
        self.close()
        self.open(new_format, threshold)
        if tidy:
            for name in self.store.stages.names():
                self.store.stages.unlink(name)
            assert self.store.stages.names() == []

    # -- other programs

    @rule(key=keys, plain=plains, codec=st.sampled_from([PLAIN, GZIP]), mtime_ns=mtimes.filter(bool))
    def write_natively(self, key: RepositoryKey, plain: bytes, codec: Codec, mtime_ns: int) -> None:
        """As Flux does, and stopped before the other variant is removed."""
        if len(plain) > LIMIT:
            return
        self.both(lambda store: store.recover(key))
        stored = gzip.compress(plain, 9, mtime=0) if codec is GZIP else plain
        self.leave(f"{key.directory}/{LIST}{codec.suffix}271828", stored, mtime_ns, rename_to=LIST + codec.suffix)
        winner = self.native_winner(key)
        assert winner is not None
        self.model.replace(key, *winner)
        self.timed.add(key)
        self.unsure.add(key)

    @rule(
        key=keys,
        name=st.sampled_from(
            ["tags.txt31415", "tags.txt.gz27182", "notes", ".tags.txt.swp", ".tagfs-hidden.x", "LIST"]
        ),
    )
    def leave_a_foreign_file(self, key: RepositoryKey, name: str) -> None:
        if key in set(self.model.scan()):
            self.leave(f"{key.directory}/{name}", b"foreign")

    @rule(key=keys, name=st.sampled_from(["tags.txt.xz", "tags.txt~", "Notes"]))
    def leave_a_directory(self, key: RepositoryKey, name: str) -> None:
        if key in set(self.model.scan()):
            plant(self.disk, f"{key.directory}/{name}", None)
            self.blocked.add(str(key))

    @rule(namespace=st.sampled_from(NAMESPACES))
    def leave_a_file_in_a_namespace(self, namespace: str) -> None:
        if namespace in self.model.namespaces():
            self.leave(f"{BASE}/{namespace}/.notes", b"foreign")
            self.blocked.add(namespace)

    @rule(name=st.sampled_from(["notes", "UPPER", "a_b"]), is_directory=st.booleans())
    def leave_something_at_the_top(self, name: str, is_directory: bool) -> None:
        with suppress(FileExistsError):
            plant(self.disk, f"{BASE}/{name}-{is_directory}", None if is_directory else b"foreign")

    @rule()
    def leave_a_stage(self) -> None:
        with suppress(FileExistsError):
            plant(self.disk, f"{STAGE_DIRECTORY}/0123456789abcdef", b"half a li")

    def leave(self, path: str, content: bytes, mtime_ns: int | None = None, rename_to: str | None = None) -> None:
        """Put a file there, over one that is there."""
        above, _, name = path.rpartition("/")
        if rename_to is not None:
            with suppress(FileNotFoundError), self.opened(above) as directory:
                self.disk.unlink(directory, name)
        with suppress(FileExistsError):
            plant(self.disk, path, content, mtime_ns)
        with self.opened(above) as directory:
            if rename_to is not None:
                self.disk.rename(directory, name, directory, rename_to)

    def opened(self, path: str) -> "Opened":
        return Opened(self.disk, path)

    # -- what is there, by other means

    def native_files(self, key: RepositoryKey) -> list[tuple[int, int, bytes]]:
        """(mtime, place in CODECS, stored bytes) of each variant."""
        found = []
        try:
            with self.opened(key.directory) as directory:
                for place, codec in enumerate(CODECS):
                    if codec not in codecs_of(self.store.format):
                        continue
                    with suppress(FileNotFoundError):
                        status = self.disk.stat(directory, LIST + codec.suffix)
                        if stat.S_ISREG(status.st_mode):
                            file = self.disk.open_file(directory, LIST + codec.suffix)
                            found.append((status.st_mtime_ns, place, self.disk.read(file, LIMIT * 2)))
                            self.disk.close(file)
        except FileNotFoundError:
            pass
        return found

    def native_variants(self, key: RepositoryKey) -> list[Codec]:
        return [CODECS[place] for _, place, _ in self.native_files(key)]

    def native_winner(self, key: RepositoryKey) -> tuple[bytes, int] | None:
        """The bytes and the time of the list, by Flux's rule, decoded by other programs' code."""
        files = self.native_files(key)
        if not files:
            return None
        mtime_ns, place, stored = max(files)
        if CODECS[place] is GZIP:
            stored = gzip.decompress(stored)
        elif CODECS[place] is ZSTD:
            stored = zstandard.ZstdDecompressor().decompress(stored)
        return stored, mtime_ns

    # -- what is seen

    @invariant()
    def the_same_is_visible(self) -> None:
        if not hasattr(self, "store"):
            return
        assert sorted(self.store.namespaces()) == sorted(self.model.namespaces())
        for namespace in self.model.namespaces():
            assert sorted(self.store.repositories(namespace)) == sorted(self.model.repositories(namespace))
        for key in KEYS:
            self.both(lambda store, key=key: store.read(key))  # type: ignore[misc]
            self.both(lambda store, key=key: store.examine(key).size)  # type: ignore[misc]
            if key in self.timed:
                self.both(lambda store, key=key: store.examine(key).mtime_ns)  # type: ignore[misc]
            winner = self.native_winner(key)
            if winner is not None:
                assert self.store.read(key) == winner[0]


class Opened:
    """A directory of a disk, by its path."""

    def __init__(self, disk: Disk, path: str) -> None:
        self.disk = disk
        self.path = path

    def __enter__(self) -> int:
        self.directory = self.disk.open_root("/")
        for name in self.path.split("/"):
            try:
                inner = self.disk.open_dir(self.directory, name)
            finally:
                self.disk.close(self.directory)
            self.directory = inner
        return self.directory

    def __exit__(self, *raised: object) -> None:
        self.disk.close(self.directory)


class RealMachine(Machine):
    """On the real disk, in memory where there is some; with links, which lead out of the store."""

    def make_disk(self) -> Disk:
        above = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
        self.path = Path(tempfile.mkdtemp(prefix="tagfs-model-", dir=above))
        (self.path / "outside").mkdir()
        (self.path / "outside" / LIST).write_bytes(b"stolen\n")
        (self.path / "store").mkdir()
        return RootedDisk(str(self.path / "store"))

    def teardown(self) -> None:
        try:
            super().teardown()
            assert (self.path / "outside" / LIST).read_bytes() == b"stolen\n"
        finally:
            shutil.rmtree(self.path)

    @rule(key=keys, name=st.sampled_from(["tags.txt", "tags.txt.gz", "tags.txt.zst", ".tagfs-hidden.tags.txt"]))
    def leave_a_link(self, key: RepositoryKey, name: str) -> None:
        directory = self.path / "store" / key.directory
        if directory.is_dir() and not (directory / name).exists():
            with suppress(FileExistsError):
                (directory / name).symlink_to(self.path / "outside" / LIST)

    @rule(name=st.sampled_from(["linked", "looped"]))
    def leave_a_link_at_the_top(self, name: str) -> None:
        base = self.path / "store" / BASE
        if base.is_dir() and not (base / name).is_symlink():
            (base / name).symlink_to(name if name == "looped" else self.path / "outside")


class RootedDisk(Disk):
    """The real disk, whose "/" is a directory of the test."""

    def __init__(self, path: str) -> None:
        self._path = path

    def open_root(self, path: str) -> int:
        return super().open_root(self._path)


class PowerlessMachine(Machine):
    """On the simulated disk, with power losses."""

    def make_disk(self) -> Disk:
        return SimulatedDisk()

    def teardown(self) -> None:
        super().teardown()
        assert isinstance(self.disk, SimulatedDisk)
        assert self.disk.open_descriptors == 0

    @rule(data=st.data(), threshold=st.sampled_from(THRESHOLDS))
    def lose_power(self, data: st.DataObject, threshold: int) -> None:
        """Every list is there as it was acknowledged; directories without one, and times, may be older."""
        assert isinstance(self.disk, SimulatedDisk)
        format_ = self.store.format
        survivors = [survivor for _, survivor in self.disk.survivors()]
        survivor = data.draw(st.sampled_from([self.disk.power_loss(), *survivors]), "survivor")
        lists = {key: self.outcome(lambda store, key=key: store.read(key), self.model)[1] for key in KEYS}  # type: ignore[misc]
        self.close()
        assert self.disk.open_descriptors == 0
        self.disk = survivor
        self.open(format_, threshold)
        self.timed.clear()
        self.blocked = {*map(str, KEYS), *NAMESPACES}
        for key in KEYS:
            found = self.outcome(lambda store, key=key: store.read(key), self.store)[1]  # type: ignore[misc]
            if key in self.unsure:
                self.store.drop_hidden(key)
                self.model.drop_hidden(key)
            else:
                assert found == lists[key]
                self.both(lambda store, key=key: store.recover(key))  # type: ignore[misc]
        self.take_directories()
        self.unsure.clear()

    def take_directories(self) -> None:
        """Let the model have the directories that were left, and no others."""
        found = set(self.store.scan())
        for key in KEYS:
            if key in self.unsure:
                with suppress(TagfsError):
                    self.model.remove(key)
                with suppress(TagfsError):
                    # What was torn is no list that the model can hold: a writer beneath did not sync it.
                    self.model.replace(key, self.taken(key))
            if key in found:
                with suppress(TagfsError):
                    self.model.make_namespace(key.namespace)
                with suppress(TagfsError):
                    self.model.make_repository(key)
            else:
                with suppress(TagfsError):
                    self.model.remove_repository(key)
        for namespace in NAMESPACES:
            with suppress(TagfsError):
                if namespace in self.store.namespaces():
                    self.model.make_namespace(namespace)
                else:
                    self.model.remove_namespace(namespace)

    def taken(self, key: RepositoryKey) -> bytes:
        """The list that is left of an unsynced one; what is torn, also of a stale variant, is replaced."""
        try:
            plain = self.store.read(key)
        except ListCorrupt:
            plain = b"again\n"
        self.store.replace(key, plain)
        return plain

    @rule(key=keys)
    def remove_repository(self, key: RepositoryKey) -> None:
        """What kept its directory may have been lost with the power."""
        if str(key) not in self.blocked:
            self.both(lambda store: store.remove_repository(key))

    @rule(namespace=st.sampled_from(NAMESPACES))
    def remove_namespace(self, namespace: str) -> None:
        if namespace not in self.blocked:
            self.both(lambda store: store.remove_namespace(namespace))


RealMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
PowerlessMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)

TestReal = RealMachine.TestCase
TestPowerless = PowerlessMachine.TestCase
