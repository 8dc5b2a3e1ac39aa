"""Commits: the steps of writers, one after another for a key, side by side for different ones.  Async.

Owns: the order of steps; what of them is done on the loop; waiting for a key to be quiet.
Does not know: what a step does.
Invariant: steps of one key run and settle in the order in which they were submitted, also while the mount ends.
"""

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import trio

from tagfs.durability import Call, Unsynced, Work, done_from
from tagfs.errors import CommitUncertain, TagfsError
from tagfs.handles import HEAVY, Step
from tagfs.lanes import Lanes
from tagfs.names import RepositoryKey
from tagfs.timings import Distribution

log = logging.getLogger(__name__)

MOST_WAITING = 256
"""Steps that may wait before writers do: each can hold a descriptor of a list that is not published yet."""

MOST_BYTES = 256 << 20
"""Bytes of lists in them."""

DURATIONS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Seconds: an fsync takes 2 to 4 ms on a disk of its own, and seconds on one that is busy."""

OUTCOMES = ("done", "refused", "failed", "uncertain")
"""How a step ends: refused by what it found, failed by the disk (or a defect), uncertain after its rename."""


class Pending:
    """A step that was begun; `work` is there once its turn has come, `error` is set before `done` where it failed."""

    __slots__ = ("began", "done", "error", "is_awaited", "step", "then", "work")

    def __init__(self, step: Step, is_awaited: bool) -> None:
        self.step = step
        self.is_awaited = is_awaited
        self.done = trio.Event()
        self.error: BaseException | None = None
        self.work: Work[Any] | None = None
        self.began = 0.0
        self.then: Callable[[BaseException | None], None] | None = None
        """Called at its end with what it raised, for who waits without a task."""

    async def ended(self) -> None:
        """Wait for its end, at once and without a checkpoint where that has come; raises what it raised."""
        if not self.done.is_set():
            await self.done.wait()
        if self.error is not None:
            raise self.error


class _Line:
    """The steps that wait for one key."""

    __slots__ = ("idle", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Pending] = deque()
        self.idle = trio.Event()


class Commits:
    """Runs steps: on the loop what does not block, in threads what does; lives as long as its nursery."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._lanes = Lanes(nursery)
        # INVARIANT: a key is here while, and only while, a step of it waits or runs.
        self._lines: dict[RepositoryKey, _Line] = {}
        # INVARIANT: the number of all that wait or run, and of their bytes.
        self._depth = 0
        self._bytes = 0
        self._crowd = trio.lowlevel.ParkingLot()
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.durations = Distribution(DURATIONS)
        self.ended: Callable[[RepositoryKey], None] | None = None
        """Called with the key of each step that has ended, however."""

    def submit(self, step: Step) -> None:
        """Let a step run in its turn; a failure is logged, because nobody waits for it."""
        self._enqueue(Pending(step, is_awaited=False))

    def begin(self, step: Step) -> Pending:
        """Let a step run in its turn, for somebody who waits for its end."""
        pending = Pending(step, is_awaited=True)
        self._enqueue(pending)
        return pending

    async def run(self, step: Step | None) -> None:
        """Run a step in its turn and wait for it; raises what it raised."""
        if step is not None:
            await self.begin(step).ended()

    def is_quiet(self, key: RepositoryKey) -> bool:
        """Whether no step of `key` waits or runs."""
        return key not in self._lines

    async def quiet(self, key: RepositoryKey | None) -> None:
        """Return when no step of `key` waits or runs; at once, without a checkpoint, where none does."""
        while key is not None and (line := self._lines.get(key)) is not None:
            await line.idle.wait()

    async def settled(self) -> None:
        """Return when every step that waits or runs now has settled; later ones of other keys are not waited for."""
        for line in list(self._lines.values()):
            await line.idle.wait()

    async def drain(self) -> None:
        """Return when no step of any key waits or runs."""
        while self._lines:
            await next(iter(self._lines.values())).idle.wait()

    async def room(self) -> None:
        """Return when so few steps wait that a writer may add one; at once, without a checkpoint, where they do."""
        while not self.has_room:
            await self._crowd.park()

    @property
    def has_room(self) -> bool:
        """Whether so few steps wait that a writer may add one."""
        return self._depth < MOST_WAITING and self._bytes < MOST_BYTES

    @property
    def depth(self) -> int:
        """Steps that wait or run."""
        return self._depth

    @property
    def in_flight(self) -> int:
        """Those of them that threads are at work on."""
        return self._lanes.in_flight

    @property
    def pending_bytes(self) -> int:
        return self._bytes

    def attend(self, ring: Callable[[], None] | None) -> None:
        """As `Lanes.attend`: whoever is rung goes on with what threads have done by `collect`."""
        self._lanes.attend(ring)

    def collect(self) -> None:
        self._lanes.collect()

    def _enqueue(self, pending: Pending) -> None:
        key = pending.step.key
        self._depth += 1
        self._bytes += pending.step.size
        line = self._lines.get(key)
        if line is not None:
            line.waiting.append(pending)
            return
        line = self._lines[key] = _Line()
        line.waiting.append(pending)
        self._go_on(key, line)

    def _go_on(self, key: RepositoryKey, line: _Line, error: Exception | None = None) -> None:
        """Do the first step of a line as far as it does not block, and if it ends the next; `error` is of what it was
        blocked by."""
        while line.waiting:
            pending = line.waiting[0]
            if pending.work is None:
                pending.work = _begun(pending.step)
                pending.began = perf_counter()
            try:
                blocking = pending.work.send(None) if error is None else pending.work.throw(error)
            except StopIteration as end:
                pending.error = _guarded(pending.step, pending.step.settle, end.value)
                self.outcomes["done"] += 1
            except Exception as failure:
                pending.error = failure
                self.outcomes[_outcome(failure)] += 1
                _guarded(pending.step, pending.step.fail, failure)
                if not pending.is_awaited:
                    _tell(key, failure)
            else:
                if self._depth == 1 and isinstance(blocking, Unsynced):
                    # Nothing to share a sync with: a thread does all that is left, and is waited for once.
                    pending.work = _called(partial(done_from, pending.work, blocking))
                    blocking = next(pending.work)
                self._lanes.add(blocking, partial(self._go_on, key, line))
                return
            error = None
            self.durations.note(perf_counter() - pending.began)
            line.waiting.popleft()
            self._depth -= 1
            self._bytes -= pending.step.size
            pending.done.set()
            if pending.then is not None:
                pending.then(pending.error)
            if self.ended is not None:
                self.ended(key)
            self._crowd.unpark_all()
        del self._lines[key]
        line.idle.set()


