"""Plan: from what is there and what ought to be to what is deleted.  Pure.

Owns: which keys are orphans, the rules of the guards, which namespaces are pruned.
Does not know: stores, where an inventory is from, what was deleted before.
Invariant: nothing outside `disk - inventory` is ever deleted.
"""

from collections.abc import Set
from dataclasses import dataclass

from tagfs.names import RepositoryKey

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


def plan(
    disk: Disk,
    inventory: frozenset[RepositoryKey] | None,
    rules: Rules,
    held: Set[RepositoryKey] = frozenset(),
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
