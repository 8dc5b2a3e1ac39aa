"""Inodes: node ids and what they stand for, versions, lookup counts.  Pure.

Owns: the kernel's node ids; which node is the current version of a list.
Does not know: the store, handles.
Invariant: a node id is never used twice, and what a list's node stands for does not change: what the kernel has of it
stays true.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tagfs.errors import VersionGone
from tagfs.names import RepositoryKey
from tagfs.store import Version

ROOT_ID = 1
"""FUSE_ROOT_ID of the kernel's `include/uapi/linux/fuse.h`."""


class Node:
    """What a node id stands for.  Two of one id are equal: a table may give out another object each time.

    `lookups` is the kernel's count of references to it, where the table keeps the object itself.
    """

    __slots__ = ("id", "lookups")

    def __init__(self, id_: int) -> None:
        self.id = id_
        self.lookups = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and other.id == self.id

    def __hash__(self) -> int:
        return self.id


class DirectoryNode(Node):
    """A directory; `path` has its names from the mount point down, none for the mount point itself."""

    __slots__ = ("path",)

    def __init__(self, id_: int, path: tuple[str, ...]) -> None:
        super().__init__(id_)
        self.path = path


class SentinelNode(Node):
    """The version sentinel that the mount presents."""

    __slots__ = ()


class ListNode(Node):
    """One version of a tag list; `version` is None until a new list is committed for the first time."""

    __slots__ = ("key", "version")

    def __init__(self, id_: int, key: RepositoryKey, version: Version | None) -> None:
        super().__init__(id_)
        self.key = key
        self.version = version


class ScratchNode(Node):
    """A scratch file of a repository."""

    __slots__ = ("key", "name")

    def __init__(self, id_: int, key: RepositoryKey, name: bytes) -> None:
        super().__init__(id_)
        self.key = key
        self.name = name


_N = TypeVar("_N", bound=Node)


class NodeTable(ABC):
    """The nodes that the kernel of a mount may name: what a tree needs of them to be read."""

    @abstractmethod
    def get(self, id_: int) -> Node:
        """The node of an id; VersionGone where the kernel has forgotten it."""

    @abstractmethod
    def directory(self, path: tuple[str, ...]) -> DirectoryNode:
        """The node of a directory, made where there is none."""

    @abstractmethod
    def known_directory(self, path: tuple[str, ...]) -> DirectoryNode | None: ...

    @abstractmethod
    def remove_directory(self, path: tuple[str, ...]) -> None:
        """Let a directory that is made again under this path be another node."""

    @abstractmethod
    def sentinel(self) -> SentinelNode: ...

    @abstractmethod
    def version(self, key: RepositoryKey, version: Version) -> ListNode:
        """The node of a version of a list: the current one's where it is that version, else a new one."""

    @abstractmethod
    def supersede(self, key: RepositoryKey) -> None:
        """Let the next version of a list be another node."""

    @abstractmethod
    def remember(self, node: Node) -> None:
        """Count one more reference that the kernel was given."""

    @abstractmethod
    def forget(self, id_: int, count: int) -> None:
        """Take `count` references back; the node goes with the last one."""

    @abstractmethod
    def directories(self, below: tuple[str, ...] = ()) -> Iterable[DirectoryNode]:
        """Every directory at and below a path that the kernel knows, in no order; none may come or go meanwhile."""

    @abstractmethod
    def current_lists(self) -> Iterator[ListNode]:
        """Every list's current node that the kernel knows, in no order; the table must not change meanwhile."""

    @abstractmethod
    def __len__(self) -> int: ...


