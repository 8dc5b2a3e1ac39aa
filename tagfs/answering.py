"""Answering: a read-write mount's requests, each answered in bytes from the tree.  Async.

Owns: what each request is answered with, and what it has to wait for before.
Does not know: the device, in which order requests are answered, codecs, the disk.

A request that has nothing to wait for is answered by a function that awaits nothing.  So code is a critical section
from where a handler begins, or goes on after an await, to the next await or its end: it finds the key it concerns
quiet, reads or changes the tree, and answers.
"""

import errno
from collections.abc import Callable, Coroutine
from typing import Any

from tagfs import syncing, wire, wirewrite
from tagfs.commits import Commits, Pending
from tagfs.errors import ListMissing, NotPermitted, RepositoryMissing, StoreWaiting, VersionGone
from tagfs.inodes import ROOT_ID
from tagfs.names import RepositoryKey
from tagfs.raw import LISTED, RawChannel
from tagfs.replacing import WritableTree
from tagfs.view import FOREVER, Attributes, directory_mode
from tagfs.wire import Malformed, Opcode

_KEYED = frozenset(
    {
        Opcode.LOOKUP,
        Opcode.GETATTR,
        Opcode.SETATTR,
        Opcode.UNLINK,
        Opcode.RENAME,
        Opcode.RENAME2,
        Opcode.OPEN,
        Opcode.READDIRPLUS,
        Opcode.CREATE,
        Opcode.LISTXATTR,
    }
)
"""Requests that wait until the key that their node may concern is quiet."""

Answer = bytes | None
"""What follows the header; None where nothing is answered."""

Waiting = Pending | Coroutine[Any, Any, Answer]
"""A step, at whose end the answer is that it was done; or what waits, for a task, and then answers."""

Handler = Callable[[bytes, int], Answer | Waiting]
"""Answers a request about a node, or -> what is to be waited for."""


class Refused(Exception):
    """An errno that is no error of the tree."""

    def __init__(self, number: int) -> None:
        self.number = number


