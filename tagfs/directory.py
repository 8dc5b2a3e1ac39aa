"""Directory store: the tag lists of a backing directory.  Blocking.

Owns: replacing, hiding and deleting the variants of a list, each step durable before the next.
Does not know: FUSE, trio, Kubernetes.
Invariant: a reader sees the old tag list or the new one, never a mix, at every crash.
Source of the layout and of which variant wins: Flux's `internal/storage/filesystem.go` (image-reflector-controller).
"""

import time
from contextlib import suppress

from tagfs import taglist, variants
from tagfs.codec import Codec
from tagfs.directories import Directories
from tagfs.disk import Disk, sync_file
from tagfs.durability import Unsynced, Work, done
from tagfs.entered import EnteredDirectory
from tagfs.errors import CommitUncertain, ListCorrupt, ListMissing, ListTooLarge, RepositoryMissing
from tagfs.names import HIDDEN_PREFIX, LIST, SWEEP_LEDGER, RepositoryKey
from tagfs.policy import Policy
from tagfs.staging import StageDirectory
from tagfs.store import Entered, Snapshot, Stage, Version
from tagfs.variants import PinnedFile, Variant

_LOOKS = 3
"""How often to look for a list before it is missing: a writer beneath that switches variants shows none between."""

_LATER_NS = 1_000_000_000
"""How much newer than a stale variant a new one is made where the clock does not say so by itself: more than the
coarsest time stamp in use."""


