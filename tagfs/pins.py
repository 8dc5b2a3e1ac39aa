"""Pins: versions that stay readable for whoever may have them open.  Blocking.

Owns: which versions are kept open, and which bytes in memory; which of them go first where there are too many.
Does not know: what a version is of, who reads it.
"""

from collections import OrderedDict, deque

from tagfs.store import Snapshot

LOADED = 16
"""Snapshots that keep what was read ahead: programs ask for it within milliseconds."""


class Pins:
    """Snapshots by node id, `limit` of them at most.

    Those go first that have been served to their end, then those of which nothing was read for the longest time; last
    those that were read in part, because somebody waits for the rest.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # INVARIANT: each is in one of the two, together at most `limit`, in the order in which they go.
        self._idle: OrderedDict[int, Snapshot] = OrderedDict()
        self._begun: OrderedDict[int, Snapshot] = OrderedDict()
        # INVARIANT: those that may have bytes in memory.
        self._loaded: deque[Snapshot] = deque()

    def __len__(self) -> int:
        return len(self._idle) + len(self._begun)

    def __contains__(self, id_: int) -> bool:
        return id_ in self._idle or id_ in self._begun

    def get(self, id_: int) -> Snapshot | None:
        return self._begun.get(id_) or self._idle.get(id_)

    def add(self, id_: int, snapshot: Snapshot) -> None:
        """Keep a snapshot open; closes it where the node has one already."""
        if id_ in self:
            snapshot.close()
            return
        self._idle[id_] = snapshot
        self._loaded.append(snapshot)
        if len(self._loaded) > LOADED:
            self._loaded.popleft().unload()
        if len(self) > self._limit:
            _, gone = (self._idle if len(self._idle) > 1 else self._begun or self._idle).popitem(last=False)
            gone.close()

    def begin(self, id_: int) -> None:
        """Take note that a part was read, and more will be."""
        snapshot = self._idle.pop(id_, None) or self._begun.pop(id_, None)
        if snapshot is not None:
            self._begun[id_] = snapshot

    def end(self, id_: int) -> None:
        """Take note that it was read to its end: the kernel keeps it, as long as it has room."""
        snapshot = self._begun.pop(id_, None) or self._idle.pop(id_, None)
        if snapshot is not None:
            self._idle[id_] = snapshot
            self._idle.move_to_end(id_, last=False)

    def drop(self, id_: int) -> None:
        snapshot = self._idle.pop(id_, None) or self._begun.pop(id_, None)
        if snapshot is not None:
            snapshot.close()

    def unload(self) -> None:
        """Let go of the bytes that were read ahead."""
        while self._loaded:
            self._loaded.popleft().unload()

    def clear(self) -> None:
        self.unload()
        for id_ in [*self._idle, *self._begun]:
            self.drop(id_)


class Parts:
    """Plain bytes of lists that are served in parts, by node id: `limit` bytes at most, or one list that is larger."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: OrderedDict[int, bytes] = OrderedDict()
        self._size = 0

    def get(self, id_: int) -> bytes | None:
        return self._held.get(id_)

    def keep(self, id_: int, plain: bytes) -> None:
        if id_ in self._held:
            self._held.move_to_end(id_)
            return
        self._held[id_] = plain
        self._size += len(plain)
        while self._size > self._limit and len(self._held) > 1:
            self._size -= len(self._held.popitem(last=False)[1])

    def drop(self, id_: int) -> None:
        plain = self._held.pop(id_, None)
        if plain is not None:
            self._size -= len(plain)

    def clear(self) -> None:
        self._held.clear()
        self._size = 0
