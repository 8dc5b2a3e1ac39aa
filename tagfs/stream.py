"""Stream: who listens to `/.changes`, from when on and to which store.  Async.

Owns: joining the pipes of listeners; following only while somebody listens; that the kernel forgets first.
Does not know: how changes are found, how lines wait.
"""

import errno
import gc
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from tagfs import heap
from tagfs.directory import DirectoryStore
from tagfs.errors import StoreWaiting
from tagfs.inodes import ROOT_ID
from tagfs.listeners import Listener
from tagfs.mountpoint import watched_table
from tagfs.names import BASE, LIST, RepositoryKey
from tagfs.pipes import NAME, Pipes
from tagfs.tree import Tree
from tagfs.view import Invalidation

if TYPE_CHECKING:
    # Loaded when somebody listens: a mount without listeners pays nothing.
    from tagfs.events import Lines
    from tagfs.following import Told
    from tagfs.past import Past

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 1.0
"""Seconds between two tries to join a pipe whose reader is not there yet; each is twice the one before."""

_TRIES_OF_AN_OPEN = 4
"""Tries after which a node was most likely only looked at, so that the kernel may forget it."""

Quiet = Callable[[RepositoryKey], Awaitable[None]]


class Stream:
    """Tells the listeners of one mount; `pipes` has the nodes that they open.

    Args:
        path: of the store, as it is told.
        send: tells the kernel to forget.
        sent: returns when it has been told all that was sent.
        is_mounted: whether the mount is still in sight.
        namespaces: the only ones that are told of, or None for all.
    """

    def __init__(
        self,
        path: str,
        send: Callable[[Iterable[Invalidation]], None],
        sent: Callable[[], Awaitable[None]],
        is_mounted: Callable[[], bool],
        namespaces: frozenset[str] | None,
    ) -> None:
        self.pipes = Pipes(self._was_asked, os.geteuid())
        self._path = path
        self._send = send
        self._sent = sent
        self._is_mounted = is_mounted
        self._namespaces = namespaces
        self._lines: Lines | None = None
        self._past: Past | None = None
        self._point: str | None = None
        self._nursery: trio.Nursery | None = None
        self._shown: tuple[DirectoryStore, Tree, Quiet] | None = None
        self._is_ready = False
        """Whether everything is told."""
        # INVARIANT: whether `past` is what all listeners were told.
        self._was_ready = False
        self._unwatched = 0
        self._is_closed = False
        self._listeners: set[Listener] = set()
        self._news = trio.Event()
        self._is_following = trio.Lock()
        self._following = trio.CancelScope()

    # -- the mount's side

    async def offer(self, point: str) -> None:
        """Offer pipes at a mount point.  A daemon that may not enter its own mount, because other users may not and it
        has become another, offers none: who opened one would wait for ever."""
        self._point = point
        is_reachable = await trio.to_thread.run_sync(_is_reachable, point, abandon_on_cancel=True)
        self.pipes.is_offered = is_reachable and not self._is_closed
        if not is_reachable:
            log.info("%s: no %s, uid %d may not enter it: mount with --allow-other", point, NAME.decode(), os.geteuid())

    async def run(self) -> None:
        """Serve listeners until cancelled, or `close`."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                while True:
                    await self._follow()
                    await self._news.wait()
                    self._news = trio.Event()
            finally:
                self._nursery = None

    def show(self, store: DirectoryStore, tree: Tree, quiet: Quiet) -> None:
        """There is a store to tell of.

        Args:
            quiet: returns when the commits of a list have settled.
        """
        self._shown = store, tree, quiet
        self._news.set()

    async def hide(self, reason: str) -> None:
        """Return when the store is not used any more."""
        self._shown = None
        self._following.cancel()
        async with self._is_following:
            if self._lines is not None:
                self._tell([self._lines.waiting(reason)])

    def close(self) -> None:
        """Let every listener come to the end of its file, so that it may let go of the mount.  Who comes later, by a
        file that is still open, is told that there is no stream, and does not wait for a writer for ever."""
        self._is_closed = True
        self.pipes.is_offered = False
        self._shown = None
        self._following.cancel()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
        self._nursery = None

    # -- following

    async def _follow(self) -> None:
        """Follow the store until nobody listens, or it is hidden."""
        async with self._is_following:
            if self._shown is None or not self._listeners:
                return
            from tagfs.following import Following
            from tagfs.past import Past

            store, tree, quiet = self._shown
            if self._past is None:
                self._past = Past()
            following = Following(
                store,
                self._past,
                self._tell_differences,
                self._become_ready,
                is_resumed=self._was_ready,
                namespaces=self._namespaces,
                quiet=quiet,
                forget=lambda told: self._forget(tree, told),
            )
            with trio.CancelScope() as self._following:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._mind_the_mount)
                    try:
                        await following.run()
                    except StoreWaiting:
                        pass  # Told by whoever watches the store for the mount, who then hides it.
                    except OSError as error:
                        log.error("changes cannot be told any more: %s", error)
                        self._tell([self._made_lines().waiting(str(error))])
                    self._is_ready = False
                    await trio.sleep_forever()
            self._is_ready = False
        if not self._listeners or not self._was_ready:
            # What was cancelled has it too, in the tracebacks of how it ended.
            del following
            self._past, self._was_ready = None, False
            gc.collect()
            heap.give_back()

    async def _mind_the_mount(self) -> None:
        """Close where the mount goes out of sight: it ends with the last file that is open in it."""
        with watched_table() as table:
            while self._is_mounted():
                await trio.lowlevel.wait_readable(table)
                table.poll(0)
        self.close()

    async def _forget(self, tree: Tree, told: "Told") -> None:
        """Have the kernel forget what it keeps of lists, so that whoever is told reads no older one in the mount."""
        if tree.is_writable:
            return  # It keeps none.
        for key, difference in told:
            self._send(tree.changed((key.namespace, key.name), LIST))
            if difference.revision is None or difference.previous is None:
                self._send(_names(tree, key))
        await self._sent()

    def _become_ready(self, unwatched: int) -> None:
        self._is_ready = self._was_ready = True
        self._unwatched = unwatched
        heap.give_back()
        self._tell([self._ready_line()])

    def _made_lines(self) -> "Lines":
        if self._lines is None:
            from tagfs.events import Lines

            self._lines = Lines(self._path)
        return self._lines

    def _ready_line(self) -> bytes:
        return self._made_lines().ready(0 if self._past is None else len(self._past), self._unwatched)

    def _tell_differences(self, told: "Told") -> None:
        lines = self._made_lines()
        self._tell(lines.of_list(key, difference) for key, difference in told)

    def _tell(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            for listener in self._listeners:
                listener.tell(line)

    # -- listeners

    def _was_asked(self, id_: int) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._join, id_)

    async def _join(self, id_: int) -> None:
        """Open the other end of a pipe, as soon as a program has opened it, and serve it."""
        descriptor = await self._opened(id_)
        if descriptor is None:
            return
        listener = Listener(descriptor, self._made_lines().overflow)
        self._listeners.add(listener)
        self._news.set()
        try:
            if self._is_ready:
                listener.tell(self._ready_line())
            await listener.serve()
        finally:
            self._listeners.discard(listener)
            listener.close()
            self._send([Invalidation(ROOT_ID, NAME)])
            if not self._listeners:
                self._following.cancel()

    async def _opened(self, id_: int) -> int | None:
        """The descriptor of a pipe; None when the kernel has forgotten it, because nobody opened it."""
        pause = _FIRST_PAUSE
        tries = 0
        while (name := self.pipes.name(id_)) is not None:
            path = os.path.join(os.fsencode(self._point or ""), name)
            # Abandoned where the mount ends: the kernel then answers it without us.
            descriptor = await trio.to_thread.run_sync(_open, path, id_, tries == 0, abandon_on_cancel=True)
            # The kernel would keep the name, and with it the node.
            tries += 1
            self._send([Invalidation(ROOT_ID, name)])
            if descriptor is not None:
                return descriptor
            if tries >= _TRIES_OF_AN_OPEN:
                self._send([Invalidation(ROOT_ID, NAME)])
            await trio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)
        return None


def _names(tree: Tree, key: RepositoryKey) -> Iterable[Invalidation]:
    """The names above a list, of which the kernel may keep that they are, or are not, there."""
    for above, name in (((BASE,), key.namespace), ((BASE, key.namespace), key.name)):
        directory = tree.inodes.known_directory(above)
        if directory is not None:
            yield Invalidation(directory.id, name.encode())


def _is_reachable(point: str) -> bool:
    """Whether a name in the mount can be looked up by this process."""
    try:
        os.lstat(os.path.join(point, f"{NAME.decode()}.reachable"))
    except PermissionError:
        return False
    except OSError:
        pass  # There is no such name, which the mount itself has said.
    return True


def _open(path: bytes, id_: int, tells: bool) -> int | None:
    """Open a pipe for writing; None where nobody reads it yet.  `tells`: a failure is logged."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if tells and error.errno not in (errno.ENXIO, errno.ENOENT, errno.EAGAIN):
            log.warning("a listener cannot be told: %s", error)
        return None
    with suppress(OSError):
        status = os.fstat(descriptor)
        if stat.S_ISFIFO(status.st_mode) and status.st_ino == id_:
            return descriptor
    os.close(descriptor)
    return None
