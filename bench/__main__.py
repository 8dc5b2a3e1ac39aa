"""Measure tagfs beside its peers, print which goals are met, and write docs/benchmarks.md with its charts.

usage: python -m bench [--full] [--record] [--only GROUP …]

It wants root: mounts, loop devices, counting requests.  It ends with 1 where a ratio is worse than the recorded one
(bench/record.json) by a wide margin; a goal that is missed is said and is no failure.  --record writes the ratios.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import datasets, onechange, page, reads, record, scaling, storage, upkeep, writes
from bench.places import PROJECT
from bench.results import Results

DOCUMENT = PROJECT / "docs" / "benchmarks.md"

_QUICK = (datasets.synthetic(1_000, 10), datasets.synthetic(1_000, 400))
_PACES = {False: (7, 1.5), True: (7, 3.0)}
"""By whether the run is a full one; see `Pace`.  Ten sides run five programs over each data set, warm and on a fresh
mount, so each second more is a minute and a half for each data set."""

_ROUNDS = 3
"""Of what takes a process or a mount of its own each time."""

_FULL = (datasets.synthetic(1_000, 10), datasets.synthetic(5_000, 400), datasets.synthetic(1_000, 5_000))


def groups(is_full: bool) -> dict[str, Callable[[Path, Results], None]]:
    """Name -> what measures it, in the order of running."""
    pace = _PACES[is_full]
    own_cpu: dict[str, float] = {}

    def read(work: Path, results: Results) -> None:
        full = (datasets.synthetic(5_000, 400), datasets.synthetic(5_000, 5_000))
        for data in (datasets.real(), *(full if is_full else (datasets.synthetic(1_000, 400),))):
            with _told(data.name):
                reads.measure(data, _below(work), pace, results)

    def store(work: Path, results: Results) -> None:
        for data in (datasets.real(), *(_FULL if is_full else _QUICK)):
            with _told(data.name):
                own_cpu[data.name] = storage.measure(data, _below(work), (_ROUNDS, pace[1]), results)

    def write(work: Path, results: Results) -> None:
        for data in _FULL[1:] if is_full else _QUICK[1:]:
            writes.through_mount(data, _below(work), _ROUNDS, own_cpu.get(data.name), results)
        writes.durable(datasets.synthetic(300, 400), work, 10 if is_full else 5, results)
        writes.curves(work, 3 if is_full else 1, results)

    def keep(work: Path, results: Results) -> None:
        onechange.fresh_reads(work, 500 if is_full else 200, results)
        upkeep.held_open(work, results)
        upkeep.measure(work, is_full, results)

    def scale(work: Path, results: Results) -> None:
        scaling.by_lists(work, (100, 1_000, 10_000, 100_000) if is_full else (100, 1_000, 10_000), results)
        scaling.by_tags(work, (10, 100, 1_000, 10_000, 100_000), results)

    return {"reads": read, "storage": store, "writes": write, "upkeep": keep, "scaling": scale}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all data sets, more rounds: three quarters of an hour")
    parser.add_argument("--record", action="store_true", help="write the ratios to bench/record.json")
    parser.add_argument(
        "--only", nargs="+", choices=sorted(groups(False)), help="these groups alone; no page is written"
    )
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: without root there are no loop devices and no count of requests; what needs them is left out")
    # Whatever ends the run, what it mounted is unmounted on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    results = Results()
    failed: list[str] = []
    with _scratch(Path(os.environ.get("TMPDIR", "/var/tmp"))) as work:
        machine = page.machine(work)
        load = dict(machine)[page.LOAD]
        if float(load) > 0.5 * (os.cpu_count() or 1):
            print(f"bench: the machine is busy (load {load}): figures will be worse than they are")
        for name, measure in groups(arguments.full).items():
            if arguments.only is None or name in arguments.only:
                try:
                    with _told(name):
                        measure(_below(work), results)
                except Exception as error:
                    # What was measured before is still worth its page; the run fails all the same.
                    traceback.print_exc()
                    results.missing[f"the rest of {name}"] = f"{type(error).__name__}: {error}"
                    failed.append(name)
        told = record.worse(results.rows, record.load())
        page.show(results, told)
        if arguments.record:
            record.save(results.rows)
        if arguments.only is None:
            command = "make bench-full" if arguments.full else "make bench"
            page.write(results, command, machine, DOCUMENT, told)
            print(f"written: {DOCUMENT.relative_to(PROJECT)}, {len(results.charts)} charts")
    return 1 if told or failed else 0


@contextmanager
def _told(what: str) -> Iterator[None]:
    began = time.monotonic()
    print(f"==> {what}", flush=True)
    yield
    print(f"    {what}: {time.monotonic() - began:.0f} s", flush=True)


def _below(above: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix="tagfs-bench-", dir=above))


@contextmanager
def _scratch(above: Path) -> Iterator[Path]:
    """A directory of its own, gone at the end; never what is mounted in it, should something still be."""
    path = _below(above)
    try:
        yield path
    finally:
        print("==> removing what was written", flush=True)
        subprocess.run(["rm", "-rf", "--one-file-system", str(path)], check=False)


if __name__ == "__main__":
    sys.exit(main())
