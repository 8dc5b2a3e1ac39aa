"""What timing a request costs: a handler by itself, with tagfs's own counting, and with prometheus_client's.

usage: python -m bench.timings
"""

import time
from collections.abc import Callable, Coroutine
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from tagfs.timings import REQUEST_BOUNDS, Timings

CALLS = 20_000
ROUNDS = 50


class Adapter:
    """A handler that does nothing, so that all there is to see is what is around it."""

    async def lookup(self, parent: int, name: bytes, context: object) -> int:
        return parent


def timed_by_peer(handler: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """The same figures as prometheus_client counts them, at its best: with its label values looked up beforehand."""
    registry = CollectorRegistry()
    durations = Histogram("d", "d", ["operation"], buckets=REQUEST_BOUNDS, registry=registry).labels("lookup")
    results = Counter("r", "r", ["operation", "result"], registry=registry).labels("lookup", "ok")

    async def wrapper(*args: Any) -> Any:
        with durations.time():
            answer = await handler(*args)
        results.inc()
        return answer

    return wrapper


def microseconds(handler: Callable[..., Coroutine[Any, Any, Any]]) -> float:
    """Of one call."""
    began = time.perf_counter()
    for _ in range(CALLS):
        try:
            handler(1, b"tags.txt", None).send(None)
        except StopIteration:
            pass
    return (time.perf_counter() - began) / CALLS * 1e6


def main() -> None:
    own_adapter = Adapter()
    Timings().measure(own_adapter)
    handlers = (Adapter().lookup, own_adapter.lookup, timed_by_peer(Adapter().lookup))
    # In turn, and of each the best: other programs take their share of the machine in some rounds alone.
    rounds = [[microseconds(handler) for handler in handlers] for _ in range(ROUNDS)]
    plain, own, peer = (min(of_one) for of_one in zip(*rounds, strict=True))
    print(f"a handler by itself     {plain:5.2f} µs")
    print(f"timed by tagfs          {own - plain:5.2f} µs more")
    print(f"by prometheus_client    {peer - plain:5.2f} µs more, {(peer - plain) / (own - plain):.1f} times as much")


if __name__ == "__main__":
    main()
