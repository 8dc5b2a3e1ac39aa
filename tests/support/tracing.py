"""strace, attached to a running daemon: which system calls it makes, and what becomes of it when one of them fails.

strace counts calls in each thread by itself.  Where a count matters, one kind of thread is traced: the loop's, or the
workers', of which there is one while lists are changed one after another.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.daemon import PATIENCE, eventually

_CHANGING = (
    "write pwrite64 fsync fdatasync syncfs rename renameat renameat2 unlink unlinkat mkdir mkdirat rmdir"
    " utimensat ftruncate fchmod fchmodat link linkat symlinkat"
)
CHANGING = frozenset(_CHANGING.split())
"""System calls that change something on a disk; `openat` joins them where it creates."""

_CALL = re.compile(r"(?P<thread>[0-9]+) +(?P<name>[a-z][a-z0-9_]*)\((?P<arguments>.*)")


@dataclass(frozen=True, slots=True)
class Call:
    """A system call that was recorded: the `number`-th of its `name` in its thread, from 1 on."""

    is_loop: bool
    name: str
    number: int
    arguments: str

    def __str__(self) -> str:
        return f"{self.name} {self.number} of the {'loop' if self.is_loop else 'worker'}"

    def injection(self, fault: str) -> str:
        """strace's expression to have this one call fail: `signal=KILL`, `error=EIO` …"""
        return f"{self.name}:{fault}:when={self.number}"


def require_strace() -> None:
    if shutil.which("strace") is None:
        pytest.skip("there is no strace")


def threads(pid: int, of_loop: bool | None = None) -> list[int]:
    """The threads of a process: all, the one of its loop, or all others."""
    found = sorted(map(int, os.listdir(f"/proc/{pid}/task")))
    return [thread for thread in found if of_loop is None or (thread == pid) is of_loop]


@contextmanager
def traced(targets: list[int], *arguments: str, log: Path, follow: bool = False) -> Iterator[None]:
    """strace on the threads `targets` while the block runs; the block may kill them.  `follow`: the one target is a
    process, of which all threads are traced, new ones too."""
    require_strace()
    errors = log.with_name(f"{log.name}.errors")
    command = ["strace", *(["-f"] if follow else []), "-o", str(log), *arguments]
    with errors.open("wb") as stderr:
        process = subprocess.Popen([*command, *(f"--attach={thread}" for thread in targets)], stderr=stderr)
    try:
        eventually(
            lambda: errors.read_text().count(" attached") >= len(targets) or process.poll() is not None,
            "strace to attach",
        )
        said = errors.read_text()
        if "not permitted" in said:
            pytest.skip(f"strace may not attach to a process here: {said.strip()}")
        assert " attached" in said, said
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=PATIENCE)


def recorded(pid: int, act: Callable[[], object], log: Path) -> list[Call]:
    """Every call of a daemon, in all its threads, while `act` runs."""
    with traced([pid], "-y", log=log, follow=True):
        act()
    return calls(log, pid)


def is_change(call: Call, store: Path) -> bool:
    """Whether a call that was recorded with the paths of its descriptors changes something in `store`."""
    is_changing = call.name in CHANGING or (call.name == "openat" and "O_CREAT" in call.arguments)
    return is_changing and str(store) in call.arguments


def calls(log: Path, pid: int) -> list[Call]:
    """The calls that strace, run with -f and -y, has written of the process `pid`."""
    counts: dict[tuple[str, str], int] = {}
    found = []
    for line in log.read_text(errors="replace").splitlines():
        match = _CALL.match(line)
        if match is None:
            continue
        place = match["thread"], match["name"]
        counts[place] = counts.get(place, 0) + 1
        found.append(Call(int(match["thread"]) == pid, match["name"], counts[place], match["arguments"]))
    return found
