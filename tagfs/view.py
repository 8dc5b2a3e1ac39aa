"""View: what a mount shows of a store, as values.  Pure.

Owns: attributes, modes, how long the kernel may keep them; which paths can be shown, and which may be made; what the
kernel is told to forget.
Does not know: the store, nodes, requests.
"""

import functools
import stat
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tagfs.errors import NameRefused, RepositoryMissing
from tagfs.names import BASE, LIST, RepositoryKey, is_namespace, is_repository

PRESENTED_VERSION = b"2\n"
"""The mount shows Flux's format 2 with all lists plain, however they are stored."""

FOREVER = 1e9
"""Seconds: what the kernel keeps until it is told otherwise."""

UNWATCHED = 1.0
"""Seconds: what the kernel keeps of a directory that cannot be watched for changes beneath."""

LIST_NAME = LIST.encode()
_READERS = 0o444
_ENTERERS = 0o555
_OWNER_WRITES = 0o200

PIPE_MODE = stat.S_IFIFO | _READERS | _OWNER_WRITES
"""Of `.changes`."""


def list_mode(is_writable: bool) -> int:
    return stat.S_IFREG | _READERS | (_OWNER_WRITES if is_writable else 0)


def directory_mode(is_writable: bool) -> int:
    return stat.S_IFDIR | _ENTERERS | (_OWNER_WRITES if is_writable else 0)


class Attributes(NamedTuple):
    """What `stat` shows of a node; sizes in bytes, blocks of 512 bytes, timeouts in seconds."""

    id: int
    mode: int
    size: int = 0
    blocks: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    entry_timeout: float = 0.0
    attr_timeout: float = 0.0
    owner: int | None = None
    """The user it belongs to, where that is not the mount's."""


@dataclass(frozen=True, slots=True)
class Invalidation:
    """What the kernel must forget: the entry `name` of the directory `id`, or, without a name, what it keeps of the
    node itself."""

    id: int
    name: bytes | None = None


class Watch(Protocol):
    """Whether changes in the directory `path` below BASE are told from now on; `above` is the descriptor of the
    directory that it is in, where that is open."""

    def __call__(self, path: tuple[str, ...], above: int | None = None, /) -> bool: ...


@dataclass(frozen=True, slots=True)
class View:
    """How a tree shows a store.

    Args:
        namespaces: the only ones shown, or None for all.
        watch: called for a directory before its first entry is given out.  None: nobody tells what changes beneath,
            so no list is kept by the kernel.
        keeps: how many of the versions that were looked up or closed last stay open, so that the kernel, which repeats
            an open just once, finds what it has looked up although it was replaced since.
    """

    namespaces: frozenset[str] | None = None
    watch: Watch | None = None
    keeps: int = 0


def require_shown(path: tuple[str, ...], namespaces: frozenset[str] | None) -> None:
    """RepositoryMissing where no store can have a directory of this path, or it is in none of `namespaces`."""
    shown = path[0] == BASE
    if len(path) > 1:
        shown = shown and is_namespace(path[1])
        if namespaces is not None:
            shown = shown and path[1] in namespaces
    if len(path) > 2:
        shown = shown and is_repository(path[2])
    if not shown:
        raise RepositoryMissing(f"{'/'.join(path)} cannot be in a store")


def check_path(path: tuple[str, ...]) -> None:
    """NameRefused unless a directory of this path, below the mount point, may be made."""
    if len(path) not in (2, 3) or path[0] != BASE:
        raise NameRefused(f"{'/'.join(path)}: directories are {BASE}/<namespace>/<repository> and no others")
    if len(path) == 2 and not is_namespace(path[1]):
        raise NameRefused(f"{path[1]!r} is no namespace: an RFC 1123 label of at most 63 characters")
    if len(path) == 3 and not is_repository(path[2]):
        raise NameRefused(f"{path[2]!r} is no repository: an RFC 1123 subdomain of at most 253 characters")


@functools.lru_cache(maxsize=256)
def key_at(path: tuple[str, ...]) -> RepositoryKey:
    """The key whose directory this is; remembered, because requests name the same few again and again."""
    _, namespace, name = path
    return RepositoryKey(namespace, name)
