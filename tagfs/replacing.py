"""Replacing: the tree of a read-write mount, whose names and attributes programs change.  Blocking.

Owns: what making, renaming and removing a name mean for the store, and setting a size or a time by path.
Does not know: errnos, trio, variants.
Invariant: as in `publishing`, nothing reaches a list but by a `Step`.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress

from tagfs import taglist
from tagfs.buffers import Buffer, Scratch
from tagfs.errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    ListMissing,
    NameRefused,
    NotPermitted,
    OtherDirectory,
    TagListInvalid,
    VersionGone,
)
from tagfs.handles import HEAVY, ScratchHandle, Step, WriteHandle
from tagfs.inodes import ListNode, ScratchNode
from tagfs.names import BASE, LIST, RepositoryKey
from tagfs.publishing import Publishing
from tagfs.store import Store, Version
from tagfs.view import LIST_NAME, Attributes, Invalidation, check_path, key_at, require_shown
from tagfs.writer import Staged
from tagfs.writing import SCRATCH_COST, shown

log = logging.getLogger(__name__)

RENAME_NOREPLACE = 1
"""From the kernel's `include/uapi/linux/fs.h`; no other flag is known."""

ABANDONED = 3600.0
"""Seconds after which a scratch file that nobody has open says no longer that its repository is being written."""

PRUNED_LATELY = 2.0
"""Seconds for which a namespace that a sweep removed is made again for a repository: more than the kernel shows it."""

_EXTENDED = (b"user.tagfs.revision", b"user.tagfs.count", b"user.tagfs.codec", b"user.tagfs.stored-size")


