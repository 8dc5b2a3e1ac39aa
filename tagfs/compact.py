"""Compact: the node table of a read-only mount, in a few hundred bytes a list.  Pure.

Owns: the rows in which repositories and their current lists are kept; node ids made of a row and a serial number.
Does not know: the store, handles.
Invariant: as `inodes` states it; a serial number is used once, so an id that was given to the kernel never stands for
anything else, although its row is used again.

The kernel names every list that was ever looked at for as long as it likes; objects for that cost 1.2 KiB a list.  Rows
hold the same in one array.  Nodes are made of them when they are asked for, and are no place to keep a state.
"""

import itertools
import struct
from collections.abc import Iterator

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

_REFERENCES = struct.Struct("<QQ")
"""Node id and lookup count, of the directory and of the list; an id of 0 is none."""

_NAMESPACE = struct.Struct("<I")

_VERSION = struct.Struct("<BIIIqqIQ")
"""Position in CODECS, size, stored size, blocks, mtime, ctime, device, inode."""

_LIST_AT = _REFERENCES.size
_NAMESPACE_AT = _LIST_AT + _REFERENCES.size
_VERSION_AT = _NAMESPACE_AT + _NAMESPACE.size
_SIZE = _VERSION_AT + _VERSION.size

_ODD = 255
"""In place of a codec: the version has something that a row has no place for."""


