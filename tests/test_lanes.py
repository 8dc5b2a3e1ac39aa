"""The threads in which steps block, and what goes into one group."""

import threading
from collections.abc import Callable
from functools import partial

import trio

from tagfs.disk import Disk
from tagfs.durability import Call, Together, Unsynced
from tagfs.lanes import MOST_IN_A_GROUP, THREADS, Lanes


class Gated(Disk):
    """A file system whose syncs wait for a gate; `groups` tells what each call of syncfs found, `most` how many calls
    there were at once."""

    def __init__(self, *, is_able: bool) -> None:
        self.gate = threading.Event()
        self.told: list[str] = []
        self.most = 0
        self._is_able = is_able
        self._now = 0
        self._lock = threading.Lock()

    def kind(self, directory: int) -> int:
        return 0xEF53 if self._is_able else 0

    def tells_of_lost_writes(self, release: str | None = None) -> bool:
        return True

    def sync(self, file: int) -> None:
        self._do(f"sync {file}")

    def sync_filesystem(self, directory: int) -> None:
        self._do("syncfs")

    def _do(self, what: str) -> None:
        with self._lock:
            self.told.append(what)
            self._now += 1
            self.most = max(self.most, self._now)
        assert self.gate.wait(timeout=60)
        with self._lock:
            self._now -= 1


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.to_thread.run_sync(lambda: None)


async def test_what_comes_while_a_group_is_synced_is_the_next_group() -> None:
    disk = Gated(is_able=True)
    together = Together(disk, 3)
    ended: list[int] = []
    async with trio.open_nursery() as nursery:
        lanes = Lanes(nursery)
        lanes.add(Unsynced(together, disk, (0,)), lambda error: ended.append(0))
        await until(lambda: disk.told == ["sync 0"])
        for file in range(1, 10):
            lanes.add(Unsynced(together, disk, (file,)), lambda error, file=file: ended.append(file))  # type: ignore[misc]
        assert lanes.in_flight == 1
        disk.gate.set()
    assert lanes.in_flight == 0
    assert ended == list(range(10))
    assert disk.told == ["sync 0", "syncfs"]
    assert disk.most == 1


async def test_a_group_has_a_bound() -> None:
    disk = Gated(is_able=True)
    disk.gate.set()
    together = Together(disk, 3)
    ended: list[int] = []
    async with trio.open_nursery() as nursery:
        lanes = Lanes(nursery)
        for file in range(2 * MOST_IN_A_GROUP):
            lanes.add(Unsynced(together, disk, (file,)), lambda error, file=file: ended.append(file))  # type: ignore[misc]
    assert ended == list(range(2 * MOST_IN_A_GROUP))
    assert disk.told == ["sync 0", "syncfs", "syncfs"]


async def test_where_no_group_is_possible_threads_sync_side_by_side() -> None:
    disk = Gated(is_able=False)
    together = Together(disk, 3)
    ended: list[Exception | None] = []
    async with trio.open_nursery() as nursery:
        lanes = Lanes(nursery)
        for file in range(THREADS + 3):
            lanes.add(Unsynced(together, disk, (file,)), ended.append)
        await until(lambda: len(disk.told) == THREADS)
        disk.gate.set()
    assert ended == [None] * (THREADS + 3)
    assert disk.most <= THREADS


async def test_calls_have_their_turn_beside_syncs_that_never_end() -> None:
    disk = Gated(is_able=False)
    disk.gate.set()
    together = Together(disk, 3)
    synced, at_call = 0, 0

    async with trio.open_nursery() as nursery:
        lanes = Lanes(nursery)

        def again(error: Exception | None) -> None:
            nonlocal synced
            synced += 1
            if not at_call and synced < 1000:
                lanes.add(Unsynced(together, disk, (synced,)), again)

        def called(error: Exception | None) -> None:
            nonlocal at_call
            at_call = synced + 1

        for file in range(2 * THREADS):
            lanes.add(Unsynced(together, disk, (file,)), again)
        lanes.add(Call(lambda: None), called)
    assert 0 < at_call < 100


async def test_calls_go_on_while_a_group_is_synced() -> None:
    disk = Gated(is_able=True)
    ended: list[Exception | None] = []
    async with trio.open_nursery() as nursery:
        lanes = Lanes(nursery)
        lanes.add(Unsynced(Together(disk, 3), disk, (0,)), ended.append)
        await until(lambda: disk.told == ["sync 0"])
        error = OSError(5, "broken")

        def fail() -> None:
            raise error

        lanes.add(Call(fail), ended.append)
        lanes.add(Call(lambda: None), ended.append)
        await until(lambda: len(ended) == 2)
        assert error in ended and None in ended
        disk.gate.set()
    assert len(ended) == 3


async def test_what_is_added_when_something_ended_is_done_too_also_while_the_mount_ends() -> None:
    disk = Gated(is_able=True)
    together = Together(disk, 3)
    left = 50

    def again(lanes: Lanes, error: Exception | None) -> None:
        nonlocal left
        if left:
            left -= 1
            blocking = Unsynced(together, disk, (left,)) if left % 3 else Call(lambda: None)
            lanes.add(blocking, partial(again, lanes))

    async with trio.open_nursery() as nursery:
        lanes = Lanes(nursery)
        for file in range(3):
            lanes.add(Unsynced(together, disk, (file,)), partial(again, lanes))
        await until(lambda: bool(disk.told))
        nursery.cancel_scope.cancel()
        disk.gate.set()
    assert left == 0


async def test_who_attends_is_rung_and_goes_on_without_a_turn_of_other_tasks() -> None:
    rung = threading.Event()
    ended: list[Exception | None] = []
    async with trio.open_nursery() as nursery:
        lanes = Lanes(nursery)
        lanes.attend(rung.set)
        error = OSError(5, "broken")

        def fail() -> None:
            raise error

        for call, expected in ((lambda: None, [None]), (fail, [None, error])):
            rung.clear()
            lanes.add(Call(call), ended.append)
            assert rung.wait(timeout=60)
            assert ended == expected[:-1]
            lanes.collect()
            assert ended == expected
        assert not nursery.child_tasks
        lanes.attend(None)
        assert not nursery.child_tasks


async def test_what_ends_as_nobody_attends_any_more_is_gone_on_with() -> None:
    disk = Gated(is_able=False)
    rung = threading.Event()
    ended: list[str] = []
    async with trio.open_nursery() as nursery:
        lanes = Lanes(nursery)
        lanes.attend(rung.set)
        lanes.add(Call(lambda: None), lambda error: ended.append("call"))
        assert rung.wait(timeout=60)
        lanes.add(Unsynced(Together(disk, 3), disk, (0,)), lambda error: ended.append("sync"))
        lanes.attend(None)
        assert ended == ["call"]
        rung.clear()
        disk.gate.set()
    assert ended == ["call", "sync"]
    assert not rung.is_set()