class Answering(RawChannel):
    """Answers for a tree that belongs to `uid` and `gid`, whose steps `commits` runs."""

    def __init__(self, uid: int, gid: int, commits: Commits) -> None:
        super().__init__(uid, gid)
        self._commits = commits
        self._answers: dict[int, Handler] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.FORGET: lambda request, node: self._forget(Opcode.FORGET, request, node),
            Opcode.BATCH_FORGET: lambda request, node: self._forget(Opcode.BATCH_FORGET, request, node),
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.SYMLINK: self._no_links,
            Opcode.MKNOD: self._no_links,
            Opcode.LINK: self._no_links,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: lambda request, node: self._rename(node, *wirewrite.renamed(request)),
            Opcode.RENAME2: lambda request, node: self._rename(node, *wirewrite.renamed_with_flags(request)),
            Opcode.OPEN: self._open,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.STATFS: self._statfs,
            Opcode.RELEASE: self._release,
            Opcode.FSYNC: self._fsync,
            Opcode.SETXATTR: self._no_attributes,
            Opcode.REMOVEXATTR: self._no_attributes,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.FLUSH: self._flush,
            Opcode.INIT: lambda request, node: wirewrite.initiation(request),
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIRPLUS: self._readdir,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.FSYNCDIR: self._fsyncdir,
            Opcode.CREATE: self._create,
            Opcode.DESTROY: lambda request, node: b"",
        }

    def _handle(self, opcode: int, request: bytes, node: int) -> Answer | Waiting:
        handler = self._answers.get(opcode)
        if handler is None:
            raise Refused(errno.ENOSYS)
        if opcode in _KEYED and (key := self._busy(node)) is not None:
            return self._once_quiet(key, handler, request, node)
        return handler(request, node)

    # -- who may be asked, and when

    def _named(self) -> WritableTree:
        """The tree, for a request that names something; StoreWaiting."""
        if self.waiting is not None:
            raise StoreWaiting(self.waiting)
        return self._held()

    def _held(self) -> WritableTree:
        """The tree, for a request about something that is open."""
        if self.tree is None:
            raise VersionGone("nothing is open")
        assert isinstance(self.tree, WritableTree)
        return self.tree

    def _busy(self, node: int) -> RepositoryKey | None:
        """The key that a request for this node has to wait for."""
        if self.tree is None:
            return None
        key = self.tree.key_of(node)
        return None if key is None or self._commits.is_quiet(key) else key

    async def _once_quiet(self, key: RepositoryKey, handler: Handler, request: bytes, node: int) -> Answer:
        await self._commits.quiet(key)
        found = handler(request, node)
        if isinstance(found, Pending):
            await found.ended()
            return b""
        return found if found is None or isinstance(found, bytes) else await found

    def _is_written_to(self, request: bytes) -> bool:
        """Whether a FLUSH is of what a program writes: the others have nothing to stage."""
        try:
            return self._held().is_written_to(wirewrite.handle_of(request))
        except (VersionGone, Malformed):
            return False  # its answer says so

    # -- names and attributes

    def _lookup(self, request: bytes, node: int) -> Answer:
        tree = self._named()
        try:
            return self._entry(tree.lookup(node, wire.name_of(request), wirewrite.pid_of(request)))
        except (ListMissing, RepositoryMissing):
            return wire.absence(0.0)

    def _getattr(self, request: bytes, node: int) -> Answer:
        if node == ROOT_ID:
            root = Attributes(ROOT_ID, directory_mode(True), attr_timeout=FOREVER)
            return wire.attributes(root, self._uid, self._gid)
        tree = self._held()
        if tree.is_directory(node):
            tree = self._named()
        return wire.attributes(tree.attributes(node, wirewrite.pid_of(request)), self._uid, self._gid)

    def _setattr(self, request: bytes, node: int) -> Answer | Waiting:
        tree = self._named()
        size, mtime_ns, handle = wirewrite.changed(request)
        step = tree.truncate(node, size, handle) if size is not None else None
        if step is None and mtime_ns is not None:
            step, mtime_ns = tree.set_mtime(node, mtime_ns), None
        if step is None:
            return self._getattr(request, node)
        pending = self._commits.begin(step)

        async def wait() -> Answer:
            await pending.ended()
            if mtime_ns is not None:
                await self._commits.run(tree.set_mtime(node, mtime_ns))
            return self._getattr(request, node)

        return wait()

    def _statfs(self, request: bytes, node: int) -> Answer:
        return wire.space(self._named().store.space() if self.tree is not None and self.waiting is None else None)

    def _entry(self, attributes: Attributes) -> bytes:
        return wire.entry(attributes, self._uid, self._gid)

    # -- directories

    def _opendir(self, request: bytes, node: int) -> Answer:
        return wirewrite.opened_directory(self._named().open_directory(node))

    def _readdir(self, request: bytes, node: int) -> Answer:
        tree = self._named()
        position, room = wire.read_of(request)
        room = min(room, LISTED)
        records = []
        try:
            for following, name, child, attributes in tree.entries(wirewrite.handle_of(request), position):
                room -= wire.record_size(name, True)
                if room < 0:
                    break
                records.append(wire.record(name, following, child.id, attributes.mode, self._entry(attributes)))
                tree.inodes.remember(child)
        except Exception:
            # What is counted has to be given. The kernel goes on from there, and is told then.
            if not records:
                raise
        return b"".join(records)

    def _releasedir(self, request: bytes, node: int) -> Answer:
        self._held().release_directory(wirewrite.handle_of(request))
        return b""

    async def _fsyncdir(self, request: bytes, node: int) -> Answer:
        await self._commits.settled()
        return b""

    def _mkdir(self, request: bytes, node: int) -> Answer:
        return self._entry(self._named().make_directory(node, wirewrite.made(request)))

    def _rmdir(self, request: bytes, node: int) -> Answer | Waiting:
        tree, name = self._named(), wire.name_of(request)
        key = tree.key_below(node, name)
        if key is not None and not self._commits.is_quiet(key):
            return self._once_quiet(key, self._rmdir, request, node)
        tree.remove_directory(node, name)
        return b""

    # -- open files

    def _open(self, request: bytes, node: int) -> Answer:
        return wirewrite.opened(self._named().open(node, wirewrite.flags_of(request), wirewrite.pid_of(request)))

    def _create(self, request: bytes, node: int) -> Answer:
        flags, name = wirewrite.created(request)
        handle, attributes = self._named().create(node, name, flags, wirewrite.pid_of(request))
        return self._entry(attributes) + wirewrite.opened(handle)

    def _read(self, request: bytes, node: int) -> Answer:
        offset, size = wire.read_of(request)
        return self._held().read(wirewrite.handle_of(request), offset, size)

    def _write(self, request: bytes, node: int) -> Answer:
        handle, offset, data = wirewrite.written(request)
        self._held().write(handle, offset, data)
        return wirewrite.size(len(data))

    def _flush(self, request: bytes, node: int) -> Answer | Waiting:
        if not self._commits.has_room:
            return self._flush_later(request, node)
        tree, handle = self._held(), wirewrite.handle_of(request)
        pending = syncing.stage(self._commits, tree.flush(handle))
        return b"" if pending is None else pending

    async def _flush_later(self, request: bytes, node: int) -> Answer:
        await self._commits.room()
        await syncing.flush(self._commits, self._held(), wirewrite.handle_of(request))
        return b""

    async def _fsync(self, request: bytes, node: int) -> Answer:
        await syncing.sync(self._commits, self._held(), wirewrite.handle_of(request))
        return b""

    def _release(self, request: bytes, node: int) -> Answer:
        """Answered before the commit is durable: nobody waits for the answer but the kernel's background slots."""
        syncing.release(self._commits, self._held(), wirewrite.handle_of(request))
        return b""

    # -- names that change

    def _rename(self, node: int, name: bytes, directory: int, new_name: bytes, flags: int) -> Answer | Waiting:
        step = self._named().rename(node, name, directory, new_name, flags)
        return b"" if step is None else self._commits.begin(step)

    def _unlink(self, request: bytes, node: int) -> Answer | Waiting:
        step = self._named().unlink(node, wire.name_of(request))
        return b"" if step is None else self._commits.begin(step)

    def _no_links(self, request: bytes, node: int) -> Answer:
        raise NotPermitted("no links, devices, pipes or sockets")

    # -- extended attributes

    def _getxattr(self, request: bytes, node: int) -> Answer | Waiting:
        name = wirewrite.attribute_of(request)
        if not name.startswith(b"user.tagfs."):
            raise Refused(errno.ENODATA)
        if (key := self._busy(node)) is not None:
            return self._once_quiet(key, self._getxattr, request, node)
        value = self._named().extended(node).get(name)
        if value is None:
            raise Refused(errno.ENODATA)
        return _fitted(request, value)

    def _listxattr(self, request: bytes, node: int) -> Answer:
        return _fitted(request, b"".join(name + b"\0" for name in self._named().extended_names(node)))

    def _no_attributes(self, request: bytes, node: int) -> Answer:
        raise Refused(errno.EOPNOTSUPP)


def _fitted(request: bytes, value: bytes) -> bytes:
    """What a GETXATTR or LISTXATTR is answered with: what there is, or how long that is."""
    room = wirewrite.room_of(request)
    if room == 0:
        return wirewrite.size(len(value))
    if len(value) > room:
        raise Refused(errno.ERANGE)
    return value
