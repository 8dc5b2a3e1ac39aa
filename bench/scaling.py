"""Scaling: what grows with the number of lists, and with the number of tags in one.

Owns: the two curves.
Does not know: goals: a curve shows what grows, and how.
"""

import subprocess
import time
from pathlib import Path

from bench import datasets, places
from bench.measure import cpu_of, median, memory_of
from bench.peers.lists import Tagfs
from bench.results import Chart, Results, Table
from tagfs import taglist
from tagfs.names import LIST, RepositoryKey

_TAGS = 10
_ROUNDS = 5


def by_lists(work: Path, counts: tuple[int, ...], results: Results) -> None:
    rows = []
    points: dict[str, list[tuple[float, float]]] = {}
    for count in counts:
        store = work / f"scaling-{count}"
        datasets.write(datasets.synthetic(count, _TAGS), None, store)
        place = places.tagfs("tagfs", store, work / "scaling-mount", "--read-only")
        began = time.perf_counter()
        with place.started():
            assert place.pid is not None
            start = time.perf_counter() - began
            took = []
            for words in (("find", "."), ("grep", "-rc", "alpine", "."), ("grep", "-rc", "alpine", ".")):
                began = time.perf_counter()
                subprocess.run(words, cwd=place.lists, stdout=subprocess.PIPE, check=False)
                took.append(time.perf_counter() - began)
            cpu, memory = cpu_of(place.pid), memory_of(place.pid)
        row = {
            "start, s": start,
            "first find, s": took[0],
            "first grep -rc, s": took[1],
            "next grep -rc, s": took[2],
            "daemon, CPU s": cpu,
            "resident, MiB": memory,
        }
        for name, value in row.items():
            points.setdefault(name, []).append((count, value))
        rows.append((f"{count:,}", *(f"{value:.2f}" for value in row.values())))
    results.tables.append(
        Table("By the number of lists (10 tags each), read-only mount", ("lists", *points), tuple(rows))
    )
    results.charts.append(
        Chart("by-lists", "By the number of lists", "lists", "s, or MiB", {k: tuple(v) for k, v in points.items()})
    )


def by_tags(work: Path, counts: tuple[int, ...], results: Results) -> None:
    rows = []
    points: dict[str, list[tuple[float, float]]] = {}
    store = work / "tags"
    store.mkdir()
    for count in counts:
        # Of the three ways of tagging, each of which compresses differently.
        keys = [RepositoryKey(*datasets.name_of(number).split("/")) for number in range(3)]
        lists = [datasets.make_list(number, count) for number in range(3)]
        stored = Tagfs(str(store))
        setting = []
        for turn in range(_ROUNDS):
            # A list that is as it was costs less: each turn leaves another tag out.
            shown = [taglist.decode(plain)[turn % 2 :] for plain in lists]
            began = time.perf_counter()
            for key, tags in zip(keys, shown, strict=True):
                stored.set_tags(key, tags)
            setting.append((time.perf_counter() - began) / len(keys))
        getting = []
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            for key in keys:
                stored.tags(key)
            getting.append((time.perf_counter() - began) / len(keys))
        stored.close()
        reading: list[float] = []
        rereading: list[float] = []
        with places.tagfs("tagfs", store, work / "tags-mount", "--read-only").started() as mounted:
            for walls in (reading, rereading):
                for key in keys:
                    path = mounted.lists / key.namespace / key.name / LIST
                    began = time.perf_counter()
                    path.read_bytes()
                    walls.append(time.perf_counter() - began)
        row = {
            "set, durable, ms": median(setting),
            "get, ms": median(getting),
            "first read at the mount, ms": median(reading),
            "next read, ms": median(rereading),
        }
        for name, value in row.items():
            points.setdefault(name, []).append((count, value * 1000))
        plain = sum(map(len, lists)) / len(lists) / 1024
        rows.append((f"{count:,}", f"{plain:,.1f}", *(f"{value * 1000:.2f}" for value in row.values())))
    head = ("tags", "plain KiB", *points)
    results.tables.append(Table("By the number of tags in a list", head, tuple(rows)))
    results.charts.append(
        Chart("by-tags", "By the number of tags in a list", "tags", "ms", {k: tuple(v) for k, v in points.items()})
    )