class WritableTree(Publishing):
    """The tree of a read-write mount."""

    # -- directories

    def make_directory(self, parent: int, name: bytes) -> Attributes:
        path = (*self._directory(parent).path, name.decode("utf-8", "surrogateescape"))
        check_path(path)
        if self._view.namespaces is not None and path[1] not in self._view.namespaces:
            raise NotPermitted(f"{path[1]} is not among the namespaces of this mount")
        if len(path) == 2:
            self.store.make_namespace(path[1])
        else:
            if time.monotonic() - self._pruned.pop(path[1], -PRUNED_LATELY) < PRUNED_LATELY:
                with suppress(AlreadyExists):
                    self.store.make_namespace(path[1])
            self.store.make_repository(RepositoryKey(path[1], path[2]))
        return self.lookup(parent, name)

    def remove_directory(self, parent: int, name: bytes) -> None:
        path = (*self._directory(parent).path, name.decode("utf-8", "surrogateescape"))
        if len(path) not in (2, 3):
            raise NotPermitted(f"{'/'.join(path)} is no directory that can be removed")
        require_shown(path, self._view.namespaces)
        if len(path) == 2:
            self.store.remove_namespace(path[1])
        else:
            key = RepositoryKey(path[1], path[2])
            busy = any(not handle.writer.is_detached for handle in self._writers.get(key, ())) or any(
                scratch.list_key == key for scratch in self._scratch_by_node.values()
            )
            if busy or self._scratch.get(key):
                raise DirectoryNotEmpty(f"{key.directory} has open writers or scratch files")
            self.store.remove_repository(key)
            self.inodes.supersede(key)
        self.inodes.remove_directory(path)

    def key_below(self, parent: int, name: bytes) -> RepositoryKey | None:
        """The key whose directory `name` is, where it can be one."""
        path = (*self._directory(parent).path, name.decode("utf-8", "surrogateescape"))
        if len(path) != 3:
            return None
        require_shown(path, self._view.namespaces)
        return RepositoryKey(path[1], path[2])

    # -- swept

    def is_in_use(self, key: RepositoryKey) -> bool:
        """Whether a program is about to write the list of a key."""
        if any(not handle.writer.is_detached for handle in self._writers.get(key, ())):
            return True
        oldest_ns = time.time_ns() - int(ABANDONED * 1e9)
        return any(
            scratch.open_count > 0 or (scratch.is_linked and scratch.ctime_ns > oldest_ns)
            for scratch in self._scratch_by_node.values()
            if scratch.node.key == key
        )

    def removed(self, path: tuple[str, ...]) -> list[Invalidation]:
        """Take note that a sweep removed a namespace, or a repository with its list; -> what the kernel must forget."""
        now = time.monotonic()
        if len(path) == 1:
            self._pruned = {name: at for name, at in self._pruned.items() if now - at < PRUNED_LATELY}
            self._pruned[path[0]] = now
        else:
            key = RepositoryKey(*path)
            for name in list(self._scratch.get(key, ())):
                self._forget_scratch(key, name)
            self._uncertain.discard(key)
            self.inodes.supersede(key)
        invalid = self.changed(path[:-1], path[-1])
        self.inodes.remove_directory((BASE, *path))
        return invalid

    # -- replacing and removing

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> Step | None:
        """Rename within a repository directory.

        Raises:
            OtherDirectory: anything else.
            NameRefused: an exchange.
            TagListInvalid: the scratch file is no list.
        """
        path = self._directory(parent).path
        if flags & ~RENAME_NOREPLACE:
            raise NameRefused("only plain renames and RENAME_NOREPLACE are known")
        if parent != new_parent or len(path) != 3:
            raise OtherDirectory("a rename stays in the directory of its repository")
        key = key_at(path)
        self._require_name(key, new_name)
        if flags & RENAME_NOREPLACE and self._is_there(key, new_name):
            raise AlreadyExists(f"{new_name!r} is in {key.directory}")
        if name == new_name:
            return None
        if name == LIST_NAME:
            return self._rename_away(key, new_name)
        scratch = self._scratch.get(key, {}).get(name)
        if scratch is None:
            raise ListMissing(f"{key} has no {name!r}")
        if new_name == LIST_NAME:
            return self._rename_over(key, scratch)
        replaced = self._unlink_scratch(key, new_name) if new_name in self._scratch[key] else None
        del self._scratch[key][name]
        scratch.node.name = new_name
        self._scratch[key][new_name] = scratch
        return replaced

    def _rename_away(self, key: RepositoryKey, new_name: bytes) -> Step:
        """The list to a scratch name: out of sight, its variant kept until a successor is committed."""
        version = self._current(key).version
        assert version is not None
        # Here, where there not being room for it is still an answer.
        buffer = Buffer(self._budget, self._limit, bytes(version.size), SCRATCH_COST)

        def run() -> bytes:
            content = self.store.read(key)
            if len(content) != version.size:
                raise VersionGone(f"{key} was replaced")
            self.store.hide(key)
            return content

        def settle(content: bytes) -> None:
            buffer.write(0, content)
            if new_name in self._scratch.get(key, {}):
                self._forget_scratch(key, new_name)
            for other in self._scratch.get(key, {}).values():
                other.hides = False  # what they stood for has a successor, which is what is hidden now
            scratch = self._new_scratch(key, new_name, buffer)
            scratch.hides = True
            scratch.mtime_ns = scratch.requested_mtime_ns = version.mtime_ns
            self.inodes.supersede(key)

        return Step(key, run, settle, lambda _: buffer.release(), version.size)

    def _rename_over(self, key: RepositoryKey, scratch: Scratch) -> Step:
        """A scratch file over the list: commits what has been written to it, released or not."""
        is_judged = len(scratch.buffer) < HEAVY
        try:
            plain = scratch.list_content(is_judged)
        except TagListInvalid as error:
            _tell_refused(key, scratch, error)
            raise
        step = self._publication(key, Staged(plain), scratch.requested_mtime_ns, is_judged=is_judged)
        # From here on what is written to it is meant for the list.
        scratch.is_changed, scratch.list_key = False, key
        mtime_ns = scratch.mtime_ns

        def settle(result: tuple[Version, bool]) -> None:
            step.settle(result)
            self._forget_scratch(key, scratch.node.name)
            version, is_new = result
            if is_new and scratch.open_count == 0 and scratch.mtime_ns == mtime_ns:
                self.inodes.become(scratch.node, version)

        def fail(error: BaseException) -> None:
            if isinstance(error, TagListInvalid):
                _tell_refused(key, scratch, error)
            step.fail(error)
            scratch.list_key = None

        return step.ending(settle, fail)

    def unlink(self, parent: int, name: bytes) -> Step | None:
        path = self._directory(parent).path
        if len(path) != 3:
            raise NotPermitted("the version sentinel stays")
        key = key_at(path)
        if name != LIST_NAME:
            if name not in self._scratch.get(key, {}):
                raise ListMissing(f"{key} has no {name!r}")
            return self._unlink_scratch(key, name)
        try:
            self._current(key)
        except ListMissing:
            if not self._detach_writers(key):
                raise
            return None

        # Also those that are closed meanwhile and whose commit waits behind this step.
        writers = [handle.writer for handle in self._writers.get(key, ())]
        overtaken = [scratch for scratch in self._scratch_by_node.values() if scratch.list_key == key]

        def run() -> None:
            # An older list that a killed daemon has left hidden would come back.
            self.store.drop_hidden(key)
            self.store.remove(key)

        def settle(_: None) -> None:
            for writer in writers:
                writer.is_detached = True
            for scratch in overtaken:
                scratch.list_key = None
            self._detach_writers(key)
            self.inodes.supersede(key)

        return Step(key, run, settle)

    def _unlink_scratch(self, key: RepositoryKey, name: bytes) -> Step | None:
        hides = self._scratch[key][name].hides
        self._forget_scratch(key, name)
        return Step(key, lambda: self.store.drop_hidden(key), lambda _: None) if hides else None

    def _is_there(self, key: RepositoryKey, name: bytes) -> bool:
        try:
            self._file(key, name, 0)
        except ListMissing:
            return False
        return True

    # -- attributes that programs set

    def truncate(self, id_: int, size: int, handle: int | None) -> Step | None:
        """Set the size of an open file, or by path of a list, which commits it."""
        opened = self._handles.get(handle) if handle is not None else None
        node = self.inodes.get(id_)
        now = time.time_ns()
        if isinstance(opened, WriteHandle):
            opened.writer.truncate(size)
            return None
        if isinstance(opened, ScratchHandle):
            opened.scratch.truncate(size, now)
            return None
        if isinstance(node, ScratchNode):
            self._scratch_of(node).truncate(size, now)
            return None
        if not isinstance(node, ListNode):
            raise NotPermitted("only lists and scratch files have a size to set")
        writer = self._writer_seen_by(node, 0) if node.version is None else None
        if writer is not None:
            writer.truncate(size)
            return None
        plain = self.store.read(node.key)
        if size > len(plain):
            raise TagListInvalid(None, f"cannot grow from {len(plain)} to {size} bytes: NULs are no tags")
        taglist.validate(plain[:size])
        return self._publication(node.key, Staged(plain[:size]))

    def set_mtime(self, id_: int, mtime_ns: int) -> Step | None:
        """Set the time of a file; of a list that is being written, at its commit."""
        node = self.inodes.get(id_)
        if isinstance(node, ScratchNode):
            scratch = self._scratch_of(node)
            scratch.mtime_ns = scratch.requested_mtime_ns = mtime_ns
            return None
        if not isinstance(node, ListNode):
            return None
        pending = [h.writer for h in self._writers.get(node.key, ()) if h.node is node and h.writer.is_pending]
        for writer in pending:
            writer.requested_mtime_ns = mtime_ns
        if pending or node.version is None:
            return None
        if self._current(node.key) is not node:
            raise VersionGone(f"{node.key} was replaced")

        def settle(version: Version) -> None:
            node.version = version

        return Step(node.key, _touching(self.store, node.key, mtime_ns), settle)

    # -- extended attributes

    def extended_names(self, id_: int) -> list[bytes]:
        """The names of a node's extended attributes."""
        node = self.inodes.get(id_)
        return list(_EXTENDED) if isinstance(node, ListNode) and node.version is not None else []

    def extended(self, id_: int) -> dict[bytes, bytes]:
        """The extended attributes of a node: of a list those that `docs/semantics.md` names, of others none.

        Raises:
            ListCorrupt: the revision and the count need bytes that cannot be read.
        """
        node = self.inodes.get(id_)
        if not isinstance(node, ListNode) or node.version is None:
            return {}
        snapshot = self._pin(node)
        try:
            plain = snapshot.content()
        finally:
            self._unpin(node)
        values = (
            taglist.revision(plain).encode(),
            b"%d" % taglist.count(plain),
            node.version.codec.name.encode(),
            b"%d" % node.version.stored_size,
        )
        return dict(zip(_EXTENDED, values, strict=True))


def _tell_refused(key: RepositoryKey, scratch: Scratch, error: TagListInvalid) -> None:
    log.warning("%s/%s: rename to %s refused: %s", key.directory, shown(scratch.node.name), LIST, error)


def _touching(store: Store, key: RepositoryKey, mtime_ns: int) -> Callable[[], Version]:
    def run() -> Version:
        store.set_mtime(key, mtime_ns)
        return store.examine(key)

    return run
