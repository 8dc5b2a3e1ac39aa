"""Whereabouts: whether the path of an open store still leads to it.  Async.

Owns: when that is looked at.
Does not know: what is done with a store that is elsewhere.

A store's directory stays open when its file system is unmounted lazily, or another is mounted over it: nothing beneath
tells of that, and what was open would be shown for ever.
"""

import os

import trio

from tagfs.directory import DirectoryStore
from tagfs.mountpoint import watched_table

LOOK_AGAIN = 10.0
"""Seconds between two looks, however quiet the mount table: no event tells of a directory above that is renamed."""


async def elsewhere(store: DirectoryStore, path: str) -> None:
    """Return when `path` leads to another directory than that of `store`, or to none."""
    with watched_table() as table:
        while not _is_elsewhere(store, path):
            with trio.move_on_after(LOOK_AGAIN):
                await trio.lowlevel.wait_readable(table)
            table.poll(0)


def _is_elsewhere(store: DirectoryStore, path: str) -> bool:
    try:
        there, here = os.stat(path), store.disk.stat_open(store.root)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # not known; whoever asks for a list is told
    return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)
