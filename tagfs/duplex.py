"""Duplex: a read-write mount's requests, answered straight on /dev/fuse.  Async.

Owns: reading requests, in which order they are answered, which of them wait; answering them from the tree.
Does not know: how the device was mounted, codecs, the disk.

A request that has nothing to wait for is answered at once, by a function that awaits nothing.  So code is a critical
section from where a handler begins, or its task goes on after an await, to the next await or its end: it finds the key
it concerns quiet, reads or changes the tree, and answers.
"""

import errno
import logging
import mmap
import os
import select
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import trio

from tagfs import syncing, wire, wirewrite
from tagfs.commits import Commits, Pending
from tagfs.errnos import errno_of
from tagfs.errors import ListMissing, NotPermitted, RepositoryMissing, StoreWaiting, VersionGone
from tagfs.inodes import ROOT_ID
from tagfs.names import RepositoryKey
from tagfs.raw import COUNTED, ENDED, PASSING, RawChannel, name_of
from tagfs.replacing import WritableTree
from tagfs.timings import DONE
from tagfs.tree import FOREVER, Attributes, Tree
from tagfs.wire import Malformed, Opcode

log = logging.getLogger(__name__)

LINGER_MS = 1
"""How long the loop waits for the next request itself: a program sends it 10 µs after an answer, and being woken by
trio's own wait costs as much as a request.  Not while a step is under way, of whose end the loop is told by trio."""

TURN = 0.002
"""Seconds of requests after which other tasks have their turn, however many more there are."""

LISTED = 1 << 16
"""Bytes of a listing at once, at most: some 400 entries, each a look at the store, before others have their turn."""

AHEAD = 8
"""Requests of readers that are answered before one of a writer, at most."""

MOST_HELD = 1024
"""Requests that may wait for steps at once; the kernel keeps those that come then."""

MOST_READ = 64
"""Requests of writers that were read and have yet to be answered, at most: each can be a megabyte."""

_WRITERS = frozenset(
    {
        Opcode.SETATTR,
        Opcode.MKDIR,
        Opcode.UNLINK,
        Opcode.RMDIR,
        Opcode.RENAME,
        Opcode.RENAME2,
        Opcode.WRITE,
        Opcode.FSYNC,
        Opcode.CREATE,
    }
)
"""Requests of which each can take as long as many of a reader's, which are answered before them; a FLUSH of what is
written to is one too.  Whoever asks waits for the answer before it asks for more, so nothing that one program does is
turned round.  RELEASE is not among them: nobody waits for its answer, and the LOOKUP behind it must find its commit."""

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

_UNANSWERED = (Opcode.FORGET, Opcode.BATCH_FORGET)

_NO_ATTRIBUTE = errno.ENODATA

Answer = bytes | None
"""What follows the header; None where nothing is answered."""

Waiting = Pending | Coroutine[Any, Any, Answer]
"""A step, at whose end the answer is that it was done; or what waits, for a task, and then answers."""

Handler = Callable[[bytes, int], Answer | Waiting]
"""Answers a request about a node, or -> what is to be waited for."""


class _Refused(Exception):
    """An errno that is no error of the tree."""

    def __init__(self, number: int) -> None:
        self.number = number


