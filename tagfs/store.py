"""Store: repository key -> tag list.  The interface that every store implements, stated once.  Blocking.

Owns: what a store promises.
Does not know: FUSE, trio, Kubernetes, where the bytes live.
Invariant: a reader sees the old tag list or the new one, never a mix and never a part.
"""

import bisect
import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from typing import NamedTuple, TypeVar

from tagfs.codec import Codec
from tagfs.durability import Call, Work
from tagfs.errors import ListMissing, RepositoryMissing
from tagfs.names import RepositoryKey

_T = TypeVar("_T")

Steps = Generator[None, None, _T]
"""What comes to a result in small steps, with other things done between them; closed early, it leaves nothing open."""

_AT_ONCE = 1 << 16
"""Stored bytes, at most, that `read` reads in one call: nearly every list."""


class Version(NamedTuple):
    """One committed tag list, as it is stored.

    `size` is of the plain bytes, as the stored header promises; `stored_size` of the stored ones; `blocks` are the
    512-byte blocks they take.  `identity` differs between two versions of a list.  Where the variant cannot be read,
    `fault` says why, and `size` is the stored size, at least 1.
    """

    codec: Codec
    size: int
    stored_size: int
    blocks: int
    mtime_ns: int
    ctime_ns: int
    identity: tuple[int, ...]
    fault: str | None = None


class Snapshot(ABC):
    """One version of a list, pinned: `content` returns its bytes however the list changes."""

    version: Version

    @abstractmethod
    def content(self) -> bytes:
        """The plain bytes, decoded at the first call and kept.

        Raises:
            ListCorrupt: the stored bytes are not what they promise.
            OSError: the disk failed.
            VersionGone: they were let go, and what is stored was changed in place since.
        """

    @abstractmethod
    def decode(self) -> bytes:
        """The plain bytes, read anew, with nothing kept but what pins the version.

        Raises:
            ListCorrupt, OSError: as `content` does.
            VersionGone: what is stored was changed in place since.
        """

    @abstractmethod
    def unload(self) -> None:
        """Let go of bytes that can be read again."""

    def surrender(self) -> tuple[int, bool] | None:
        """Give away the descriptor that pins the version, and whether `decode` has used it: `Store.adopt` makes a
        snapshot of them again.  None: something else pins it, and the snapshot stays as it is."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Let go of what pins the version; closing twice is no error."""


class Stage(ABC):
    """A list that is encoded and written beside, and not yet durable nor visible."""

    key: RepositoryKey
    size: int


