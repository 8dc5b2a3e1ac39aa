#!/usr/bin/env python3
"""Memory: where that of a read-only mount goes, by import and by list.

usage: python -m bench.memory [--lists N] [--work DIRECTORY]

Owns: resident memory before and after each import, and what is allocated for each list that a kernel has looked up.
Does not know: goals (`upkeep` has them, and measures real mounts).

An import is charged with the pages that its module needed besides those of the modules that it imports; what was
imported before costs nothing, so the order matters.  `postponed` are measured by leaving them in.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from bench import datasets
from bench.places import PROJECT

_SHOWN = 25

_IMPORTS = """
import builtins, sys
if sys.argv[1] == "postponed":
    from tagfs.postponed import postpone
    postpone()
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4
real, inner, own = builtins.__import__, [0], {}
def charged(name, globals=None, locals=None, fromlist=(), level=0):
    if level or name in sys.modules:
        return real(name, globals, locals, fromlist, level)
    before = resident()
    inner.append(0)
    try:
        return real(name, globals, locals, fromlist, level)
    finally:
        grown, below = resident() - before, inner.pop()
        own[name] = own.get(name, 0) + grown - below
        inner[-1] += grown
start = resident()
builtins.__import__ = charged
import tagfs.cli, tagfs.logs, tagfs.mount
builtins.__import__ = real
print(start, "(interpreter)")
for name, size in own.items():
    print(size, name)
"""

_LISTS = """
import gc, os, sys, tracemalloc
from tagfs import sentinel
from tagfs.changes import Changes
from tagfs.directory import DirectoryStore
from tagfs.disk import Disk
from tagfs.inodes import ROOT_ID
from tagfs.names import BASE
from tagfs.policy import Policy
from tagfs.view import View
from tagfs.tree import Tree
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096
path, is_traced = sys.argv[1], sys.argv[2] == "traced"
disk = Disk()
root = disk.open_root(path)
store = DirectoryStore(disk, root, sentinel.require_ready(disk, root, path), Policy())
changes = Changes(store.opened, root)
tree = Tree(store, View(watch=changes.cover))
gc.collect()
if is_traced:
    tracemalloc.start()
before, count = resident(), 0
base = tree.lookup(ROOT_ID, BASE.encode()).id
for namespace in sorted(store.namespaces()):
    above = tree.lookup(base, namespace.encode()).id
    for name in sorted(store.repositories(namespace)):
        tree.lookup(tree.lookup(above, name.encode()).id, b"tags.txt")
        count += 1
gc.collect()
print(count, resident() - before)
if is_traced:
    for one in tracemalloc.take_snapshot().statistics("lineno"):
        print(one.size, f"{os.path.basename(one.traceback[0].filename)}:{one.traceback[0].lineno}")
"""


def _run(program: str, *arguments: str) -> list[tuple[int, str]]:
    """The lines of a fresh interpreter: a number, and what it is of."""
    command = (sys.executable, "-c", program, *arguments)
    told = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True).stdout
    rows = (line.split(maxsplit=1) for line in told.splitlines())
    return [(int(size), name) for size, name in rows]


def show_imports() -> None:
    totals = {}
    for how in ("all", "postponed"):
        rows = _run(_IMPORTS, how)
        totals[how] = sum(size for size, _ in rows) / 1024
    packages: Counter[str] = Counter()
    for size, name in rows:
        packages[name.partition(".")[0]] += size
    print("KiB resident by package, with all that only it imports left to itself")
    for name, size in packages.most_common(_SHOWN):
        print(f"{size:8}  {name}")
    print("KiB by module")
    for size, name in sorted(rows, reverse=True)[:_SHOWN]:
        print(f"{size:8}  {name}")
    print(f"{totals['postponed']:.1f} MiB in all; {totals['all']:.1f} with what `postponed` leaves out\n")


def show_lists(store: Path) -> None:
    ((count, grown),) = ((size, int(name)) for size, name in _run(_LISTS, str(store), "resident"))
    print(f"{count:,} lists looked up: {grown / count:.0f} bytes resident for each")
    print("bytes a list, by the line that allocated them")
    for size, name in _run(_LISTS, str(store), "traced")[1:]:
        if size / count >= 1:
            print(f"{size / count:8.1f}  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, default=50_000)
    parser.add_argument("--work", type=Path, help="a directory on the disk to measure on; default: one in /tmp")
    arguments = parser.parse_args()
    show_imports()
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        store = Path(work, "store")
        datasets.write(datasets.synthetic(arguments.lists, 10), None, store)
        show_lists(store)


if __name__ == "__main__":
    main()
