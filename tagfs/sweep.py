"""Sweep: one sweep, and one departure.  Async.

Owns: the order of a sweep (the disk first, then the inventory); holding what the guards hold; what was counted.
Does not know: when sweeps are, how a list is deleted, FUSE, where an inventory is from.
Invariant: where an inventory is not complete, nothing is deleted.

The disk first: a repository that is created while this looks is either not on the disk yet, or in the inventory.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

import trio

from tagfs.errors import LedgerUnreadable, StoreWaiting, TagfsError
from tagfs.guard import SMALL, Guard, Ledger
from tagfs.inventory import Inventory
from tagfs.names import SWEEP_LEDGER, RepositoryKey
from tagfs.plan import Plan, Rules, plan
from tagfs.removal import Mark, Outcome, Removal, StoreRemoval
from tagfs.store import Store

log = logging.getLogger(__name__)

COUNT_GOOD = 600.0
"""Seconds for which a count of the store's lists is good enough to let something go."""
COUNT_FRESH = 60.0
"""Seconds for which it is good enough to hold something."""


@dataclass(slots=True)
class Counters:
    """What has been done since the start; `held` and `lists` are as of the last look."""

    sweeps: int = 0
    incomplete: int = 0
    failed: int = 0
    departures: int = 0
    deleted: int = 0
    left: int = 0
    errors: int = 0
    pruned: int = 0
    held: int = 0
    lists: int = 0
    seconds: float = 0.0
    """That all of `sweeps` took."""
    last_seconds: float = 0.0
    """That the last of them took."""
    last_success: float | None = None
    """When a sweep ended that did all it had to, on trio's clock."""


@dataclass(slots=True)
class Swept:
    """What one sweep did; `plan` is what it set out to do."""

    plan: Plan
    lists: int
    expected: int | None
    deleted: list[RepositoryKey] = field(default_factory=list)
    left: list[RepositoryKey] = field(default_factory=list)
    errors: dict[RepositoryKey, str] = field(default_factory=dict)
    pruned: list[str] = field(default_factory=list)