class Duplex(RawChannel):
    """Answers for a tree that belongs to `uid` and `gid`, whose steps `commits` runs."""

    def __init__(self, uid: int, gid: int, commits: Commits) -> None:
        super().__init__(uid, gid)
        self._commits = commits
        self._nursery: trio.Nursery | None = None
        # Of the kernel's pages until they are used: most requests take one.
        self._buffer = mmap.mmap(-1, wirewrite.BUFFER_SIZE)
        self._bytes = memoryview(self._buffer)
        # INVARIANT: requests that were read and are to be answered in this order, with when that was.
        self._writers: deque[tuple[bytes, float]] = deque()
        # INVARIANT: the number of tasks that will answer.
        self._held = 0
        self._let_go = trio.lowlevel.ParkingLot()
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

    # -- the loop

    async def serve(self) -> None:
        """Answer until the device is unmounted, its connection cut, or `terminate` called; what waits for steps is
        answered when they end."""
        async with trio.open_nursery() as self._nursery:
            with self._scope:
                await self._serve()

    async def _serve(self) -> None:
        poller = select.poll()
        poller.register(self._device, select.POLLIN)
        ahead, deadline = 0, time.monotonic() + TURN
        while True:
            patience = 0 if self._writers or self._commits.depth else LINGER_MS
            if ahead < AHEAD and len(self._writers) < MOST_READ and self._held < MOST_HELD and poller.poll(patience):
                request = self._next()
                if request is None:
                    return
                if not request:
                    continue
                ahead += bool(self._writers)
                if self._is_writers(request):
                    self._writers.append((request, self._now()))
                else:
                    self.answer(request)
            elif self._writers:
                ahead = 0
                self.answer(*self._writers.popleft())
            else:
                await self._something()
                deadline = time.monotonic() + TURN
            if time.monotonic() > deadline:
                await trio.lowlevel.checkpoint()
                deadline = time.monotonic() + TURN

    def _is_writers(self, request: bytes) -> bool:
        opcode = wire.opcode_of(request)
        return opcode in _WRITERS or (opcode == Opcode.FLUSH and self._is_written_to(request))

    def _is_written_to(self, request: bytes) -> bool:
        """Whether a FLUSH is of what a program writes: the others have nothing to stage."""
        try:
            return self._held_tree().is_written_to(wirewrite.handle_of(request))
        except (VersionGone, Malformed):
            return False  # its answer says so

    async def _something(self) -> None:
        """Wait for the next request, or where too many are held for one of them to be answered."""
        if self._held >= MOST_HELD:
            await self._let_go.park()
        else:
            await trio.lowlevel.wait_readable(self._device)

    def _next(self) -> bytes | None:
        """Read a request; empty where there is none after all, None at the end of the device."""
        try:
            size = os.readv(self._device, (self._bytes,))
        except OSError as error:
            if error.errno in PASSING:
                return b""
            if error.errno not in ENDED:
                log.error("reading a request: %s", error)
            return None
        return bytes(self._bytes[:size]) or None

    def _now(self) -> float:
        return time.perf_counter() if self._timings is not None else 0.0

    def answer(self, request: bytes, began: float | None = None) -> None:
        """Answer one request, whatever it is, or let a task do so; it came at `began`."""
        began = self._now() if began is None else began
        try:
            opcode, unique, node = wire.header(request)
        except Malformed as error:
            log.error("a request that cannot be answered: %s", error)
            return
        self._counts[opcode if opcode < COUNTED else COUNTED] += 1
        number, body = DONE, None
        try:
            handler = self._answers.get(opcode)
            if handler is None:
                raise _Refused(errno.ENOSYS)
            if opcode in _KEYED and (key := self._busy(node)) is not None:
                found: Answer | Waiting = self._once_quiet(key, handler, request, node)
            else:
                found = handler(request, node)
            if found is not None and not isinstance(found, bytes):
                self._hold(found, opcode, unique, began)
                return
            body = found
        except Exception as error:
            number = _number(opcode, error)
        self._reply(opcode, unique, began, number, body)

    def _hold(self, waiting: Waiting, opcode: int, unique: int, began: float) -> None:
        """Answer when what is to be waited for has ended."""

        def end(error: BaseException | None, body: Answer = b"") -> None:
            self._held -= 1
            self._let_go.unpark()
            self._reply(opcode, unique, began, DONE if error is None else _number(opcode, error), body)

        async def finish(waiting: Coroutine[Any, Any, Answer]) -> None:
            try:
                body = await waiting
            except Exception as error:
                end(error)
            else:
                end(None, body)

        self._held += 1
        if not isinstance(waiting, Pending):
            assert self._nursery is not None
            self._nursery.start_soon(finish, waiting)
        elif waiting.done.is_set():
            end(waiting.error)
        else:
            waiting.then = end

    def _reply(self, opcode: int, unique: int, began: float, number: int, body: Answer) -> None:
        if number != DONE:
            if opcode not in _UNANSWERED:
                self._send(wire.refusal(unique, number))
        elif body is not None:
            self._send(wire.answer(unique, len(body)), body)
        if self._timings is not None:
            self._timings.of(name_of(opcode)).note(time.perf_counter() - began, number)

    def close(self) -> None:
        super().close()
        self._bytes.release()
        self._buffer.close()

    # -- who may be asked, and when

    def _named(self) -> WritableTree:
        """The tree, for a request that names something; StoreWaiting."""
        if self.waiting is not None:
            raise StoreWaiting(self.waiting)
        return self._held_tree()

    def _held_tree(self) -> WritableTree:
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

    # -- names and attributes

    def _lookup(self, request: bytes, node: int) -> Answer:
        tree = self._named()
        try:
            return self._entry(tree.lookup(node, wire.name_of(request), wirewrite.pid_of(request)))
        except (ListMissing, RepositoryMissing):
            return wire.absence(0.0)

    def _forget(self, opcode: int, request: bytes, node: int) -> Answer:
        if self.tree is not None:
            self.tree.forget(wire.forgotten(opcode, request, node))
        return None

    def _getattr(self, request: bytes, node: int) -> Answer:
        if node == ROOT_ID:
            root = Attributes(ROOT_ID, Tree.directory_mode(True), attr_timeout=FOREVER)
            return wire.attributes(root, self._uid, self._gid)
        tree = self._held_tree()
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
        for following, name, child, attributes in tree.entries(wirewrite.handle_of(request), position):
            room -= wire.record_size(name, True)
            if room < 0:
                break
            records.append(wire.record(name, following, child.id, attributes.mode, self._entry(attributes)))
            tree.inodes.remember(child)
        return b"".join(records)

    def _releasedir(self, request: bytes, node: int) -> Answer:
        self._held_tree().release_directory(wirewrite.handle_of(request))
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
        return self._held_tree().read(wirewrite.handle_of(request), offset, size)

    def _write(self, request: bytes, node: int) -> Answer:
        handle, offset, data = wirewrite.written(request)
        self._held_tree().write(handle, offset, data)
        return wirewrite.size(len(data))

    def _flush(self, request: bytes, node: int) -> Answer | Waiting:
        if not self._commits.has_room:
            return self._flush_later(request, node)
        tree, handle = self._held_tree(), wirewrite.handle_of(request)
        pending = syncing.stage(self._commits, tree.flush(handle))
        return b"" if pending is None else pending

    async def _flush_later(self, request: bytes, node: int) -> Answer:
        await self._commits.room()
        await syncing.flush(self._commits, self._held_tree(), wirewrite.handle_of(request))
        return b""

    async def _fsync(self, request: bytes, node: int) -> Answer:
        await syncing.sync(self._commits, self._held_tree(), wirewrite.handle_of(request))
        return b""

    def _release(self, request: bytes, node: int) -> Answer:
        """Answered before the commit is durable: nobody waits for the answer but the kernel's background slots."""
        syncing.release(self._commits, self._held_tree(), wirewrite.handle_of(request))
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
            raise _Refused(_NO_ATTRIBUTE)
        if (key := self._busy(node)) is not None:
            return self._once_quiet(key, self._getxattr, request, node)
        value = self._named().extended(node).get(name)
        if value is None:
            raise _Refused(_NO_ATTRIBUTE)
        return _fitted(request, value)

    def _listxattr(self, request: bytes, node: int) -> Answer:
        return _fitted(request, b"".join(name + b"\0" for name in self._named().extended_names(node)))

    def _no_attributes(self, request: bytes, node: int) -> Answer:
        raise _Refused(errno.EOPNOTSUPP)


def _fitted(request: bytes, value: bytes) -> bytes:
    """What a GETXATTR or LISTXATTR is answered with: what there is, or how long that is."""
    room = wirewrite.room_of(request)
    if room == 0:
        return wirewrite.size(len(value))
    if len(value) > room:
        raise _Refused(errno.ERANGE)
    return value


def _number(opcode: int, error: BaseException) -> int:
    if isinstance(error, _Refused):
        return error.number
    if isinstance(error, Malformed):
        log.error("request %d of the kernel: %s", opcode, error)
        return errno.EINVAL
    return errno_of(error)
