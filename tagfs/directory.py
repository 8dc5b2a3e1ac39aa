"""Directory store: the tag lists of a backing directory.  Blocking.

Owns: variants, which one wins, replacing, hiding and deleting them; names beneath, opened safely.
Does not know: FUSE, trio, Kubernetes.
Invariant: a reader sees the old tag list or the new one, never a mix, at every crash.
Source of the layout and of which variant wins: Flux's `internal/storage/filesystem.go` (image-reflector-controller).
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tagfs import sentinel, taglist, variants
from tagfs.codec import CODECS, GZIP, PLAIN, ZSTD, Codec
from tagfs.disk import Disk
from tagfs.errors import (
    AlreadyExists,
    CommitUncertain,
    DirectoryNotEmpty,
    ListCorrupt,
    ListMissing,
    ListTooLarge,
    RepositoryMissing,
    StoreRefused,
    StoreWaiting,
)
from tagfs.names import BASE, HIDDEN_PREFIX, LIST, RepositoryKey, check_namespace, is_namespace, is_repository
from tagfs.staging import StageDirectory
from tagfs.store import Snapshot, Stage, Store, Version
from tagfs.variants import PinnedFile, Variant

DEFAULT_THRESHOLD = 4096
"""Bytes: one block of a disk; below it compression saves nothing there."""

DEFAULT_LIST_LIMIT = 64 << 20
"""Bytes of one plain list."""

_LOOKS = 3
"""How often to look for a list before it is missing: a writer beneath that switches variants shows none between."""

_LATER_NS = 1_000_000_000
"""How much newer than a stale variant a new one is made where the clock does not say so by itself: more than the
coarsest time stamp in use."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How lists are stored: `compressed` from `threshold` plain bytes on, none over `list_limit` plain bytes."""

    compressed: Codec = ZSTD
    threshold: int = DEFAULT_THRESHOLD
    list_limit: int = DEFAULT_LIST_LIMIT

    def codec_for(self, size: int) -> Codec:
        return self.compressed if size >= self.threshold else PLAIN


def codecs_of(format_: int) -> tuple[Codec, ...]:
    """The codecs whose variants belong to a store's format."""
    return (PLAIN, GZIP) if format_ == sentinel.FLUX_FORMAT else CODECS