class Sweep:
    """Sweeps what it is given; its guard remembers the last hour whatever it was, and by a ledger in the store what
    was in that hour before this.

    Args:
        inventory: None: no orphan is deleted.
        is_suspended: tell what would go, and delete nothing.
    """

    def __init__(self, inventory: Inventory | None, rules: Rules, is_suspended: bool = False) -> None:
        self._inventory = inventory
        self._rules = rules
        self._is_suspended = is_suspended
        self._guard = Guard(rules)
        self._has_taken_over = False
        # INVARIANT: as of the last ledger that was read or written: what the guard has ever spent, whether it held.
        self._written = (0, False)
        self._writing = trio.Lock()
        self._counted_at = -inf
        self.counters = Counters()

    async def run(self, removal: Removal, is_dry: bool = False) -> Swept:
        """One sweep.

        Raises:
            InventoryIncomplete: nothing was deleted.
            StoreWaiting, OSError: the store was taken away, or cannot be listed; nothing more was deleted.
        """
        began = trio.current_time()
        with removal.marked() as mark:
            await self._take_over(removal)
            disk = await removal.listing()
            expected = await self._inventory.keys() if self._inventory is not None else None
            now = trio.current_time()
            self._count(len(disk.lists))
            if expected is not None:
                if self._is_told(expected):
                    self._guard.name(disk.lists - expected)
                self._guard.keep_only(disk.keys - expected)
            room = self._guard.room(len(disk.lists), now)
            made = plan(disk, expected, self._rules, self._guard.held, room)
            swept = Swept(made, len(disk.lists), len(expected) if expected is not None else None)
            if not is_dry and not self._is_suspended:
                if self._is_told(expected):
                    self._guard.hold(disk.lists.intersection(made.held))
                await self._delete(removal, mark, swept, disk.lists)
                self._guard.keep_only(self._guard.held.difference(swept.deleted))
                await self._leave_ledger(removal)
                await self._prune(removal, mark, swept)
        self._tell(swept, trio.current_time() - began, is_dry)
        return swept

    async def _delete(self, removal: Removal, mark: Mark, swept: Swept, lists: frozenset[RepositoryKey]) -> None:
        counted = lists.intersection(swept.plan.delete)
        waiting = len(counted)
        self._guard.reserve(waiting)
        try:
            await self._leave_ledger(removal)
            for key in swept.plan.delete:
                waiting -= key in counted
                await self._remove(removal, key, mark, swept, key in counted)
        finally:
            self._guard.given_back(waiting)

    async def _remove(self, removal: Removal, key: RepositoryKey, mark: Mark, swept: Swept, is_counted: bool) -> None:
        """Delete one; where it `is_counted`, the guard has reserved it."""
        outcome: Outcome | None = None
        is_begun = False
        try:
            outcome = await removal.remove(key, mark)
        except StoreWaiting:
            raise
        except (TagfsError, OSError) as error:
            is_begun = True
            swept.errors[key] = str(error)
            self.counters.errors += 1
            log.error("%s: an orphan, not deleted: %s", key, error)
        finally:
            if is_counted and (is_begun or outcome is Outcome.DELETED):
                self._guard.deleted(trio.current_time())
            elif is_counted:
                self._guard.given_back()
        if outcome is Outcome.LEFT:
            swept.left.append(key)
            self.counters.left += 1
            log.info("%s: an orphan, left for now: it is being written, or was meanwhile", key)
        elif outcome in (Outcome.DELETED, Outcome.BARE):
            swept.deleted.append(key)
            self.counters.deleted += 1
            self.counters.lists -= is_counted
            log.info("%s: an orphan, deleted", key)

    async def _prune(self, removal: Removal, mark: Mark, swept: Swept) -> None:
        kept = {key.namespace for key in (*swept.left, *swept.errors)}
        for namespace in sorted({*swept.plan.prune, *swept.plan.emptied} - kept):
            try:
                if await removal.prune(namespace, mark, namespace in swept.plan.emptied):
                    swept.pruned.append(namespace)
                    self.counters.pruned += 1
                    log.info("%s: an empty namespace, removed", namespace)
            except (TagfsError, OSError) as error:
                self.counters.errors += 1
                log.error("%s: an empty namespace, not removed: %s", namespace, error)

    def _is_told(self, expected: frozenset[RepositoryKey] | None) -> bool:
        """Whether what is not in an inventory is an orphan by it."""
        return bool(expected) or self._rules.allow_empty_inventory

    def _count(self, lists: int) -> None:
        self.counters.lists, self._counted_at = lists, trio.current_time()

    # -- what earlier sweeps did

    async def _take_over(self, removal: Removal) -> None:
        """Learn, once, what the guard of an earlier process left; what cannot be told counts as held."""
        if self._has_taken_over:
            return
        try:
            ledger = await removal.ledger()
        except LedgerUnreadable as error:
            log.error("%s: cannot be understood, so all orphans are held: %s", SWEEP_LEDGER, error)
            ledger = Ledger(is_holding=True)
        except OSError as error:
            raise OSError(error.errno, f"{SWEEP_LEDGER} cannot be read: {error.strerror}") from error
        if ledger is not None:
            self._guard.take_over(ledger, trio.current_time(), time.time())
            self._written = (0, self._guard.is_holding)
        self._has_taken_over = True

    async def _leave_ledger(self, removal: Removal) -> None:
        """Write down what the next process must know, where that has changed."""
        async with self._writing:
            known = (self._guard.spent, self._guard.is_holding)
            if known == self._written or self._inventory is None:
                return
            try:
                await removal.write_ledger(self._guard.ledger(trio.current_time(), time.time()))
            except OSError as error:
                # A full disk must not keep the sweep from making room.
                log.warning("%s: not written, so a restart may forget a mass deletion: %s", SWEEP_LEDGER, error)
            else:
                self._written = known

    # -- as they become orphans

    async def depart(self, removal: Removal, key: RepositoryKey, mark: Mark) -> bool:
        """Delete the list of a key that has ceased to be, where the guards allow it; -> False if it was left, because
        it is being written or was since `mark`."""
        if self._is_suspended:
            log.info("%s: would be deleted: it has departed (--sweep-suspend)", key)
            return True
        swept = Swept(Plan(delete=(key,)), self.counters.lists, None)
        try:
            await self._take_over(removal)
            if key in self._guard.held or not await removal.has(key):
                return True
            if await self._may_depart(removal, key):
                await self._delete(removal, mark, swept, frozenset(swept.plan.delete))
            else:
                await self._leave_ledger(removal)
        except (TagfsError, OSError) as error:
            log.error("%s: has departed, left to the next sweep: %s", key, error)
        return not swept.left

    async def _may_depart(self, removal: Removal, key: RepositoryKey) -> bool:
        room = self._guard.room(self.counters.lists, trio.current_time())
        age = trio.current_time() - self._counted_at
        if age > (COUNT_GOOD if room is not None and room > 0 else COUNT_FRESH) or self.counters.lists <= SMALL:
            self._count(len((await removal.listing()).lists))
            room = self._guard.room(self.counters.lists, trio.current_time())
        level = logging.INFO if self._guard.held else logging.ERROR
        if self._guard.holds_unnamed and not self._rules.allow_mass_deletion:
            self._hold(key)
            log.log(
                level,
                "%s: held: it has departed, and a mass deletion was held when the last process ended; the next sweep"
                " tells more (SIGUSR1 sweeps now)",
                key,
            )
            return False
        if room == 0:
            self._hold(key)
            log.log(
                level,
                "%s: held: it has departed, and with it more of %d lists than --sweep-max-percent (%d) allows within an"
                " hour; nothing more is deleted until the mass deletion is allowed",
                key,
                self.counters.lists,
                self._rules.max_percent,
            )
            return False
        if room is None and not self._rules.allow_empty_inventory:
            assert self._inventory is not None
            expected = await self._inventory.keys()
            if not expected:
                log.error(
                    "%s: held: it has departed, and now the inventory is empty;"
                    " --sweep-allow-empty-inventory deletes it if that is meant",
                    key,
                )
            return bool(expected) and key not in expected
        return True

    def _hold(self, key: RepositoryKey) -> None:
        self._guard.hold([key])
        self.counters.held = len(self._guard.held)

    # -- what is told

    def _tell(self, swept: Swept, seconds: float, is_dry: bool) -> None:
        made, counters = swept.plan, self.counters
        counters.sweeps += 1
        counters.seconds += seconds
        counters.last_seconds = seconds
        is_news, counters.held = len(made.held) > counters.held, len(made.held)
        if not made.refusal and not swept.errors:
            counters.last_success = trio.current_time()
        if is_dry:
            return
        if made.refusal:
            # Once, and again where there are more of them.
            level = logging.ERROR if is_news else logging.INFO
            log.log(level, "sweep: %d orphans are held: %s", len(made.held), made.refusal)
        if self._is_suspended:
            _tell_each(made.orphans, "an orphan, it would be deleted (--sweep-suspend)")
        log.info(
            "sweep: %d lists, %s expected; orphans: %d deleted, %d held, %d left, %d failed;"
            " namespaces: %d removed; %.1f s",
            swept.lists,
            "any" if swept.expected is None else swept.expected,
            len(swept.deleted),
            len(made.held),
            len(swept.left),
            len(swept.errors),
            len(swept.pruned),
            seconds,
        )


def run_once(
    store: Store, inventory: Inventory, rules: Rules, is_dry: bool, before: Callable[[RepositoryKey], None]
) -> Swept:
    """Sweep a store whose only writer this process is, or, `is_dry`, any; `before` is called before each deletion."""
    return trio.run(Sweep(inventory, rules).run, StoreRemoval(store, before), is_dry)


def _tell_each(keys: Sequence[RepositoryKey], what: str) -> None:
    for key in keys:
        log.info("%s: %s", key, what)
