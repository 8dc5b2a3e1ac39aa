"""Sweeping: a sweep by itself, of a store that no mount holds.  Blocking.

Owns: what `tagfs sweep` finds and does; a dry run, which takes no lock and writes nothing.
Does not know: how it is shown.
"""

import re
from collections.abc import Callable
from contextlib import closing

from tagfs import sentinel, taglist
from tagfs.directory import DirectoryStore
from tagfs.disk import Disk, closed_on_failure
from tagfs.errors import ListCorrupt, ListMissing, RepositoryMissing, StoreHeld, TagfsError
from tagfs.holder import open_store, take
from tagfs.inventory import Inventory
from tagfs.names import RepositoryKey
from tagfs.orphans import Orphan, SweepReport
from tagfs.plan import Rules
from tagfs.policy import Policy
from tagfs.store import Store
from tagfs.sweep import Swept, run_once

_PID = re.compile(r"pid ([0-9]+) \((?!.* (?:check|convert|sweep) )")


def sweep_store(
    path: str, inventory: Inventory, rules: Rules, limit: int, is_dry: bool, disk: Disk | None = None
) -> SweepReport:
    """Sweep the store at `path` once.

    Args:
        limit: plain bytes of a list that is read to be told of.

    Raises:
        StoreHeld: a mount has it, which sweeps by itself.
        StoreRefused, StoreWaiting: it is no store, or not now.
        InventoryIncomplete: nothing was deleted.
    """
    disk = disk or Disk()
    try:
        root = (open_store if is_dry else take)(disk, path)
    except StoreHeld as error:
        raise StoreHeld(path, error.holder, _advice(error.holder)) from None
    with closed_on_failure(disk, root):
        format_ = sentinel.require_ready(disk, root, path)
    with closing(DirectoryStore(disk, root, format_, Policy(list_limit=limit))) as store:
        known: dict[RepositoryKey, Orphan] = {}
        swept = run_once(store, inventory, rules, is_dry, _describing(store, known))
        found = SweepReport(path, inventory.name, is_dry, swept.lists, swept.expected or 0)
        for key in swept.plan.orphans:
            orphan = known.get(key) or describe(store, key)
            orphan.state, orphan.reason = _state(swept, key, is_dry)
            found.orphans.append(orphan)
        found.namespaces = sorted((*swept.plan.prune, *swept.plan.emptied)) if is_dry else swept.pruned
        found.refusal = swept.plan.refusal
        return found


def describe(store: Store, key: RepositoryKey) -> Orphan:
    """What goes with a key."""
    orphan = Orphan(key)
    try:
        version = store.examine(key)
        orphan.stored_bytes, orphan.tags, orphan.plain_bytes = version.stored_size, None, None
        plain = store.read(key)
        orphan.tags, orphan.plain_bytes = taglist.count(plain), len(plain)
    except (ListMissing, RepositoryMissing):
        pass
    except (ListCorrupt, OSError) as error:
        orphan.reason = str(error)
    return orphan


def _describing(store: Store, known: dict[RepositoryKey, Orphan]) -> Callable[[RepositoryKey], None]:
    def note(key: RepositoryKey) -> None:
        try:
            known[key] = describe(store, key)
        except TagfsError:
            return  # The store is gone, which the deletion tells.

    return note


def _state(swept: Swept, key: RepositoryKey, is_dry: bool) -> tuple[str, str]:
    if key in swept.errors:
        return "failed", swept.errors[key]
    if key in swept.left:
        return "left", "it was written a moment ago"
    if key in swept.plan.held:
        return "held", ""
    return "orphan" if is_dry else "deleted", ""


def _advice(holder: str) -> str:
    pid = _PID.match(holder)
    how = f"`kill -USR1 {pid[1]}`" if pid is not None else "SIGUSR1"
    return f"a mount with an --inventory sweeps by itself, {how} has it sweep now; --dry-run needs no lock"
