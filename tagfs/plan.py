"""Plan: from what is there and what ought to be to what is deleted.  Pure.

Owns: which keys are orphans, the guards against deleting too much, which namespaces are pruned.
Does not know: stores, where an inventory is from, what time it is.
Invariant: nothing outside `disk - inventory` is ever deleted.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from tagfs.names import RepositoryKey

WINDOW = 3600.0
"""Seconds in which at most `max_percent` of a store may go."""

SMALL = 20
"""Lists of a store up to which any share of it may go: half of three is no mass."""

DEFAULT_MAX_PERCENT = 50


@dataclass(frozen=True, slots=True)
class Disk:
    """What a store holds: `lists` are the keys that have one, `bare` those that have a directory without."""

    lists: frozenset[RepositoryKey] = frozenset()
    bare: frozenset[RepositoryKey] = frozenset()
    namespaces: frozenset[str] = frozenset()

    @property
    def keys(self) -> frozenset[RepositoryKey]:
        return self.lists | self.bare


@dataclass(frozen=True, slots=True)
class Rules:
    """What the guards allow."""

    max_percent: int = DEFAULT_MAX_PERCENT
    allow_empty_inventory: bool = False
    allow_mass_deletion: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What a sweep does.

    `delete` and `held` are orphans; `refusal` says why those that are held stay.  `prune` are namespaces without a
    directory of any key, `emptied` those whose every directory is of a key in `delete`.
    """

    delete: tuple[RepositoryKey, ...] = ()
    held: tuple[RepositoryKey, ...] = ()
    prune: tuple[str, ...] = ()
    emptied: tuple[str, ...] = ()
    refusal: str | None = None

    @property
    def orphans(self) -> tuple[RepositoryKey, ...]:
        return tuple(sorted((*self.delete, *self.held)))


class Guard:
    """Holds a mass deletion, whether it comes by one sweep or as a stream of departures.

    It is one where more than the share has been deleted of what was there in the last WINDOW, and the store has also
    shrunk by more than that: repositories that come and go all day are none, and neither is what people delete.

    A deletion is reserved before it is begun, and ends as `deleted` or `given_back`.  What is held once stays held
    until it is no orphan any more, however many hours pass, and counts meanwhile as if it went.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        # INVARIANT: in order; those of the last WINDOW seconds and perhaps older ones.
        self._deleted: deque[float] = deque()
        # INVARIANT: (when, lists that were there), times ascending and sizes descending: the first is the largest.
        self._sizes: deque[tuple[float, int]] = deque()
        self._present = 0
        self._reserved = 0
        self.held: frozenset[RepositoryKey] = frozenset()

    def room(self, present: int, now: float) -> int | None:
        """How many more lists of a store of `present` lists may be deleted now; None: any number."""
        while self._deleted and self._deleted[0] <= now - WINDOW:
            self._deleted.popleft()
        self._present = present
        self._note_size(now)
        while self._sizes[0][0] <= now - WINDOW:
            self._sizes.popleft()
        largest = self._sizes[0][1]
        if self._rules.allow_mass_deletion or self._rules.max_percent >= 100 or largest <= SMALL:
            return None
        percent, deleted = self._rules.max_percent, len(self._deleted)
        by_count = percent * (present + deleted) // 100 - deleted
        by_size = present - -(-(100 - percent) * largest // 100)
        return max(0, max(by_count, by_size) - self._reserved - len(self.held))

    def reserve(self, count: int) -> None:
        """Count `count` deletions, for which there is room, as begun."""
        self._reserved += count

    def deleted(self, now: float) -> None:
        """One that was reserved has been deleted, or may have been."""
        self._reserved -= 1
        self._deleted.append(now)
        self._note_size(now)
        self._present -= 1

    def given_back(self, count: int = 1) -> None:
        """Some that were reserved are not deleted."""
        self._reserved -= count

    def hold(self, keys: Iterable[RepositoryKey]) -> None:
        self.held |= frozenset(keys)

    def keep_only(self, orphans: Iterable[RepositoryKey]) -> None:
        """Let go of what is held and not among `orphans`, which a complete look has found."""
        self.held &= frozenset(orphans)

    def _note_size(self, now: float) -> None:
        while self._sizes and self._sizes[-1][1] <= self._present:
            self._sizes.pop()
        self._sizes.append((now, self._present))


def plan(
    disk: Disk,
    inventory: frozenset[RepositoryKey] | None,
    rules: Rules,
    held: frozenset[RepositoryKey] = frozenset(),
    room: int | None = None,
) -> Plan:
    """What one sweep does.

    Args:
        inventory: the keys that ought to exist, all of them; None: nobody says, so nothing is an orphan.
        held: keys that the guard holds.
        room: how many lists the guard has room for beside those; None: any number.
    """
    orphans = disk.keys - inventory if inventory is not None else frozenset()
    going = disk.lists & orphans - held
    refusal: str | None = None
    delete = orphans
    if orphans and not inventory and not rules.allow_empty_inventory:
        delete = frozenset()
        refusal = (
            f"the inventory is empty, so all {len(orphans)} would go;"
            " --sweep-allow-empty-inventory deletes them if that is meant"
        )
    elif not rules.allow_mass_deletion and room is not None and len(going) > room:
        delete = frozenset()
        refusal = (
            f"{len(disk.lists & orphans)} of {len(disk.lists)} lists would go,"
            f" more than --sweep-max-percent ({rules.max_percent}) allows within an hour; {_ADVICE}"
        )
    elif not rules.allow_mass_deletion and orphans & held:
        delete = orphans - held
        refusal = f"{len(orphans & held)} lists were to go in a mass deletion and are still held; {_ADVICE}"
    kept = {key.namespace for key in disk.keys - delete} | {key.namespace for key in inventory or ()}
    had = {key.namespace for key in disk.keys}
    return Plan(
        delete=tuple(sorted(delete)),
        held=tuple(sorted(orphans - delete)),
        prune=tuple(sorted(disk.namespaces - kept - had)),
        emptied=tuple(sorted(had - kept)),
        refusal=refusal,
    )


_ADVICE = "tagfs sweep --dry-run shows them; if that is meant, allow the mass deletion"
