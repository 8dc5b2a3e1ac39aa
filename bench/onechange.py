"""One change: what it costs the daemon, and how soon it shows.

Owns: how another program replaces a list beneath a mount, or through it, and how a program reads it afterwards.
Does not know: start, memory, what an idle mount costs (`upkeep` has those).
"""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import datasets, places
from bench.measure import WrongAnswer, cpu_of, percentile, settled_memory
from bench.places import Place
from bench.results import Results, Row, Table
from tagfs.codec import ZSTD
from tagfs.names import BASE, LIST

_TAGS = 10
_CHANGES = 100
_LATER = 0.02
_PATIENCE = 20.0

_LISTS, _LONGER = 100, 400
"""How many lists there are where the time counts, and of how many tags."""

_ASKING = "import os, sys\nwhile True: os.statvfs(sys.argv[1])"
"""A program; the kernel keeps nothing of what it asks for."""

_Change = Callable[[Path, Place, str, bytes], None]


def costs(stores: dict[int, Path], work: Path, results: Results) -> None:
    """The daemon's CPU for a change in a store of few lists and in one of many; `stores` by their number of lists."""
    few, many = stores
    rows = []
    for how, flags, change in (
        ("beneath a read-only mount", ("--read-only",), change_beneath),
        ("through a read-write mount", (), change_through),
    ):
        alone: dict[int, float] = {}
        cost: dict[int, float] = {}
        stale = 0
        for count in stores:
            with places.tagfs("tagfs", stores[count], work / "changing", *flags).started() as mounted:
                subprocess.run(("find", "."), cwd=mounted.lists, stdout=subprocess.DEVNULL, check=True)
                alone[count], _ = _cost_of_changes(stores[count], mounted, count, change, False)
                cost[count], met = _cost_of_changes(stores[count], mounted, count, change, True)
                stale += met
        found = (alone[few], cost[few], alone[many], cost[many])
        rows.append((how, *(f"{value:.2f}" for value in found), f"{stale}, in {2 * _CHANGES} changes"))
        key = how.split()[0]
        results.rows += [
            Row(f"one-change/{key}", f"one change {how} of {many:,} lists, and its first read",
                f"{cost[many]:.2f} ms CPU", "goal 1 ms", cost[many], 1.0),
            Row(f"one-change-grows/{key}", f"the same, against {few} lists",
                f"{cost[many]:.2f} ms CPU", f"{cost[few]:.2f} ms", cost[many] / cost[few], 1.5),
        ]  # fmt: skip
    head = (
        "",
        *(f"{count:,} lists, {what}" for count in stores for what in ("the change alone", "with the read")),
    )
    results.tables.append(
        Table(
            "One change and the first read after it: the daemon's CPU ms",
            (*head, "times that a reader met ESTALE"),
            tuple(rows),
        )
    )


