"""Pins: versions that stay readable for whoever may have them open.  Blocking.

Owns: which versions are kept open, as snapshots or as bare descriptors, and which bytes in memory; which of them go
first where there are too many.
Does not know: what a version is of, who reads it.
"""

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain

from tagfs.compact import row_of
from tagfs.disk import Disk
from tagfs.store import Snapshot

LOADED = 16
"""Snapshots that keep what was read ahead: programs ask for it within milliseconds."""

BEGUN = 1024
"""Snapshots that were read in part, at most, before the one that rests longest is a bare descriptor again."""

_GLANCES = 32
"""Rows that are looked at, at most, for a version that was read, before one goes that was not."""

_SPARED = 8
"""One of so many goes where a descriptor is needed for something else."""

_NONE = -1


class Descriptors:
    """Descriptors by node id, each with whether it was read: 12 bytes for each row of the node table.

    A row has one version that is current; those that were superseded, and are still known, are kept beside.
    """

    def __init__(self) -> None:
        # INVARIANT: of each row the descriptor and, in its lowest bit, whether it was read; _NONE where it has none.
        self._files = array("i")
        self._ids = array("Q")
        self._superseded: dict[int, int] = {}
        self._in_rows = 0
        self._read_in_rows = 0
        self._hand = 0

    def __len__(self) -> int:
        return self._in_rows + len(self._superseded)

    def __contains__(self, id_: int) -> bool:
        return self._row(id_) != _NONE or id_ in self._superseded

    def put(self, id_: int, descriptor: int, was_read: bool) -> None:
        row = row_of(id_)
        while row >= len(self._files):
            self._files.append(_NONE)
            self._ids.append(0)
        if self._files[row] != _NONE:
            other = self._ids[row]
            self._superseded[other] = self._empty(row)
        self._files[row] = descriptor << 1 | was_read
        self._ids[row] = id_
        self._in_rows += 1
        self._read_in_rows += was_read

    def take(self, id_: int) -> tuple[int, bool] | None:
        row = self._row(id_)
        packed = self._empty(row) if row != _NONE else self._superseded.pop(id_, _NONE)
        return (packed >> 1, bool(packed & 1)) if packed != _NONE else None

    def pop(self) -> int:
        """A descriptor that nobody needs as much as the others; there must be one.

        One that was read before one that was not; of these about in the order in which they came; last what was
        superseded, because nothing else has its bytes.
        """
        if not self._in_rows:
            return self._superseded.pop(next(iter(self._superseded))) >> 1
        unread, glances = _NONE, _GLANCES if self._read_in_rows else 0
        for row in self._round():
            packed = self._files[row]
            if packed != _NONE and packed & 1:
                self._hand = row + 1 if unread == _NONE else unread
                return self._empty(row) >> 1
            if unread != _NONE:
                glances -= 1
            elif packed != _NONE:
                unread = row
            if unread != _NONE and glances == 0:
                break
        self._hand = unread + 1
        return self._empty(unread) >> 1

    def clear(self) -> list[int]:
        """Every descriptor, none of which is kept any more."""
        packed = [*(one for one in self._files if one != _NONE), *self._superseded.values()]
        self._superseded.clear()
        del self._files[:], self._ids[:]
        self._in_rows = self._read_in_rows = self._hand = 0
        return [one >> 1 for one in packed]

    def _round(self) -> Iterator[int]:
        return chain(range(self._hand, len(self._files)), range(min(self._hand, len(self._files))))

    def _row(self, id_: int) -> int:
        """The row in which a node's descriptor is, or _NONE."""
        row = row_of(id_)
        return row if row < len(self._files) and self._ids[row] == id_ and self._files[row] != _NONE else _NONE

    def _empty(self, row: int) -> int:
        packed = self._files[row]
        self._files[row] = _NONE
        self._in_rows -= 1
        self._read_in_rows -= packed & 1
        return packed


