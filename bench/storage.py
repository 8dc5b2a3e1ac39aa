"""Storage: every list is set and then asked for, in one process, by tagfs's store and by what Flux and others use.

Owns: the sides, the goals, disk and bytes written.
Does not know: what a side does inside.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import datasets, places
from bench.datasets import DataSet
from bench.measure import Pace, alternated, median, median_ratio
from bench.peers.inprocess import GROUP
from bench.places import PROJECT, PeerMissing
from bench.results import Chart, Results, Row, Table
from tagfs.names import BASE, LIST

OURS = "tagfs, no fsync, as Flux"
DURABLE = "tagfs, each list durable"
GROUPED = "tagfs, durable in groups"
FLUX_64 = "Flux, 64 KiB (its default)"
FLUX_4 = "Flux, 4 KiB"
BADGER = "BadgerDB"
SQLITE = "SQLite + zstd-1"
FLUX_DURABLE = "Flux, 64 KiB, with fsync"
BADGER_DURABLE = "BadgerDB, SyncWrites"
FLOOR = "floor (the files alone)"
FLOOR_GROUPED = "floor, durable in groups"


@dataclass(frozen=True, slots=True)
class Side:
    """`argv` makes the command for set, get or digest; `is_durable`: every acknowledged list survives a power cut."""

    name: str
    argv: Callable[[str, Path, Path], list[str]]
    is_durable: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One storage filled and asked: seconds, MiB, bytes; `cpu` is of setting and getting, `digest` of what it gave."""

    cpu: float
    set_cpu: float
    set_wall: float
    peak: float
    disk: int
    written: int
    digest: str


def sides(stored: Path, results: Results) -> list[Side]:
    """`stored`: a store with the lists, which the floor is given as they are there: it encodes nothing."""
    made = [
        _python(OURS, "tagfs", False),
        _python(SQLITE, "sqlite", False),
        _python(DURABLE, "tagfs-durable", True),
        _python(GROUPED, "tagfs-grouped", True),
        _python("SQLite + zstd-1, each list durable", "sqlite-durable", True),
        _python("SQLite + zstd-1, durable in groups", "sqlite-grouped", True),
    ]
    try:
        program = places.built("flux")
        made += [
            _go(FLUX_64, program, False, "-threshold", "64", "flux"),
            _go(FLUX_4, program, False, "-threshold", "4", "flux"),
            _go(BADGER, program, False, "badger"),
            _go(FLUX_DURABLE, program, True, "-durable", "-threshold", "64", "flux"),
            _go(BADGER_DURABLE, program, True, "-durable", "badger"),
        ]
    except PeerMissing as error:
        results.missing["Flux's file storage and BadgerDB"] = str(error)
    try:
        program = places.built("files")
        made += [
            _floor(FLOOR, program, stored, False),
            _floor(FLOOR_GROUPED, program, stored, True, "-durable", str(GROUP)),
        ]
    except PeerMissing as error:
        results.missing[FLOOR] = str(error)
    return made


def measure(data: DataSet, work: Path, pace: Pace, results: Results) -> float:
    """-> the CPU seconds of tagfs's durable store to set one list."""
    plain, stored = work / "plain", work / "stored"
    datasets.write(data, plain, stored)
    every = sides(stored, results)
    _warm(every, work)
    taken = alternated({side.name: partial(_sample, side, plain / BASE, work) for side in every}, *pace)
    samples = only_right(taken, digest_of(plain / BASE), results)
    _tell(data, [side for side in every if side.name in samples], samples, results)
    return median(sample.set_cpu for sample in samples[DURABLE]) / data.lists


def digest_of(source: Path) -> str:
    """What `digest` of a storage has to say when it was given these plain files."""
    digest = hashlib.sha256()
    for path in sorted(source.glob(f"*/*/{LIST}"), key=str):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def only_right(taken: dict[str, list[Sample | PeerMissing]], digest: str, results: Results) -> dict[str, list[Sample]]:
    """The samples of the sides that never failed, nor gave back other bytes than they were given."""
    right: dict[str, list[Sample]] = {}
    for name, runs in taken.items():
        samples = [run for run in runs if isinstance(run, Sample)]
        for run in runs:
            if isinstance(run, PeerMissing):
                results.missing[name] = str(run)
        if any(sample.digest != digest for sample in samples):
            results.missing[name] = "it does not give back the bytes that it was given"
        if name not in results.missing:
            right[name] = samples
    return right


def _python(name: str, side: str, is_durable: bool) -> Side:
    def argv(what: str, source: Path, store: Path) -> list[str]:
        return [sys.executable, "-m", "bench.peers.inprocess", side, what, str(source), str(store)]

    return Side(name, argv, is_durable)


def _go(name: str, program: Path, is_durable: bool, *words: str) -> Side:
    def argv(what: str, source: Path, store: Path) -> list[str]:
        return [str(program), *words, what, str(source), str(store)]

    return Side(name, argv, is_durable)


def _floor(name: str, program: Path, stored: Path, is_durable: bool, *words: str) -> Side:
    ours = _python(name, "tagfs", False)

    def argv(what: str, source: Path, store: Path) -> list[str]:
        # What it has written is a store of tagfs, which tells whether all of it is there.
        return (
            ours.argv(what, source, store)
            if what == "digest"
            else [str(program), *words, what, str(stored), str(store)]
        )

    return Side(name, argv, is_durable)


