"""Variants: the files that hold one key's list, which of them wins, and reading it.  Blocking.

Owns: precedence of variants, what a version is on disk, pinning one.
Does not know: keys, writing.
Source of the precedence: `newerVariant` in Flux's `internal/storage/filesystem.go` (image-reflector-controller).
"""

import errno
import stat
from typing import NamedTuple

from tagfs.codec import CODECS, HEADER_SIZE, PLAIN, TRAILER_SIZE, Codec, Undecodable, most_stored
from tagfs.disk import Disk, FileStatus
from tagfs.errors import ListCorrupt, VersionGone
from tagfs.names import HIDDEN_PREFIX, LIST
from tagfs.store import Snapshot, Version

_NOT_OF_THE_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of opening that say nothing about what is opened."""


class Variant(NamedTuple):
    """One file that holds a key's list in one codec; `name` may be its path below the directory it was found from."""

    codec: Codec
    name: str
    status: FileStatus

    @property
    def rank(self) -> tuple[int, int]:
        """The variant of the highest rank wins: the newer one, on a tie the compressed one."""
        return self.status.st_mtime_ns, CODECS.index(self.codec)

    @property
    def identity(self) -> tuple[str, int, int, int]:
        """What tells it from a later one of the same name."""
        return self.name, self.status.st_ino, self.status.st_mtime_ns, self.status.st_size


def find(disk: Disk, directory: int, codecs: tuple[Codec, ...], prefix: str = "") -> list[Variant]:
    """The variants in the directory of a key, the winner first; with HIDDEN_PREFIX, the hidden ones; with a name and a
    slash, those in the directory of that name."""
    found = []
    for codec in codecs:
        name = prefix + LIST + codec.suffix
        try:
            status = disk.stat(directory, name)
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode):
            found.append(Variant(codec, name, status))
    return sorted(found, key=lambda variant: variant.rank, reverse=True) if len(found) > 1 else found


def exists(disk: Disk, directory: int, codecs: tuple[Codec, ...]) -> bool:
    """Whether the directory of a key has a variant."""
    for codec in codecs:
        try:
            if stat.S_ISREG(disk.stat(directory, LIST + codec.suffix).st_mode):
                return True
        except FileNotFoundError:
            continue
    return False


def find_hidden(disk: Disk, directory: int, codecs: tuple[Codec, ...]) -> list[Variant]:
    return find(disk, directory, codecs, HIDDEN_PREFIX)


def version_of(codec: Codec, size: int, status: FileStatus, fault: str | None = None) -> Version:
    """The version that a variant of `size` plain bytes holds."""
    stored_size, mtime_ns, ctime_ns = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return Version(codec, size, stored_size, status.st_blocks, mtime_ns, ctime_ns, identity_of(status), fault)


def identity_of(status: FileStatus) -> tuple[int, ...]:
    """What tells the version in a file from every other."""
    # The ctime, because a freed inode is used again, and a requested mtime may be that of an older version.
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