def _cost_of_changes(store: Path, mounted: Place, count: int, change: _Change, is_read: bool) -> tuple[float, int]:
    """CPU ms of the daemon for each of _CHANGES changes; how often a reader met ESTALE."""
    assert mounted.pid is not None
    settled_memory(mounted.pid)
    before, stale = cpu_of(mounted.pid), 0
    for number in range(_CHANGES):
        name = datasets.name_of(number * (count // _CHANGES))
        plain = datasets.make_list(2 * number + is_read, _TAGS + 1)
        change(store, mounted, name, plain)
        # Most programs come later: who reads at once asks again and again, which is no cost of the change.
        time.sleep(_LATER)
        if is_read:
            stale += _await_bytes(mounted.lists / name / LIST, plain)
    return (cpu_of(mounted.pid) - before) / _CHANGES * 1000, stale


def fresh_reads(work: Path, changes: int, results: Results) -> None:
    """A list is renamed into place beneath a read-only mount: how long from the start of the rename until a program
    that reads it again and again has all of the new one.

    While it is the old one, the kernel answers that program, and the daemon knows nothing of it.  So what is measured
    is how the change gets to the kernel, and the requests of the one read after it.  Then the same while another
    program asks the daemon for something without a pause.
    """
    store = work / "beneath"
    datasets.write(datasets.synthetic(_LISTS, _LONGER), None, store)
    rows = []
    with places.tagfs("tagfs", store, work / "beneath-mount", "--read-only").started() as mounted:
        subprocess.run(("grep", "-rc", "alpine", "."), cwd=mounted.lists, stdout=subprocess.DEVNULL, check=False)
        for turn, how in enumerate(("by itself", "beside a program that asks without a pause")):
            asking = (sys.executable, "-c", _ASKING, str(mounted.point))
            asker = subprocess.Popen(asking, stdin=subprocess.DEVNULL) if turn else None
            try:
                took = [_fresh_read(store, mounted, (turn + 1) * changes + number) for number in range(changes)]
            finally:
                if asker is not None:
                    asker.kill()
                    asker.wait()
            half, most = percentile(took, 50), percentile(took, 99)
            rows.append((how, f"{half:.2f}", f"{most:.2f}"))
            if asker is None:
                results.rows += [
                    Row("fresh-read/p50", "rename beneath to fresh read, p50", f"{half:.2f} ms", "goal 1 ms", half,
                        1.0),
                    Row("fresh-read/p99", "rename beneath to fresh read, p99", f"{most:.1f} ms", "goal 20 ms",
                        most / 20, 1.0),
                ]  # fmt: skip
    results.tables.append(Table("From a rename beneath to a fresh read, ms", ("", "p50", "p99"), tuple(rows)))


def _fresh_read(store: Path, mounted: Place, number: int) -> float:
    """Milliseconds."""
    name, plain = datasets.name_of(number % _LISTS), datasets.make_list(number, _LONGER)
    renamed = _prepare_beneath(store, name, plain)
    began = time.perf_counter()
    renamed()
    _await_bytes(mounted.lists / name / LIST, plain)
    return (time.perf_counter() - began) * 1000


def change_beneath(store: Path, mounted: Place, name: str, plain: bytes) -> None:
    """As another program that writes into the store."""
    _prepare_beneath(store, name, plain)()


def _prepare_beneath(store: Path, name: str, plain: bytes) -> Callable[[], object]:
    """Write a temporary file, as another program that writes into the store; -> what renames it over the list."""
    directory = store / BASE / name
    suffix = ZSTD.suffix if (directory / (LIST + ZSTD.suffix)).exists() else ""
    scratch = directory / f"{LIST}123"
    scratch.write_bytes(ZSTD.encode(plain) if suffix else plain)
    return partial(os.rename, scratch, directory / (LIST + suffix))


def change_through(store: Path, mounted: Place, name: str, plain: bytes) -> None:
    """As Flux does: a file beside it, one write, a rename.  See `_content` for why not by Python's own `open`."""
    scratch = mounted.lists / name / f"{LIST}123"
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(descriptor, plain)
    finally:
        os.close(descriptor)
    os.rename(scratch, mounted.lists / name / LIST)


def _await_bytes(path: Path, plain: bytes) -> int:
    """Read a list until it is `plain`; -> how often it was ESTALE meanwhile: replaced between the open and the read."""
    deadline = time.monotonic() + _PATIENCE
    stale = 0
    while True:
        try:
            if _content(path) == plain:
                return stale
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            stale += 1
        if time.monotonic() > deadline:
            raise WrongAnswer(f"{path} is still the old list after {_PATIENCE:.0f} s")


def _content(path: Path) -> bytes:
    """Open, read, close, as `cat` does.  Python's own `open` asks each file whether it is a terminal, which the kernel
    keeps no answer to."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return b"".join(iter(partial(os.read, descriptor, 1 << 20), b""))
    finally:
        os.close(descriptor)
