"""Writing: lists and scratch files that programs have open and write to.  Blocking.

Owns: who has what open, what is shown of it before it is committed, scratch files.
Does not know: errnos, trio, variants; what closing commits (`publishing`), how names change (`replacing`).
"""

import itertools
import logging
import os
import stat
import time
from dataclasses import dataclass

from tagfs.buffers import Budget, Buffer, Scratch
from tagfs.errors import (
    AlreadyExists,
    ListMissing,
    ListTooLarge,
    NameRefused,
    NotPermitted,
    StagingFull,
    TagfsError,
    TagListInvalid,
    VersionGone,
)
from tagfs.handles import ReadHandle, ScratchHandle, WriteHandle
from tagfs.inodes import DirectoryNode, Inodes, ListNode, Node, ScratchNode
from tagfs.names import BASE, RepositoryKey
from tagfs.store import Store
from tagfs.traces import Traces
from tagfs.tree import Tree
from tagfs.view import LIST_NAME, Attributes, View, key_at, list_mode
from tagfs.writer import Writer

log = logging.getLogger(__name__)

SCRATCH_NAME_LIMIT = 255
"""Bytes in the name of a scratch file, as statfs tells programs."""

SCRATCH_KEPT = 1.0
"""Seconds for which the kernel may keep the attributes of a scratch file: nobody changes it but through the kernel."""

SCRATCH_COST = 1024
"""Bytes that a scratch file counts for besides its content."""

LIST_KEPT = 1.0
"""Seconds for which the kernel may keep the attributes of a version that nobody is writing: they do not change, and its
name is looked up each time."""

LATE_FOR = 1.0
"""Seconds in which a program opens the next version, whose open was refused because the list had just been replaced."""

BUDGET_LISTS = 4
"""How many lists of the largest allowed size open writers and scratch files may hold in memory together."""

_COMPRESSED_NAMES = (LIST_NAME + b".gz", LIST_NAME + b".zst")
_BLOCK = 512


@dataclass(slots=True)
class _Late:
    """Whose open of a list came too late: until when the next one is expected, and the node `kept` for it."""

    until: float = 0.0
    kept: ListNode | None = None


