"""Storages that are driven in this process, as peers/go drives Flux's: the same work, the same account of what it cost.

usage: python -m bench.peers.inprocess SIDE set|get|digest INPUT STORE

Owns: tagfs's own store and SQLite as they are called by a program; their costs as JSON.
Does not know: who compares.
"""

import argparse
import hashlib
import json
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import zstandard

from tagfs import sentinel, taglist
from tagfs.bulk import Bulk, Outcome
from tagfs.directory import DirectoryStore
from tagfs.disk import Disk
from tagfs.names import LIST, RepositoryKey
from tagfs.policy import Policy

_GROUP = 64
"""Lists that are made durable together where a side does that."""


class Storage(ABC):
    @abstractmethod
    def set_tags(self, key: RepositoryKey, tags: list[str]) -> None: ...

    @abstractmethod
    def tags(self, key: RepositoryKey) -> list[str]: ...

    @abstractmethod
    def close(self) -> None:
        """Everything that was set is as durable as this side promises."""


class Careless(Disk):
    """The real disk without its syncs: what is written is as durable as what Flux writes."""

    def sync(self, file: int) -> None:
        return

    def sync_dir(self, directory: int) -> None:
        return


class Tagfs(Storage):
    """tagfs's store, one list after another, each durable before the next where the disk is the real one."""

    def __init__(self, path: Path, disk: Disk) -> None:
        root = disk.open_root(str(path))
        format_, _ = sentinel.prepare(Disk(), root, str(path), sentinel.ZSTD_FORMAT, wipe_foreign=False)
        self.store = DirectoryStore(disk, root, format_, Policy())

    def set_tags(self, key: RepositoryKey, tags: list[str]) -> None:
        plain = ("\n".join(tags) + "\n").encode() if tags else b""
        taglist.validate(plain)
        taglist.revision(plain)
        self.store.publish(self.store.stage(key, plain))

    def tags(self, key: RepositoryKey) -> list[str]:
        snapshot = self.store.open(key)
        try:
            return taglist.decode(snapshot.content())
        finally:
            snapshot.close()

    def close(self) -> None:
        self.store.close()


class GroupedTagfs(Tagfs):
    """tagfs's store as `tagfs import` writes to it: durable in groups."""

    def __init__(self, path: Path, disk: Disk) -> None:
        super().__init__(path, disk)
        self.bulk = Bulk(self.store, _GROUP)

    def set_tags(self, key: RepositoryKey, tags: list[str]) -> None:
        plain = ("\n".join(tags) + "\n").encode() if tags else b""
        taglist.validate(plain)
        taglist.revision(plain)
        _require_done(self.bulk.replace(key, plain))

    def close(self) -> None:
        _require_done(self.bulk.flush())
        super().close()


def _require_done(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error


class Sqlite(Storage):
    """One table, a list as one blob with zstd level 1; `group` lists a transaction."""

    def __init__(self, path: Path, synchronous: str, group: int) -> None:
        self.database = sqlite3.connect(path / "tags.db", isolation_level=None)
        self.database.execute("PRAGMA journal_mode=WAL")
        self.database.execute(f"PRAGMA synchronous={synchronous}")
        self.database.execute("CREATE TABLE IF NOT EXISTS tags (key TEXT PRIMARY KEY, list BLOB) WITHOUT ROWID")
        self.encode = zstandard.ZstdCompressor(level=1, write_checksum=True).compress
        self.decode = zstandard.ZstdDecompressor().decompress
        self.group = group
        self.pending = 0

    def set_tags(self, key: RepositoryKey, tags: list[str]) -> None:
        plain = ("\n".join(tags) + "\n").encode() if tags else b""
        taglist.revision(plain)
        if self.pending == 0:
            self.database.execute("BEGIN")
        self.database.execute("REPLACE INTO tags VALUES (?, ?)", (str(key), self.encode(plain)))
        self.pending += 1
        if self.pending == self.group:
            self._commit()

    def tags(self, key: RepositoryKey) -> list[str]:
        (stored,) = self.database.execute("SELECT list FROM tags WHERE key = ?", (str(key),)).fetchone()
        return taglist.decode(self.decode(stored))

    def close(self) -> None:
        self._commit()
        self.database.close()

    def _commit(self) -> None:
        if self.pending:
            self.database.execute("COMMIT")
            self.pending = 0


SIDES: dict[str, Callable[[Path], Storage]] = {
    "tagfs": lambda path: Tagfs(path, Careless()),
    "tagfs-durable": lambda path: Tagfs(path, Disk()),
    "tagfs-grouped": lambda path: GroupedTagfs(path, Disk()),
    "sqlite": lambda path: Sqlite(path, "OFF", 1),
    "sqlite-durable": lambda path: Sqlite(path, "FULL", 1),
    "sqlite-grouped": lambda path: Sqlite(path, "FULL", _GROUP),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=sorted(SIDES))
    parser.add_argument("work", choices=("set", "get", "digest"))
    parser.add_argument("input", type=Path)
    parser.add_argument("store", type=Path)
    arguments = parser.parse_args()
    keys = [
        RepositoryKey(path.parent.parent.name, path.parent.name)
        for path in sorted(arguments.input.glob(f"*/*/{LIST}"), key=str)
    ]
    digest = hashlib.sha256()
    began, cpu = time.perf_counter(), time.process_time()
    storage = SIDES[arguments.side](arguments.store)
    for key in keys:
        if arguments.work == "set":
            plain = (arguments.input / key.namespace / key.name / LIST).read_bytes()
            storage.set_tags(key, taglist.decode(plain))
        else:
            tags = storage.tags(key)
            if arguments.work == "digest":
                digest.update("".join(f"{tag}\n" for tag in tags).encode())
    storage.close()
    cost = {
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - began,
        "peak_kib": _field("/proc/self/status", "VmHWM:"),
        "written": _field("/proc/self/io", "write_bytes:"),
    }
    print(json.dumps(cost | ({"digest": digest.hexdigest()} if arguments.work == "digest" else {})))


def _field(path: str, name: str) -> int:
    for line in _lines(path):
        if line.startswith(name):
            return int(line.split()[1])
    return -1


def _lines(path: str) -> Iterator[str]:
    with suppress(OSError):
        yield from Path(path).read_text().splitlines()


if __name__ == "__main__":
    main()
