"""Changes: what happened in the backing directory beneath a mount, as inotify tells it.  Async.

Owns: the inotify descriptor, which directories are watched, the meaning of events.
Does not know: FUSE, what is in a list.
Source: inotify(7).
"""

import ctypes
import errno
import logging
import os
import select
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import NamedTuple

import trio

from tagfs.codec import CODECS
from tagfs.errors import RepositoryMissing
from tagfs.names import BASE, LIST
from tagfs.watches import Watches

log = logging.getLogger(__name__)

_ATTRIB, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x4, 0x8, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _UNMOUNT, _OVERFLOW, _IGNORED = 0x400, 0x800, 0x2000, 0x4000, 0x8000
_ONLYDIR, _DONT_FOLLOW, _EXCL_UNLINK, _ISDIR = 0x01000000, 0x02000000, 0x04000000, 0x40000000
_MASK = (_ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF) | (
    _ONLYDIR | _EXCL_UNLINK
)

_EVENT = struct.Struct("iIII")
"""`struct inotify_event`: watch descriptor, mask, cookie, length of the name that follows."""

_READ_SIZE = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)


_VARIANTS = frozenset((LIST + codec.suffix).encode() for codec in CODECS)


class Change(NamedTuple):
    """`name` changed in the directory `path` below the base, or is another directory now; `path` None is the store
    itself.  Of a repository it is LIST, whichever variant changed.  `is_lost`: what happened is not known (an overflow,
    or the store's directory itself was moved, removed or unmounted)."""

    path: tuple[str, ...] | None
    name: str
    is_lost: bool = False


class Changes:
    """The watches of one store.

    Args:
        opened: path below the base -> its descriptor, without following links; raises RepositoryMissing.
        root: descriptor of the store's directory.
    """

    def __init__(self, opened: Callable[..., AbstractContextManager[int]], root: int) -> None:
        self._opened = opened
        self.descriptor: int = _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        """Readable where something has happened."""
        self._poller = select.poll()
        self._poller.register(self.descriptor, select.POLLIN)
        self._watches = Watches()
        self._is_exhausted = False
        try:
            self._add(None, root)
        except OSError:
            os.close(self.descriptor)
            raise

    def cover(self, path: tuple[str, ...], above: int | None = None) -> bool:
        """Whether changes in the directory `path` below the base are told from now on; `above` is the descriptor of
        the directory that it is in, for who has it open."""
        if path in self._watches:
            return True
        if self._is_exhausted:
            return False
        try:
            if above is not None:
                self._add(path, above, path[-1])
            else:
                with self._opened(*path) as directory:
                    self._add(path, directory)
        except RepositoryMissing:
            return False
        except OSError as error:
            if error.errno != errno.ENOSPC:
                log.debug("cannot watch %s: %s", "/".join(path), error)
                return False
            self._is_exhausted = True
            log.warning(
                "no inotify watches are left after %d: changes in further directories show after a second; "
                "raise the sysctl fs.inotify.max_user_watches and mount again",
                len(self._watches),
            )
            return False
        return True

    @property
    def is_lost(self) -> bool:
        """Whether the store's directory itself has gone, so that nothing more will be told of it."""
        return None not in self._watches

    def read(self) -> list[Change]:
        """What happened since this was last asked, each once; OSError."""
        try:
            raw = os.read(self.descriptor, _READ_SIZE)
        except BlockingIOError:
            return []
        return self._decode(raw)

    def has_news(self) -> bool:
        """Whether something has happened that was not told yet; the kernel lines it up before the program
        that did it goes on."""
        return bool(self._poller.poll(0))

    async def happened(self) -> list[Change]:
        """The same, as soon as there is something."""
        while True:
            await trio.lowlevel.wait_readable(self.descriptor)
            batch = self.read()
            if batch:
                return batch

    def close(self) -> None:
        trio.lowlevel.notify_closing(self.descriptor)
        os.close(self.descriptor)

    def _add(self, path: tuple[str, ...] | None, directory: int, name: str = "") -> None:
        """Watch a directory that is open, or the one of this name in it."""
        if name:
            where, mask = b"/proc/self/fd/%d/%s" % (directory, name.encode()), _MASK | _DONT_FOLLOW
        else:
            where, mask = b"/proc/self/fd/%d" % directory, _MASK
        self._watches.put(path, _check(_libc.inotify_add_watch(self.descriptor, where, mask)))

    def _decode(self, raw: bytes) -> list[Change]:
        changes: dict[Change, None] = {}
        position = 0
        while position < len(raw):
            watch, mask, _, length = _EVENT.unpack_from(raw, position)
            position += _EVENT.size + length
            name = raw[position - length : position].rstrip(b"\0")
            change = self._interpret(watch, mask, name)
            if change is not None:
                changes[change] = None
        return list(changes)

    def _interpret(self, watch: int, mask: int, name: bytes) -> Change | None:
        if mask & _OVERFLOW:
            log.warning("inotify lost events: everything that the kernel keeps of this mount is looked up again")
            self._remove_below(())  # moves and removals of directories were lost as well
            return Change(None, "", is_lost=True)
        try:
            path = self._watches.path_of(watch)
        except KeyError:
            return None
        if mask & (_IGNORED | _UNMOUNT | _DELETE_SELF | _MOVE_SELF):
            if path is None:
                self._remove(None)
                return Change(None, "", is_lost=True)
            self._remove_below(path)
            # The directory above may not be watched, because watches had run out.
            return Change(path[:-1], path[-1]) if path else Change(None, BASE)
        if path is not None and len(path) == 2:
            # The files that a list is written to before it is renamed into place are nobody's news.
            return Change(path, LIST) if name in _VARIANTS else None
        if mask & _ISDIR and mask & _ATTRIB:
            return None
        text = os.fsdecode(name)
        if mask & _ISDIR and mask & (_MOVED_FROM | _MOVED_TO | _DELETE):
            if path is not None:
                self._remove_below((*path, text))
            elif text == BASE:
                self._remove_below(())
        return Change(path, text)

    def _remove_below(self, path: tuple[str, ...]) -> None:
        """Remove the watches of a directory and of all below it."""
        for known in list(self._watches.below(path)):
            self._remove(known)

    def _remove(self, path: tuple[str, ...] | None) -> None:
        watch = self._watches.remove(path)
        if watch is not None:
            with suppress(OSError):
                _check(_libc.inotify_rm_watch(self.descriptor, watch))


class Unwatched:
    """In place of `Changes` where inotify has nothing left for this user: tells each second to look at the store."""

    EVERY = 1.0
    """Seconds."""

    descriptor = None
    is_lost = False

    def cover(self, path: tuple[str, ...], above: int | None = None) -> bool:
        return False

    def read(self) -> list[Change]:
        return [Change(None, "")]

    def has_news(self) -> bool:
        return True

    async def happened(self) -> list[Change]:
        await trio.sleep(self.EVERY)
        return self.read()

    def close(self) -> None:
        pass


def watched(opened: Callable[..., AbstractContextManager[int]], root: int) -> Changes | Unwatched:
    """The watches of a store, or what is left to do without them."""
    try:
        return Changes(opened, root)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENOSPC, errno.ENOMEM):
            raise
        log.warning(
            "no inotify watches are left (%s): changes beneath show after a second; raise the sysctls"
            " fs.inotify.max_user_instances and fs.inotify.max_user_watches and mount again",
            error.strerror,
        )
        return Unwatched()


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