class Writing(Tree):
    """A tree whose files can be opened for writing, and written to."""

    is_writable = True

    def __init__(self, store: Store, list_limit: int, view: View | None = None) -> None:
        super().__init__(store, view)
        # Handles hold nodes, and a node's version changes when a draft is committed.
        self.inodes: Inodes = Inodes()
        self._limit = list_limit
        self._budget = self.budget = Budget(BUDGET_LISTS * list_limit)
        self._scratch: dict[RepositoryKey, dict[bytes, Scratch]] = {}
        # INVARIANT: every scratch file that has a name or is open, by the id of its node.
        self._scratch_by_node: dict[int, Scratch] = {}
        self._writers: dict[RepositoryKey, list[WriteHandle]] = {}
        # The order in which programs close, synchronise and rename, over all lists.
        self._closes = itertools.count(1)
        # INVARIANT: (key, who) of each who was just refused a version that had been replaced.
        self._late: dict[tuple[RepositoryKey, int], _Late] = {}
        # INVARIANT: the keys whose list may not survive a power cut, so that writing the same again changes something.
        self._uncertain: set[RepositoryKey] = set()
        self.written: Traces[RepositoryKey] = Traces()
        """When programs last committed to a list, also what it was already; of time.monotonic."""
        self._pruned: dict[str, float] = {}

    # -- what is shown besides the committed lists

    def _file(self, key: RepositoryKey, name: bytes, pid: int) -> Node:
        if name != LIST_NAME:
            try:
                return self.inodes.restore(self._scratch[key][name].node)
            except KeyError:
                raise ListMissing(f"{key} has no {name!r}") from None
        try:
            return self._current(key)
        except ListMissing:
            for handle in self._writers.get(key, ()):
                if handle.node.version is None and handle.writer.is_of(pid) and not handle.writer.is_detached:
                    return handle.node
            raise

    def _current(self, key: RepositoryKey) -> ListNode:
        """The node of the current version; a list that an earlier daemon left hidden is put back; ListMissing."""
        try:
            return self.inodes.version(key, self.store.examine(key, self.inodes.current(key)))
        except ListMissing:
            if self._is_hidden(key) or not self.store.recover(key):
                raise
            self._tell_put_back(key)
            return self.inodes.version(key, self.store.examine(key))

    def _tell_put_back(self, key: RepositoryKey) -> None:
        log.warning("%s: put back, after a writer had renamed it away and never replaced it", key.path)

    def _is_hidden(self, key: RepositoryKey) -> bool:
        return any(scratch.hides for scratch in self._scratch.get(key, {}).values())

    def _names(self, node: DirectoryNode) -> list[bytes]:
        names = super()._names(node)
        if len(node.path) == 3:
            names += sorted(self._scratch.get(RepositoryKey(*node.path[1:]), ()))
        return names

    def _attributes(self, node: Node, pid: int) -> Attributes:
        if isinstance(node, ScratchNode):
            scratch = self._scratch_of(node)
            size = len(scratch.buffer)
            times = scratch.mtime_ns, scratch.mtime_ns
            mode = list_mode(self.is_writable)
            return Attributes(node.id, mode, size, -(-size // _BLOCK), *times, attr_timeout=SCRATCH_KEPT)
        if not isinstance(node, ListNode):
            return super()._attributes(node, pid)
        writer = self._writer_seen_by(node, pid)
        if node.version is None or writer is not None:
            size = writer.size if writer is not None else 0
            now = time.time_ns()
            mtime_ns = writer.requested_mtime_ns if writer and writer.requested_mtime_ns is not None else now
            return Attributes(node.id, list_mode(self.is_writable), size, 0, mtime_ns, now)
        attributes = super()._attributes(node, pid)
        # A program that writes is shown its own size, and the kernel keeps one for all.
        return attributes if node.key in self._writers else attributes._replace(attr_timeout=LIST_KEPT)

    def _writer_seen_by(self, node: ListNode, pid: int) -> Writer | None:
        """The writer whose size a program sees when it asks: its own that has changed, or the creator's."""
        for handle in self._writers.get(node.key, ()):
            writer = handle.writer
            if handle.node is node and (node.version is None or (writer.is_of(pid) and writer.was_written)):
                return writer
        return None

    def _scratch_of(self, node: ScratchNode) -> Scratch:
        try:
            return self._scratch_by_node[node.id]
        except KeyError:
            raise VersionGone(f"{node.key}/{shown(node.name)} is gone") from None

    # -- opening

    def open(self, id_: int, flags: int, pid: int = 0) -> int:
        node = self.inodes.get(id_)
        writes = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if isinstance(node, ScratchNode):
            scratch = self._scratch_of(node)
            if flags & os.O_TRUNC:
                scratch.truncate(0, time.time_ns())
            scratch.open_count += 1
            return self._open(ScratchHandle(scratch))
        if not isinstance(node, ListNode):
            if writes:
                raise NotPermitted(f"node {id_} is never written")
            return super().open(id_, flags, pid)
        if node.version is None and not writes:
            writer = self._writer_seen_by(node, pid)
            content = writer.content() if writer is not None else b""
            return self._open(ReadHandle(None, lambda: content))
        try:
            handle = self._open_writer(node, flags, pid) if writes else super().open(id_, flags, pid)
        except VersionGone:
            self._late.setdefault((node.key, pid), _Late()).until = time.monotonic() + LATE_FOR
            raise
        if self._late and (late := self._late.pop((node.key, pid), None)) is not None:
            self._drop_kept(late)
        return handle

    def lookup(self, parent: int, name: bytes, pid: int = 0) -> Attributes:
        attributes = super().lookup(parent, name, pid)
        if self._late and not stat.S_ISFIFO(attributes.mode):
            node = self.inodes.get(attributes.id)
            if isinstance(node, ListNode) and node.version is not None:
                self._keep_looked_up(node, pid)
        return attributes

    def create(self, parent: int, name: bytes, flags: int, pid: int = 0) -> tuple[int, Attributes]:
        """Create a file, or open the one that is there; -> (handle, attributes), counted as one reference."""
        path = self._directory(parent).path
        if len(path) != 3:
            raise NotPermitted(f"files are in {BASE}/<namespace>/<repository> and nowhere else")
        key = key_at(path)
        self._mtime_ns(path)
        self._require_name(key, name)
        try:
            node = self._file(key, name, pid)
            if flags & os.O_EXCL:
                raise AlreadyExists(f"{name!r} is in {key.directory}")
            handle = self.open(node.id, flags, pid)
        except ListMissing:
            if name == LIST_NAME:
                node = self.inodes.draft(key)
                handle = self._open_writer(node, flags, pid)
            else:
                node = self._new_scratch(key, name, Buffer(self._budget, self._limit, cost=SCRATCH_COST)).node
                handle = self.open(node.id, flags, pid)
        attributes = self._attributes(node, pid)
        self.inodes.remember(node)
        return handle, attributes

    def _open_writer(self, node: ListNode, flags: int, pid: int) -> int:
        base = self._pin(node) if node.version is not None else None
        appends, truncates = bool(flags & os.O_APPEND), bool(flags & os.O_TRUNC)
        if base is not None and not appends and not truncates:
            self._require_base(node)
        writer = Writer(self._budget, self._limit, base, appends, truncates, pid)
        handle = WriteHandle(node, writer, is_pinned=base is not None)
        self._writers.setdefault(node.key, []).append(handle)
        return self._open(handle)

    def _require_base(self, node: ListNode) -> None:
        """Let nobody change some lines of a version that only its readers still have, and so lose the current one."""
        try:
            # Not of the snapshot that they have: setting its time makes a version of the same bytes.
            known = node.version
            is_current = known is not None and self.store.examine(node.key, known).identity == known.identity
        except (TagfsError, OSError):
            self._unpin(node)
            raise
        if not is_current:
            self._unpin(node)
            raise VersionGone(f"{node.key} was replaced, and readers still have the old version open")

    def _keep_looked_up(self, node: ListNode, pid: int) -> None:
        """Keep the version that was just looked up for the open that follows, where the one before came too late.

        A node never changes its version, because the kernel may have its size and its pages; so the open of a version
        that was replaced is refused, once, and the kernel looks the list up again.
        """
        late = self._late.get((node.key, pid))
        if late is None or late.kept is node:
            return
        self._drop_kept(late)
        try:
            self._pin(node)
        except (TagfsError, OSError):
            return  # Opening it will say so.
        late.kept = node

    def _drop_kept(self, late: _Late) -> None:
        if late.kept is not None:
            self._unpin(late.kept)
            late.kept = None

    def _give_up_late(self) -> None:
        """Let go of what was kept for programs that did not open it."""
        now = time.monotonic()
        for place, late in [*self._late.items()]:
            if late.until < now:
                del self._late[place]
                self._drop_kept(late)

    def _new_scratch(self, key: RepositoryKey, name: bytes, buffer: Buffer) -> Scratch:
        scratch = Scratch(self.inodes.scratch(key, name), buffer, time.time_ns())
        self._scratch.setdefault(key, {})[name] = scratch
        self._scratch_by_node[scratch.node.id] = scratch
        return scratch

    def _require_name(self, key: RepositoryKey, name: bytes) -> None:
        """NameRefused, NotPermitted unless a file of this name can be made in the directory of a repository."""
        if len(name) > SCRATCH_NAME_LIMIT:
            raise NameRefused(f"a name of {len(name)} bytes, at most {SCRATCH_NAME_LIMIT} are allowed")
        if name in _COMPRESSED_NAMES:
            log.error(
                "%s/%s: refused, this mount compresses by itself; raise Flux's --storage-compression-threshold"
                " until it writes none of these",
                key.directory,
                name.decode(),
            )
            raise NotPermitted(f"{name.decode()} is not written through the mount")

    # -- reading and writing what is open

    def read(self, handle: int, offset: int, size: int) -> bytes:
        opened = self._handles[handle]
        if isinstance(opened, WriteHandle):
            return opened.writer.read(offset, size)
        if isinstance(opened, ScratchHandle):
            return opened.scratch.buffer.read(offset, size)
        return super().read(handle, offset, size)

    def write(self, handle: int, offset: int, data: bytes) -> None:
        """Raises TagListInvalid, ListTooLarge, StagingFull (the handle is poisoned), HandlePoisoned."""
        opened = self._handles[handle]
        if isinstance(opened, ScratchHandle):
            opened.scratch.write(offset, data, time.time_ns())
            return
        assert isinstance(opened, WriteHandle)
        try:
            opened.writer.write(offset, data)
        except (TagListInvalid, ListTooLarge, StagingFull) as error:
            log.warning("%s: write refused: %s; closing this handle commits nothing", opened.node.key.path, error)
            raise

    def release(self, handle: int) -> None:
        opened = self._handles.get(handle)
        super().release(handle)
        if self._late:
            self._give_up_late()
        if isinstance(opened, ScratchHandle):
            opened.scratch.open_count -= 1
            self._let_go(opened.scratch)
        elif isinstance(opened, WriteHandle):
            opened.writer.close()
            writers = self._writers[opened.node.key]
            writers.remove(opened)
            if not writers:
                del self._writers[opened.node.key]
            if opened.is_pinned:
                self._unpin(opened.node)

    # -- scratch files

    def _forget_scratch(self, key: RepositoryKey, name: bytes) -> None:
        scratch = self._scratch[key].pop(name)
        if not self._scratch[key]:
            del self._scratch[key]
        scratch.is_linked = False
        self._let_go(scratch)

    def _let_go(self, scratch: Scratch) -> None:
        """Free a scratch file that has no name and is not open."""
        if not scratch.is_linked and scratch.open_count == 0:
            self._scratch_by_node.pop(scratch.node.id, None)
            scratch.buffer.release()
            if scratch.node.lookups <= 0:
                self.inodes.drop(scratch.node)


def shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
