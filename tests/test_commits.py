"""The order of steps, and that none is lost."""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tagfs.commits import MOST_BYTES, MOST_WAITING, Commits
from tagfs.disk import Disk
from tagfs.durability import Together, Unsynced, Work
from tagfs.errors import CommitUncertain, ListCorrupt
from tagfs.handles import Step
from tagfs.lanes import THREADS
from tagfs.names import RepositoryKey

ONE = RepositoryKey("team", "one")
TWO = RepositoryKey("team", "two")


class Recorded:
    """Steps that say when they run, settle and fail; each runs until its gate is opened."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.gates: dict[str, threading.Event] = {}

    def step(
        self, name: str, key: RepositoryKey = ONE, *, error: Exception | None = None, is_open: bool = True
    ) -> Step:
        gate = self.gates[name] = threading.Event()
        if is_open:
            gate.set()

        def run() -> str:
            self.told.append(f"run {name}")
            assert gate.wait(timeout=60)
            if error is not None:
                raise error
            return name

        def settle(result: str) -> None:
            self.told.append(f"settle {result}")

        def fail(failure: BaseException) -> None:
            assert failure is error
            self.told.append(f"fail {name}")

        return Step(key, run, settle, fail)


async def until(condition: Callable[[], bool]) -> None:
    """Let other threads and tasks go on until `condition`; the test's own timeout bounds it."""
    while not condition():
        await trio.to_thread.run_sync(lambda: None)


async def test_steps_of_a_key_run_and_settle_in_order(nursery: trio.Nursery) -> None:
    commits, recorded = Commits(nursery), Recorded()
    for number in range(5):
        commits.submit(recorded.step(str(number)))
    await commits.drain()
    assert recorded.told == [f"{what} {number}" for number in range(5) for what in ("run", "settle")]


async def test_a_key_waits_for_itself_alone(nursery: trio.Nursery) -> None:
    commits, recorded = Commits(nursery), Recorded()
    commits.submit(recorded.step("slow", is_open=False))
    commits.submit(recorded.step("behind"))
    await commits.run(recorded.step("other", TWO))
    await until(lambda: len(recorded.told) == 3)
    assert sorted(recorded.told) == ["run other", "run slow", "settle other"]
    assert commits.depth == 2
    recorded.gates["slow"].set()
    await commits.quiet(ONE)
    assert recorded.told[3:] == ["settle slow", "run behind", "settle behind"]


async def test_no_more_than_its_threads_run_at_once(nursery: trio.Nursery) -> None:
    commits, recorded = Commits(nursery), Recorded()
    keys = [RepositoryKey("team", f"a{number}") for number in range(THREADS + 3)]
    for key in keys:
        commits.submit(recorded.step(key.name, key, is_open=False))
    await until(lambda: len(recorded.told) >= THREADS)
    await wait_all_tasks_blocked(0.01)
    assert len(recorded.told) == THREADS
    for gate in recorded.gates.values():
        gate.set()
    await commits.drain()
    assert sum(told.startswith("settle") for told in recorded.told) == len(keys)
    assert commits.depth == 0


