"""Writes: lists written through a mount by rename, several at once; readers beside them; curves of both.

Owns: what is written where, the goals of writing.
Does not know: what a client does to one list.
"""

import json
import subprocess
import sys
from pathlib import Path

from bench import datasets, places
from bench.datasets import DataSet
from bench.measure import WrongAnswer, cpu_of, median
from bench.places import PROJECT, Place
from bench.results import Chart, Results, Row, Table
from tagfs.names import BASE

_WRITERS = 10
_DURABLE_WRITERS = 16
_COUNTS = (1, 2, 4, 8, 16, 32)

Answer = dict[str, float]


def clients(*words: str | Path) -> Answer:
    """Run clients to their end."""
    command = [sys.executable, "-m", "bench.clients", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT, stdin=subprocess.DEVNULL)
    answer: Answer = json.loads(done.stdout)
    return answer


def through_mount(data: DataSet, work: Path, rounds: int, own_cpu: float | None, results: Results) -> None:
    """A new store filled by rename, several writers at once; `own_cpu` is what the store alone takes for a list."""
    source = work / "source"
    datasets.write(data, source, None)
    taken: list[tuple[Answer, float]] = []
    for number in range(rounds):
        store = work / f"filled-{number}"
        store.mkdir()
        with places.tagfs("tagfs", store, work / "filling").started() as mounted:
            assert mounted.pid is not None
            before = cpu_of(mounted.pid)
            answer = clients("write", str(_WRITERS), mounted.lists, "--source", source / BASE)
            taken.append((answer, cpu_of(mounted.pid) - before))
            _require_same(source / BASE, mounted.lists)
    daemon = median(cpu / answer["lists"] * 1000 for answer, cpu in taken)
    writer = median(answer["cpu_s"] / answer["lists"] * 1000 for answer, _ in taken)
    rate = median(answer["lists"] / answer["wall_s"] for answer, _ in taken)
    own = "–" if own_cpu is None else f"{own_cpu * 1000:.2f}"
    results.tables.append(
        Table(
            f"Written through the mount by rename, {_WRITERS} at once, {data.name}",
            ("lists/s", "daemon, CPU ms a list", "writer, CPU ms a list", "the store alone, CPU ms a list"),
            ((f"{rate:.0f}", f"{daemon:.2f}", f"{writer:.2f}", own),),
        )
    )
    if own_cpu is not None:
        key = data.name.replace(",", "").replace(" ", "-").replace("×", "x")
        over = daemon - own_cpu * 1000
        results.rows.append(
            Row(
                f"through-mount/{key}",
                f"daemon's CPU over the store's own, {data.name} written by rename",
                f"{daemon:.2f} ms a list",
                f"store {own} + 0.5 ms",
                daemon / (own_cpu * 1000 + 0.5),
                1.0,
                noise=0.2 if over < 0 else 0.0,
            )
        )