def _run(side: Side, what: str, source: Path, store: Path) -> dict[str, float]:
    # A program that is installed is compiled, whatever this one was told of that.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(store.parent / "compiled")
    done = subprocess.run(
        side.argv(what, source, store), capture_output=True, text=True, check=False, cwd=PROJECT, env=environment
    )
    if done.returncode != 0:
        raise PeerMissing(f"{what} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def _warm(every: list[Side], work: Path) -> None:
    """Run each side for nothing: what is measured is compiled, and in the page cache, from the first round on."""
    nothing = Path(tempfile.mkdtemp(prefix="nothing-", dir=work))
    for side in every:
        with suppress(PeerMissing):
            _run(side, "set", nothing, Path(tempfile.mkdtemp(prefix="storage-", dir=work)))


def _sample(side: Side, source: Path, work: Path) -> Sample | PeerMissing:
    # Nothing is deleted before the end: ext4 passes over what was deleted a while ago, one by one, at each creation.
    store = Path(tempfile.mkdtemp(prefix="storage-", dir=work))
    try:
        put = _run(side, "set", source, store)
        got = _run(side, "get", source, store)
        return Sample(
            cpu=put["cpu_s"] + got["cpu_s"],
            set_cpu=put["cpu_s"],
            set_wall=put["wall_s"],
            peak=max(put["peak_kib"], got["peak_kib"]) / 1024,
            disk=places.disk_bytes(store),
            written=int(put["written"] + got["written"]),
            digest=str(_run(side, "digest", source, store)["digest"]),
        )
    except PeerMissing as error:
        return error


def _tell(data: DataSet, every: list[Side], samples: dict[str, list[Sample]], results: Results) -> None:
    rows = []
    for side in every:
        taken = samples[side.name]
        rows.append(
            (
                side.name,
                "yes" if side.is_durable else "no",
                f"{median(one.cpu for one in taken):.2f}",
                f"{median(one.set_cpu for one in taken):.2f}",
                f"{median(one.set_wall for one in taken):.2f}",
                f"{median(one.peak for one in taken):.0f}",
                f"{median(one.disk for one in taken) / 2**20:.1f}",
                f"{median(one.written for one in taken) / 2**20:.1f}",
            )
        )
    head = ("", "durable", "CPU s, set + get", "CPU s, set", "wall s, set", "peak RSS MiB", "disk MiB", "written MiB")
    note = (
        "Reading the lists from files, as the process is given them, is counted on every side; the floor is given them "
        "as tagfs stores them."
    )
    results.tables.append(Table(f"Set and get in one process, {data.name}", head, tuple(rows), note))
    results.rows += goals(data, samples)
    results.charts.append(
        Chart(
            f"storage-cpu-{_key(data)}",
            f"Set and get {data.name} in one process: CPU seconds",
            "",
            "s",
            {side.name: ((0.0, median(one.cpu for one in samples[side.name])),) for side in every},
        )
    )


def goals(data: DataSet, samples: dict[str, list[Sample]]) -> list[Row]:
    """What was asked of tagfs, as far as both sides were measured."""
    rows: list[Row] = []

    def compare(
        what: str, name: str, ours: str, peer: str, of: Callable[[Sample], float], goal: float | None, floor: str = ""
    ) -> None:
        if peer not in samples or ours not in samples:
            return
        mine, theirs = [of(one) for one in samples[ours]], [of(one) for one in samples[peer]]
        least = [of(one) for one in samples.get(floor, ())]
        unit = what.rpartition(", ")[2]
        rows.append(
            Row(
                f"storage/{_key(data)}/{name}/{peer}",
                f"{what.rpartition(', ')[0]}, {data.name}",
                f"{median(mine):.4g} {unit}",
                f"{peer}: {median(theirs):.4g} {unit}",
                median_ratio(mine, theirs),
                goal,
                floor=median_ratio(least, theirs) if least else None,
            )
        )

    many = data.tags is not None and data.tags >= 5000
    cpu_goals = {FLUX_64: 1.0, FLUX_4: 1 / 15 if many else 1 / 5, BADGER: 1.0, SQLITE: 1.0, FLOOR: None}
    for peer, goal in cpu_goals.items():
        compare("set + get, CPU s", "cpu", OURS, peer, lambda one: one.cpu, goal, FLOOR)
    for peer in (FLUX_64, FLUX_4, BADGER, SQLITE):
        compare("set + get, peak RSS, MiB", "rss", OURS, peer, lambda one: one.peak, 1.0)
    for peer in (FLUX_64, FLUX_4):
        compare("disk, MiB", "disk", OURS, peer, lambda one: one.disk / 2**20, 1.0)
    best = GROUPED if GROUPED in samples else DURABLE
    for peer, goal in {FLUX_DURABLE: 0.2, BADGER_DURABLE: 0.2, FLOOR_GROUPED: None}.items():
        compare("set, every list durable, wall s", "durable", best, peer, lambda one: one.set_wall, goal, FLOOR_GROUPED)
    return rows


def _key(data: DataSet) -> str:
    return data.name.replace(",", "").replace(" ", "-").replace("×", "x")