class DirectoryStore(Store):
    """The store in the directory `root`, whose format the sentinels have said to be `format_`.

    Owns the descriptor `root` from now on.
    """

    def __init__(self, disk: Disk, root: int, format_: int, policy: Policy) -> None:
        self.disk = disk
        self.root = root
        self.format = format_
        self.policy = policy
        self.codecs = codecs_of(format_)
        # INVARIANT: holds only directories whose entry in the directory above is durable.
        self._durable: set[tuple[str, ...]] = set()
        # INVARIANT: a list whose current version has this identity is durable.
        self._settled: dict[RepositoryKey, tuple[int, ...]] = {}
        self.stages = StageDirectory(disk, root)

    # -- directories

    def namespaces(self) -> list[str]:
        names: list[str] = []
        with suppress(RepositoryMissing), self.opened() as base:
            names = [name for name, is_dir in self.disk.names(base) if is_dir and is_namespace(name)]
        self._require_current()
        return names

    def repositories(self, namespace: str) -> list[str]:
        with self.opened(namespace) as directory:
            names = [name for name, is_dir in self.disk.names(directory) if is_dir and is_repository(name)]
        self._require_current()
        return names

    def directory_mtime_ns(self, namespace: str | None = None, name: str | None = None) -> int:
        try:
            with self.opened(*(part for part in (namespace, name) if part is not None)) as directory:
                return self.disk.stat_open(directory).st_mtime_ns
        except (RepositoryMissing, StoreWaiting, StoreRefused):
            if namespace is not None:
                raise
            return self.disk.stat_open(self.root).st_mtime_ns

    def make_namespace(self, namespace: str) -> None:
        check_namespace(namespace)
        self._require_current()
        with suppress(AlreadyExists):
            self._make_dir(self.root, BASE, ())
        with self.opened() as base:
            self._make_dir(base, namespace, (namespace,))

    def make_repository(self, key: RepositoryKey) -> None:
        self._require_current()
        with self.opened(key.namespace) as directory:
            self._make_dir(directory, key.name, (key.namespace, key.name))

    def remove_namespace(self, namespace: str) -> None:
        self._require_current()
        with self.opened(namespace), self.opened() as base:
            try:
                self.disk.remove_dir(base, namespace)
            except FileNotFoundError:
                raise RepositoryMissing(f"{namespace} is not in the store") from None
            except OSError as error:
                raise _not_empty(error, f"{BASE}/{namespace}") from error
            self._durable.discard((namespace,))

    def remove_repository(self, key: RepositoryKey) -> None:
        self._require_current()
        with self.opened(key.namespace) as directory:
            with self.opened(key.namespace, key.name) as inner:
                # The names first: a list that another program puts there now is not among them.
                names = self.disk.names(inner)
                if self._variants(inner):
                    raise DirectoryNotEmpty(f"{key.directory} has a list")
                if any(is_dir for _, is_dir in names):
                    raise DirectoryNotEmpty(f"{key.directory} holds a directory")
                for name, _ in names:
                    with suppress(FileNotFoundError):
                        self.disk.unlink(inner, name)
            try:
                self.disk.remove_dir(directory, key.name)
            except OSError as error:
                raise _not_empty(error, key.directory) from error
            self._durable.discard((key.namespace, key.name))

    @contextmanager
    def opened(self, *path: str) -> Iterator[int]:
        """The descriptor of a directory below BASE, reached without following a link; RepositoryMissing."""
        directory = self.root
        try:
            for name in (BASE, *path):
                try:
                    if name != BASE and not is_repository(name):
                        raise FileNotFoundError
                    inner = self.disk.open_dir(directory, name)
                except (FileNotFoundError, NotADirectoryError) as error:
                    self._require_current()
                    if directory == self.root and isinstance(error, NotADirectoryError):
                        raise StoreRefused(f"{BASE} in the store is no directory, and a link is not followed") from None
                    raise RepositoryMissing(f"{'/'.join((BASE, *path))} is not in the store") from None
                above, directory = directory, inner
                if above != self.root:
                    self.disk.close(above)
            yield directory
        finally:
            if directory != self.root:
                self.disk.close(directory)

    def _make_dir(self, directory: int, name: str, path: tuple[str, ...]) -> None:
        try:
            self.disk.make_dir(directory, name)
        except FileExistsError:
            raise AlreadyExists(f"{name} is in the store") from None
        self._durable.discard(path)

    # -- reading

    def examine(self, key: RepositoryKey) -> Version:
        snapshot = self.open(key)
        snapshot.close()
        return snapshot.version

    def open(self, key: RepositoryKey) -> Snapshot:
        for _ in range(_LOOKS):
            with self.opened(key.namespace, key.name) as directory:
                for variant in self._variants(directory)[:1]:
                    with suppress(FileNotFoundError):
                        return self._pin(directory, key, variant)
        self._require_current()
        raise ListMissing(f"{key} has no list")

    def is_stored_as(self, key: RepositoryKey, plain: bytes) -> bool:
        try:
            with self.opened(key.namespace, key.name) as directory:
                found = self._variants(directory)
                if len(found) != 1 or found[0].codec is not self.policy.codec_for(len(plain)):
                    return False
                pinned = self._pin(directory, key, found[0])
                try:
                    if pinned.version.size != len(plain) or pinned.content() != plain:
                        return False
                finally:
                    pinned.close()
                if self._settled.get(key) != pinned.version.identity:
                    # Its writer may have been killed before it was durable, or sync nothing at all.
                    self._settle(directory, found[0].name)
                    self._sync_directories(key)
                    self._settled[key] = pinned.version.identity
                return True
        except (FileNotFoundError, ListCorrupt, RepositoryMissing):
            return False

    def _pin(self, directory: int, key: RepositoryKey, variant: Variant) -> PinnedFile:
        return PinnedFile(self.disk, directory, variant, f"{key.directory}/{variant.name}", self.policy.list_limit)

    def _variants(self, directory: int) -> list[Variant]:
        return variants.find(self.disk, directory, self.codecs)

    # -- writing

    def stage(self, key: RepositoryKey, plain: bytes) -> Stage:
        if len(plain) > self.policy.list_limit:
            raise ListTooLarge(f"{key}: {len(plain)} bytes, --max-list-size allows {self.policy.list_limit}")
        self._require_current()
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
        assert isinstance(stage, _StagedFile)
        assert not stage.is_used_up
        key, disk = stage.key, self.disk
        name = LIST + stage.codec.suffix
        try:
            self._require_current()
            self._make_directories(key)
            with self.opened(key.namespace, key.name) as directory:
                stale = [variant for variant in self._variants(directory) if variant.name != name]
                hidden = self._hidden(directory)
                later_mtime_ns = self._outrank(stage, stale, mtime_ns)
                disk.sync(stage.file)
                self._sync_directories(key)
                disk.rename(self.stages.descriptor, stage.name, directory, name)
                stage.is_used_up = True
                try:
                    disk.sync_dir(directory)
                    self._remove_stale(directory, [*(variant.name for variant in stale), *hidden])
                    if later_mtime_ns is not None:
                        disk.set_mtime(stage.file, later_mtime_ns)
                    version = variants.version_of(stage.codec, stage.size, disk.stat_open(stage.file))
                    self._settled[key] = version.identity
                    return version
                except OSError as error:
                    raise CommitUncertain(f"{key}: {error.strerror} after the rename") from error
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
                self._settle(directory, winner)
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
                    self._settle(directory, successors[0].name)
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
            self._settle(directory, found[0].name)
            if [variant.identity for variant in self._variants(directory)] == [variant.identity for variant in found]:
                self._remove_stale(directory, [variant.name for variant in found[1:]])
                return True
        return False

    def space(self) -> os.statvfs_result:
        return self.disk.space(self.root)

    def close(self) -> None:
        self.stages.close()
        self.disk.close(self.root)

    def _require_current(self) -> None:
        """A writer must not add lists to a directory that has become another program's."""
        if not sentinel.is_current(self.disk, self.root, self.format):
            raise StoreWaiting("the store was wiped, or its version changed, beneath")

    def _make_directories(self, key: RepositoryKey) -> None:
        with suppress(AlreadyExists):
            self.make_namespace(key.namespace)
        with suppress(AlreadyExists):
            self.make_repository(key)

    def _sync_directories(self, key: RepositoryKey) -> None:
        """Make the entries of all directories above a list durable, each once in the life of the store."""
        for path in ((), (key.namespace,), (key.namespace, key.name)):
            if path not in self._durable:
                if not path:
                    self.disk.sync_dir(self.root)
                else:
                    with self.opened(*path[:-1]) as above:
                        self.disk.sync_dir(above)
                self._durable.add(path)

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
            pinned = self._pin(directory, key, found[0])
            try:
                if not _is_whole(pinned.content()):
                    raise ListCorrupt(
                        f"{key.directory}/{found[0].name}", "it may be torn, and an older one is beside it"
                    )
            finally:
                pinned.close()
            self._settle(directory, found[0].name)
            self._remove_stale(directory, [variant.name for variant in found[1:]])
        return found[0].name

    def _settle(self, directory: int, name: str) -> None:
        """Make a variant durable that another writer has put there."""
        file = self.disk.open_file(directory, name)
        try:
            self.disk.sync(file)
        finally:
            self.disk.close(file)
        self.disk.sync_dir(directory)

    def _remove_stale(self, directory: int, names: list[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError):
                self.disk.unlink(directory, name)
        if names:
            self.disk.sync_dir(directory)

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


def _not_empty(error: OSError, path: str) -> Exception:
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return DirectoryNotEmpty(f"{path} is not empty")
    return error
