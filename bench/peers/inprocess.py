"""Storages that are driven in this process, as peers/go drives Flux's: the same work, the same account of what it cost.

usage: python -m bench.peers.inprocess SIDE set|get|digest INPUT STORE

Owns: the sides; what they are given and asked for; what that cost, as JSON.
Does not know: who compares.
A side is imported when it is chosen, and what the account alone needs after the peak was read: none pays for another.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Protocol

from tagfs import taglist
from tagfs.names import LIST, RepositoryKey

GROUP = 64
"""Lists that are made durable together where a side does that."""


class Storage(Protocol):
    def set_tags(self, key: RepositoryKey, tags: list[str]) -> None: ...

    def tags(self, key: RepositoryKey) -> list[str]: ...

    def close(self) -> None:
        """Everything that was set is as durable as this side promises."""


Open = Callable[[str], Storage]
"""Opens the storage in a directory."""


def _tagfs() -> Open:
    from bench.peers.lists import Careless, Tagfs

    return lambda path: Tagfs(path, Careless())


def _tagfs_durable() -> Open:
    from bench.peers.lists import Tagfs

    return Tagfs


def _tagfs_grouped() -> Open:
    from bench.peers.lists import GroupedTagfs

    return lambda path: GroupedTagfs(path, GROUP)


def _sqlite(synchronous: str, group: int) -> Open:
    from bench.peers.database import Sqlite

    return lambda path: Sqlite(path, synchronous, group)


SIDES: dict[str, Callable[[], Open]] = {
    "tagfs": _tagfs,
    "tagfs-durable": _tagfs_durable,
    "tagfs-grouped": _tagfs_grouped,
    "sqlite": lambda: _sqlite("OFF", 1),
    "sqlite-durable": lambda: _sqlite("FULL", 1),
    "sqlite-grouped": lambda: _sqlite("FULL", GROUP),
}


def main() -> None:
    try:
        side, work, source, store = sys.argv[1:]
        open_storage = SIDES[side]()
    except (ValueError, KeyError):
        sys.exit(f"{__doc__}\nSIDE is one of {', '.join(SIDES)}")
    keys = _keys(source)
    digest = None
    if work == "digest":
        import hashlib

        digest = hashlib.sha256()
    began, cpu = time.perf_counter(), time.process_time()
    storage = open_storage(store)
    for key in keys:
        if work == "set":
            storage.set_tags(key, taglist.decode(_content(f"{source}/{key}/{LIST}")))
        else:
            tags = storage.tags(key)
            if digest is not None:
                digest.update("".join(f"{tag}\n" for tag in tags).encode())
    storage.close()
    cost: dict[str, object] = {
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - began,
        "peak_kib": _field("/proc/self/status", "VmHWM:"),
        "written": _field("/proc/self/io", "write_bytes:"),
    }
    if digest is not None:
        cost["digest"] = digest.hexdigest()
    import json

    print(json.dumps(cost))


def _keys(source: str) -> list[RepositoryKey]:
    """The keys that have a list, in the order of their paths."""
    paths = [
        f"{namespace}/{name}/{LIST}"
        for namespace in os.listdir(source)
        for name in os.listdir(f"{source}/{namespace}")
        if os.path.exists(f"{source}/{namespace}/{name}/{LIST}")
    ]
    return [RepositoryKey(*path.split("/")[:2]) for path in sorted(paths)]


def _content(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def _field(path: str, name: str) -> int:
    try:
        lines = _content(path).decode().splitlines()
    except OSError:
        return -1
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), -1)


if __name__ == "__main__":
    main()