class Inodes(NodeTable):
    """The table of a mount that is written to: an object for each node, which handles may hold."""

    def __init__(self) -> None:
        self._ids = itertools.count(ROOT_ID)
        self._nodes: dict[int, Node] = {}
        self._directories: dict[tuple[str, ...], DirectoryNode] = {}
        # INVARIANT: at most one node a key, the one that a lookup of its list is answered with.
        self._current: dict[RepositoryKey, ListNode] = {}
        self.directory(())
        self._sentinel = self._add(SentinelNode(next(self._ids)))

    def get(self, id_: int) -> Node:
        try:
            return self._nodes[id_]
        except KeyError:
            raise VersionGone(f"node {id_} is forgotten") from None

    def directory(self, path: tuple[str, ...]) -> DirectoryNode:
        node = self._directories.get(path)
        if node is None:
            node = self._directories[path] = self._add(DirectoryNode(next(self._ids), path))
        return node

    def known_directory(self, path: tuple[str, ...]) -> DirectoryNode | None:
        return self._directories.get(path)

    def remove_directory(self, path: tuple[str, ...]) -> None:
        node = self._directories.pop(path, None)
        if node is not None and node.lookups == 0:
            self._nodes.pop(node.id, None)

    def sentinel(self) -> SentinelNode:
        return self._sentinel

    def version(self, key: RepositoryKey, version: Version) -> ListNode:
        node = self._current.get(key)
        if node is None or node.version is None or node.version.identity != version.identity:
            self.supersede(key)
            node = self._current[key] = self._add(ListNode(next(self._ids), key, version))
        return node

    def current(self, key: RepositoryKey) -> Version | None:
        """The version of the node that a lookup of a list was answered with last, as long as the kernel knows it."""
        node = self._current.get(key)
        return None if node is None else node.version

    def draft(self, key: RepositoryKey) -> ListNode:
        """The node of a list that is not committed yet, known to its creator alone."""
        return self._add(ListNode(next(self._ids), key, None))

    def promote(self, node: ListNode, version: Version) -> None:
        """Let a draft stand for the current version of its list."""
        node.version = version
        if node.id in self._nodes and self._current.get(node.key) is not node:
            self.supersede(node.key)
            self._current[node.key] = node

    def become(self, scratch: ScratchNode, version: Version) -> None:
        """Let the node of a scratch file that was renamed over its list stand for the new version, as on any file
        system: the kernel has put it there, and needs no other."""
        if self._nodes.get(scratch.id) is scratch and scratch.lookups > 0:
            self.supersede(scratch.key)
            node = self._current[scratch.key] = self._add(ListNode(scratch.id, scratch.key, version))
            node.lookups = scratch.lookups

    def supersede(self, key: RepositoryKey) -> None:
        node = self._current.pop(key, None)
        if node is not None and node.lookups == 0:
            self._nodes.pop(node.id, None)

    def scratch(self, key: RepositoryKey, name: bytes) -> ScratchNode:
        return self._add(ScratchNode(next(self._ids), key, name))

    def restore(self, node: ScratchNode) -> ScratchNode:
        """The node of a scratch file that is still there, though the kernel may have forgotten it."""
        self._nodes[node.id] = node
        return node

    def remember(self, node: Node) -> None:
        node.lookups += 1
        self._nodes[node.id] = node

    def forget(self, id_: int, count: int) -> None:
        node = self._nodes.get(id_)
        if node is None or id_ == ROOT_ID:
            return
        node.lookups -= count
        if node.lookups <= 0 and node is not self._sentinel:
            self.drop(node)

    def drop(self, node: Node) -> None:
        """Let go of a node that the kernel does not know or has forgotten."""
        self._nodes.pop(node.id, None)
        if isinstance(node, DirectoryNode) and self._directories.get(node.path) is node:
            del self._directories[node.path]
        elif isinstance(node, ListNode) and self._current.get(node.key) is node:
            del self._current[node.key]

    def directories(self, below: tuple[str, ...] = ()) -> Iterable[DirectoryNode]:
        return [node for node in self._directories.values() if node.path[: len(below)] == below]

    def current_lists(self) -> Iterator[ListNode]:
        yield from self._current.values()

    def __len__(self) -> int:
        return len(self._nodes)

    def _add(self, node: _N) -> _N:
        self._nodes[node.id] = node
        return node