class DirectoryStore(Directories):
    """The store in the directory `root`, whose format the sentinels have said to be `format_`.

    Owns the descriptor `root` from now on.
    """

    def __init__(self, disk: Disk, root: int, format_: int, policy: Policy) -> None:
        super().__init__(disk, root, format_)
        self.policy = policy
        # INVARIANT: a list whose current version has this identity is durable.
        self._settled: dict[RepositoryKey, tuple[int, ...]] = {}
        self.stages = StageDirectory(disk, root, self._require_current)

    # -- reading

    def examine(self, key: RepositoryKey, known: Version | None = None) -> Version:
        if known is not None and self._is_current(key, known):
            return known
        snapshot = self.open(key)
        snapshot.close()
        return snapshot.version

    def open(self, key: RepositoryKey, ahead: int = 0) -> Snapshot:
        for _ in range(_LOOKS):
            directory = self._open_key(key)
            try:
                found = variants.find(self.disk, directory, self.codecs)
                if found:
                    return self._pin(directory, key.directory, found[0], ahead)
            except FileNotFoundError:
                continue
            finally:
                self.disk.close(directory)
        self._require_current()
        raise ListMissing(f"{key} has no list")

    def enter(self, namespace: str) -> Entered:
        return EnteredDirectory(self, namespace, self._pin)

    def _is_current(self, key: RepositoryKey, known: Version) -> bool:
        """Whether the current variant of a list is the one that `known` was found in."""
        with suppress(OSError):
            directory = self.disk.open_below(self._require_open(), key.directory)
            try:
                found = variants.find(self.disk, directory, self.codecs)
            finally:
                self.disk.close(directory)
            if found and found[0].codec is known.codec:
                return variants.identity_of(found[0].status) == known.identity
        return False

    def adopt(self, key: RepositoryKey, version: Version, descriptor: int, was_read: bool) -> Snapshot:
        path = f"{key.directory}/{LIST}{version.codec.suffix}"
        return PinnedFile.adopted(self.disk, descriptor, version, path, self.policy.list_limit, was_read)

    def is_stored_as(self, key: RepositoryKey, plain: bytes) -> bool:
        return done(self.confirmation(key, plain))

    def holds(self, key: RepositoryKey, plain: bytes) -> bool:
        try:
            with self.opened(key.namespace, key.name) as directory:
                return self._only_variant(directory, key, plain) is not None
        except (FileNotFoundError, ListCorrupt, RepositoryMissing):
            return False

    def confirmation(self, key: RepositoryKey, plain: bytes) -> Work[bool]:
        try:
            with self.opened(key.namespace, key.name) as directory:
                version = self._only_variant(directory, key, plain)
                if version is None:
                    return False
                if self._settled.get(key) != version.identity:
                    # Its writer may have been killed before it was durable, or sync nothing at all.
                    file = self.disk.open_file(directory, LIST + version.codec.suffix)
                    try:
                        yield from self._syncing(key, (file,), directory)
                    finally:
                        self.disk.close(file)
                    self._settled[key] = version.identity
                return True
        except (FileNotFoundError, ListCorrupt, RepositoryMissing):
            return False

    def _only_variant(self, directory: int, key: RepositoryKey, plain: bytes) -> Version | None:
        """The version of the only variant, where it is `plain` and stored as that would be now."""
        found = self._variants(directory)
        if len(found) != 1 or found[0].codec is not self.policy.codec_for(len(plain)):
            return None
        pinned = self._pin(directory, key.directory, found[0])
        try:
            return pinned.version if pinned.version.size == len(plain) and pinned.content() == plain else None
        finally:
            pinned.close()

    def _pin(self, directory: int, path: str, variant: Variant, ahead: int = 0) -> PinnedFile:
        """`path` is that of the directory."""
        return PinnedFile(self.disk, directory, variant, f"{path}/{variant.name}", self.policy.list_limit, ahead)

    # -- writing

    def replace(self, key: RepositoryKey, plain: bytes, mtime_ns: int | None = None) -> Version:
        return self.publish(self._staged(key, plain), mtime_ns)  # which looks whether the store is current

    def replacement(self, key: RepositoryKey, plain: bytes, mtime_ns: int | None = None) -> Work[Version]:
        return self.publication(self._staged(key, plain), mtime_ns)  # as `replace`

    def stage(self, key: RepositoryKey, plain: bytes) -> Stage:
        self._require_current()
        return self._staged(key, plain)

    def _staged(self, key: RepositoryKey, plain: bytes) -> Stage:
        if len(plain) > self.policy.list_limit:
            raise ListTooLarge(f"{key}: {len(plain)} bytes, --max-list-size allows {self.policy.list_limit}")
        codec = self.policy.codec_for(len(plain))
        name, file = self.stages.create()
        stage = _StagedFile(key, len(plain), codec, name, file)
        try:
            self.disk.write(file, codec.encode(plain))
        except BaseException:
            self.discard(stage)
            raise
        return stage

    def publish(self, stage: Stage, mtime_ns: int | None = None) -> Version:
        return done(self.publication(stage, mtime_ns))

    def publication(self, stage: Stage, mtime_ns: int | None = None) -> Work[Version]:
        assert isinstance(stage, _StagedFile)
        assert not stage.is_used_up
        key, disk = stage.key, self.disk
        name = LIST + stage.codec.suffix
        try:
            self._require_current()
            directory, above = self._open_or_make(key)
            try:
                # In a directory that was made just now there is nothing that a list supersedes.
                stale, hidden = self._superseded(directory, name) if above is None else ([], [])
                later_mtime_ns = self._outrank(stage, stale, mtime_ns)
                yield from self._syncing(key, (stage.file,), above=above)
                self.stages.move(stage.name, directory, name)
                stage.is_used_up = True
                try:
                    yield Unsynced(self.together, disk, directories=(directory,))
                    superseded = [*(variant.name for variant in stale), *hidden]
                    if superseded:
                        self._unlink(directory, superseded)
                        yield Unsynced(self.together, disk, directories=(directory,))
                    if later_mtime_ns is not None:
                        disk.set_mtime(stage.file, later_mtime_ns)
                    version = variants.version_of(stage.codec, stage.size, disk.stat_open(stage.file))
                    self._settled[key] = version.identity
                    return version
                except OSError as error:
                    raise CommitUncertain(f"{key}: {error.strerror} after the rename") from error
            finally:
                disk.close(directory)
                if above is not None:
                    disk.close(above)
        finally:
            self.discard(stage)

    def discard(self, stage: Stage) -> None:
        assert isinstance(stage, _StagedFile)
        if not stage.is_closed:
            stage.is_closed = True
            self.disk.close(stage.file)
        if not stage.is_used_up:
            stage.is_used_up = True
            with suppress(OSError):
                self.stages.unlink(stage.name)

    def set_mtime(self, key: RepositoryKey, mtime_ns: int) -> None:
        self._require_current()
        with self.opened(key.namespace, key.name) as directory:
            winner = self._only_winner(directory, key)
            file = self.disk.open_file(directory, winner)
            try:
                self.disk.set_mtime(file, mtime_ns)
            finally:
                self.disk.close(file)

    def remove(self, key: RepositoryKey) -> None:
        self._require_current()
        with self.opened(key.namespace, key.name) as directory:
            found = self._variants(directory)
            if not found:
                raise ListMissing(f"{key} has no list")
            # The winner last, so that no stale one comes back.
            self._remove_stale(directory, [variant.name for variant in found[1:]])
            self._remove_stale(directory, [found[0].name])
            self._settled.pop(key, None)

    def hide(self, key: RepositoryKey) -> None:
        self._require_current()
        with self.opened(key.namespace, key.name) as directory:
            winner = self._only_winner(directory, key)
            hidden = self._hidden(directory)
            if hidden:
                # A list that was hidden before must not be the one that is put back.
                sync_file(self.disk, directory, winner)
                self._remove_stale(directory, hidden)
            self.disk.rename(directory, winner, directory, HIDDEN_PREFIX + winner)
            self.disk.sync_dir(directory)

    def recover(self, key: RepositoryKey) -> bool:
        try:
            with self.opened(key.namespace, key.name) as directory:
                hidden = self._hidden(directory)
                if not hidden:
                    return False
                successors = self._variants(directory)
                if successors:
                    sync_file(self.disk, directory, successors[0].name)
                    self._remove_stale(directory, hidden)
                    return False
                self._require_current()
                self.disk.rename(directory, hidden[0], directory, hidden[0].removeprefix(HIDDEN_PREFIX))
                self.disk.sync_dir(directory)
                self._remove_stale(directory, hidden[1:])
                return True
        except RepositoryMissing:
            return False

    def drop_hidden(self, key: RepositoryKey) -> None:
        with suppress(RepositoryMissing), self.opened(key.namespace, key.name) as directory:
            self._remove_stale(directory, self._hidden(directory))

    def drop_stale(self, key: RepositoryKey) -> bool:
        """Delete the variants that a killed writer had replaced and not deleted; -> whether there were any.

        They stay where the winner cannot be told to be whole: a plain list has no checksum, and another program may
        have renamed it into place before its bytes were durable.
        """
        with suppress(RepositoryMissing, ListMissing, ListCorrupt), self.opened(key.namespace, key.name) as directory:
            found = self._variants(directory)
            if len(found) < 2:
                return False
            plain = self.read(key)
            if not _is_whole(plain):
                return False
            self._require_current()
            sync_file(self.disk, directory, found[0].name)
            if [variant.identity for variant in self._variants(directory)] == [variant.identity for variant in found]:
                self._remove_stale(directory, [variant.name for variant in found[1:]])
                return True
        return False

    def ledger(self, limit: int) -> bytes | None:
        self._require_current()
        return self.stages.read_beside(SWEEP_LEDGER, limit)

    def write_ledger(self, content: bytes) -> None:
        self._require_current()
        self.stages.write_beside(SWEEP_LEDGER, content)

    def close(self) -> None:
        self.stages.close()
        self._close_root()

    def _superseded(self, directory: int, name: str) -> tuple[list[Variant], list[str]]:
        """(the other variants, the names of hidden ones) that a list which is stored under `name` replaces."""
        if all(there == name for there, _ in self.disk.names(directory)):
            return [], []  # one listing, where nearly always there is nothing else, costs less than six looks
        return [variant for variant in self._variants(directory) if variant.name != name], self._hidden(directory)

    def _outrank(self, stage: "_StagedFile", stale: list[Variant], mtime_ns: int | None) -> int | None:
        """Set the time of a stage; -> the time to set once every stale variant is gone, None where it is set now.

        While two variants exist the new one is strictly newer: a requested time that breaks that waits, and so does
        the time of writing beside a variant from the future.
        """
        if not stale:
            if mtime_ns is not None:
                self.disk.set_mtime(stage.file, mtime_ns)
            return None
        newest = max(variant.status.st_mtime_ns for variant in stale)
        wanted = self.disk.stat_open(stage.file).st_mtime_ns if mtime_ns is None else mtime_ns
        for candidate in (wanted, time.time_ns(), newest + _LATER_NS):
            self.disk.set_mtime(stage.file, candidate)
            if self.disk.stat_open(stage.file).st_mtime_ns > newest:
                return None if candidate == wanted else wanted
        return wanted

    def _only_winner(self, directory: int, key: RepositoryKey) -> str:
        """The name of the variant that wins, with every stale one durably gone, so that none can come back.

        Raises:
            ListMissing: there is none.
            ListCorrupt: it cannot be told to be whole, and a stale one may be the last that is.
        """
        found = self._variants(directory)
        if not found:
            raise ListMissing(f"{key} has no list")
        if found[1:]:
            pinned = self._pin(directory, key.directory, found[0])
            try:
                if not _is_whole(pinned.content()):
                    raise ListCorrupt(
                        f"{key.directory}/{found[0].name}", "it may be torn, and an older one is beside it"
                    )
            finally:
                pinned.close()
            sync_file(self.disk, directory, found[0].name)
            self._remove_stale(directory, [variant.name for variant in found[1:]])
        return found[0].name

    def _remove_stale(self, directory: int, names: list[str]) -> None:
        self._unlink(directory, names)
        if names:
            self.disk.sync_dir(directory)

    def _unlink(self, directory: int, names: list[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError):
                self.disk.unlink(directory, name)

    def _hidden(self, directory: int) -> list[str]:
        return [variant.name for variant in variants.find_hidden(self.disk, directory, self.codecs)]


class _StagedFile(Stage):
    __slots__ = ("codec", "file", "is_closed", "is_used_up", "key", "name", "size")

    def __init__(self, key: RepositoryKey, size: int, codec: Codec, name: str, file: int) -> None:
        self.key = key
        self.size = size
        self.codec = codec
        self.name = name
        self.file = file
        self.is_closed = False
        self.is_used_up = False


def _is_whole(plain: bytes) -> bool:
    """Whether a list that another program may have written, and not synced, shows that all of it is there."""
    return plain != b"" and next(taglist.faults(plain), None) is None
