"""Guard: holds a mass deletion, and remembers it from one process to the next.  Pure.

Owns: how much more of a store may go within an hour; what is held; the ledger that outlives a guard.
Does not know: stores, which keys are orphans, what time it is.
"""

import json
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from tagfs.errors import LedgerUnreadable
from tagfs.names import RepositoryKey
from tagfs.plan import Rules

WINDOW = 3600.0
"""Seconds in which at most `max_percent` of a store may go."""

SMALL = 20
"""Lists of a store up to which any share of it may go: half of three is no mass."""

LEDGER_LIMIT = 1 << 16
"""Bytes; there are at most as many entries of both kinds as WINDOW has minutes."""

_MINUTE = 60
_MOST = 1 << 26
"""More than there are minutes since 1970, or lists in a store."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a guard leaves to the next: (minute since 1970, how many lists were deleted in it or were there)."""

    deleted: tuple[tuple[int, int], ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    is_holding: bool = False

    def encoded(self) -> bytes:
        return json.dumps({"deleted": self.deleted, "sizes": self.sizes, "holding": self.is_holding}).encode() + b"\n"

    @classmethod
    def decoded(cls, content: bytes) -> "Ledger":
        """LedgerUnreadable for what is none, for whatever reason."""
        try:
            if len(content) > LEDGER_LIMIT:
                raise ValueError(f"more than {LEDGER_LIMIT} bytes")
            found = json.loads(content)
            is_holding = found["holding"]
            if not isinstance(is_holding, bool):
                raise TypeError("holding is neither true nor false")
            return cls(_pairs(found["deleted"]), _pairs(found["sizes"]), is_holding)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise LedgerUnreadable(f"{type(error).__name__}: {error}") from None


class Guard:
    """Holds a mass deletion, whether it comes by one sweep or as a stream of departures.

    It is one where more than the share has been deleted of what was there in the last WINDOW, and the store has also
    shrunk by more than that: repositories that come and go all day are none, and neither is what people delete.

    A deletion is reserved before it is begun, and ends as `deleted` or `given_back`.  What is held once stays held
    until it is no orphan any more, however many hours pass, and counts meanwhile as if it went.

    A ledger carries that from one guard of a store to the next.  It does not name what is held: where anything was,
    `holds_unnamed` says that whatever is an orphan now is to be held.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        # INVARIANT: (when the last of them was, how many), times ascending, at most one for each second; `_count` is
        # the sum.  Those of the last WINDOW seconds and perhaps older ones.
        self._deleted: deque[tuple[float, int]] = deque()
        self._count = 0
        # INVARIANT: (when, lists that were there), times ascending and sizes descending: the first is the largest.
        self._sizes: deque[tuple[float, int]] = deque()
        self._present = 0
        self._reserved = 0
        self.spent = 0
        """Deletions that were reserved, ever, and not given back."""
        self.held: set[RepositoryKey] = set()
        self.holds_unnamed = False

    def room(self, present: int, now: float) -> int | None:
        """How many more lists of a store of `present` lists may be deleted now; None: any number."""
        self._present = present
        self._note_size(now)
        self._expire(now)
        largest = self._sizes[0][1]
        if self._rules.allow_mass_deletion or self._rules.max_percent >= 100 or largest <= SMALL:
            return None
        percent, deleted = self._rules.max_percent, self._count
        by_count = percent * (present + deleted) // 100 - deleted
        by_size = present - -(-(100 - percent) * largest // 100)
        return max(0, max(by_count, by_size) - self._reserved - len(self.held))

    def reserve(self, count: int) -> None:
        """Count `count` deletions, for which there is room, as begun."""
        self._reserved += count
        self.spent += count

    def deleted(self, now: float) -> None:
        """One that was reserved has been deleted, or may have been."""
        self._reserved -= 1
        self._note_deleted(now, 1)
        self._note_size(now)
        self._present -= 1

    def given_back(self, count: int = 1) -> None:
        """Some that were reserved are not deleted."""
        self._reserved -= count
        self.spent -= count

    def hold(self, keys: Iterable[RepositoryKey]) -> None:
        self.held.update(keys)

    def name(self, orphans: Iterable[RepositoryKey]) -> None:
        """Hold `orphans`, which a complete look has found, where something is held and only that it is was known."""
        if self.holds_unnamed:
            self.hold(orphans)
            self.holds_unnamed = False

    def keep_only(self, orphans: Iterable[RepositoryKey]) -> None:
        """Let go of what is held and not among `orphans`, which a complete look has found."""
        self.held.intersection_update(orphans)

    # -- from one guard to the next

    @property
    def is_holding(self) -> bool:
        return self.holds_unnamed or bool(self.held)

    def ledger(self, now: float, clock: float) -> Ledger:
        """What the next guard must know; `clock` is what time it is `now`, in seconds since 1970.  What is reserved
        counts as deleted: whoever reads this cannot know what became of it.  What was allowed does not count."""
        if self._rules.allow_mass_deletion:
            return Ledger(is_holding=self.is_holding)
        self._expire(now)
        deleted = Counter({_minute(clock): self._reserved} if self._reserved else {})
        for at, count in self._deleted:
            deleted[_minute(clock - now + at)] += count
        sizes: dict[int, int] = {}
        for at, lists in self._sizes:
            sizes.setdefault(_minute(clock - now + at), lists)
        return Ledger(tuple(sorted(deleted.items())), tuple(sizes.items()), self.is_holding)

    def take_over(self, ledger: Ledger, now: float, clock: float) -> None:
        """Go on where another guard ended, before this one has done anything."""
        for minute, count in sorted(ledger.deleted):
            self._note_deleted(now - _age(minute, clock), count)
        for minute, self._present in sorted(ledger.sizes):
            self._note_size(now - _age(minute, clock))
        self.holds_unnamed = ledger.is_holding

    def _expire(self, now: float) -> None:
        while self._deleted and self._deleted[0][0] <= now - WINDOW:
            self._count -= self._deleted.popleft()[1]
        while self._sizes and self._sizes[0][0] <= now - WINDOW:
            self._sizes.popleft()

    def _note_deleted(self, now: float, count: int) -> None:
        self._count += count
        if self._deleted and int(self._deleted[-1][0]) == int(now):
            count += self._deleted.pop()[1]
        self._deleted.append((now, count))

    def _note_size(self, now: float) -> None:
        while self._sizes and self._sizes[-1][1] <= self._present:
            self._sizes.pop()
        size = self._present
        if self._sizes and int(self._sizes[-1][0]) == int(now):
            _, size = self._sizes.pop()
        self._sizes.append((now, size))


def _pairs(found: object) -> tuple[tuple[int, int], ...]:
    if not isinstance(found, list):
        raise TypeError("no list of pairs")
    pairs = tuple((minute, count) for minute, count in found)
    if not all(type(value) is int and 0 <= value <= _MOST for pair in pairs for value in pair):
        raise TypeError("a pair that is no minute and number")
    return pairs


def _minute(clock: float) -> int:
    """Of what was before 1970, as a machine that does not know the time yet may have it, the first."""
    return max(0, int(clock) // _MINUTE)


def _age(minute: int, clock: float) -> float:
    """How long ago a minute ended; one to come, where the clock has been set back, is this moment."""
    return max(0.0, clock - (minute + 1) * _MINUTE)
