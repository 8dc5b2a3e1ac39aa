"""Probe: whether the mount answers, asked through the kernel by a child process.  Async.

Owns: the child, its deadline; what it saw.
Does not know: who wants to know, HTTP.
Invariant: one child at a time, and nothing waits for one that hangs: it is this process that it waits for.

A thread of this process will not do: a request that the daemon has taken and never answers cannot be interrupted,
not even by SIGKILL, so such a thread would keep the process, and with it the mount, for ever.  A child that hangs
goes when the daemon does, because it closes the device first of all.  It is forked anew for each look: one that is kept
would be lost to the first hang.  Nothing is executed: who serves without privileges may not read its own program.
"""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn

import trio

from tagfs.asking import DEADLINE, forked

FRESH = 1.0
"""Seconds for which an answer is good: who asks more often is told the same."""


@dataclass(slots=True)
class _Look:
    """One child, and when it began; `verdict` is set before `ended`: why the mount is not well, None where it is."""

    began: float
    ended: trio.Event = field(default_factory=trio.Event)
    verdict: str | None = None


class Probe:
    """Looks at a mount, which is at `path` and has `device`, (major, minor), where that is known.

    Args:
        nursery: of the children; to be cancelled before the mount ends.
    """

    def __init__(self, path: str, device: tuple[int, int] | None, nursery: trio.Nursery) -> None:
        self._path = path
        self._device = device
        self._nursery = nursery
        self._look: _Look | None = None

    async def look(self, deadline: float = DEADLINE) -> str | None:
        """Why the mount does not answer; None: it does."""
        look, now = self._look, trio.current_time()
        if look is None or (look.ended.is_set() and now - look.began > FRESH):
            look = self._look = _Look(now)
            self._nursery.start_soon(self._run, look, deadline)
        with trio.move_on_at(look.began + deadline):
            await look.ended.wait()
            return look.verdict
        return self._silence(deadline)

    async def _run(self, look: _Look, deadline: float) -> None:
        try:
            look.verdict = await self._verdict(deadline)
        except OSError as error:
            look.verdict = f"the child that looks at {self._path} cannot be started: {error.strerror}"
        look.ended.set()

    async def _verdict(self, deadline: float) -> str | None:
        child, answer = _forked(self._path)
        said = b""
        try:
            with trio.move_on_after(deadline):
                await trio.lowlevel.wait_readable(answer)
                said = os.read(answer, 1000)
        finally:
            os.close(answer)
            os.kill(child, signal.SIGKILL)
        await _ended(child)  # perhaps for long: another one would only hang beside it
        return self._judged(said.decode(errors="replace")) if said else self._silence(deadline)

    def _silence(self, deadline: float) -> str:
        return f"{self._path} has not answered a statvfs within {deadline:g} s"

    def _judged(self, said: str) -> str | None:
        block, _, device = said.partition(" ")
        if not (block.isdigit() and device.isdigit()):
            return f"{self._path} answers with an error: {said or 'none was told'}"
        if block == "0":
            return f"{self._path} may not be looked at by the user of this process"
        if self._device is not None and int(device) != os.makedev(*self._device):
            return f"{self._path} is no longer this mount: it was unmounted, or something is mounted over it"
        return None


def _forked(path: str) -> tuple[int, int]:
    """(pid of a child that looks at `path`, descriptor of what it says)."""
    answer, told = os.pipe()
    try:
        child = forked(partial(_look, path, told))
    except OSError:
        os.close(answer)
        raise
    finally:
        os.close(told)
    return child, answer


def _look(path: str, told: int) -> NoReturn:
    """In the child.  statvfs(3) always reaches the daemon; where its user may not ask, the kernel answers zeros."""
    try:
        os.dup2(told, 0)
        os.closerange(1, os.sysconf("SC_OPEN_MAX"))
        try:
            said = f"{os.statvfs(path).f_bsize} {os.stat(path).st_dev}"
        except OSError as error:
            said = error.strerror or str(error)
        os.write(0, said.encode())
    finally:
        os._exit(0)


async def _ended(child: int) -> None:
    """Wait for a child's end, and reap it."""
    ended = os.pidfd_open(child)
    try:
        await trio.lowlevel.wait_readable(ended)
    finally:
        os.close(ended)
        with suppress(ChildProcessError):
            os.waitpid(child, os.WNOHANG)
