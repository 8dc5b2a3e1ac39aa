"""Stores to test the layers above them with, and what other programs do to a store beneath."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tagfs import sentinel
from tagfs.directory import DirectoryStore
from tagfs.disk import Disk
from tagfs.names import BASE, LIST, RepositoryKey
from tagfs.policy import Policy

LIST_LIMIT = 2000
THRESHOLD = 40
"""Bytes, so that short lists are stored in either way."""


def directory_store(path: Path, disk: Disk | None = None) -> DirectoryStore:
    """The store at `path`, made where there is none."""
    disk = disk or Disk()
    root = disk.open_root(str(path))
    format_, _ = sentinel.prepare(disk, root, str(path), sentinel.ZSTD_FORMAT, False)
    return DirectoryStore(disk, root, format_, Policy(threshold=THRESHOLD, list_limit=LIST_LIMIT))


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Everything that is opened within is closed within."""
    before = _opened()
    yield
    left = [name for name in _opened() if name not in before]
    assert not left, f"left open: {[_target(name) for name in left]}"


def _opened() -> set[str]:
    return {name for name in os.listdir("/proc/self/fd") if not _target(name).startswith("/proc/")}


def _target(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except FileNotFoundError:
        return "/proc/"


def list_file(store: Path, key: RepositoryKey, suffix: str = "") -> Path:
    return store / BASE / key.namespace / key.name / (LIST + suffix)


def put(store: Path, key: RepositoryKey, plain: bytes) -> None:
    """Replace a list as Flux does: beside, then a rename."""
    path = list_file(store, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{LIST}123")
    beside.write_bytes(plain)
    beside.rename(path)
    for suffix in (".gz", ".zst"):
        path.with_name(LIST + suffix).unlink(missing_ok=True)
