"""Compact: the node table of a read-only mount, in a few hundred bytes a list.  Pure.

Owns: the rows in which repositories and their current lists are kept; node ids made of a row and a serial number.
Does not know: the store, handles.
Invariant: as `inodes` states it; a serial number is used once, so an id that was given to the kernel never stands for
anything else, although its row is used again.

The kernel names every list that was ever looked at for as long as it likes; objects for that cost 1.2 KiB a list.  Rows
hold the same in a few arrays.  Nodes are made of them when they are asked for, and are no place to keep a state.
"""

import itertools
import struct
from array import array
from collections.abc import Iterator
from heapq import heappop, heappush

from tagfs.codec import CODECS
from tagfs.errors import VersionGone
from tagfs.inodes import ROOT_ID, DirectoryNode, ListNode, Node, NodeTable, SentinelNode
from tagfs.names import BASE, RepositoryKey
from tagfs.store import Version

_ROW_BITS = 24
"""Of a node id: more rows than a mount will have; 40 bits are left for serial numbers, 10,000 a second for years."""

_ROW_MASK = (1 << _ROW_BITS) - 1

_FIRST_ROW = 2
"""The ids of objects end in 0, that of the mount point is 1: they are in no row."""

_VERSION = struct.Struct("<BIIIqqIQ")
"""Position in CODECS, size, stored size, blocks, mtime, ctime, device, inode."""

_NO_VERSION = bytes(_VERSION.size)

_ODD = 255
"""In place of a codec: the version has something that a row has no place for."""


def row_of(id_: int) -> int:
    """The row that a node id was made for: no two nodes have it at once, but for versions that were superseded."""
    return id_ & _ROW_MASK


class _Column:
    """Node id and lookup count in each row; an id of 0 is none."""

    __slots__ = ("ids", "lookups")

    def __init__(self) -> None:
        self.ids = array("Q", bytes(8 * _FIRST_ROW))
        self.lookups = array("Q", bytes(8 * _FIRST_ROW))

    def grow(self) -> None:
        self.ids.append(0)
        self.lookups.append(0)


class _Namespace:
    """`rows` are those of its repositories, by name."""

    __slots__ = ("index", "name", "rows")

    def __init__(self, name: str, index: int) -> None:
        self.name = name
        self.index = index
        self.rows: dict[str, int] = {}


