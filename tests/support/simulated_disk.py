"""A disk in memory that can lose its power.

What a file holds becomes durable by `sync` of it, an entry of a directory by `sync_dir` of that directory, all of it by
`sync_filesystem`.  `survivors` are the disks that may be found after a power loss, as POSIX allows them: each directory
as it last was durable or as after any change since, whatever became of the others; a file that was not synced as it
last was durable, cut short, full of zeros, or whole.
"""

import errno
import itertools
import math
import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from tagfs.disk import DIRECTORY_MODE, FILE_MODE, Disk, FileStatus

_BLOCK = 4096
_MOST_SURVIVORS = 128
"""Combinations of directories that are tried; beyond, each directory is varied by itself."""


class Unsynced(Enum):
    """What becomes of a file that was not synced, where its name survives."""

    LOST = "as it last was durable"
    TORN = "cut to its first half"
    ZEROS = "its size, without its bytes"
    WHOLE = "whole, by luck"


@dataclass(eq=False, slots=True)
class _Node:
    """A file, directory or link.

    `states` are the entries of a directory: the durable ones first, then those after each change since.
    """

    number: int
    mode: int
    mtime_ns: int
    ctime_ns: int
    data: bytes = b""
    durable_data: bytes = b""
    durable_mtime_ns: int = 0
    links: int = 0
    states: list[dict[str, "_Node"]] = field(default_factory=lambda: [{}])
    locked_by: int | None = None

    @property
    def entries(self) -> dict[str, "_Node"]:
        return self.states[-1]

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(slots=True)
class _Open:
    node: _Node
    is_writable: bool


@dataclass(frozen=True, slots=True)
class _Status:
    st_mode: int
    st_ino: int
    st_dev: int
    st_nlink: int
    st_size: int
    st_blocks: int
    st_mtime_ns: int
    st_ctime_ns: int


def _error(number: int, name: str = "") -> OSError:
    return OSError(number, os.strerror(number), name)


