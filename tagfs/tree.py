"""Tree: what a mount looks like, and reading it.  Blocking.

Owns: attributes, children, handles of readers; which bytes an open file shows.
Does not know: errnos, trio, how anything is written (`writing` adds that).
Invariant: an open file shows exactly one version; nothing here writes to the store.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from tagfs import pipes
from tagfs.compact import CompactInodes
from tagfs.errors import (
    ListMissing,
    NotPermitted,
    RepositoryMissing,
    TagfsError,
    VersionGone,
)
from tagfs.handles import DirectoryHandle, Handle, ReadHandle
from tagfs.inodes import ROOT_ID, DirectoryNode, ListNode, Node, NodeTable, SentinelNode
from tagfs.names import BASE, LIST, VERSION_SENTINEL, RepositoryKey
from tagfs.pipes import Pipes
from tagfs.store import Snapshot, Store
from tagfs.view import (
    FOREVER,
    LIST_NAME,
    PIPE_MODE,
    PRESENTED_VERSION,
    UNWATCHED,
    Attributes,
    Invalidation,
    View,
    Watch,
    directory_mode,
    key_at,
    list_mode,
    require_shown,
)


class Tree:
    """The tree of a read-only mount; nodes are the kernel's node ids, handles what `open` returned."""

    is_writable = False

    def __init__(self, store: Store, view: View | None = None) -> None:
        self.store = store
        self.pipes: Pipes | None = None
        """What the mount shows as `.changes`; None: it does not."""
        self.inodes: NodeTable = CompactInodes()
        self._view = view or View()
        self._handles: dict[int, Handle] = {}
        self._handle_ids = itertools.count(1)
        # INVARIANT: one pinned snapshot a list node, there while a reader's handle is open on it.
        self._pinned: dict[int, tuple[Snapshot, int]] = {}
        # INVARIANT: at most `keeps` snapshots, without their bytes, each of its node's version, which is not pinned;
        # the one that was looked up or closed last at the end.
        self._recent: dict[int, Snapshot] = {}

    def watch(self, watch: Watch | None) -> None:
        """Let another watch tell of changes from now on; what the kernel keeps must have been invalidated."""
        self._view = replace(self._view, watch=watch)

    # -- names and attributes

    def lookup(self, parent: int, name: bytes, pid: int = 0) -> Attributes:
        """The attributes of a child, counted as one reference.

        Raises:
            ListMissing, RepositoryMissing: there is no such child.
        """
        if parent == ROOT_ID and self.pipes is not None and name.startswith(pipes.NAME):
            return self._pipe(self.pipes.lookup(name))
        node, attributes = self._child(self._directory(parent), name, pid)
        self.inodes.remember(node)
        return attributes

    def forget(self, references: list[tuple[int, int]]) -> None:
        """Take back (node id, count) references."""
        for id_, count in references:
            if id_ >= pipes.FIRST_ID and self.pipes is not None:
                self.pipes.forget(id_, count)
            else:
                self.inodes.forget(id_, count)

    def attributes(self, id_: int, pid: int = 0) -> Attributes:
        if id_ >= pipes.FIRST_ID:
            return self._pipe(id_)
        return self._attributes(self.inodes.get(id_), pid)

    def is_directory(self, id_: int) -> bool:
        return id_ < pipes.FIRST_ID and isinstance(self.inodes.get(id_), DirectoryNode)

    def key_of(self, id_: int) -> RepositoryKey | None:
        """The key whose list a request for a node may concern."""
        try:
            node = self.inodes.get(id_)
        except VersionGone:
            return None
        if isinstance(node, DirectoryNode):
            return key_at(node.path) if len(node.path) == 3 else None
        return getattr(node, "key", None)

    def _pipe(self, id_: int) -> Attributes:
        # Nothing is kept of it: each lookup is another pipe.
        owner = None if self.pipes is None else self.pipes.owner
        return Attributes(id_, PIPE_MODE, owner=owner)

    def _directory(self, id_: int) -> DirectoryNode:
        node = self.inodes.get(id_)
        if not isinstance(node, DirectoryNode):
            raise RepositoryMissing(f"node {id_} is no directory")
        return node

    def _child(self, parent: DirectoryNode, name: bytes, pid: int) -> tuple[Node, Attributes]:
        path = parent.path
        if len(path) == 3:
            file = self._file(key_at(path), name, pid)
            return file, self._attributes(file, pid)
        text = name.decode("utf-8", "surrogateescape")
        if not path and text == VERSION_SENTINEL:
            return (sentinel := self.inodes.sentinel()), self._attributes(sentinel, pid)
        below = (*path, text)
        require_shown(below, self._view.namespaces)
        if path:
            self._watch(path[1:])
        mtime_ns = self._mtime_ns(below)  # before it is a node: it may not be there
        directory = self.inodes.directory(below)
        # Where changes are told, it is looked at once more when it is watched itself.
        return directory, self._directory_attributes(directory, mtime_ns if self._view.watch is None else None)

    def _file(self, key: RepositoryKey, name: bytes, pid: int) -> Node:
        """The node of a name in a repository directory; ListMissing."""
        if name != LIST_NAME:
            raise ListMissing(f"{key} shows nothing but {LIST}")
        self._watch((key.namespace, key.name))
        snapshot = self.store.open(key)
        node = self.inodes.version(key, snapshot.version)
        if node.id in self._pinned:
            snapshot.close()
        else:
            self._keep(node.id, snapshot)
        return node

    def _keep(self, id_: int, snapshot: Snapshot) -> None:
        """Let go of a snapshot that is not read, as soon as `keeps` others were looked up or closed after it."""
        former = self._recent.pop(id_, None)
        if former is not None:
            former.close()
        snapshot.unload()
        self._recent[id_] = snapshot
        if len(self._recent) > self._view.keeps:
            self._recent.pop(next(iter(self._recent))).close()

    def _attributes(self, node: Node, pid: int) -> Attributes:
        if isinstance(node, DirectoryNode):
            return self._directory_attributes(node, None)
        if isinstance(node, SentinelNode):
            size = len(PRESENTED_VERSION)
            mode = list_mode(False)
            return Attributes(node.id, mode, size, 1, 0, 0, FOREVER, FOREVER)
        assert isinstance(node, ListNode) and node.version is not None
        version = node.version
        kept = 0.0 if self._view.watch is None else self._kept((node.key.namespace, node.key.name))
        times = version.mtime_ns, version.ctime_ns
        return Attributes(node.id, list_mode(self.is_writable), version.size, version.blocks, *times, kept, kept)

    def _directory_attributes(self, node: DirectoryNode, mtime_ns: int | None) -> Attributes:
        kept = self._kept(node.path[1:-1]) if len(node.path) > 1 else FOREVER
        # Its time changes with what it holds, which its own watch tells.
        attributes_kept = self._kept(node.path[1:]) if node.path else FOREVER
        if mtime_ns is None:
            mtime_ns = self._mtime_ns(node.path)
        return Attributes(node.id, directory_mode(self.is_writable), 0, 0, mtime_ns, mtime_ns, kept, attributes_kept)

    def absence_timeout(self, parent: int) -> float:
        """How long the kernel may keep that a child is not there, seconds."""
        return self._absence_kept(self._directory(parent).path)

    def _absence_kept(self, path: tuple[str, ...]) -> float:
        if self._view.watch is None:
            return 0.0
        return self._kept(path[1:]) if path else FOREVER

    def _kept(self, watched: tuple[str, ...]) -> float:
        """How long the kernel may keep an entry of a directory below BASE, seconds."""
        return FOREVER if self._view.watch is not None and self._view.watch(watched) else UNWATCHED

    def _mtime_ns(self, path: tuple[str, ...]) -> int:
        """When a directory changed; RepositoryMissing where it is not there."""
        if not path:
            return 0
        namespace, name = (*path[1:], None, None)[:2]
        return self.store.directory_mtime_ns(namespace, name)

    def _watch(self, path: tuple[str, ...]) -> None:
        if self._view.watch is not None:
            self._view.watch(path)

    # -- directories

    def open_directory(self, id_: int) -> int:
        return self._open(DirectoryHandle(self._directory(id_)))

    def directory_of(self, handle: int) -> int:
        """The node id of an open directory."""
        opened = self._handles[handle]
        assert isinstance(opened, DirectoryHandle)
        return opened.node.id

    def entries(self, handle: int, start: int) -> Iterator[tuple[int, bytes, Node, Attributes]]:
        """(position of the next, name, node, attributes) of a directory's children from position `start` on.

        The caller remembers each node that it gives to the kernel.  A start of 0 reads the directory anew.
        """
        opened = self._handles[handle]
        assert isinstance(opened, DirectoryHandle)
        if start == 0:
            opened.names = self._names(opened.node)
        for position in range(start, len(opened.names)):
            name = opened.names[position]
            try:
                node, attributes = self._child(opened.node, name, 0)
            except (ListMissing, RepositoryMissing):
                continue
            except OSError:
                if len(opened.node.path) == 3:
                    raise
                # What cannot be entered must not hide its neighbours; entering it tells the error.
                node = self.inodes.directory((*opened.node.path, name.decode("utf-8", "surrogateescape")))
                attributes = Attributes(node.id, directory_mode(self.is_writable))
            yield position + 1, name, node, attributes

    def _names(self, node: DirectoryNode) -> list[bytes]:
        path = node.path
        if not path:
            return [VERSION_SENTINEL.encode(), BASE.encode()]
        if len(path) == 3:
            self._mtime_ns(path)
            return [LIST_NAME]
        self._watch(path[1:])
        names = self.store.namespaces() if len(path) == 1 else self.store.repositories(path[1])
        if len(path) == 1 and self._view.namespaces is not None:
            names = [name for name in names if name in self._view.namespaces]
        return sorted(name.encode() for name in names)

    def release_directory(self, handle: int) -> None:
        self._handles.pop(handle, None)

    # -- reading

    def open(self, id_: int, flags: int, pid: int = 0) -> int:
        """Open a file for reading; -> its handle.

        Raises:
            VersionGone: the version of this node is no longer the one beneath; the kernel then looks it up again.
        """
        node = self.inodes.get(id_)
        if isinstance(node, SentinelNode):
            return self._open(ReadHandle(None, lambda: PRESENTED_VERSION))
        if not isinstance(node, ListNode):
            raise NotPermitted(f"node {id_} cannot be read")
        snapshot = self._pin(node)
        if snapshot.version.fault is not None or snapshot.version.size == 0:
            # The kernel does not ask for bytes that are not there by their size: a damaged list would look empty.
            try:
                snapshot.content()
            except (TagfsError, OSError):
                self._unpin(node)
                raise
        return self._open(ReadHandle(node, snapshot.content))

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Raises ListCorrupt, OSError."""
        opened = self._handles[handle]
        assert isinstance(opened, ReadHandle)
        content = opened.content()
        return content if offset == 0 and len(content) <= size else content[offset : offset + size]

    def release(self, handle: int) -> None:
        opened = self._handles.pop(handle, None)
        if isinstance(opened, ReadHandle) and opened.node is not None:
            self._unpin(opened.node)

    def _pin(self, node: ListNode) -> Snapshot:
        """The snapshot of a node's version, shared by all who read it."""
        shared = self._pinned.get(node.id)
        if shared is None:
            snapshot = self._recent.pop(node.id, None) or self.store.open(node.key)
            if node.version is None or snapshot.version.identity != node.version.identity:
                snapshot.close()
                raise VersionGone(f"{node.key} was replaced")
            shared = snapshot, 0
        self._pinned[node.id] = shared[0], shared[1] + 1
        return shared[0]

    def _unpin(self, node: ListNode) -> None:
        snapshot, readers = self._pinned[node.id]
        if readers == 1:
            # Another program may be between its look at the name and its open: the kernel has told it of this version.
            del self._pinned[node.id]
            self._keep(node.id, snapshot)
        else:
            self._pinned[node.id] = snapshot, readers - 1

    def _open(self, handle: Handle) -> int:
        id_ = next(self._handle_ids)
        self._handles[id_] = handle
        return id_

    # -- changes beneath

    def changed(self, path: tuple[str, ...], name: str) -> list[Invalidation]:
        """Take note that `name` changed in the directory `path` below BASE; -> what the kernel must forget."""
        directory = self.inodes.known_directory((BASE, *path))
        invalid = []
        if len(path) == 2:
            self.inodes.supersede(RepositoryKey(path[0], path[1]))
            name = LIST
        else:
            # A directory that another has replaced: where it is in use, the kernel keeps what it has below it.
            for below in self.inodes.directories((BASE, *path, name)):
                invalid += self._replaced(below)
        if directory is not None:
            invalid.append(Invalidation(directory.id, name.encode("utf-8", "surrogateescape")))
            invalid.append(Invalidation(directory.id))
        return invalid

    def _replaced(self, directory: DirectoryNode) -> list[Invalidation]:
        """Take note that a directory may be another one, with another list."""
        invalid = [Invalidation(directory.id)]
        if len(directory.path) == 3:
            key = key_at(directory.path)
            self.inodes.supersede(key)
            invalid.append(Invalidation(directory.id, LIST_NAME))
        above = self.inodes.known_directory(directory.path[:-1]) if directory.path else None
        if above is not None:
            invalid.append(Invalidation(above.id, directory.path[-1].encode("utf-8", "surrogateescape")))
        return invalid

    def everything(self) -> list[Invalidation]:
        """Take note that anything may have changed; -> all that the kernel may keep."""
        while self._recent:
            self._recent.popitem()[1].close()
        for key in [node.key for node in self.inodes.current_lists()]:
            self.inodes.supersede(key)
        invalid = []
        for directory in self.inodes.directories():
            invalid += self._replaced(directory)
        return invalid
