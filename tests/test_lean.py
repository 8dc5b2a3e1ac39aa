"""The lock and the wait that pyfuse3's session loop gets in place of trio's."""

import os
import socket
from collections.abc import Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tagfs.lean import Lean, Lock


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A device and the kernel at its other end, as far as waiting goes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def lean(*, is_busy: bool = False) -> Lean:
    return Lean(lambda: is_busy)


async def test_one_task_at_a_time_holds_the_lock() -> None:
    lock, inside, most = Lock(), 0, 0

    async def hold() -> None:
        nonlocal inside, most
        for _ in range(20):
            async with lock:
                inside += 1
                most = max(most, inside)
                await trio.lowlevel.checkpoint()
                inside -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(hold)
    assert most == 1
    assert inside == 0


async def test_who_gave_the_lock_back_may_take_it_again_before_one_who_waits() -> None:
    lock = Lock()
    told = []

    async def wait() -> None:
        async with lock:
            told.append("waiter")

    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
        async with lock:
            told.append("holder")
    assert told == ["holder", "waiter"]


async def test_all_who_wait_get_the_lock_in_the_end() -> None:
    lock, got = Lock(), 0

    async def take() -> None:
        nonlocal got
        async with lock:
            got += 1

    async with trio.open_nursery() as nursery:
        async with lock:
            for _ in range(10):
                nursery.start_soon(take)
            await wait_all_tasks_blocked()
    assert got == 10


async def test_a_cancelled_waiter_does_not_keep_the_lock_from_the_next() -> None:
    lock, got = Lock(), []

    async def take(name: str, scope: trio.CancelScope) -> None:
        with scope:
            async with lock:
                got.append(name)

    first, second = trio.CancelScope(), trio.CancelScope()
    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(take, "first", first)
            await wait_all_tasks_blocked()
            nursery.start_soon(take, "second", second)
            await wait_all_tasks_blocked()
        first.cancel()  # after it was woken, before it ran
    assert "second" in got


@pytest.mark.parametrize("is_busy", [False, True])
async def test_a_request_that_is_there_is_taken(pair: tuple[socket.socket, socket.socket], is_busy: bool) -> None:
    ours, theirs = pair
    waiting = lean(is_busy=is_busy)
    for _ in range(3):
        theirs.send(b"x")
        await waiting.wait_readable(ours.fileno())
        assert ours.recv(10) == b"x"


@pytest.mark.parametrize("is_busy", [False, True])
async def test_a_request_that_comes_later_is_waited_for(
    pair: tuple[socket.socket, socket.socket], is_busy: bool
) -> None:
    ours, theirs = pair
    waiting = lean(is_busy=is_busy)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting.wait_readable, ours.fileno())
        await wait_all_tasks_blocked()
        theirs.send(b"x")
    assert ours.recv(10) == b"x"


async def test_requests_without_end_leave_time_for_other_tasks(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.send(b"x")  # never taken, so there always is one
    waiting = lean()
    others = 0

    async def other() -> None:
        nonlocal others
        while others < 10:
            await trio.lowlevel.checkpoint()
            others += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        while others < 10:
            await waiting.wait_readable(ours.fileno())


async def test_requests_without_end_can_be_cancelled(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.send(b"x")
    waiting = lean()
    with trio.CancelScope() as scope:
        scope.cancel()
        while True:
            await waiting.wait_readable(ours.fileno())
    assert scope.cancelled_caught


async def test_the_end_of_the_device_ends_the_wait(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    waiting = lean()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting.wait_readable, ours.fileno())
        await wait_all_tasks_blocked()
        theirs.close()
    await waiting.wait_readable(ours.fileno())
    assert ours.recv(10) == b""


async def test_closing_wakes_who_waits(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    waiting = lean()
    ended = []

    async def wait() -> None:
        with pytest.raises(waiting.ClosedResourceError):
            await waiting.wait_readable(ours.fileno())
        ended.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        waiting.notify_closing(ours.fileno())
    assert ended


async def test_a_descriptor_that_was_closed_and_is_another_file_now_is_looked_at_anew() -> None:
    waiting = lean()
    reading, writing = os.pipe()
    os.write(writing, b"x")
    await waiting.wait_readable(reading)
    waiting.notify_closing(reading)
    os.close(reading)
    os.close(writing)
    again, writing = os.pipe()
    try:
        assert again == reading
        os.write(writing, b"y")
        await waiting.wait_readable(again)
        assert os.read(again, 10) == b"y"
    finally:
        os.close(again)
        os.close(writing)
