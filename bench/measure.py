"""Measuring: what a program costs, what a process has cost so far, how many requests reached a daemon.

Owns: the kernel's accounting (wait4, /proc, the trace event of FUSE requests); medians and ratios of alternated rounds.
Does not know: what is measured.
"""

import hashlib
import math
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

Pace = tuple[int, float]
"""Rounds; the seconds after which a side sits out those that are left."""

_TRACING = Path("/sys/kernel/tracing")
_INSTANCE = f"tagfs-bench-{os.getpid()}"
"""Of this run alone: another may go on at the same time."""

_PATIENCE = 300.0
"""Seconds after which a program that hangs is ended."""

_SETTLES = 20.0
"""Seconds after which a process that is not quiet is taken as it is."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of a program cost: wall-clock and CPU seconds of the program alone."""

    wall: float
    cpu: float


class ProgramFailed(Exception):
    """A measured program ended with a code that is no answer."""


class WrongAnswer(Exception):
    """tagfs showed other bytes than it should: what was measured is worth nothing."""


def run(command: Sequence[str], directory: Path, output: Path, codes: tuple[int, ...] = (0,)) -> Cost:
    """Run a program in a directory with its output in a file; ProgramFailed where it ends with none of `codes`."""
    with output.open("wb") as stream, Path(f"{output}.errors").open("w+b") as errors:
        clock = time.perf_counter()
        child = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=stream, stderr=errors)
        watch = threading.Timer(_PATIENCE, child.kill)
        watch.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
            wall = time.perf_counter() - clock
            child.returncode = os.waitstatus_to_exitcode(status)
        finally:
            watch.cancel()
            if child.returncode is None:
                child.kill()
                child.wait()
        if child.returncode not in codes:
            errors.seek(0)
            told = errors.read(500).decode(errors="replace").strip()
            raise ProgramFailed(f"{' '.join(command)} ended with {child.returncode}: {told}")
    return Cost(wall, usage.ru_utime + usage.ru_stime)


def digest_of_lines(path: Path, normal: Callable[[bytes], bytes | None] = lambda line: line) -> str:
    """The SHA-256 of the lines of a file in sorted order, each made `normal`; None leaves one out."""
    lines = (normal(line) for line in path.read_bytes().splitlines())
    return hashlib.sha256(b"\n".join(sorted(line for line in lines if line is not None))).hexdigest()


# -- a process that goes on


def cpu_of(pid: int) -> float:
    """CPU seconds of all threads that a process has and had, from its CPU-time clock: clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | 2)


def wakeups_of(pid: int) -> dict[int, int]:
    """Thread -> how often it has gone to sleep by itself so far."""
    found = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for line in (thread / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                found[int(thread.name)] = int(line.split()[1])
    return found


def wakeups_since(pid: int, before: dict[int, int]) -> int:
    return sum(count - before.get(thread, 0) for thread, count in wakeups_of(pid).items())


def memory_of(pid: int, field: str = "VmRSS") -> float:
    """MiB: resident now (VmRSS), or at the peak since the last `forget_peak` (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"{pid} has no {field}")


def settled_memory(pid: int) -> float:
    """MiB resident once a process has been quiet for a while."""
    before, quiet = cpu_of(pid), 0
    deadline = time.monotonic() + _SETTLES
    while quiet < 8 and time.monotonic() < deadline:
        time.sleep(0.25)
        now = cpu_of(pid)
        quiet = quiet + 1 if now - before < 0.002 else 0
        before = now
    return memory_of(pid)


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


class RequestCounter:
    """Counts what the kernel sends to FUSE daemons, by its own trace event; `is_there` False where it has none.

    The daemon is not slowed: the event is counted in the kernel's ring buffer, never read.
    """

    def __init__(self) -> None:
        self.is_there = False
        self._made_mount = False
        if os.geteuid() != 0:
            return
        if not (_TRACING / "events").is_dir():
            made = subprocess.run(["mount", "-t", "tracefs", "none", str(_TRACING)], capture_output=True, check=False)
            self._made_mount = made.returncode == 0
        self._directory = _TRACING / "instances" / _INSTANCE
        try:
            self._directory.mkdir(exist_ok=True)
            self._event = self._directory / "events" / "fuse" / "fuse_request_send"
            self.is_there = self._event.is_dir()
            if self.is_there:
                (self._directory / "buffer_size_kb").write_text("16")
        except OSError:
            self.is_there = False

    def start(self, mounted: Path) -> None:
        """Count from now on the requests of the mount that `mounted` is in."""
        if self.is_there:
            (self._event / "enable").write_text("0")
            (self._directory / "trace").write_text("")
            device = mounted.stat().st_dev
            (self._event / "filter").write_text(f"connection == {os.major(device) << 20 | os.minor(device)}")
            (self._event / "enable").write_text("1")

    def stop(self) -> int | None:
        """How many it was; None where they cannot be counted."""
        if not self.is_there:
            return None
        (self._event / "enable").write_text("0")
        total = 0
        for processor in (self._directory / "per_cpu").iterdir():
            for line in (processor / "stats").read_text().splitlines():
                name, _, number = line.partition(":")
                if name in ("entries", "overrun", "dropped events"):
                    total += int(number)
        return total

    def close(self) -> None:
        if self.is_there:
            (self._event / "enable").write_text("0")
            self._directory.rmdir()
            self.is_there = False
        if self._made_mount:
            subprocess.run(["umount", str(_TRACING)], capture_output=True, check=False)


# -- rounds


def alternated(sides: Mapping[str, Callable[[], T]], rounds: int, budget: float = math.inf) -> dict[str, list[T]]:
    """Each side once in each round, in an order that turns, so that a slow moment of the machine hits all of them.

    A side that has taken `budget` seconds sits out the rounds that are left.
    """
    names = list(sides)
    results: dict[str, list[T]] = {name: [] for name in names}
    spent = dict.fromkeys(names, 0.0)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if spent[name] < budget:
                began = time.perf_counter()
                results[name].append(sides[name]())
                spent[name] += time.perf_counter() - began
    return results


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios round by round, as far as both sides took part."""
    return statistics.median(mine / max(other, 1e-9) for mine, other in zip(ours, theirs, strict=False))


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
