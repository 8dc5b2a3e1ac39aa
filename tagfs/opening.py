"""Opening: a store made ready for a mount, by what its sentinels say.  Blocking.

Owns: which errors at opening may pass, the codec that a store is written with.
Does not know: the kernel, the tree.
"""

import errno
import logging
import os
from dataclasses import dataclass

from tagfs import codec, holder, sentinel
from tagfs.changes import Changes, Unwatched, watched
from tagfs.directory import DirectoryStore
from tagfs.disk import DIRECTORY_MODE, Disk, closed_on_failure
from tagfs.errors import StoreRefused, StoreWaiting
from tagfs.policy import Policy
from tagfs.sentinel import Condition
from tagfs.settings import MountSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """A store that is ready, and for a reader what watches it."""

    store: DirectoryStore
    changes: Changes | Unwatched


class Opener:
    """Opens the store of a mount, as often as it has to be opened anew."""

    def __init__(self, settings: MountSettings) -> None:
        self._settings = settings
        self._disk = Disk()

    @property
    def may_wait(self) -> bool:
        """Whether the mount waits for a store that is not ready."""
        wait = self._settings.wait
        return self._settings.read_only if wait is None else wait > 0

    def require_ready(self, store: DirectoryStore) -> None:
        """Look at the sentinels of an open store again; StoreWaiting, StoreRefused."""
        sentinel.require_ready(self._disk, store.root, self._settings.store)

    def open(self, was_shown: bool) -> Opened:
        """The store, ready.

        Args:
            was_shown: the mount has shown a store before.

        Raises:
            StoreWaiting, StoreHeld: not now, maybe later.
            StoreRefused: never.
        """
        path = self._settings.store
        if not was_shown:
            holder.require_outside(path)
        try:
            return self._open_read_only(path) if self._settings.read_only else self._open_to_write(path, was_shown)
        except (NotADirectoryError, FileExistsError):
            raise StoreRefused(f"{path} is no directory") from None
        except PermissionError as error:
            raise StoreRefused(
                f"{error.filename or path} may not be used by uid {os.geteuid()}: chown -R"
                f" {os.geteuid()}:{os.getegid()} {path}, and let it enter what is above"
            ) from error
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            raise StoreRefused(
                f"{path} is on a read-only file system: say --read-only, or mount that file system read-write"
            ) from error

    def _open_read_only(self, path: str) -> Opened:
        root = self._root(path)
        with closed_on_failure(self._disk, root):
            format_ = sentinel.require_ready(self._disk, root, path)
        return self._opened(root, format_, Policy(list_limit=self._settings.list_limit))

    def _root(self, path: str) -> int:
        try:
            return self._disk.open_root(path)
        except FileNotFoundError:
            raise StoreWaiting(f"{path} is not there yet") from None

    def _open_to_write(self, path: str, was_shown: bool) -> Opened:
        if not was_shown:
            os.makedirs(path, DIRECTORY_MODE, exist_ok=True)
        root = self._root(path)
        with closed_on_failure(self._disk, root):
            if not was_shown and os.fstatvfs(root).f_flag & os.ST_RDONLY:
                # Else nothing would tell before the first write.
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
            if was_shown:
                # No new store where another was, and no part in a wipe that another program has begun.
                sentinel.require_ready(self._disk, root, path)
            holder.lock(self._disk, root, path)
            return self._prepared(root, path)

    def _prepared(self, root: int, path: str) -> Opened:
        settings = self._settings
        wanted = sentinel.FLUX_FORMAT if settings.codec == "gzip" else sentinel.ZSTD_FORMAT
        format_, found = sentinel.prepare(self._disk, root, path, wanted, settings.wipe_foreign)
        if found.condition is Condition.EMPTY:
            log.info("%s: a new store of format %d", path, format_)
        elif found.condition is not Condition.READY:
            log.warning("%s: %s; it is an empty store of format %d now", path, found.condition.value, format_)
        if settings.codec == "zstd" and format_ == sentinel.FLUX_FORMAT:
            format_ = sentinel.ZSTD_FORMAT
            sentinel.write_version(self._disk, root, format_)
            log.warning(
                "%s: upgraded to format %d, which Flux alone would wipe; tagfs convert goes back", path, format_
            )
        name = settings.codec
        if name == "auto":
            name = "gzip" if format_ == sentinel.FLUX_FORMAT else "zstd"
        return self._opened(root, format_, Policy(codec.named(name), settings.threshold, settings.list_limit))

    def _opened(self, root: int, format_: int, policy: Policy) -> Opened:
        store = DirectoryStore(self._disk, root, format_, policy)
        return Opened(store, watched(store.opened, root))