def row_of(id_: int) -> int:
    """The row that a node id was made for: no two nodes have it at once, but for versions that were superseded."""
    return id_ & _ROW_MASK


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
        self._rows = bytearray(_FIRST_ROW * _SIZE)
        self._names = [""] * _FIRST_ROW
        self._free: list[int] = []
        self._namespaces: dict[str, _Namespace] = {}
        self._by_index: list[_Namespace | None] = []
        self._odd: dict[int, Version] = {}
        self._in_rows = 0

    def get(self, id_: int) -> Node:
        row = id_ & _ROW_MASK
        if _FIRST_ROW <= row < len(self._names):
            if self._references(row, 0)[0] == id_:
                return DirectoryNode(id_, self._path(row))
            if self._references(row, _LIST_AT)[0] == id_:
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
        id_ = self._references(row, 0)[0] or self._enter(row, 0)
        return DirectoryNode(id_, path)

    def known_directory(self, path: tuple[str, ...]) -> DirectoryNode | None:
        if len(path) != 3:
            return self._above.get(path)
        row = self._row(path[1], path[2])
        id_ = self._references(row, 0)[0] if row is not None else 0
        return DirectoryNode(id_, path) if id_ else None

    def remove_directory(self, path: tuple[str, ...]) -> None:
        if len(path) != 3:
            node = self._above.pop(path, None)
            if node is not None and node.lookups == 0:
                del self._objects[node.id]
            return
        row = self._row(path[1], path[2])
        if row is not None:
            self._evict(row, _LIST_AT)
            self._evict(row, 0)
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
                id_ = self._references(row, 0)[0]
                if id_:
                    yield DirectoryNode(id_, (BASE, namespace.name, name))

    # -- files

    def sentinel(self) -> SentinelNode:
        return self._sentinel

    def version(self, key: RepositoryKey, version: Version) -> ListNode:
        row = self._row(key.namespace, key.name)
        if row is None:
            row = self._make_row(key.namespace, key.name)
        id_ = self._references(row, _LIST_AT)[0]
        if id_:
            known = self._version(row)
            if known.identity == version.identity:
                return ListNode(id_, key, known)
            self._evict(row, _LIST_AT)
        id_ = self._enter(row, _LIST_AT)
        self._keep(row, version)
        return ListNode(id_, key, version)

    def supersede(self, key: RepositoryKey) -> None:
        row = self._row(key.namespace, key.name)
        if row is not None:
            self._evict(row, _LIST_AT)
            self._free_row_if_empty(row)

    def current_lists(self) -> Iterator[ListNode]:
        for namespace in self._namespaces.values():
            for row in namespace.rows.values():
                id_ = self._references(row, _LIST_AT)[0]
                if id_:
                    yield self._list(row, id_)

    # -- references

    def remember(self, node: Node) -> None:
        place = self._place(node.id)
        if place is None:
            self._objects.setdefault(node.id, node).lookups += 1
        else:
            id_, lookups = self._references(*place)
            self._refer(*place, id_, lookups + 1)

    def forget(self, id_: int, count: int) -> None:
        place = self._place(id_)
        if place is None:
            self._forget_object(id_, count)
            return
        lookups = self._references(*place)[1] - count
        if lookups > 0:
            self._refer(*place, id_, lookups)
        else:
            self._clear(*place)
            self._free_row_if_empty(place[0])

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
            row = self._free.pop()
            self._names[row] = name
        else:
            row = len(self._names)
            if row > _ROW_MASK:
                raise OverflowError(f"{row} repositories are more than one mount can show")
            self._names.append(name)
            self._rows += bytes(_SIZE)
        _NAMESPACE.pack_into(self._rows, row * _SIZE + _NAMESPACE_AT, above.index)
        above.rows[name] = row
        return row

    def _free_index(self) -> int:
        if None in self._by_index:
            return self._by_index.index(None)
        self._by_index.append(None)
        return len(self._by_index) - 1

    def _free_row_if_empty(self, row: int) -> None:
        if self._references(row, 0)[0] or self._references(row, _LIST_AT)[0]:
            return
        above = self._above_row(row)
        del above.rows[self._names[row]]
        self._names[row] = ""
        self._free.append(row)
        if not above.rows:
            del self._namespaces[above.name]
            self._by_index[above.index] = None

    def _above_row(self, row: int) -> _Namespace:
        index: int = _NAMESPACE.unpack_from(self._rows, row * _SIZE + _NAMESPACE_AT)[0]
        above = self._by_index[index]
        assert above is not None
        return above

    def _path(self, row: int) -> tuple[str, str, str]:
        return BASE, self._above_row(row).name, self._names[row]

    def _place(self, id_: int) -> tuple[int, int] | None:
        """The row of a node, and where in it the references to the node are; None where it is an object."""
        row = id_ & _ROW_MASK
        if _FIRST_ROW <= row < len(self._names):
            for part in (0, _LIST_AT):
                if self._references(row, part)[0] == id_:
                    return row, part
        return None

    def _references(self, row: int, part: int) -> tuple[int, int]:
        found: tuple[int, int] = _REFERENCES.unpack_from(self._rows, row * _SIZE + part)
        return found

    def _refer(self, row: int, part: int, id_: int, lookups: int) -> None:
        _REFERENCES.pack_into(self._rows, row * _SIZE + part, id_, lookups)

    def _enter(self, row: int, part: int) -> int:
        """Give a part of a row that has none a new node id."""
        id_ = next(self._serials) << _ROW_BITS | row
        self._refer(row, part, id_, 0)
        self._in_rows += 1
        return id_

    def _clear(self, row: int, part: int) -> None:
        self._refer(row, part, 0, 0)
        self._in_rows -= 1
        if part == _LIST_AT and self._odd:
            self._odd.pop(row, None)

    def _evict(self, row: int, part: int) -> None:
        """Let go of a part's node; while the kernel knows it, it goes on as an object."""
        id_, lookups = self._references(row, part)
        if not id_:
            return
        if lookups:
            node = self._list(row, id_) if part == _LIST_AT else DirectoryNode(id_, self._path(row))
            node.lookups = lookups
            self._objects[id_] = node
        self._clear(row, part)

    # -- versions

    def _list(self, row: int, id_: int) -> ListNode:
        return ListNode(id_, RepositoryKey(*self._path(row)[1:]), self._version(row))

    def _keep(self, row: int, version: Version) -> None:
        times = version.mtime_ns, version.ctime_ns
        try:
            device, inode, *others = version.identity
            if version.fault is not None or tuple(others) != (*times, version.stored_size):
                raise ValueError
            sizes = version.size, version.stored_size, version.blocks
            codec = CODECS.index(version.codec)
            _VERSION.pack_into(self._rows, row * _SIZE + _VERSION_AT, codec, *sizes, *times, device, inode)
        except (ValueError, struct.error):
            self._rows[row * _SIZE + _VERSION_AT] = _ODD
            self._odd[row] = version

    def _version(self, row: int) -> Version:
        at = row * _SIZE + _VERSION_AT
        if self._rows[at] == _ODD:
            return self._odd[row]
        codec, size, stored_size, blocks, mtime_ns, ctime_ns, device, inode = _VERSION.unpack_from(self._rows, at)
        identity = device, inode, mtime_ns, ctime_ns, stored_size
        return Version(CODECS[codec], size, stored_size, blocks, mtime_ns, ctime_ns, identity)
