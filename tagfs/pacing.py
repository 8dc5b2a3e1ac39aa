"""Pacing: how often the cluster is asked, and when again after it failed.  Async.

Owns: the client's own rate limit; back-off with jitter.
Does not know: what is asked.
"""

import random

import trio

RETRY_AFTER_LIMIT = 300.0
"""Seconds: a server that wants to be left alone for longer is asked again all the same."""


class Allowance:
    """At most `qps` requests a second in the long run, and `burst` at once.  `qps` 0 or less: any number."""

    def __init__(self, qps: float, burst: int) -> None:
        self._qps = qps
        self._burst = max(1, burst)
        self._left = float(self._burst)
        self._at: float | None = None
        self._turn = trio.Lock()
        self.throttled = {"client": 0, "server": 0}
        """Requests that had to wait, by whom."""

    async def take(self) -> None:
        """Return when one more request may go; in the order of asking."""
        if self._qps <= 0:
            return
        async with self._turn:
            self._refill()
            self.throttled["client"] += self._left < 1
            while self._left < 1:
                await trio.sleep((1 - self._left) / self._qps + 1e-6)
                self._refill()
            self._left -= 1

    def _refill(self) -> None:
        now = trio.current_time()
        if self._at is not None:
            self._left = min(self._burst, self._left + (now - self._at) * self._qps)
        self._at = now


class Backoff:
    """Waits between tries, each about twice as long as the one before; jittered, so that many clients do not come
    back as one."""

    def __init__(self, first: float, limit: float) -> None:
        self._first = first
        self._limit = limit
        self.failures = 0

    def reset(self) -> None:
        self.failures = 0

    def next(self, retry_after: float | None = None) -> float:
        """Seconds to wait now; at least what the server asked for."""
        wait = min(self._limit, self._first * 2.0 ** min(self.failures, 30)) * random.uniform(0.5, 1)
        self.failures += 1
        if retry_after is not None:
            wait += min(retry_after, RETRY_AFTER_LIMIT)
        return wait

    async def wait(self, retry_after: float | None = None) -> None:
        await trio.sleep(self.next(retry_after))
