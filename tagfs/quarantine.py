"""Quarantine: where a repair puts what cannot be read, so that nothing is ever deleted that might be wanted.  Blocking.

Owns: the quarantine directory of a store, and moving an entry there durably.
Does not know: why something is moved.
Invariant: an entry is in its old place or in quarantine at every crash, and nothing in quarantine is overwritten.
"""

import itertools
from contextlib import suppress

from tagfs.disk import Disk
from tagfs.names import QUARANTINE_DIRECTORY


class Quarantine:
    """The quarantine of the store `root`; its directories are made when they are needed."""

    def __init__(self, disk: Disk, root: int) -> None:
        self._disk = disk
        self._root = root

    def move(self, directory: int, name: str, place: tuple[str, ...]) -> str:
        """Move `name` out of `directory` into the quarantine's directory `place`; -> its new path in the store."""
        disk = self._disk
        target = self._open_made(place)
        try:
            taken = {there for there, _ in disk.names(target)}
            new = next(candidate for candidate in _candidates(name) if candidate not in taken)
            disk.rename(directory, name, target, new)
            disk.sync_dir(target)
            disk.sync_dir(directory)
        finally:
            disk.close(target)
        return "/".join((QUARANTINE_DIRECTORY, *place, new))

    def count(self) -> int:
        """How many entries that are no directories it holds."""
        try:
            directory = self._disk.open_dir(self._root, QUARANTINE_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return 0
        try:
            return self._count(directory)
        finally:
            self._disk.close(directory)

    def _count(self, directory: int) -> int:
        files = 0
        for name, is_dir in self._disk.names(directory):
            if not is_dir:
                files += 1
                continue
            with suppress(FileNotFoundError):
                inner = self._disk.open_dir(directory, name)
                try:
                    files += self._count(inner)
                finally:
                    self._disk.close(inner)
        return files

    def _open_made(self, place: tuple[str, ...]) -> int:
        directory = self._root
        for name in (QUARANTINE_DIRECTORY, *place):
            try:
                with suppress(FileExistsError):
                    self._disk.make_dir(directory, name)
                self._disk.sync_dir(directory)
                inner = self._disk.open_dir(directory, name)
            finally:
                if directory != self._root:
                    self._disk.close(directory)
            directory = inner
        return directory


def _candidates(name: str) -> "itertools.chain[str]":
    return itertools.chain((name,), (f"{name}.{number}" for number in itertools.count(1)))
