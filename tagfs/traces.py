"""Traces: what programs have lately written, so that a sweep keeps off it.  Pure.

Owns: the memory of the last seconds, and of a whole sweep.
Does not know: what a list is.  Times are of one clock that never goes back, in seconds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

KEPT = 10.0
"""Seconds for which a trace is kept in any case."""

_K = TypeVar("_K")


class Traces(Generic[_K]):
    """When each thing was last touched."""

    def __init__(self) -> None:
        # INVARIANT: in the order of the times.
        self._touched: dict[_K, float] = {}
        self._kept_since = float("inf")

    def touch(self, thing: _K, now: float) -> None:
        self._touched.pop(thing, None)
        self._touched[thing] = now
        oldest = min(self._kept_since, now - KEPT)
        while (first := next(iter(self._touched))) is not thing and self._touched[first] < oldest:
            del self._touched[first]

    def is_touched(self, thing: _K, since: float) -> bool:
        """Whether it was touched at `since` or later; good for the last KEPT seconds, and for what `kept` spans."""
        at = self._touched.get(thing)
        return at is not None and at >= since

    @contextmanager
    def kept(self, since: float) -> Iterator[None]:
        """Forget nothing of `since` or later meanwhile."""
        before = self._kept_since
        self._kept_since = min(before, since)
        try:
            yield
        finally:
            self._kept_since = before

    def __len__(self) -> int:
        return len(self._touched)
