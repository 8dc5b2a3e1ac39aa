"""Entered: a namespace of a backing directory that is open, and what is looked for in it.  Blocking.

Owns: looks at a repository and at what it holds in one, from the namespace.
Does not know: who watches, what a list is decoded from.

From the namespace a repository costs no open and no close of its own.
"""

import stat
from collections.abc import Callable

from tagfs import variants
from tagfs.directories import Directories
from tagfs.errors import ListCorrupt, ListMissing, RepositoryMissing
from tagfs.names import BASE
from tagfs.store import Entered, Snapshot, Steps
from tagfs.variants import PinnedFile, Variant

Pin = Callable[[int, str, Variant, int], PinnedFile]
"""Pins a variant that was found from a directory: its descriptor, its path in the store, the variant, bytes ahead."""

_SMALL = 16 << 10
"""Bytes of a directory that is listed while somebody may be about to ask: some 700 names on ext4, a millisecond."""

_CLOSED = -1
"""A number that no descriptor has."""


class EnteredDirectory(Entered):
    """The directory of a namespace, open."""

    __slots__ = ("_codecs", "_directory", "_disk", "_path", "_pin", "_require_current")

    def __init__(self, directories: Directories, namespace: str, pin: Pin) -> None:
        super().__init__(directories, namespace)
        self._disk = directories.disk
        self._codecs = directories.codecs
        self._require_current = directories._require_current
        self._pin = pin
        self._path = f"{BASE}/{namespace}"
        self.descriptor = self._directory = directories._open((namespace,))

    def _is_small(self) -> bool:
        return self._disk.stat_open(self._directory).st_size <= _SMALL

    def mtime_ns(self, name: str) -> int:
        try:
            status = self._disk.stat(self._directory, name)
            if stat.S_ISDIR(status.st_mode):
                return status.st_mtime_ns
        except FileNotFoundError:
            pass
        self._require_current()
        raise RepositoryMissing(f"{self._path}/{name} is not in the store")

    def opening(self, name: str, ahead: int) -> Steps[Snapshot]:
        # Whoever asks knows that this name is no link.  Were it made one meanwhile, what a look tells of elsewhere is
        # dropped with the change, and nothing is opened there.
        found = variants.find(self._disk, self._directory, self._codecs, f"{name}/")
        if not found:
            raise ListMissing(f"{self._path}/{name} has no list")
        yield
        snapshot = self._pin(self._directory, self._path, found[0], ahead)
        fault = snapshot.version.fault
        if fault is not None:
            snapshot.close()
            raise ListCorrupt(f"{self._path}/{found[0].name}", fault)
        return snapshot

    def close(self) -> None:
        # Whoever is amid a look is told: the number of a closed descriptor may be another directory's.
        directory, self._directory = self._directory, _CLOSED
        self._disk.close(directory)
