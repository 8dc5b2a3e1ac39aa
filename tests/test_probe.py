"""Whether a mount answers, asked by a child process."""

import os
import resource
import signal

import pytest
import trio

from tagfs import mountpoint
from tagfs.probe import Probe
from tests.support.daemon import Daemon

pytestmark = pytest.mark.mount


def device_of(daemon: Daemon) -> tuple[int, int]:
    there = mountpoint.mounted_at(str(daemon.point))
    assert there is not None
    return there.device


def children() -> set[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(map(int, file.read().split()))


async def test_a_mount_that_answers_is_well(mount: Daemon) -> None:
    before = children()
    async with trio.open_nursery() as nursery:
        probe = Probe(str(mount.point), device_of(mount), nursery)
        assert await probe.look() is None
        assert await probe.look() is None
    assert children() == before


async def test_a_daemon_that_hangs_is_told_in_time_by_one_child(mount: Daemon) -> None:
    before = children()
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        async with trio.open_nursery() as nursery:
            probe = Probe(str(mount.point), device_of(mount), nursery)
            assert await probe.look(0.3) == f"{mount.point} has not answered a statvfs within 0.3 s"
            assert await probe.look(0.3) == f"{mount.point} has not answered a statvfs within 0.3 s"
            assert len(children() - before) <= 1
            os.kill(mount.pid, signal.SIGCONT)
            with trio.fail_after(20):
                while await probe.look(5) is not None:  # noqa: ASYNC110 - the hanging child's verdict is good for a moment
                    await trio.sleep(0.05)
    finally:
        os.kill(mount.pid, signal.SIGCONT)
    assert children() == before


async def test_nothing_waits_for_a_child_that_hangs(mount: Daemon) -> None:
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                assert await Probe(str(mount.point), None, nursery).look(0.2) is not None
                nursery.cancel_scope.cancel()
    finally:
        os.kill(mount.pid, signal.SIGCONT)


async def test_those_who_ask_at_once_share_a_child(mount: Daemon) -> None:
    async with trio.open_nursery() as nursery:
        probe = Probe(str(mount.point), device_of(mount), nursery)
        before = children()
        most = 0

        async def look() -> None:
            nonlocal most
            assert await probe.look() is None
            most = max(most, len(children() - before))

        async with trio.open_nursery() as asking:
            for _ in range(20):
                asking.start_soon(look)
    assert most <= 1


async def test_a_dead_mount_is_told(mount: Daemon) -> None:
    async with trio.open_nursery() as nursery:
        probe = Probe(str(mount.point), device_of(mount), nursery)
        mount.kill()
        assert await probe.look() == f"{mount.point} answers with an error: Transport endpoint is not connected"


async def test_a_mount_that_was_taken_away_is_told(mount: Daemon) -> None:
    async with trio.open_nursery() as nursery:
        probe = Probe(str(mount.point), device_of(mount), nursery)
        mount.stop()
        told = await probe.look()
    assert told == f"{mount.point} is no longer this mount: it was unmounted, or something is mounted over it"


async def test_a_child_that_cannot_be_started_is_told(mount: Daemon) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with trio.open_nursery() as nursery:
        probe = Probe(str(mount.point), None, nursery)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            told = await probe.look()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert told == f"the child that looks at {mount.point} cannot be started: Too many open files"


async def test_a_child_keeps_nothing_open_that_the_daemon_has(mount: Daemon) -> None:
    """Else the kernel would not know when the daemon has died, and programs would wait for ever."""
    before = children()
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        with open(os.devnull), trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Probe(str(mount.point), None, nursery).look, 30)
                while not (hanging := children() - before):  # noqa: ASYNC110 - a process tells nobody
                    await trio.sleep(0.01)
                [child] = hanging
                while os.listdir(f"/proc/{child}/fd") != ["0"]:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                os.kill(mount.pid, signal.SIGCONT)
    finally:
        os.kill(mount.pid, signal.SIGCONT)
