"""Stores that tests make anew, and what other programs leave in them."""

import gzip
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tagfs import sentinel
from tagfs.codec import GZIP, ZSTD, Codec
from tagfs.directory import DirectoryStore
from tagfs.disk import Disk
from tagfs.errors import ListMissing, StoreWaiting
from tagfs.names import RepositoryKey
from tagfs.policy import Policy
from tagfs.store import Store

KEY = RepositoryKey("apps", "podinfo")
NEIGHBOUR = RepositoryKey("apps", "podinfo-canary")
STRANGER = RepositoryKey("flux-system", "podinfo")
KEYS = (KEY, NEIGHBOUR, STRANGER)

SMALL = b"latest\nv1.0.0\n"
LARGE = b"".join(b"v1.%d.%d\n" % (n // 10, n % 10) for n in range(200))
"""Stored compressed by THRESHOLD, SMALL is not."""

OTHER_SMALL = b"v2.0.0\n"
OTHER_LARGE = b"".join(b"v2.%d.%d-rc\n" % (n // 10, n % 10) for n in range(200))
THRESHOLD = 1024

Contents = dict[str, bytes]
"""What a store shows: key -> plain bytes."""


def codec_of(format_: int) -> Codec:
    """The codec that a store of this format is written with."""
    return GZIP if format_ == sentinel.FLUX_FORMAT else ZSTD


def policy_of(format_: int, threshold: int = THRESHOLD, list_limit: int = 1 << 20) -> Policy:
    return Policy(codec_of(format_), threshold, list_limit)


def open_store(
    disk: Disk, path: str, format_: int = 3, policy: Policy | None = None, wipe_foreign: bool = False
) -> DirectoryStore:
    """Open as a writer does: made ready, whatever a crash has left; `format_` is that of a new store."""
    root = disk.open_root(path)
    try:
        format_, _ = sentinel.prepare(disk, root, path, format_, wipe_foreign)
    except BaseException:
        disk.close(root)
        raise
    return DirectoryStore(disk, root, format_, policy or policy_of(format_))


def unready_at(name: str) -> Callable[[str | None, str | None], int]:
    """What tells when directories of a store changed, and of the repository `name` that the store is not ready."""

    def directory_mtime_ns(namespace: str | None = None, repository: str | None = None) -> int:
        if repository == name:
            raise StoreWaiting("a wipe has begun")
        return 0

    return directory_mtime_ns


def contents(store: Store) -> Contents:
    """Every list of a store, after a writer has put back what was hidden without a successor."""
    found = {}
    for key in store.scan():
        store.recover(key)
        try:
            found[str(key)] = store.read(key)
        except ListMissing:
            continue
    return found


def write_natively(path: Path, key: RepositoryKey, plain: bytes, compressed: bool, mtime_ns: int | None = None) -> Path:
    """Write a list as Flux does, and leave the other variant where it is."""
    directory = path / key.directory
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    name = "tags.txt.gz" if compressed else "tags.txt"
    temporary = directory / f"{name}3141592653"
    temporary.write_bytes(gzip.compress(plain, 9, mtime=0) if compressed else plain)
    temporary.chmod(0o600)
    if mtime_ns is not None:
        os.utime(temporary, ns=(mtime_ns, mtime_ns))
    temporary.rename(directory / name)
    return directory / name


def gunzip(file: Path) -> bytes:
    return subprocess.run(["gunzip", "-c", str(file)], stdout=subprocess.PIPE, check=True).stdout


def files_of(path: Path, key: RepositoryKey) -> list[str]:
    return sorted(os.listdir(path / key.directory))


def plant(disk: Disk, path: str, content: bytes | None = b"", mtime_ns: int | None = None) -> None:
    """Put a file there, whatever the disk is, and the directories above it; with content None a directory."""
    *above, name = path.split("/")
    directory = disk.open_root("/")
    try:
        for part in [*above, name] if content is None else above:
            with suppress(FileExistsError):
                disk.make_dir(directory, part)
            inner = disk.open_dir(directory, part)
            disk.close(directory)
            directory = inner
        if content is not None:
            file = disk.create(directory, name)
            disk.write(file, content)
            if mtime_ns is not None:
                disk.set_mtime(file, mtime_ns)
            disk.close(file)
    finally:
        disk.close(directory)
