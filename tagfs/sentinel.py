"""Sentinels: which format a store has, and whether a wipe of it was cut short.  Blocking.

Owns: the version and the wipe sentinel, what a directory without them is, the crash-safe wipe.
Does not know: tag lists.
Source: Flux's `internal/storage/format.go` (image-reflector-controller), whose order of steps is kept, so that either
program finishes what the other began.
"""

import re
import stat
import threading
from enum import Enum
from typing import NamedTuple

from tagfs.disk import Disk, sync_file
from tagfs.errors import StoreRefused, StoreWaiting
from tagfs.names import BASE, LOST_AND_FOUND, VERSION_SENTINEL, WIPE_SENTINEL

FLUX_FORMAT = 2
"""Flux's own: plain and gzip."""

ZSTD_FORMAT = 3
"""tagfs' own: format 2 and zstd.  A Flux that opens it wipes and rescans instead of missing lists silently."""

FORMATS = (FLUX_FORMAT, ZSTD_FORMAT)

_FORMAT_TEXTS = frozenset(map(str, FORMATS))
_NAMES_SHOWN = 5
_VERSION_LIMIT = 64
"""Bytes of a version sentinel; a longer one says nothing that is known."""

_NO_FILE = "(no regular file)"

_BADGER_HEADS = frozenset({"MANIFEST", "MANIFEST-REWRITE", "KEYREGISTRY", "REWRITE-KEYREGISTRY"})
"""At least one of them is in every BadgerDB: a directory of `*.mem` alone may be anybody's."""

_BADGER = re.compile(rf"{'|'.join(_BADGER_HEADS)}|DISCARD|LOCK|[0-9]+\.(?:vlog|sst|mem)", re.ASCII)
"""Files of BadgerDB v4 (dgraph-io/badger: manifest.go, key_registry.go, discard.go, memtable.go, value.go)."""


class Condition(Enum):
    """What a directory is, seen as a store."""

    EMPTY = "empty"
    READY = "ready"
    WIPING = "a wipe of it was begun and not finished"
    BADGER = "it holds a BadgerDB"
    FOREIGN = "it holds other files and no version"
    UNKNOWN_VERSION = "its version is not known"


class Finding(NamedTuple):
    """`format` is 2 or 3 where the version sentinel says so, else None; `detail` names what was found."""

    condition: Condition
    format: int | None = None
    detail: str = ""


def examine(disk: Disk, root: int) -> Finding:
    """What the directory `root` is.  Writes nothing; raises OSError where it cannot be read."""
    entries = dict(disk.names(root))
    names = set(entries) - {LOST_AND_FOUND}
    version = _read_version(disk, root) if VERSION_SENTINEL in names else None
    known = int(version) if version is not None and version in _FORMAT_TEXTS else None
    if WIPE_SENTINEL in names:
        return Finding(Condition.WIPING, known)
    if known is not None:
        return Finding(Condition.READY, known)
    if version is not None:
        told = "is no regular file" if version == _NO_FILE else f"says {version!r}"
        return Finding(Condition.UNKNOWN_VERSION, None, f"{VERSION_SENTINEL} {told}")
    names = {name for name in names if not _is_unfinished_sentinel(name)}
    if not names:
        return Finding(Condition.EMPTY)
    badgers = {name for name in names if not entries[name] and _BADGER.fullmatch(name)}
    telling = sorted(names, key=lambda name: (name != BASE, name in badgers, name))
    shown = ", ".join(telling[:_NAMES_SHOWN]) + (" and others" if len(names) > _NAMES_SHOWN else "")
    if names == badgers and names & _BADGER_HEADS:
        return Finding(Condition.BADGER, None, shown)
    return Finding(Condition.FOREIGN, None, shown)


def require_ready(disk: Disk, root: int, path: str) -> int:
    """The format of a store that a reader can show now.

    Raises:
        StoreWaiting: not yet: it is not prepared, or being wiped, or still BadgerDB's.
        StoreRefused: it is something else.
    """
    found = examine(disk, root)
    if found.condition is Condition.READY:
        assert found.format is not None
        return found.format
    if found.condition in (Condition.FOREIGN, Condition.UNKNOWN_VERSION):
        raise _refusal(path, found)
    raise StoreWaiting(f"{path} is not ready: {_told(found)}")


def prepare(disk: Disk, root: int, path: str, new_format: int, wipe_foreign: bool = False) -> tuple[int, Finding]:
    """Make `root` a store that a writer can use, whatever it was; -> (its format, what it was found to be).

    A ready store keeps its format.  The caller holds the store's lock.

    Raises:
        StoreRefused: it is something else, and `wipe_foreign` is not set.
        OSError: a step failed; calling again goes on from there.
    """
    found = examine(disk, root)
    if found.condition is Condition.READY:
        assert found.format is not None
        return found.format, found
    if found.condition in (Condition.FOREIGN, Condition.UNKNOWN_VERSION) and not wipe_foreign:
        raise _refusal(path, found)
    format_ = found.format if found.format is not None else new_format
    if found.condition is Condition.EMPTY:
        write_version(disk, root, format_)
    else:
        wipe(disk, root, format_)
    return format_, found


