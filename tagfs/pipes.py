"""Pipes: the nodes behind `/.changes`, one for each program that opens it.  Pure.

Owns: their node ids, the names under which this daemon reaches them, the kernel's references to them.
Does not know: what is written to them, what else is in a tree.

The kernel keeps what is in a FIFO itself, once for each inode, and gives each byte to one reader.  So every lookup of
the name is answered with another node, that nothing keeps: each program that opens it has a pipe of its own.

inotify tells whoever watches the mount point which names are opened in it, those of this daemon too.  So a name leads
to its pipe once: nobody can follow, and take bytes away from the program that listens.
"""

import itertools
import os
from collections.abc import Callable

from tagfs.errors import RepositoryMissing, StoreWaiting, TooManyListeners

NAME = b".changes"

FIRST_ID = 1 << 62
"""From here on node ids are of pipes; a tree counts its own from 1 on."""

MOST = 256
"""Pipes at once, looked up or open."""


class Pipes:
    """The pipes of one mount.

    Args:
        asked: called with the id of a node that was looked up and that a program may be about to open.
        owner: the user as whom this daemon opens them.
    """

    def __init__(self, asked: Callable[[int], None], owner: int) -> None:
        self._asked = asked
        self.owner = owner
        self.is_offered: bool | None = None
        """Whether this daemon can open them; None while that is not known."""
        self._ids = itertools.count(FIRST_ID)
        self._references: dict[int, int] = {}
        # INVARIANT: both have the same pairs; a name that nobody can guess, and that was not looked up yet.
        self._secret: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}

    def lookup(self, name: bytes) -> int:
        """The node of a name, counted as one reference.

        Raises:
            RepositoryMissing: it is no pipe's, or there are none.
            StoreWaiting: whether there are is not known yet.
            TooManyListeners: no further program may listen now.
        """
        if name == NAME:
            if self.is_offered is None:
                raise StoreWaiting("the mount is about to begin")
            if not self.is_offered:
                raise RepositoryMissing(f"this mount has no {NAME.decode()}")
            if len(self._references) >= MOST:
                raise TooManyListeners(f"{MOST} programs listen to {NAME.decode()} already")
            id_ = next(self._ids)
            self._references[id_] = 1
            self._asked(id_)
            return id_
        known = self._secret.pop(name, None)
        if known is None:
            raise RepositoryMissing(f"{name!r} is no pipe")
        del self._names[known]
        self._references[known] += 1
        return known

    def name(self, id_: int) -> bytes | None:
        """The name by which this daemon reaches a pipe, once; None where the kernel has forgotten it."""
        if id_ in self._references and id_ not in self._names:
            secret = b"%s.%s" % (NAME, os.urandom(16).hex().encode())
            self._secret[secret] = id_
            self._names[id_] = secret
        return self._names.get(id_)

    def forget(self, id_: int, count: int) -> None:
        """Take back `count` references."""
        if id_ not in self._references:
            return
        self._references[id_] -= count
        if self._references[id_] <= 0:
            del self._references[id_]
            self._secret.pop(self._names.pop(id_, b""), None)

    def __len__(self) -> int:
        return len(self._references)
