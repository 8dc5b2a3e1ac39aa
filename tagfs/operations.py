"""Operations: the pyfuse3 adapter.  Async.

Owns: the translation between pyfuse3 and the tree; which requests wait.
Does not know: codecs, the disk.

Code between two awaits is a critical section: every handler awaits first, for the key it concerns to be quiet, and
then reads or changes the tree and answers without another await, unless it returns a step.
"""

import errno
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields, StatvfsData

from tagfs import errors, syncing
from tagfs.commits import Commits
from tagfs.errnos import errno_of
from tagfs.inodes import ROOT_ID
from tagfs.replacing import WritableTree
from tagfs.tree import Tree
from tagfs.view import FOREVER, Attributes, directory_mode

_P = ParamSpec("_P")
_R = TypeVar("_R")


def answered(handler: Callable[_P, Coroutine[Any, Any, _R]]) -> Callable[_P, Coroutine[Any, Any, _R]]:
    """Turn every exception of a handler into the FUSEError of its errno: pyfuse3 ends the mount at any other."""

    @functools.wraps(handler)
    async def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return await handler(*args, **kwargs)
        except FUSEError:
            raise
        except Exception as error:
            raise FUSEError(errno_of(error)) from None

    return wrapper


class Operations(pyfuse3.Operations):
    """Answers the kernel from a tree.

    `tree` is None until the store is ready for the first time; `waiting` says why it is not ready now.  Meanwhile
    names are answered with EAGAIN, and what is open stays readable.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, uid: int, gid: int, commits: Commits, is_writable: bool) -> None:
        super().__init__()
        self.tree: Tree | None = None
        self.waiting: str | None = "the store is not open yet"
        self._uid = uid
        self._gid = gid
        self._commits = commits
        self._is_writable = is_writable

    # -- who may be asked

    def _named(self) -> Tree:
        """The tree, for a request that names something; StoreWaiting."""
        if self.tree is None or self.waiting is not None:
            raise errors.StoreWaiting(self.waiting or "")
        return self.tree

    def _held(self) -> Tree:
        """The tree, for a request about something open."""
        if self.tree is None:
            raise errors.VersionGone("nothing is open")
        return self.tree

    def _writable(self) -> WritableTree:
        tree = self._named()
        if not isinstance(tree, WritableTree):
            raise FUSEError(errno.EROFS)
        return tree

    async def _quiet(self, id_: int) -> None:
        """Wait for the commits of the list that a request for this node may concern."""
        if self._is_writable and self.tree is not None:
            await self._commits.quiet(self.tree.key_of(id_))

    # -- names and attributes

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        await self._quiet(parent_inode)
        tree = self._named()
        # First: what comes into being after the look must be told.
        timeout = tree.absence_timeout(parent_inode)
        try:
            return self._entry(tree.lookup(parent_inode, name, ctx.pid))
        except (errors.ListMissing, errors.RepositoryMissing):
            absent = EntryAttributes()
            absent.st_ino = 0
            absent.entry_timeout = timeout
            return absent

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        if self.tree is not None:
            self.tree.forget(list(inode_list))

    @answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        await self._quiet(inode)
        if inode == ROOT_ID:
            return self._entry(Attributes(ROOT_ID, directory_mode(self._is_writable), attr_timeout=FOREVER))
        tree = self._held()
        if tree.is_directory(inode):
            tree = self._named()
        return self._entry(tree.attributes(inode, ctx.pid))

    @answered
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        await self._quiet(inode)
        tree = self._writable()
        if fields.update_size:
            await self._commits.run(tree.truncate(inode, attr.st_size, fh))
        if fields.update_mtime:
            await self._commits.run(tree.set_mtime(inode, attr.st_mtime_ns))
        if inode == ROOT_ID:
            return await self.getattr(inode, ctx)
        return self._entry(tree.attributes(inode, ctx.pid))

    @answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        told = StatvfsData()
        told.f_bsize = told.f_frsize = 4096
        told.f_namemax = 255
        if self.tree is not None and self.waiting is None:
            space = self.tree.store.space()
            told.f_bsize, told.f_frsize = space.f_bsize, space.f_frsize
            told.f_blocks, told.f_bfree, told.f_bavail = space.f_blocks, space.f_bfree, space.f_bavail
            told.f_files, told.f_ffree, told.f_favail = space.f_files, space.f_ffree, space.f_favail
        return told

    def _entry(self, attributes: Attributes) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = attributes.id
        entry.st_mode = attributes.mode
        entry.st_uid = self._uid if attributes.owner is None else attributes.owner
        entry.st_gid = self._gid
        entry.st_size = attributes.size
        entry.st_blocks = attributes.blocks
        entry.st_mtime_ns = entry.st_atime_ns = attributes.mtime_ns
        entry.st_ctime_ns = attributes.ctime_ns
        entry.entry_timeout = attributes.entry_timeout
        entry.attr_timeout = attributes.attr_timeout
        return entry

    # -- directories

    @answered
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return self._named().open_directory(inode)

    @answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        tree = self._named()
        await self._quiet(tree.directory_of(fh))
        is_begun = False
        try:
            for position, name, node, attributes in tree.entries(fh, start_id):
                if not pyfuse3.readdir_reply(token, name, self._entry(attributes), position):
                    break
                tree.inodes.remember(node)
                is_begun = True
        except Exception:
            # What is counted has to be given. The kernel goes on from there, and is told then.
            if not is_begun:
                raise

    @answered
    async def releasedir(self, fh: int) -> None:
        self._held().release_directory(fh)

    @answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._commits.settled()

    @answered
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._writable().make_directory(parent_inode, name))

    @answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        tree = self._writable()
        await self._commits.quiet(tree.key_below(parent_inode, name))
        tree.remove_directory(parent_inode, name)

    # -- open files

    @answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        await self._quiet(inode)
        return self._opened(self._named().open(inode, flags, ctx.pid))

    @answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        await self._quiet(parent_inode)
        handle, attributes = self._writable().create(parent_inode, name, flags, ctx.pid)
        return self._opened(handle), self._entry(attributes)

    def _opened(self, handle: int) -> FileInfo:
        """A read-only mount's readers may share pages, because a version's node never changes; the nodes of a
        read-write mount are also written through."""
        return FileInfo(fh=handle, direct_io=self._is_writable, keep_cache=not self._is_writable)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return self._held().read(fh, off, size)

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        tree = self._held()
        assert isinstance(tree, WritableTree)
        tree.write(fh, off, buf)
        return len(buf)

    @answered
    async def flush(self, fh: int) -> None:
        if not self._is_writable:
            raise FUSEError(errno.ENOSYS)  # the kernel stops asking: nothing can be written here
        await self._commits.room()
        tree = self._held()
        assert isinstance(tree, WritableTree)
        await syncing.flush(self._commits, tree, fh)

    @answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        tree = self._held()
        if isinstance(tree, WritableTree):
            await syncing.sync(self._commits, tree, fh)

    @answered
    async def release(self, fh: int) -> None:
        """Answered before the commit is durable: nobody waits for the answer but the kernel's background slots."""
        tree = self._held()
        if isinstance(tree, WritableTree):
            syncing.release(self._commits, tree, fh)
        else:
            tree.release(fh)

    # -- names that change

    @answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        await self._quiet(parent_inode_old)
        tree = self._writable()
        await self._commits.run(tree.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags))

    @answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._quiet(parent_inode)
        await self._commits.run(self._writable().unlink(parent_inode, name))

    @answered
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        raise errors.NotPermitted("no links")

    @answered
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        raise errors.NotPermitted("no links")

    @answered
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        raise errors.NotPermitted("no devices, pipes or sockets")

    # -- extended attributes

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if not self._is_writable:
            raise FUSEError(errno.ENOSYS)  # the kernel stops asking; a warm `ls -l` sent five for each list
        if not name.startswith(b"user.tagfs."):
            raise FUSEError(pyfuse3.ENOATTR)
        await self._quiet(inode)
        try:
            return self._writable().extended(inode)[name]
        except KeyError:
            raise FUSEError(pyfuse3.ENOATTR) from None

    @answered
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        if not self._is_writable:
            raise FUSEError(errno.ENOSYS)
        await self._quiet(inode)
        return self._writable().extended_names(inode)

    @answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        raise FUSEError(errno.EOPNOTSUPP)

    @answered
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        raise FUSEError(errno.EOPNOTSUPP)

    def stacktrace(self) -> None:
        """pyfuse3 lets any client of the mount ask for this; the daemon's stack is nobody's business."""