def wipe(disk: Disk, root: int, format_: int) -> None:
    """Empty the store and leave it ready in `format_`.  Cut short at any step, another call finishes it."""
    if not _exists(disk, root, WIPE_SENTINEL):
        disk.close(disk.create(root, WIPE_SENTINEL))
    if stat.S_ISREG(disk.stat(root, WIPE_SENTINEL).st_mode):
        sync_file(disk, root, WIPE_SENTINEL)
    else:
        disk.sync_dir(root)
    version = _read_version(disk, root) if _exists(disk, root, VERSION_SENTINEL) else None
    if version == _NO_FILE:
        disk.remove_tree(root, VERSION_SENTINEL)
    if version != str(format_):
        write_version(disk, root, format_)
    for name, _ in disk.names(root):
        if name not in (VERSION_SENTINEL, WIPE_SENTINEL, LOST_AND_FOUND):
            disk.remove_tree(root, name)
    disk.sync_dir(root)
    disk.remove_tree(root, WIPE_SENTINEL)
    disk.sync_dir(root)


def write_version(disk: Disk, root: int, format_: int) -> None:
    """Set the version sentinel, durably: the old one or the new one is there at every moment."""
    temporary = f"{VERSION_SENTINEL}-tagfs"
    disk.remove_tree(root, temporary)
    file = disk.create(root, temporary)
    try:
        disk.write(file, b"%d\n" % format_)
        disk.sync(file)
    finally:
        disk.close(file)
    disk.rename(root, temporary, root, VERSION_SENTINEL)
    disk.sync_dir(root)


def is_current(disk: Disk, root: int, format_: int) -> bool:
    """Whether the store still says `format_` and no wipe of it has begun."""
    try:
        return not _exists(disk, root, WIPE_SENTINEL) and _read_version(disk, root) == str(format_)
    except FileNotFoundError:
        return False


class Currency:
    """Asks `is_current` before every commit, without opening the version sentinel each time."""

    def __init__(self, disk: Disk, root: int, format_: int) -> None:
        self._disk = disk
        self._root = root
        self._content = b"%d" % format_
        # INVARIANT: open as long as `_inode` is known, so that no other file gets that number.
        self._file: int | None = None
        self._inode: tuple[int, int] | None = None
        self._lock = threading.Lock()

    def holds(self) -> bool:
        with self._lock:
            try:
                if _exists(self._disk, self._root, WIPE_SENTINEL):
                    return False
                status = self._disk.stat(self._root, VERSION_SENTINEL)
                if not stat.S_ISREG(status.st_mode):
                    return False
                file = self._file
                if file is None or self._inode != (status.st_ino, status.st_dev):
                    file = self._reopened()
            except FileNotFoundError:
                return False
            # As many bytes as it has: to look for its end would be a call more.
            size = status.st_size
            return size <= _VERSION_LIMIT and self._disk.read(file, size).strip() == self._content

    def close(self) -> None:
        with self._lock:
            file, self._file, self._inode = self._file, None, None
            if file is not None:
                self._disk.close(file)

    def _reopened(self) -> int:
        earlier, self._inode = self._file, None
        self._file = self._disk.open_file(self._root, VERSION_SENTINEL)
        if earlier is not None:
            self._disk.close(earlier)
        status = self._disk.stat_open(self._file)
        self._inode = status.st_ino, status.st_dev
        return self._file


def _read_version(disk: Disk, root: int) -> str:
    if not stat.S_ISREG(disk.stat(root, VERSION_SENTINEL).st_mode):
        return _NO_FILE
    file = disk.open_file(root, VERSION_SENTINEL)
    try:
        return _text_of(disk, file)
    finally:
        disk.close(file)


def _text_of(disk: Disk, file: int) -> str:
    """What a version sentinel says, shortened where that is nothing that is known."""
    text = disk.read(file, _VERSION_LIMIT + 1)
    if len(text) > _VERSION_LIMIT:
        return text[:_NAMES_SHOWN].decode("ascii", "backslashreplace") + "…"
    return text.strip().decode("ascii", "backslashreplace")


def _exists(disk: Disk, root: int, name: str) -> bool:
    try:
        disk.stat(root, name)
    except FileNotFoundError:
        return False
    return True


def _is_unfinished_sentinel(name: str) -> bool:
    """Flux names them `.storage-version-<digits>`, tagfs `.storage-version-tagfs`."""
    return name.startswith(f"{VERSION_SENTINEL}-")


def _told(found: Finding) -> str:
    return f"{found.condition.value}{f' ({found.detail})' if found.detail else ''}"


def _refusal(path: str, found: Finding) -> StoreRefused:
    if found.condition is Condition.UNKNOWN_VERSION:
        cure = "open it with the program that wrote it, or have `tagfs mount --wipe-foreign` delete all of it"
    elif BASE in found.detail.split(", "):
        cure = f"if these are tag lists, write the format's version first: echo 2 > {path}/{VERSION_SENTINEL}"
    else:
        cure = "name an empty directory, or have `tagfs mount --wipe-foreign` delete all of it"
    return StoreRefused(f"{path} is no tag store: {_told(found)}; {cure}")
