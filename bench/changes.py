#!/usr/bin/env python3
"""Changes: what a mount pays while somebody listens to `.changes`, and how soon a listener is told.

usage: python -m bench.changes [--lists N] [--tags N] [--changes N] [--work DIRECTORY]

Owns: memory before, while and after somebody listens; the time until `ready`; from a rename beneath to the line that
tells of it, beside a bare inotify watch of that directory, which says no more than that something happened.
Does not know: goals (`upkeep` has them).
"""

import argparse
import ctypes
import json
import os
import tempfile
import time
from pathlib import Path

from bench import datasets, places
from bench.measure import cpu_of, memory_of, percentile, settled_memory
from bench.onechange import change_beneath
from tagfs.events import PREFIX
from tagfs.names import BASE

_MOVED_TO = 0x80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, default=5_000)
    parser.add_argument("--tags", type=int, default=400)
    parser.add_argument("--changes", type=int, default=300)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        measure(Path(work), datasets.synthetic(arguments.lists, arguments.tags), arguments.changes)


def measure(work: Path, data: datasets.DataSet, changes: int) -> None:
    store = work / "store"
    datasets.write(data, None, store)
    with places.tagfs("tagfs", store, work / "mounted", "--read-only").started() as mounted:
        assert mounted.pid is not None
        idle = settled_memory(mounted.pid)
        began, before = time.perf_counter(), cpu_of(mounted.pid)
        with open(mounted.point / ".changes", "rb") as stream:
            ready = json.loads(stream.readline())
            took, spent = time.perf_counter() - began, cpu_of(mounted.pid) - before
            assert ready["type"] == PREFIX + "ready" and ready["data"]["lists"] == data.lists, ready
            listening = settled_memory(mounted.pid)
            print(f"{data.name}, read-only mount")
            print(f"  ready after {took:.2f} s, {spent:.2f} s of processor time")
            print(f"  resident {idle:.1f} MiB idle, {listening:.1f} while somebody listens", flush=True)
            tell(store, mounted, stream.fileno(), data, changes)
            print(f"  resident {memory_of(mounted.pid):.1f} MiB after {changes} changes")
        print(f"  resident {settled_memory(mounted.pid):.1f} MiB when the listener has gone")


def tell(store: Path, mounted: places.Place, stream: int, data: datasets.DataSet, changes: int) -> None:
    """Change lists beneath one by one, and take the time until each is told."""
    libc = ctypes.CDLL(None, use_errno=True)
    inotify = libc.inotify_init1(os.O_CLOEXEC)
    bare, told = [], []
    names = data.names()
    before = cpu_of(mounted.pid or 0)
    for number in range(changes):
        name = names[number * 7919 % len(names)]
        watch = libc.inotify_add_watch(inotify, os.fsencode(store / BASE / name), _MOVED_TO)
        plain = datasets.make_list(number * 7919 % len(names), data.tags or 1) + b"zz-%d\n" % number
        began = time.perf_counter()
        change_beneath(store, mounted, name, plain)
        os.read(inotify, 4096)
        bare.append(time.perf_counter() - began)
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(stream, 1 << 16)
        told.append(time.perf_counter() - began)
        assert json.loads(line)["data"]["added"][-1] == f"zz-{number}", line[:500]
        libc.inotify_rm_watch(inotify, watch)
        os.read(inotify, 4096)
    os.close(inotify)
    spent = (cpu_of(mounted.pid or 0) - before) / changes
    for name, walls in (("a bare inotify watch", bare), ("a line of .changes", told)):
        print(
            f"  {name}: {percentile(walls, 50) * 1000:.2f} ms in the middle, {percentile(walls, 99) * 1000:.2f} at 99 %"
        )
    ratio = percentile(told, 50) / percentile(bare, 50)
    print(f"  ratio {ratio:.1f}, with what changed; {spent * 1000:.2f} ms of processor time for each change")


if __name__ == "__main__":
    main()