async def test_who_waits_is_given_the_error(nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> None:
    commits, recorded = Commits(nursery), Recorded()
    error = ListCorrupt("a", "b")
    with pytest.raises(ListCorrupt):
        await commits.run(recorded.step("bad", error=error))
    assert recorded.told == ["run bad", "fail bad"]
    assert caplog.records == []
    assert commits.is_quiet(ONE)


@pytest.mark.parametrize(
    ("error", "message", "traceback"),
    [
        (OSError(28, "No space left on device"), "the old list stays: [Errno 28] No space left", False),
        (ListCorrupt("x", "y"), "the old list stays: x: y", False),
        (CommitUncertain("after the rename"), "readers see the new list", False),
        (ZeroDivisionError("!"), "the old list stays", True),
    ],
)
async def test_a_failure_that_nobody_waits_for_is_logged_once(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, error: Exception, message: str, traceback: bool
) -> None:
    commits, recorded = Commits(nursery), Recorded()
    commits.submit(recorded.step("bad", error=error))
    commits.submit(recorded.step("good"))
    await commits.drain()
    assert recorded.told == ["run bad", "fail bad", "run good", "settle good"]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert message in record.getMessage()
    assert "team/one/tags.txt" in record.getMessage()
    assert (record.exc_info is not None) == traceback


async def test_a_step_that_ends_wrong_does_not_end_the_mount(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    commits, recorded = Commits(nursery), Recorded()

    def wrong(_: object) -> None:
        raise LookupError("a defect")

    def refuse() -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(LookupError):
        await commits.run(Step(ONE, lambda: None, wrong))
    with pytest.raises(OSError, match="Input/output"):
        await commits.run(Step(ONE, refuse, wrong, wrong))
    await commits.run(recorded.step("good"))
    assert recorded.told == ["run good", "settle good"]
    assert [record.exc_info is not None for record in caplog.records] == [True, True]


async def test_nothing_to_run_is_nothing_to_wait_for(nursery: trio.Nursery) -> None:
    await Commits(nursery).run(None)


async def test_quiet_returns_at_once_where_nothing_runs(nursery: trio.Nursery) -> None:
    commits, recorded = Commits(nursery), Recorded()
    commits.submit(recorded.step("slow", TWO, is_open=False))
    with trio.testing.assert_no_checkpoints():
        await commits.quiet(ONE)
        await commits.quiet(None)
    assert commits.is_quiet(ONE) and not commits.is_quiet(TWO)
    recorded.gates["slow"].set()


async def test_quiet_waits_for_what_was_submitted_meanwhile(nursery: trio.Nursery) -> None:
    commits, recorded = Commits(nursery), Recorded()
    commits.submit(recorded.step("first", is_open=False))

    async def wait() -> None:
        await commits.quiet(ONE)
        recorded.told.append("quiet")

    nursery.start_soon(wait)
    await until(lambda: recorded.told == ["run first"])
    await wait_all_tasks_blocked()
    commits.submit(recorded.step("second"))
    recorded.gates["first"].set()
    await until(lambda: "quiet" in recorded.told)
    assert recorded.told == ["run first", "settle first", "run second", "settle second", "quiet"]


async def test_of_those_who_wait_for_quiet_the_second_sees_what_the_first_began(nursery: trio.Nursery) -> None:
    commits, recorded = Commits(nursery), Recorded()
    commits.submit(recorded.step("begun", is_open=False))

    async def change(name: str) -> None:
        await commits.quiet(ONE)
        recorded.told.append(f"make {name}")
        await commits.run(recorded.step(name))

    async with trio.open_nursery() as inner:
        inner.start_soon(change, "a")
        inner.start_soon(change, "b")
        await wait_all_tasks_blocked()
        recorded.gates["begun"].set()
    first, second = ("a", "b") if "make a" in recorded.told[2] else ("b", "a")
    assert recorded.told[2:] == [
        what for name in (first, second) for what in (f"make {name}", f"run {name}", f"settle {name}")
    ]


@pytest.mark.parametrize(("count", "size"), [(MOST_WAITING, 0), (2, MOST_BYTES // 2)])
async def test_there_is_room_again_when_enough_has_been_done(nursery: trio.Nursery, count: int, size: int) -> None:
    commits, recorded = Commits(nursery), Recorded()
    for number in range(count):
        with trio.testing.assert_no_checkpoints():
            await commits.room()
        commits.submit(
            replace(recorded.step(str(number), RepositoryKey("team", f"a{number}"), is_open=False), size=size)
        )
    seen: list[int] = []

    async def wait() -> None:
        await commits.room()
        seen.append(commits.depth)

    nursery.start_soon(wait)
    await wait_all_tasks_blocked(0.01)
    assert seen == []
    await until(lambda: bool(recorded.told))
    recorded.gates[recorded.told[0].removeprefix("run ")].set()
    await until(lambda: bool(seen))
    assert seen == [count - 1]
    for gate in recorded.gates.values():
        gate.set()
    await commits.drain()
    assert commits.depth == 0


async def test_cancelling_the_nursery_still_finishes_every_step() -> None:
    recorded = Recorded()
    async with trio.open_nursery() as nursery:
        commits = Commits(nursery)
        commits.submit(recorded.step("first", is_open=False))
        commits.submit(recorded.step("second"))
        await until(lambda: recorded.told == ["run first"])
        nursery.cancel_scope.cancel()
        commits.submit(recorded.step("third", TWO))  # its task begins cancelled
        recorded.gates["first"].set()
    assert sorted(recorded.told) == sorted(
        f"{what} {name}" for name in ("first", "second", "third") for what in ("run", "settle")
    )
    assert commits.depth == 0


async def test_who_waits_may_be_cancelled_and_the_step_goes_on(nursery: trio.Nursery) -> None:
    commits, recorded = Commits(nursery), Recorded()
    step = recorded.step("slow", is_open=False)
    with trio.CancelScope() as scope:
        scope.cancel()
        await commits.run(step)
    assert scope.cancelled_caught
    recorded.gates["slow"].set()
    await commits.drain()
    assert recorded.told == ["run slow", "settle slow"]


class Unsyncing(Disk):
    """A disk whose syncs say in which thread they are called, and fail where that is asked for."""

    def __init__(self, error: OSError | None = None) -> None:
        self.threads: list[str] = []
        self._error = error

    def kind(self, directory: int) -> int:
        return 0

    def sync(self, file: int) -> None:
        self.threads.append(threading.current_thread().name)
        if self._error is not None:
            raise self._error


def syncing_twice(key: RepositoryKey, disk: Disk, told: list[object]) -> Step:
    """A step that syncs, goes on and syncs again, and says in which threads it went on."""

    def work() -> Work[str]:
        together = Together(disk, 3)
        for file in range(2):
            told.append(threading.current_thread().name)
            yield Unsynced(together, disk, (file,))
        return "done"

    return Step(key, lambda: None, told.append, told.append, work=work)


async def test_what_nothing_is_beside_is_done_to_its_end_in_one_thread(nursery: trio.Nursery) -> None:
    commits, disk, told = Commits(nursery), Unsyncing(), list[object]()
    await commits.run(syncing_twice(ONE, disk, told))
    here = threading.current_thread().name
    assert told == [here, disk.threads[0], "done"]
    assert disk.threads[0] == disk.threads[1] != here


async def test_what_others_are_beside_goes_on_where_they_can_share_a_sync(nursery: trio.Nursery) -> None:
    commits, recorded, disk, told = Commits(nursery), Recorded(), Unsyncing(), list[object]()
    commits.submit(recorded.step("beside", TWO, is_open=False))
    await commits.run(syncing_twice(ONE, disk, told))
    recorded.gates["beside"].set()
    here = threading.current_thread().name
    assert told == [here, here, "done"]
    assert here not in disk.threads


async def test_what_fails_in_that_thread_fails_its_step(nursery: trio.Nursery) -> None:
    error = OSError(5, "broken")
    commits, disk, told = Commits(nursery), Unsyncing(error), list[object]()
    with pytest.raises(OSError, match="broken"):
        await commits.run(syncing_twice(ONE, disk, told))
    assert told[1:] == [error]
    assert len(disk.threads) == 1
    await commits.run(syncing_twice(ONE, Unsyncing(), told))
    assert told[-1] == "done"
