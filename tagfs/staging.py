"""Staging: where lists are written before they are renamed into place.  Blocking.

Owns: the stage directory, its files, what an earlier writer left in it; replacing a file beside it.
Does not know: keys, codecs.
"""

import itertools
import os
import threading
from collections.abc import Callable
from contextlib import suppress

from tagfs.disk import Disk
from tagfs.names import STAGE_DIRECTORY

_CLOSED = -1
"""A number that no descriptor has."""


class StageDirectory:
    """The directory STAGE_DIRECTORY of the store `root`; made when it is first needed, and again if it is removed,
    unless `require_current` raises: then the store is gone as well."""

    def __init__(self, disk: Disk, root: int, require_current: Callable[[], None]) -> None:
        self._disk = disk
        self._root = root
        self._require_current = require_current
        self._descriptor: int | None = None
        # INVARIANT: stays open until `close`, because another thread may be about to use one of them.
        self._removed: list[int] = []
        self._lock = threading.Lock()
        # From anywhere, so that no name is one that an earlier writer has left here.
        self._numbers = itertools.count(int.from_bytes(os.urandom(7), "big"))

    @property
    def descriptor(self) -> int:
        with self._lock:
            if self._descriptor is not None:
                if self._disk.stat_open(self._descriptor).st_nlink > 0:
                    return self._descriptor
                self._removed.append(self._descriptor)
                self._descriptor = None
            self._require_current()
            with suppress(FileExistsError):
                self._disk.make_dir(self._root, STAGE_DIRECTORY)
            self._descriptor = self._disk.open_dir(self._root, STAGE_DIRECTORY)
            return self._descriptor

    def create(self) -> tuple[str, int]:
        """(name, descriptor) of a new file, open for writing."""
        name = f"{next(self._numbers):016x}"
        descriptor = self._descriptor
        if descriptor is not None:
            with suppress(FileNotFoundError):  # it was removed, and is made again
                return name, self._disk.create(descriptor, name)
        return name, self._disk.create(self.descriptor, name)

    def move(self, name: str, directory: int, to_name: str) -> None:
        """Rename a file that `create` made; FileNotFoundError where the stage directory was removed since."""
        descriptor = self._descriptor
        self._disk.rename(self.descriptor if descriptor is None else descriptor, name, directory, to_name)

    def names(self) -> list[str]:
        """The files in it: before the first `create`, all of a writer that is gone."""
        return [name for name, is_dir in self._disk.names(self.descriptor) if not is_dir]

    def unlink(self, name: str) -> None:
        """Also when the store is gone: then there is nothing to remove, and no error that hides why."""
        descriptor = self._descriptor
        if descriptor is not None:
            with suppress(FileNotFoundError):
                self._disk.unlink(descriptor, name)

    def write_beside(self, name: str, content: bytes) -> None:
        """Replace the whole of the file `name` in the root of the store, durably."""
        stage, file = self.create()
        try:
            self._disk.write(file, content)
            self._disk.sync(file)
            self._disk.rename(self.descriptor, stage, self._root, name)
            self._disk.sync_dir(self._root)
        except BaseException:
            self.unlink(stage)
            raise
        finally:
            self._disk.close(file)

    def read_beside(self, name: str, limit: int) -> bytes | None:
        """The first `limit` bytes of the file `name` in the root of the store; None where there is none."""
        try:
            file = self._disk.open_file(self._root, name)
        except FileNotFoundError:
            return None
        try:
            return self._disk.read(file, limit)
        finally:
            self._disk.close(file)

    def close(self) -> None:
        """Let go of it, and remove it where nothing is in it: a store at rest holds its lists alone."""
        if self._descriptor is not None:
            with suppress(OSError):
                self._disk.remove_dir(self._root, STAGE_DIRECTORY)
        self._root = _CLOSED
        opened = self._removed if self._descriptor is None else [*self._removed, self._descriptor]
        self._descriptor, self._removed = None, []
        for descriptor in opened:
            self._disk.close(descriptor)