class PinnedFile(Snapshot):
    """The version that a variant holds.  Keeps the file open, and its plain bytes once they were asked for.

    Args:
        path: the variant's path, for messages.
        list_limit: plain bytes, at most.
        ahead: stored bytes, at most, that are read at once with the header and kept for the first reader.
    """

    __slots__ = ("_ahead", "_content", "_disk", "_file", "_first_mtime_ns", "_limit", "_path", "_was_read", "version")

    def __init__(
        self, disk: Disk, directory: int, variant: Variant, path: str, list_limit: int, ahead: int = 0
    ) -> None:
        """FileNotFoundError where the variant is gone, OSError where nothing can be opened now; any other fault is
        told by the version."""
        self._disk = disk
        self._path = path
        self._limit = list_limit
        self._content: bytes | None = None
        self._ahead: bytes | None = None
        self._file: int | None = None
        self._first_mtime_ns: int | None = None
        self._was_read = False
        status, fault = variant.status, None
        try:
            open_file = disk.open_file_below if "/" in variant.name else disk.open_file
            self._file = open_file(directory, variant.name)
            status = disk.stat_open(self._file)
            size = self._promised_size(variant.codec, status, ahead)
        except FileNotFoundError:
            raise
        except (Undecodable, OSError) as error:
            if self._file is None and isinstance(error, OSError) and error.errno in _NOT_OF_THE_FILE:
                raise
            # Nobody asks for bytes that are not there by their size: it must not look like an empty list.
            fault, size = _reason(error), max(1, status.st_size)
        self.version = version_of(variant.codec, size, status, fault)

    @classmethod
    def adopted(
        cls, disk: Disk, file: int, version: Version, path: str, list_limit: int, was_read: bool
    ) -> "PinnedFile":
        """The one that surrendered the descriptor `file`."""
        pinned = cls.__new__(cls)
        pinned._disk = disk
        pinned._path = path
        pinned._limit = list_limit
        pinned._content = None
        pinned._ahead = None
        pinned._file = file
        pinned._first_mtime_ns = version.mtime_ns if was_read else None
        pinned._was_read = was_read
        pinned.version = version
        return pinned

    def _promised_size(self, codec: Codec, status: FileStatus, ahead: int) -> int:
        assert self._file is not None
        if not stat.S_ISREG(status.st_mode):
            raise Undecodable("no regular file")
        size = status.st_size
        if size <= ahead:
            self._ahead = self._disk.read(self._file, size)
        if codec is not PLAIN:
            if self._ahead is not None:
                header, trailer = self._ahead[:HEADER_SIZE], self._ahead[-TRAILER_SIZE:]
            else:
                header = self._disk.read(self._file, HEADER_SIZE)
                trailer = self._disk.read(self._file, TRAILER_SIZE, max(0, size - TRAILER_SIZE))
            size = codec.plain_size(header, trailer, status.st_size)
        if size > self._limit:
            raise Undecodable(f"promises {size} bytes, --max-list-size allows {self._limit}")
        if status.st_size > most_stored(self._limit):
            raise Undecodable(f"{status.st_size} bytes are stored, and it promises only {size}")
        # After the bound: all of it is read.
        if size == 0 and codec is not PLAIN and codec.decode(self._disk.read(self._file, status.st_size), self._limit):
            raise Undecodable("promises nothing and holds something")
        return size

    def content(self) -> bytes:
        if self._content is None:
            self._content = self.decode()
        return self._content

    def decode(self) -> bytes:
        was_ahead = self._ahead is not None
        content = self._decoded()
        self._was_read = True
        if was_ahead:
            self._first_mtime_ns = self.version.mtime_ns  # that was its time when it was read
        elif self.version.codec is PLAIN:  # the others have a checksum
            assert self._file is not None
            mtime_ns = self._disk.stat_open(self._file).st_mtime_ns
            if self._first_mtime_ns is None:
                self._first_mtime_ns = mtime_ns
            elif self._first_mtime_ns != mtime_ns:
                raise VersionGone(f"{self._path} was changed in place")
        return content

    def _decoded(self) -> bytes:
        if self.version.fault is not None or self._file is None:
            raise ListCorrupt(self._path, self.version.fault or "read after it was closed")
        try:
            stored = self._ahead
            if stored is None:
                stored = self._disk.read(self._file, self.version.stored_size)
            self._ahead = None
            content = self.version.codec.decode(stored, self._limit)
        except Undecodable as error:
            raise ListCorrupt(self._path, str(error)) from error
        if len(content) != self.version.size:
            raise ListCorrupt(self._path, f"promises {self.version.size} bytes, holds {len(content)}")
        return content

    def unload(self) -> None:
        self._ahead = None
        if self._file is not None:
            self._content = None

    def surrender(self) -> tuple[int, bool] | None:
        # Touched before it was read first: what it must be compared with is known here alone.
        if self._file is None or self._first_mtime_ns not in (None, self.version.mtime_ns):
            return None
        file, self._file, self._ahead = self._file, None, None
        return file, self._was_read

    def close(self) -> None:
        self._ahead = None
        if self._file is not None:
            self._disk.close(self._file)
            self._file = None


def _reason(error: Undecodable | OSError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