class CompactInodes(NodeTable):
    """The table of all nodes that the kernel of a read-only mount may name.

    Rows are for what there are many of: repositories, and the current version of each one's list.  All else is an
    object: the directories above, and versions that were superseded while the kernel knew them.
    """

    def __init__(self) -> None:
        self._serials = itertools.count(1)
        root = DirectoryNode(ROOT_ID, ())
        self._sentinel = SentinelNode(next(self._serials) << _ROW_BITS)
        self._objects: dict[int, Node] = {root.id: root, self._sentinel.id: self._sentinel}
        self._above: dict[tuple[str, ...], DirectoryNode] = {(): root}
        # INVARIANT: a row has a directory or a list while, and only while, its namespace has it by its name.
        self._names = [""] * _FIRST_ROW
        self._namespace_of = array("I", bytes(4 * _FIRST_ROW))
        self._directories = _Column()
        self._lists = _Column()
        self._versions = bytearray(_FIRST_ROW * _VERSION.size)
        self._free: list[int] = []
        self._namespaces: dict[str, _Namespace] = {}
        self._by_index: list[_Namespace | None] = []
        self._odd: dict[int, Version] = {}
        self._in_rows = 0

    def get(self, id_: int) -> Node:
        row = id_ & _ROW_MASK
        if _FIRST_ROW <= row < len(self._names):
            if self._directories.ids[row] == id_:
                return DirectoryNode(id_, self._path(row))
            if self._lists.ids[row] == id_:
                return self._list(row, id_)
        try:
            return self._objects[id_]
        except KeyError:
            raise VersionGone(f"node {id_} is forgotten") from None

    # -- directories

    def directory(self, path: tuple[str, ...]) -> DirectoryNode:
        if len(path) != 3:
            node = self._above.get(path)
            if node is None:
                node = self._above[path] = DirectoryNode(next(self._serials) << _ROW_BITS, path)
                self._objects[node.id] = node
            return node
        row = self._row(path[1], path[2])
        if row is None:
            row = self._make_row(path[1], path[2])
        return DirectoryNode(self._directories.ids[row] or self._enter(row, self._directories), path)

    def give_directory(self, path: tuple[str, ...]) -> int:
        """`directory` and `remember` in one: the id of a directory that the kernel is told of."""
        if len(path) != 3:
            node = self.directory(path)
            self.remember(node)
            return node.id
        row = self._row(path[1], path[2])
        if row is None:
            row = self._make_row(path[1], path[2])
        self._directories.lookups[row] += 1
        return self._directories.ids[row] or self._enter(row, self._directories)

    def known_directory(self, path: tuple[str, ...]) -> DirectoryNode | None:
        if len(path) != 3:
            return self._above.get(path)
        row = self._row(path[1], path[2])
        id_ = self._directories.ids[row] if row is not None else 0
        return DirectoryNode(id_, path) if id_ else None

    def remove_directory(self, path: tuple[str, ...]) -> None:
        if len(path) != 3:
            node = self._above.pop(path, None)
            if node is not None and node.lookups == 0:
                del self._objects[node.id]
            return
        row = self._row(path[1], path[2])
        if row is not None:
            self._evict(row, self._lists)
            self._evict(row, self._directories)
            self._free_row_if_empty(row)

    def directories(self, below: tuple[str, ...] = ()) -> Iterator[DirectoryNode]:
        if len(below) == 3:
            node = self.known_directory(below)
            if node is not None:
                yield node
            return
        for path, node in self._above.items():
            if path[: len(below)] == below:
                yield node
        if below[:1] not in ((), (BASE,)):
            return
        one = self._namespaces.get(below[1]) if len(below) == 2 else None
        for namespace in self._namespaces.values() if len(below) < 2 else [one] if one is not None else []:
            for name, row in namespace.rows.items():
                id_ = self._directories.ids[row]
                if id_:
                    yield DirectoryNode(id_, (BASE, namespace.name, name))

    # -- files

    def sentinel(self) -> SentinelNode:
        return self._sentinel

    def version(self, key: RepositoryKey, version: Version) -> ListNode:
        return ListNode(self.id_of_version(key, version), key, version)

    def id_of_version(self, key: RepositoryKey, version: Version) -> int:
        """The id of `version`'s node."""
        namespace, name = key
        row = self._row(namespace, name)
        if row is None:
            row = self._make_row(namespace, name)
        id_ = self._lists.ids[row]
        if id_:
            if self._version(row).identity == version.identity:
                return id_
            self._evict(row, self._lists)
        id_ = self._enter(row, self._lists)
        self._keep(row, version)
        return id_

    def give_version(self, id_: int) -> None:
        """`remember` of the current version of a list, by its id."""
        row = row_of(id_)
        assert self._lists.ids[row] == id_
        self._lists.lookups[row] += 1

    # -- the next one: rows are in the order of the listing that they were made in

    def repository_after(self, id_: int) -> tuple[int, RepositoryKey] | None:
        """Directory and key of the repository after that of a node, in the same namespace; None where the kernel was
        told of none."""
        row = row_of(id_) + 1
        if not _FIRST_ROW < row < len(self._names) or self._namespace_of[row] != self._namespace_of[row - 1]:
            return None
        next_ = self._directories.ids[row]
        return (next_, self._key(row)) if next_ else None

    def list_of(self, id_: int) -> int:
        """The current list of the repository of a node, or 0."""
        return self._lists.ids[row_of(id_)]

    def list_after(self, id_: int) -> int:
        """The current list of the repository after that of a node, or 0."""
        row = row_of(id_) + 1
        return self._lists.ids[row] if row < len(self._names) else 0

    def supersede(self, key: RepositoryKey) -> None:
        row = self._row(key.namespace, key.name)
        if row is not None:
            self._evict(row, self._lists)
            self._free_row_if_empty(row)

    def current_lists(self) -> Iterator[ListNode]:
        for namespace in self._namespaces.values():
            for row in namespace.rows.values():
                id_ = self._lists.ids[row]
                if id_:
                    yield self._list(row, id_)

    # -- references

    def remember(self, node: Node) -> None:
        place = self._place(node.id)
        if place is None:
            self._objects.setdefault(node.id, node).lookups += 1
        else:
            row, column = place
            column.lookups[row] += 1

    def forget(self, id_: int, count: int) -> None:
        place = self._place(id_)
        if place is None:
            self._forget_object(id_, count)
            return
        row, column = place
        lookups = column.lookups[row] - count
        if lookups > 0:
            column.lookups[row] = lookups
        else:
            self._clear(row, column)
            self._free_row_if_empty(row)

    def _forget_object(self, id_: int, count: int) -> None:
        node = self._objects.get(id_)
        if node is None or id_ == ROOT_ID:
            return
        node.lookups -= count
        if node.lookups <= 0 and node is not self._sentinel:
            del self._objects[id_]
            if isinstance(node, DirectoryNode) and self._above.get(node.path) is node:
                del self._above[node.path]

    def __len__(self) -> int:
        return len(self._objects) + self._in_rows

    # -- rows

    def _row(self, namespace: str, name: str) -> int | None:
        found = self._namespaces.get(namespace)
        return found.rows.get(name) if found is not None else None

    def _make_row(self, namespace: str, name: str) -> int:
        above = self._namespaces.get(namespace)
        if above is None:
            above = self._namespaces[namespace] = _Namespace(namespace, self._free_index())
            self._by_index[above.index] = above
        if self._free:
            row = heappop(self._free)  # the first one: a walk is given rows in its order again
            self._names[row] = name
        else:
            row = len(self._names)
            if row > _ROW_MASK:
                raise OverflowError(f"{row} repositories are more than one mount can show")
            self._names.append(name)
            self._namespace_of.append(0)
            self._directories.grow()
            self._lists.grow()
            self._versions += _NO_VERSION
        self._namespace_of[row] = above.index
        above.rows[name] = row
        return row

    def _free_index(self) -> int:
        if None in self._by_index:
            return self._by_index.index(None)
        self._by_index.append(None)
        return len(self._by_index) - 1

    def _free_row_if_empty(self, row: int) -> None:
        if self._directories.ids[row] or self._lists.ids[row]:
            return
        above = self._above_row(row)
        del above.rows[self._names[row]]
        self._names[row] = ""
        heappush(self._free, row)
        if not above.rows:
            del self._namespaces[above.name]
            self._by_index[above.index] = None

    def _above_row(self, row: int) -> _Namespace:
        above = self._by_index[self._namespace_of[row]]
        assert above is not None
        return above

    def _path(self, row: int) -> tuple[str, str, str]:
        return BASE, self._above_row(row).name, self._names[row]

    def _key(self, row: int) -> RepositoryKey:
        return RepositoryKey.known(self._above_row(row).name, self._names[row])

    def _place(self, id_: int) -> tuple[int, _Column] | None:
        """The row of a node, and the column that has it; None where it is an object."""
        row = id_ & _ROW_MASK
        if _FIRST_ROW <= row < len(self._names):
            if self._directories.ids[row] == id_:
                return row, self._directories
            if self._lists.ids[row] == id_:
                return row, self._lists
        return None

    def _enter(self, row: int, column: _Column) -> int:
        """Give a row that has no node in a column a new one."""
        id_ = next(self._serials) << _ROW_BITS | row
        column.ids[row] = id_
        self._in_rows += 1
        return id_

    def _clear(self, row: int, column: _Column) -> None:
        column.ids[row] = column.lookups[row] = 0
        self._in_rows -= 1
        if column is self._lists and self._odd:
            self._odd.pop(row, None)

    def _evict(self, row: int, column: _Column) -> None:
        """Let go of a row's node in a column; while the kernel knows it, it goes on as an object."""
        id_, lookups = column.ids[row], column.lookups[row]
        if not id_:
            return
        if lookups:
            node = self._list(row, id_) if column is self._lists else DirectoryNode(id_, self._path(row))
            node.lookups = lookups
            self._objects[id_] = node
        self._clear(row, column)

    # -- versions

    def _list(self, row: int, id_: int) -> ListNode:
        return ListNode(id_, self._key(row), self._version(row))

    def _keep(self, row: int, version: Version) -> None:
        codec, size, stored_size, blocks, mtime_ns, ctime_ns, identity, fault = version
        try:
            device, inode = identity[:2]
            if fault is not None or identity[2:] != (mtime_ns, ctime_ns, stored_size):
                raise ValueError
            place, at = CODECS.index(codec), row * _VERSION.size
            _VERSION.pack_into(self._versions, at, place, size, stored_size, blocks, mtime_ns, ctime_ns, device, inode)
        except (ValueError, struct.error):
            self._versions[row * _VERSION.size] = _ODD
            self._odd[row] = version

    def _version(self, row: int) -> Version:
        at = row * _VERSION.size
        if self._versions[at] == _ODD:
            return self._odd[row]
        codec, size, stored_size, blocks, mtime_ns, ctime_ns, device, inode = _VERSION.unpack_from(self._versions, at)
        identity = device, inode, mtime_ns, ctime_ns, stored_size
        return Version(CODECS[codec], size, stored_size, blocks, mtime_ns, ctime_ns, identity)
