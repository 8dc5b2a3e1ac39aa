"""Upkeep: what a mount costs that nobody is using: start, memory, idle processor time.

Owns: the goals of a sidecar: small, quiet, and as cheap with 50,000 lists as with 100.
Does not know: how fast reads and writes are; what one change costs is `onechange`.
"""

import os
import subprocess
import time
from pathlib import Path

from bench import datasets, onechange, places
from bench.measure import (
    WrongAnswer,
    cpu_of,
    forget_peak,
    median,
    memory_of,
    settled_memory,
    wakeups_of,
    wakeups_since,
)
from bench.onechange import change_through
from bench.places import Place
from bench.results import Results, Row, Table
from tagfs.names import LIST

FEW = 100
SOME = 5_000
MANY = 50_000
_TAGS = 10
_WORKER_LIFE = 12.0


def measure(work: Path, is_full: bool, results: Results) -> None:
    stores = {count: work / f"lists-{count}" for count in (0, FEW, SOME, MANY)}
    for count, store in stores.items():
        datasets.write(datasets.synthetic(count, _TAGS), None, store)
    _start(stores, work, 3, results)
    _memory(stores, work, is_full, results)
    onechange.costs({count: stores[count] for count in (FEW, MANY)}, work, results)
    _idle(stores[SOME], work, 60 if is_full else 15, results)


def _start(stores: dict[int, Path], work: Path, rounds: int, results: Results) -> None:
    """From the start of the command to its word that it shows the store."""
    rows = []
    for flag in ("--read-only", "--codec=auto"):
        how = "read-only" if flag == "--read-only" else "read-write"
        took: dict[int, list[float]] = {0: [], MANY: []}
        for _ in range(rounds):
            for count, walls in took.items():
                place = places.tagfs("tagfs", stores[count], work / "starting", flag)
                began = time.perf_counter()
                place.start()
                walls.append(time.perf_counter() - began)
                place.stop()
        empty, full = median(took[0]), median(took[MANY])
        rows.append((how, f"{empty:.2f}", f"{full:.2f}"))
        results.rows.append(
            Row(f"start/{how}", f"start to mounted, {MANY:,} lists, {how}", f"{full:.2f} s", "goal 0.5 s",
                full / 0.5, 1.0)
        )  # fmt: skip
    results.tables.append(Table("Seconds from start to mounted", ("", "empty store", f"{MANY:,} lists"), tuple(rows)))


def _memory(stores: dict[int, Path], work: Path, is_full: bool, results: Results) -> None:
    rows = []
    goals = {0: 30.0, SOME: 32.0, MANY: 40.0}
    for count, goal in goals.items():
        shown = []
        for flags in (("--read-only",), ()):
            if count == MANY and not flags and not is_full:
                continue
            with places.tagfs("tagfs", stores[count], work / "resident", *flags).started() as mounted:
                assert mounted.pid is not None
                if count:
                    _visit(mounted)
                shown.append(settled_memory(mounted.pid))
        what = f"{count:,} lists, after find and grep over them" if count else "empty"
        rows.append((what, _mib(shown[0]), _mib(shown[1]) if shown[1:] else "–"))
        results.rows.append(
            Row(f"idle-rss/{count}", f"idle RSS, {what}, read-only", _mib(shown[0]), f"goal {goal:.0f} MiB",
                shown[0] / goal, 1.0)
        )  # fmt: skip
    results.tables.append(Table("Resident memory of an idle mount", ("", "read-only", "read-write"), tuple(rows)))


def _idle(store: Path, work: Path, seconds: float, results: Results) -> None:
    rows = []
    for how, flags in (("read-only", ("--read-only",)), ("read-write", ())):
        with places.tagfs("tagfs", store, work / "idle", *flags).started() as mounted:
            assert mounted.pid is not None
            _visit(mounted)
            settled_memory(mounted.pid)
            # A worker thread that has nothing to do ends after ten seconds; what comes after that is what stays.
            time.sleep(_WORKER_LIFE)
            cpu, wakeups = cpu_of(mounted.pid), wakeups_of(mounted.pid)
            time.sleep(seconds)
            cores = (cpu_of(mounted.pid) - cpu) / seconds
            woken = wakeups_since(mounted.pid, wakeups)
        rows.append((how, f"{cores:.6f}", f"{woken}"))
        results.rows += [
            Row(f"idle-cpu/{how}", f"idle, {how}: processor", f"{cores:.6f} cores", "goal 0.001", cores / 0.001, 1.0,
                noise=0.2),
            Row(f"idle-wakeups/{how}", f"idle, {how}: wake-ups in {seconds:.0f} s", f"{woken}",
                f"goal {seconds / 5:.0f}", woken / (seconds / 5), 1.0, noise=0.5),
        ]  # fmt: skip
    head = ("", "cores", f"wake-ups in {seconds:.0f} s")
    results.tables.append(Table("An idle mount of 5,000 lists", head, tuple(rows)))


def held_open(work: Path, results: Results) -> None:
    """100 handles on versions of the 10 largest real lists, each version replaced while it is held."""
    every = sorted(datasets.real().every(), key=lambda one: len(one[1]), reverse=True)[:10]
    store = work / "held"
    store.mkdir()
    with places.tagfs("tagfs", store, work / "held-mount").started() as mounted:
        assert mounted.pid is not None
        for name, _ in every:
            (mounted.lists / name).mkdir(parents=True)
        held: list[int] = []
        try:
            forget_peak(mounted.pid)
            for version in range(10):
                for name, plain in every:
                    shown = plain + b"held-%d\n" % version
                    change_through(store, mounted, name, shown)
                    descriptor = os.open(mounted.lists / name / LIST, os.O_RDONLY)
                    held.append(descriptor)
                    if os.pread(descriptor, 1 << 22, 0) != shown:
                        raise WrongAnswer(f"{name} does not read back as it was written")
            peak = memory_of(mounted.pid, "VmHWM")
            for number, descriptor in enumerate(held):
                if not os.pread(descriptor, 1 << 22, 0).endswith(b"held-%d\n" % (number // len(every))):
                    raise WrongAnswer("a handle shows another version than it was opened on")
            read_again = memory_of(mounted.pid, "VmHWM")
        finally:
            for descriptor in held:
                os.close(descriptor)
    size = sum(len(plain) for _, plain in every) * 10 / 2**20
    results.tables.append(
        Table(
            "Peak memory with 100 handles on versions of the 10 largest real lists, each replaced while it is held",
            ("bytes held open, MiB", "peak RSS MiB", "after all are read again, MiB"),
            ((f"{size:.1f}", f"{peak:.1f}", f"{read_again:.1f}"),),
        )
    )
    results.rows.append(
        Row("held-open", "peak RSS, 100 handles on replaced versions", _mib(read_again), "goal 60 MiB",
            read_again / 60, 1.0)
    )  # fmt: skip


def _visit(mounted: Place) -> None:
    """find and grep over every list."""
    subprocess.run(("find", "."), cwd=mounted.lists, stdout=subprocess.PIPE, check=True)
    subprocess.run(("grep", "-rc", "alpine", "."), cwd=mounted.lists, stdout=subprocess.PIPE, check=False)


def _mib(value: float) -> str:
    return f"{value:.1f} MiB"