def _begun(step: Step) -> Work[Any]:
    """A step as work: all of it in a thread where it does not say where it blocks, or would hold up the loop."""
    if step.work is not None and step.size < HEAVY:
        return step.work()
    return _called(step.run)


def _called(run: Callable[[], Any]) -> Work[Any]:
    results: list[Any] = []
    yield Call(lambda: results.append(run()))
    return results[0]


def _outcome(error: Exception) -> str:
    if isinstance(error, CommitUncertain):
        return "uncertain"
    return "refused" if isinstance(error, TagfsError) else "failed"


def _guarded(step: Step, end: Callable[[Any], None], outcome: Any) -> Exception | None:
    """End a step; a defect in how it ends must not end the mount, and is the error of whoever waits for it."""
    try:
        end(outcome)
    except Exception as error:
        log.error("%s: a step ended in an error that should not happen", step.key.path, exc_info=error)
        return error
    return None


def _tell(key: RepositoryKey, error: Exception) -> None:
    if isinstance(error, CommitUncertain):
        log.error("%s: readers see the new list, whether it survives a power cut is not known: %s", key.path, error)
    elif isinstance(error, (TagfsError, OSError)):
        log.error("%s: not committed after it was closed, the old list stays: %s", key.path, error)
    else:
        log.error("%s: not committed after it was closed, the old list stays", key.path, exc_info=error)