class Pins:
    """Versions by node id, `limit` of them at most.

    The last few that were looked up are snapshots, and those that are being read in parts; the others are bare
    descriptors, of which `revive` makes snapshots again.  Those go first that have been served to their end, then those
    of which nothing was read for the longest time; last those that were superseded, or read in part, because somebody
    waits for the rest.
    """

    def __init__(self, limit: int, revive: Callable[[int, int, bool], Snapshot]) -> None:
        self._limit = max(1, limit)
        self._revive = revive
        self._disk = Disk()
        # INVARIANT: each is in one of the four, together at most `limit`, in the order in which they go.
        self._loaded: OrderedDict[int, Snapshot] = OrderedDict()
        self._begun: OrderedDict[int, Snapshot] = OrderedDict()
        self._descriptors = Descriptors()
        # Those that something else pins than a descriptor.
        self._others: OrderedDict[int, Snapshot] = OrderedDict()

    def __len__(self) -> int:
        return len(self._loaded) + len(self._begun) + len(self._descriptors) + len(self._others)

    def __contains__(self, id_: int) -> bool:
        return id_ in self._loaded or id_ in self._descriptors or id_ in self._begun or id_ in self._others

    def get(self, id_: int) -> Snapshot | None:
        snapshot = self._loaded.get(id_) or self._begun.get(id_) or self._others.get(id_)
        if snapshot is None:
            taken = self._descriptors.take(id_)
            if taken is not None:
                try:
                    snapshot = self._revive(id_, *taken)
                except BaseException:
                    self._disk.close(taken[0])
                    raise
                self.add(id_, snapshot)
        return snapshot

    def add(self, id_: int, snapshot: Snapshot) -> None:
        """Keep a snapshot open; closes it where the node has one already."""
        if id_ in self:
            snapshot.close()
            return
        self._loaded[id_] = snapshot
        if len(self._loaded) > LOADED:
            self._demote(*self._loaded.popitem(last=False))
        if len(self) > self._limit:
            self._let_go()

    def begin(self, id_: int) -> None:
        """Take note that a part was read, and more will be."""
        snapshot = self._take(id_)
        if snapshot is not None:
            self._begun[id_] = snapshot
            if len(self._begun) > BEGUN:
                self._demote(*self._begun.popitem(last=False))

    def end(self, id_: int) -> None:
        """Take note that it was read to its end: the kernel keeps it, as long as it has room."""
        snapshot = self._take(id_)
        if snapshot is not None:
            self._demote(id_, snapshot, goes_next=True)

    def drop(self, id_: int) -> None:
        snapshot = self._take(id_)
        if snapshot is not None:
            snapshot.close()
            return
        taken = self._descriptors.take(id_)
        if taken is not None:
            self._disk.close(taken[0])

    def spare(self) -> bool:
        """Let some go, and keep no more than are left from now on; -> whether there were any."""
        count = len(self)
        for _ in range(-(-count // _SPARED)):
            self._let_go()
        self._limit = max(1, len(self))
        return count > 0

    def unload(self) -> None:
        """Let go of the bytes that were read ahead."""
        while self._loaded:
            self._demote(*self._loaded.popitem(last=False))

    def clear(self) -> None:
        for descriptor in self._descriptors.clear():
            self._disk.close(descriptor)
        while len(self):
            self._let_go()

    def _take(self, id_: int) -> Snapshot | None:
        """The snapshot of a node that is no bare descriptor, no longer kept."""
        return self._loaded.pop(id_, None) or self._begun.pop(id_, None) or self._others.pop(id_, None)

    def _demote(self, id_: int, snapshot: Snapshot, goes_next: bool = False) -> None:
        """Keep of a snapshot only what pins it."""
        given = snapshot.surrender()
        if given is not None:
            self._descriptors.put(id_, *given)
            return
        snapshot.unload()
        self._others[id_] = snapshot
        if goes_next:
            self._others.move_to_end(id_, last=False)

    def _let_go(self) -> None:
        """Close one, never the newest where there is another."""
        if len(self._descriptors):
            self._disk.close(self._descriptors.pop())
            return
        is_newest_alone = len(self._loaded) == 1 and not self._others
        held = self._others or (self._begun if is_newest_alone and self._begun else self._loaded) or self._begun
        held.popitem(last=False)[1].close()


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
