"""Inventory: which keys ought to exist, and which cease to.  Async.

Owns: the interface, stated once.
Does not know: where an inventory has it from; stores, sweeps.
Invariant: a key that ought to exist is never told to be missing: when unsure, an error, or nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager

from tagfs.names import RepositoryKey


class Inventory(ABC):
    """What ought to exist."""

    name: str
    """What to call it in a log."""

    last_complete: float | None = None
    """When it was last told completely, on trio's clock."""

    restarts = 0
    """How often the following of departures was begun again."""

    throttled: Mapping[str, int] = {}
    """Requests that had to wait, by whom: the `client`'s own limit, or the `server`."""

    @property
    def is_synced(self) -> bool:
        """Whether departures are told as they happen."""
        return True

    @abstractmethod
    async def keys(self) -> frozenset[RepositoryKey]:
        """Every key that ought to exist now, by a fresh look.

        Raises:
            InventoryIncomplete: they cannot all be told.
        """

    @abstractmethod
    def departures(self) -> AbstractAsyncContextManager[AsyncIterator[RepositoryKey]]:
        """Keys that have ceased to be, while the context lasts; for one reader at a time.

        The iterator never ends and raises nothing: it tries again by itself.  Each key was looked for once more, and
        not found, when it is given out; one that comes back before is not given out at all.  Departures of before the
        context are not told: `keys` is for those.
        """