class SimulatedDisk(Disk):
    """A file system of one root directory, which `open_root` opens whatever its argument.

    Args:
        granularity_ns: of its time stamps.
    """

    def __init__(self, granularity_ns: int = 1) -> None:
        self._granularity_ns = granularity_ns
        self._numbers = itertools.count(2)
        self._descriptors = itertools.count(1000)
        self._opened: dict[int, _Open] = {}
        self._change_lock = threading.RLock()
        self._nodes: list[_Node] = []
        self._root = self._new_node(stat.S_IFDIR | DIRECTORY_MODE)
        self._root.links = 1

    # -- what a test asks

    @property
    def open_descriptors(self) -> int:
        return len(self._opened)

    def symlink(self, directory: int, name: str, target: str) -> None:
        node = self._new_node(stat.S_IFLNK | 0o777)
        node.data = node.durable_data = os.fsencode(target)
        self._enter(directory, name, node)

    def survivors(self) -> Iterator[tuple[str, "SimulatedDisk"]]:
        """(a label, a disk) for each state that a power loss now may leave, each state once."""
        seen = set()
        changed = [node for node in self._nodes if node.is_directory and len(node.states) > 1]
        for chosen in _choices([len(node.states) for node in changed]):
            for unsynced in Unsynced:
                survivor = SimulatedDisk(self._granularity_ns)
                picks = {node.number: pick for node, pick in zip(changed, chosen, strict=True)}
                survivor._take(self, picks, unsynced)
                print_ = survivor.fingerprint()
                if print_ not in seen:
                    seen.add(print_)
                    yield f"directories {list(chosen)}, files {unsynced.name}", survivor

    def power_loss(self) -> "SimulatedDisk":
        """The disk that holds what was durable and nothing else."""
        survivor = SimulatedDisk(self._granularity_ns)
        survivor._take(self, {node.number: 0 for node in self._nodes}, Unsynced.LOST)
        return survivor

    def fingerprint(self) -> object:
        """Equal for two disks that hold the same."""
        return _fingerprint(self._root)

    # -- the disk

    def open_root(self, path: str) -> int:
        return self._open(self._root)

    def open_dir(self, directory: int, name: str) -> int:
        node = self._find(directory, name)
        if not node.is_directory:
            raise _error(errno.ENOTDIR, name)
        return self._open(node)

    def open_below(self, directory: int, path: str) -> int:
        raise OSError(errno.ENOSYS, "a kernel without openat2: each directory is a call")

    def open_file_below(self, directory: int, path: str) -> int:
        return self.open_below(directory, path)

    def open_file(self, directory: int, name: str) -> int:
        node = self._find(directory, name)
        if stat.S_ISLNK(node.mode):
            raise _error(errno.ELOOP, name)
        return self._open(node)

    def create(self, directory: int, name: str) -> int:
        node = self._new_node(stat.S_IFREG | FILE_MODE)
        self._enter(directory, name, node)
        return self._open(node, is_writable=True)

    def close(self, descriptor: int) -> None:
        opened = self._opened.pop(descriptor, None)
        if opened is None:
            raise _error(errno.EBADF)
        if opened.node.locked_by == descriptor:
            opened.node.locked_by = None

    def read(self, file: int, size: int, offset: int = 0) -> bytes:
        node = self._node(file)
        if node.is_directory:
            raise _error(errno.EISDIR)
        return node.data[offset : offset + size]

    def write(self, file: int, data: bytes) -> None:
        if not self._opened[file].is_writable:
            raise _error(errno.EBADF)
        node = self._node(file)
        node.data += data
        node.mtime_ns = node.ctime_ns = self._now()

    def sync(self, file: int) -> None:
        self._make_durable(self._node(file))

    def sync_dir(self, directory: int) -> None:
        self._make_durable(self._node(directory))

    def sync_filesystem(self, directory: int) -> None:
        self._node(directory)
        for node in self._nodes:
            self._make_durable(node)

    def rename(self, directory: int, name: str, to_directory: int, to_name: str) -> None:
        with self._change_lock:
            node = self._find(directory, name)
            over = self._directory(to_directory).entries.get(to_name)
            self._require_linked(to_directory)
            if over is node:
                return
            if over is not None:
                if over.is_directory and not node.is_directory:
                    raise _error(errno.EISDIR, to_name)
                if node.is_directory and not over.is_directory:
                    raise _error(errno.ENOTDIR, to_name)
                if over.entries:
                    raise _error(errno.ENOTEMPTY, to_name)
                over.links -= 1
            node.ctime_ns = self._now()
            if directory == to_directory or self._node(directory) is self._node(to_directory):
                self._change(directory, {name: None, to_name: node})
            else:
                self._change(to_directory, {to_name: node})
                self._change(directory, {name: None})

    def unlink(self, directory: int, name: str) -> None:
        with self._change_lock:
            node = self._find(directory, name)
            if node.is_directory:
                raise _error(errno.EISDIR, name)
            node.links -= 1
            self._change(directory, {name: None})

    def make_dir(self, directory: int, name: str) -> None:
        self._enter(directory, name, self._new_node(stat.S_IFDIR | DIRECTORY_MODE))

    def remove_dir(self, directory: int, name: str) -> None:
        with self._change_lock:
            node = self._find(directory, name)
            if not node.is_directory:
                raise _error(errno.ENOTDIR, name)
            if node.entries:
                raise _error(errno.ENOTEMPTY, name)
            node.links -= 1
            self._change(directory, {name: None})

    def names(self, directory: int) -> list[tuple[str, bool]]:
        return [(name, node.is_directory) for name, node in self._directory(directory).entries.items()]

    def stat(self, directory: int, name: str) -> FileStatus:
        return self._status(self._find(directory, name))

    def stat_open(self, descriptor: int) -> FileStatus:
        return self._status(self._node(descriptor))

    def set_mtime(self, file: int, mtime_ns: int) -> None:
        node = self._node(file)
        node.mtime_ns = mtime_ns // self._granularity_ns * self._granularity_ns
        node.ctime_ns = self._now()

    def set_mode(self, descriptor: int, mode: int) -> None:
        node = self._node(descriptor)
        node.mode = stat.S_IFMT(node.mode) | mode
        node.ctime_ns = self._now()

    def lock(self, directory: int) -> bool:
        node = self._directory(directory)
        if node.locked_by not in (None, directory):
            return False
        node.locked_by = directory
        return True

    def kind(self, directory: int) -> int:
        """One of its own, which nothing is known of: each file is made durable by itself."""
        return 0

    def tells_of_lost_writes(self, release: str | None = None) -> bool:
        return True

    def space(self, directory: int) -> os.statvfs_result:
        self._node(directory)
        return os.statvfs_result((_BLOCK, _BLOCK, 1 << 20, 1 << 19, 1 << 19, 1 << 16, 1 << 15, 1 << 15, 0, 255))

    # -- inside

    def _now(self) -> int:
        return time.time_ns() // self._granularity_ns * self._granularity_ns

    def _new_node(self, mode: int) -> _Node:
        now = self._now()
        node = _Node(next(self._numbers), mode, now, now, durable_mtime_ns=now)
        self._nodes.append(node)
        return node

    def _open(self, node: _Node, is_writable: bool = False) -> int:
        descriptor = next(self._descriptors)
        self._opened[descriptor] = _Open(node, is_writable)
        return descriptor

    def _node(self, descriptor: int) -> _Node:
        try:
            return self._opened[descriptor].node
        except KeyError:
            raise _error(errno.EBADF) from None

    def _directory(self, descriptor: int) -> _Node:
        node = self._node(descriptor)
        if not node.is_directory:
            raise _error(errno.ENOTDIR)
        return node

    def _find(self, directory: int, name: str) -> _Node:
        try:
            return self._directory(directory).entries[name]
        except KeyError:
            raise _error(errno.ENOENT, name) from None

    def _require_linked(self, directory: int) -> None:
        if self._directory(directory).links == 0:
            raise _error(errno.ENOENT)

    def _enter(self, directory: int, name: str, node: _Node) -> None:
        with self._change_lock:
            if name in self._directory(directory).entries:
                raise _error(errno.EEXIST, name)
            self._require_linked(directory)
            node.links = 1
            self._change(directory, {name: node})

    def _change(self, directory: int, changes: dict[str, _Node | None]) -> None:
        node = self._directory(directory)
        entries = {**node.entries, **changes}
        node.states.append({name: below for name, below in entries.items() if below is not None})
        node.mtime_ns = node.ctime_ns = self._now()

    def _make_durable(self, node: _Node) -> None:
        node.durable_data = node.data
        node.durable_mtime_ns = node.mtime_ns
        del node.states[:-1]

    def _status(self, node: _Node) -> FileStatus:
        links = node.links
        if node.is_directory and links:
            links = 2 + sum(below.is_directory for below in node.entries.values())
        blocks = -(-len(node.data) // _BLOCK) * (_BLOCK // 512)
        return _Status(node.mode, node.number, 1, links, len(node.data), blocks, node.mtime_ns, node.ctime_ns)

    def _take(self, other: "SimulatedDisk", picks: dict[int, int], unsynced: Unsynced) -> None:
        """Become what is left of `other`: of each directory the state that `picks` says, else its last one."""
        self._nodes.clear()
        taken: dict[int, _Node] = {}

        def take(node: _Node) -> _Node:
            copy = taken.get(node.number)
            if copy is None:
                data, mtime_ns = _left_of(node, unsynced)
                copy = _Node(node.number, node.mode, mtime_ns, node.ctime_ns, data, data, mtime_ns)
                taken[node.number] = copy
                self._nodes.append(copy)
                state = node.states[picks.get(node.number, -1)]
                copy.states = [{name: take(below) for name, below in state.items()}]
            copy.links += 1
            return copy

        self._root = take(other._root)
        self._numbers = itertools.count(max(taken) + 1)


def _left_of(node: _Node, unsynced: Unsynced) -> tuple[bytes, int]:
    if unsynced is Unsynced.LOST:
        return node.durable_data, node.durable_mtime_ns
    if node.data == node.durable_data or unsynced is Unsynced.WHOLE:
        return node.data, node.mtime_ns
    if unsynced is Unsynced.TORN:
        return node.data[: len(node.data) // 2], node.mtime_ns
    return bytes(len(node.data)), node.mtime_ns


def _choices(counts: list[int]) -> Iterator[tuple[int, ...]]:
    if math.prod(counts) <= _MOST_SURVIVORS:
        yield from itertools.product(*map(range, counts))
        return
    for others in (0, -1):
        for position, count in enumerate(counts):
            for pick in range(count):
                yield (*[others] * position, pick, *[others] * (len(counts) - position - 1))


def _fingerprint(node: _Node) -> object:
    below = tuple((name, _fingerprint(inner)) for name, inner in sorted(node.entries.items()))
    if node.is_directory:
        return node.mode, below
    return node.mode, node.data, node.mtime_ns
