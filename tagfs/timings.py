"""Timings: how long requests took and how they ended, counted as cheaply as can be.  Async.

Owns: distributions over fixed buckets; the wrapper that times the handlers of an adapter.
Does not know: FUSE, what an operation does, who reads the figures.

Who is not timed pays nothing: the wrapper is put on the handlers of one adapter when somebody wants the figures.
"""

import errno
import functools
import inspect
from bisect import bisect_left
from collections.abc import Callable, Coroutine, Sequence
from time import perf_counter
from typing import Any

REQUEST_BOUNDS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Seconds: from a name that the tree knows (20 µs) to a commit behind a disk that hangs."""

DONE = 0
"""In place of an errno: answered without an error."""


class Distribution:
    """How many values fell into each bucket, and their sum; `bounds` are the upper, inclusive ones."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        # INVARIANT: one more than bounds; the last is of what is above them all.
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def note(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Timing:
    """One operation: how long it took, and how often it ended in each errno (DONE: in none)."""

    __slots__ = ("durations", "results")

    def __init__(self) -> None:
        self.durations = Distribution(REQUEST_BOUNDS)
        self.results: dict[int, int] = {DONE: 0}

    def note(self, seconds: float, number: int = DONE) -> None:
        self.durations.note(seconds)
        self.results[number] = self.results.get(number, 0) + 1


class Timings:
    """Of every operation that was asked for."""

    def __init__(self) -> None:
        self._timings: dict[str, Timing] = {}

    def of(self, operation: str) -> Timing:
        timing = self._timings.get(operation)
        if timing is None:
            timing = self._timings[operation] = Timing()
        return timing

    def seen(self) -> dict[str, Timing]:
        """Those that were asked for at least once."""
        return {name: timing for name, timing in self._timings.items() if any(timing.durations.counts)}

    def measure(self, adapter: object) -> None:
        """Time every handler of an adapter from now on: each coroutine function with a public name."""
        for name, handler in inspect.getmembers(adapter, inspect.iscoroutinefunction):
            if not name.startswith("_"):
                setattr(adapter, name, _timed(handler, self.of(name)))


def result_name(number: int) -> str:
    """How a result is called in a metric: `ok`, or the errno's name."""
    return "ok" if number == DONE else errno.errorcode.get(number, str(number))


def _timed(handler: Callable[..., Coroutine[Any, Any, Any]], timing: Timing) -> Callable[..., Coroutine[Any, Any, Any]]:
    durations, counts, bounds, results = timing.durations, timing.durations.counts, REQUEST_BOUNDS, timing.results

    # `note` spelled out: a call of it would be a third of what this costs.
    @functools.wraps(handler)
    async def wrapper(*args: Any) -> Any:
        began = perf_counter()
        number = DONE
        try:
            return await handler(*args)
        except Exception as error:
            number = getattr(error, "errno", None) or errno.EIO
            raise
        finally:
            took = perf_counter() - began
            counts[bisect_left(bounds, took)] += 1
            durations.sum += took
            results[number] = results.get(number, 0) + 1

    return wrapper