class Store(ABC):
    """The tag lists of one store.

    One writer at a time changes a key; `publish`, `discard`, `remove` and `hide` of different keys may run in
    different threads at once, beside any reader.  Every method raises OSError where the disk fails, and StoreWaiting
    where the store has been taken away beneath it, rather than to say that something is missing.  Where a method
    says ListMissing, it raises RepositoryMissing if the directory of the key is not there either.
    """

    @abstractmethod
    def namespaces(self) -> list[str]:
        """The namespaces, in no order."""

    @abstractmethod
    def repositories(self, namespace: str) -> list[str]:
        """The names of the repositories of a namespace, in no order; RepositoryMissing where there is none."""

    @abstractmethod
    def directory_mtime_ns(self, namespace: str | None = None, name: str | None = None) -> int:
        """When the directory of all namespaces, of one, or of a repository changed; RepositoryMissing without it."""

    def enter(self, namespace: str) -> "Entered":
        """A namespace, to look at many of its repositories; RepositoryMissing."""
        self.directory_mtime_ns(namespace)
        return Entered(self, namespace)

    @abstractmethod
    def make_namespace(self, namespace: str) -> None:
        """AlreadyExists where it is there, NameRefused where it is no name of a namespace."""

    @abstractmethod
    def make_repository(self, key: RepositoryKey) -> None:
        """AlreadyExists where it is there, RepositoryMissing where its namespace is not."""

    @abstractmethod
    def remove_namespace(self, namespace: str) -> None:
        """DirectoryNotEmpty where it holds anything, seen or not; RepositoryMissing where it is not there."""

    @abstractmethod
    def remove_repository(self, key: RepositoryKey) -> None:
        """Remove the directory of a key without a list; what is no list in it goes with it.

        Raises:
            DirectoryNotEmpty: it has a list, or a directory.
            RepositoryMissing: it is not there.
        """

    @abstractmethod
    def examine(self, key: RepositoryKey, known: Version | None = None) -> Version:
        """The current version of a list, which is not opened where it is the one that is `known`; ListMissing where
        there is none."""

    @abstractmethod
    def open(self, key: RepositoryKey, ahead: int = 0) -> Snapshot:
        """Pin the current version of a list, and read its stored bytes at once where they are at most `ahead`;
        ListMissing where there is none."""

    def adopt(self, key: RepositoryKey, version: Version, descriptor: int, was_read: bool) -> Snapshot:
        """The snapshot that surrendered this descriptor; `version` is its version.  The descriptor belongs to it."""
        raise NotImplementedError("no snapshot of this store surrenders a descriptor")

    @abstractmethod
    def stage(self, key: RepositoryKey, plain: bytes) -> Stage:
        """Encode a valid list and write it beside; ListTooLarge over the limit."""

    @abstractmethod
    def publish(self, stage: Stage, mtime_ns: int | None = None) -> Version:
        """Make a stage the current version of its list, durably, with `mtime_ns` or the time of writing.

        Makes the directories of the key where they are missing, and drops a hidden list of it.  The stage is used up,
        also by an error.

        Raises:
            CommitUncertain: readers see the new list, and it may not be durable.
            OSError: any other failure, with the old list in place.
        """

    @abstractmethod
    def discard(self, stage: Stage) -> None:
        """Give up a stage; discarding one that is used up is no error."""

    @abstractmethod
    def is_stored_as(self, key: RepositoryKey, plain: bytes) -> bool:
        """Whether the list is `plain` already, durably, and stored as it would be now: writing it changes nothing."""

    def holds(self, key: RepositoryKey, plain: bytes) -> bool:
        """`is_stored_as`, durably or not."""
        return self.is_stored_as(key, plain)

    def publication(self, stage: Stage, mtime_ns: int | None = None) -> Work[Version]:
        """`publish`, as work that says where it blocks."""
        versions: list[Version] = []
        yield Call(lambda: versions.append(self.publish(stage, mtime_ns)))
        return versions[0]

    def replacement(self, key: RepositoryKey, plain: bytes, mtime_ns: int | None = None) -> Work[Version]:
        """`replace`, as work that says where it blocks."""
        return self.publication(self.stage(key, plain), mtime_ns)

    def confirmation(self, key: RepositoryKey, plain: bytes) -> Work[bool]:
        """`is_stored_as`, as work that says where it blocks."""
        yield from ()
        return self.is_stored_as(key, plain)

    @abstractmethod
    def set_mtime(self, key: RepositoryKey, mtime_ns: int) -> None:
        """ListMissing where there is no list; ListCorrupt where it may be torn, and an older variant may not."""

    @abstractmethod
    def remove(self, key: RepositoryKey) -> None:
        """Delete a list durably, its directory stays; ListMissing where there is none."""

    @abstractmethod
    def hide(self, key: RepositoryKey) -> None:
        """Take a list out of sight, durably, until it is published anew, recovered or dropped; else as `set_mtime`."""

    @abstractmethod
    def recover(self, key: RepositoryKey) -> bool:
        """Put a hidden list back where no successor is; -> whether there was one to put back."""

    @abstractmethod
    def drop_hidden(self, key: RepositoryKey) -> None:
        """Delete a hidden list; no error where there is none."""

    @abstractmethod
    def ledger(self, limit: int) -> bytes | None:
        """The first `limit` bytes of what the last sweep left for the next one; None where none did."""

    @abstractmethod
    def write_ledger(self, content: bytes) -> None:
        """Leave `content` for the next sweep, durably."""

    @abstractmethod
    def space(self) -> os.statvfs_result:
        """The file system beneath, as statvfs(3) tells it."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the store."""

    def scan(self) -> Iterator[RepositoryKey]:
        """Every key that has a directory, with a list or without one; what vanishes meanwhile may be missing."""
        for namespace in sorted(self.namespaces()):
            try:
                names = sorted(self.repositories(namespace))
            except RepositoryMissing:
                continue
            for name in names:
                yield RepositoryKey(namespace, name)

    def holdings(self, namespace: str) -> Iterator[tuple[RepositoryKey, bool]]:
        """Every key of a namespace that has a directory, and whether it has a list, readable or not;
        RepositoryMissing where there is no such namespace.  What vanishes meanwhile may be missing."""
        for name in self.repositories(namespace):
            key = RepositoryKey(namespace, name)
            try:
                self.examine(key)
            except (ListMissing, RepositoryMissing):
                yield key, False
            else:
                yield key, True

    def read(self, key: RepositoryKey) -> bytes:
        """The plain bytes of a list; ListMissing, ListCorrupt."""
        snapshot = self.open(key, _AT_ONCE)
        try:
            return snapshot.content()
        finally:
            snapshot.close()

    def replace(self, key: RepositoryKey, plain: bytes, mtime_ns: int | None = None) -> Version:
        """Make `plain`, a valid list, the list of `key`, durably."""
        return self.publish(self.stage(key, plain), mtime_ns)


class Entered:
    """A namespace that is open to be looked into; `descriptor` is its directory, where it has one."""

    __slots__ = ("_names", "_namespace", "_store", "ahead", "descriptor")

    def __init__(self, store: Store, namespace: str) -> None:
        self._store = store
        self._namespace = namespace
        self._names: list[str] | None = None
        self.descriptor: int | None = None
        self.ahead: dict[str, int] = {}
        """When repositories changed that were looked at before anybody asks for them, by name."""

    def name_after(self, name: str) -> str | None:
        """The repository after a name, in their order; None where there is none, or too many to list for it."""
        if self._names is None:
            self._names = sorted(self._store.repositories(self._namespace)) if self._is_small() else []
        place = bisect.bisect_right(self._names, name)
        return self._names[place] if place < len(self._names) else None

    def _is_small(self) -> bool:
        return True

    def mtime_ns(self, name: str) -> int:
        """When the directory of a repository changed, a name that `repositories` has told; RepositoryMissing."""
        return self._store.directory_mtime_ns(self._namespace, name)

    def opening(self, name: str, ahead: int) -> Steps[Snapshot]:
        """`Store.open` of a repository that has been a directory, and no link, since before this is asked, in steps of
        about the same length.  Any error means that `Store.open` may tell another, or none."""
        yield
        return self._store.open(RepositoryKey.known(self._namespace, name), ahead)

    def close(self) -> None:
        """Let go of it."""