def durable(data: DataSet, work: Path, seconds: float, results: Results) -> None:
    """16 writers, each acknowledged list durable, and a reader of other lists beside them."""
    store, source, plain = work / "durable", work / "durable-source", work / "durable-plain"
    datasets.write(data, plain, store)
    datasets.write(datasets.synthetic(_DURABLE_WRITERS * 8, 400), source, None)
    others = store / BASE / "readers"
    for number in range(50):
        (others / f"read-{number}").mkdir(parents=True)
        (others / f"read-{number}" / "tags.txt").write_bytes(datasets.make_list(number, 100))
    with places.tagfs("tagfs", store, work / "durable-mount").started() as mounted:
        alone = _read_beside(mounted, None, seconds)
        beside = _read_beside(mounted, source, seconds)
    direct = clients("write", str(_DURABLE_WRITERS), plain / BASE, "--source", source / BASE, "--sync",
                     "--seconds", str(seconds))  # fmt: skip
    ours, reader = beside
    assert ours is not None
    rate, base = ours["lists"] / ours["wall_s"], direct["lists"] / direct["wall_s"]
    results.tables.append(
        Table(
            f"Durable writers by rename, {_DURABLE_WRITERS} at once, a reader of other lists beside them",
            ("", "lists/s", "a write p50 ms", "a write p99.9 ms", "reader p50 ms", "reader p99.9 ms"),
            (
                (
                    "tagfs",
                    f"{rate:.0f}",
                    _of(ours, "p50"),
                    _of(ours, "p99.9"),
                    _of(reader, "p50"),
                    _of(reader, "p99.9"),
                ),
                ("tagfs, no writers", "–", "–", "–", _of(alone[1], "p50"), _of(alone[1], "p99.9")),
                ("plain files, fsync and rename", f"{base:.0f}", _of(direct, "p50"), _of(direct, "p99.9"), "–", "–"),
            ),
        )
    )
    results.rows += [
        Row("durable/rate", f"{_DURABLE_WRITERS} durable writers by rename", f"{rate:.0f} lists/s",
            "goal 1,000 lists/s", 1000 / max(rate, 1e-9), 1.0),
        Row("durable/rate-of-files", "the same, against fsync and rename of plain files", f"{rate:.0f} lists/s",
            f"{base:.0f} lists/s", base / max(rate, 1e-9), 1.0),
        Row("durable/reader-p50", "a reader beside them, p50", f"{reader['p50']:.2f} ms", "goal 1 ms",
            reader["p50"], 1.0),
        Row("durable/reader-p99.9", "a reader beside them, p99.9", f"{reader['p99.9']:.1f} ms", "goal 20 ms",
            reader["p99.9"] / 20, 1.0),
    ]  # fmt: skip


def curves(work: Path, seconds: float, results: Results) -> None:
    """1 to 32 readers, and 1 to 32 writers, on one read-write mount: what one loop and one lock of Python give."""
    store, source = work / "curves", work / "curves-source"
    data = datasets.synthetic(320, 400)
    datasets.write(data, source, store)
    points: dict[str, list[tuple[float, float]]] = {}
    rows = []
    with (
        places.tagfs("tagfs", store, work / "curves-rw").started() as both,
        places.tagfs("tagfs", store, work / "curves-ro", "--read-only").started() as window,
    ):
        for count in _COUNTS:
            words = ("--seconds", str(seconds))
            sides = {
                "readers, read-write mount": clients("read", str(count), both.lists, *words),
                "readers, read-only mount": clients("read", str(count), window.lists, *words),
                "readers, plain files": clients("read", str(count), source / BASE, *words),
                "durable writers, read-write mount": clients(
                    "write", str(count), both.lists, "--source", source / BASE, *words
                ),
            }
            rates = {name: answer["lists"] / answer["wall_s"] for name, answer in sides.items()}
            for name, rate in rates.items():
                points.setdefault(name, []).append((count, rate))
            rows.append((str(count), *(f"{rate:.0f}" for rate in rates.values())))
    results.tables.append(Table("Lists a second, by how many clients at once", ("", *points), tuple(rows)))
    results.charts.append(
        Chart("clients", "Lists a second, by how many clients at once", "clients", "lists/s",
              {name: tuple(curve) for name, curve in points.items()})
    )  # fmt: skip


def _read_beside(mounted: Place, source: Path | None, seconds: float) -> tuple[Answer | None, Answer]:
    """A reader of the lists in `readers`, as long as writers write; -> what writers and reader came to."""
    command = [
        sys.executable,
        "-m",
        "bench.clients",
        "read",
        "1",
        str(mounted.lists),
        "--seconds",
        str(seconds),
        "--namespace",
        "readers",
        "--pause",
        "0.001",
    ]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=PROJECT
    ) as reader:
        wrote = None
        if source is not None:
            wrote = clients("write", str(_DURABLE_WRITERS), mounted.lists, "--source", source / BASE,
                            "--seconds", str(seconds))  # fmt: skip
        told, _ = reader.communicate()
    answer: Answer = json.loads(told)
    return wrote, answer


def _require_same(source: Path, shown: Path) -> None:
    for path in source.glob("*/*/tags.txt"):
        if (shown / path.relative_to(source)).read_bytes() != path.read_bytes():
            raise WrongAnswer(f"{path.relative_to(source)} does not read back as it was written")


def _of(answer: Answer, name: str) -> str:
    return f"{answer[name]:.2f}"
