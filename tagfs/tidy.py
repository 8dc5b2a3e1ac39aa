"""Tidy: what a writer that was killed has left in a store.  Blocking.

Owns: finding and removing left-overs that are provably nobody's any more.
Does not know: FUSE, who is running.
"""

import logging
import time
from collections.abc import Iterable
from contextlib import suppress

from tagfs.codec import CODECS
from tagfs.directory import DirectoryStore
from tagfs.errors import RepositoryMissing
from tagfs.names import HIDDEN_PREFIX, LIST, RepositoryKey, is_flux_temporary

log = logging.getLogger(__name__)

FLUX_TEMPORARY_AGE = 3600.0
"""Seconds after which a temporary file of Flux's is left over: it writes and renames one within milliseconds."""

_LISTS = frozenset(LIST + codec.suffix for codec in CODECS)


def remove_stages(store: DirectoryStore, names: Iterable[str]) -> int:
    """Remove the staged lists of a writer that is gone; -> how many."""
    removed = 0
    for name in names:
        store.stages.unlink(name)
        removed += 1
    return removed


def look(store: DirectoryStore, keys: Iterable[RepositoryKey]) -> list[RepositoryKey]:
    """Remove old temporaries of Flux's in the directories of `keys`; -> the keys that have a hidden or a stale list."""
    unfinished = []
    oldest_ns = time.time_ns() - int(FLUX_TEMPORARY_AGE * 1e9)
    for key in keys:
        with suppress(RepositoryMissing), store.opened(key.namespace, key.name) as directory:
            names = store.disk.names(directory)
            if len(_LISTS.intersection(name for name, _ in names)) > 1 or any(
                name.startswith(HIDDEN_PREFIX) for name, _ in names
            ):
                unfinished.append(key)
            for name, is_dir in names:
                if not is_dir and is_flux_temporary(name):
                    with suppress(FileNotFoundError):
                        if store.disk.stat(directory, name).st_mtime_ns < oldest_ns:
                            store.disk.unlink(directory, name)
                            log.info("%s/%s: removed, left over by Flux", key.directory, name)
    return unfinished
