"""Readings: what the samples of reading come to: tables, rows with goals, charts.

Owns: the goals of reading.
Does not know: how a sample was taken.
"""

from dataclasses import dataclass

from bench.datasets import DataSet
from bench.measure import median, median_ratio
from bench.results import Chart, Results, Row, Table

EXT4 = "ext4, plain files"
OURS = "tagfs"
SLOW = "tagfs --no-fast-path"
BOTH = "tagfs, read-write"
FUSE_ZSTD = "fuse-zstd"
SQUASHFUSE = "squashfuse (zstd)"
FLOOR = "floor (FUSE, nothing looked at)"
GREP = "grep -rc"

WARM_GOAL = 1.15
FRESH_GOAL = 6.0
_LEVEL = 1.15
_FRESH_GOALS = {"fuse-zstd": 1 / 5, "squashfuse": _LEVEL, "btrfs": _LEVEL, "erofs": _LEVEL}
"""By the first word of a side."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: seconds of the program, CPU seconds of the program and its daemon, requests to the daemon."""

    wall: float
    cpu: float
    requests: int | None


Samples = dict[tuple[str, str], list[Sample]]
"""(side, program) -> a sample a round."""


def tell(data: DataSet, programs: list[str], warm: Samples, fresh: Samples, results: Results) -> None:
    results.tables += [
        _times(f"Reading {data.name}, warm", programs, warm, "Milliseconds; in brackets CPU, the daemon's counted in."),
        _times(f"Reading {data.name}, on a fresh mount", programs, fresh,
               "The bytes beneath are in the page cache. Mounting itself is not counted."),
        Table(
            f"Requests that reach the daemon, {data.name}: warm / fresh mount",
            ("", *programs),
            tuple(
                (name, *(f"{_requests(warm, name, one)} / {_requests(fresh, name, one)}" for one in programs))
                for name in (OURS, SLOW, BOTH, FLOOR, FUSE_ZSTD, SQUASHFUSE)
                if (name, programs[0]) in warm
            ),
        ),
    ]  # fmt: skip
    key = data.name.replace(",", "").replace(" ", "-").replace("×", "x")
    for program in programs:
        results.rows += _warm_rows(program, data, key, warm)
        results.rows += _fresh_rows(program, data, key, warm[EXT4, program], fresh)
    for how, told, samples in (("warm", "warm", warm), ("fresh", "on a fresh mount", fresh)):
        bars = {name: ((0.0, median(_walls(runs)) * 1000),) for (name, one), runs in samples.items() if one == GREP}
        results.charts.append(Chart(f"grep-{how}-{key}", f"{GREP} over {data.name}, {told}", "", "ms", bars))


def _warm_rows(program: str, data: DataSet, key: str, warm: Samples) -> list[Row]:
    ours, base, count = warm[OURS, program], warm[EXT4, program], _requests(warm, OURS, program)
    what = f"{program}, {data.name}, warm"
    ratio = median_ratio(_walls(ours), _walls(base))
    rows = [
        Row(f"read-warm/{key}/{program}", what, _both(ours), f"ext4 {_both(base)}", ratio, WARM_GOAL, noise=WARM_GOAL)
    ]
    if count != "?":
        asked = Row(f"requests/{key}/{program}", "the same: requests", count, "none", float(count), 0.0, noise=50.0)
        rows.append(asked)
    return rows


def _fresh_rows(program: str, data: DataSet, key: str, base: list[Sample], fresh: Samples) -> list[Row]:
    ours = fresh[OURS, program]
    beside = {"ext4, warm": (base, FRESH_GOAL)}
    for name, one in fresh:
        kind = name.partition(" ")[0]
        if one == program and kind in _FRESH_GOALS:
            beside[name] = fresh[name, one], _FRESH_GOALS[kind]
    what = f"{program}, {data.name}, fresh mount"
    floor = fresh.get((FLOOR, program))

    def row(name: str, theirs: list[Sample], goal: float | None, noise: float) -> Row:
        return Row(
            f"read-fresh/{key}/{program}/{name.split()[0].strip(',')}", what, _both(ours), f"{name} {_both(theirs)}",
            median_ratio(_walls(ours), _walls(theirs)), goal, noise,
            median_ratio(_walls(floor), _walls(theirs)) if floor else None,
        )  # fmt: skip

    rows = [row(name, theirs, goal, goal / 2) for name, (theirs, goal) in beside.items()]
    return [*rows, row(FLOOR, floor, None, 1.0)] if floor else rows


def _times(title: str, programs: list[str], samples: Samples, note: str) -> Table:
    names = dict.fromkeys(name for name, _ in samples)
    rows = tuple((name, *(_cell(samples.get((name, program))) for program in programs)) for name in names)
    return Table(title, ("", *programs), rows, note)


def _walls(samples: list[Sample]) -> list[float]:
    return [sample.wall for sample in samples]


def _ms(samples: list[Sample]) -> str:
    return f"{median(_walls(samples)) * 1000:.0f}"


def _both(samples: list[Sample]) -> str:
    return f"{_ms(samples)} ms (CPU {median(sample.cpu for sample in samples) * 1000:.0f})"


def _cell(samples: list[Sample] | None) -> str:
    return f"{_ms(samples)} ({median(sample.cpu for sample in samples) * 1000:.0f})" if samples else "–"


def _requests(samples: Samples, name: str, program: str) -> str:
    counts = [sample.requests for sample in samples.get((name, program), []) if sample.requests is not None]
    return f"{median(counts):.0f}" if counts else "?"
