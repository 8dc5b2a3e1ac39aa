"""Memory store: the same promises as the directory store, in a few dictionaries.  Pure.

Owns: the reference model that the others are tested against.
Does not know: files, codecs beyond the plain one.
"""

import itertools
import os
import time
from dataclasses import dataclass

from tagfs.codec import PLAIN
from tagfs.errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    ListCorrupt,
    ListMissing,
    ListTooLarge,
    RepositoryMissing,
)
from tagfs.names import RepositoryKey, check_namespace
from tagfs.policy import DEFAULT_LIST_LIMIT
from tagfs.store import Snapshot, Stage, Store, Version

_BLOCK = 512
"""Bytes: the unit of `Version.blocks`."""


@dataclass(frozen=True, slots=True)
class _List:
    plain: bytes
    mtime_ns: int
    serial: int

    @property
    def version(self) -> Version:
        size = len(self.plain)
        return Version(PLAIN, size, size, -(-size // _BLOCK), self.mtime_ns, self.mtime_ns, (self.serial,))


@dataclass(slots=True)
class _Repository:
    """A directory of a key; `hidden` is a list that was taken out of sight."""

    current: _List | None = None
    hidden: _List | None = None


class MemoryStore(Store):
    """A store that is gone with its process."""

    def __init__(self, list_limit: int = DEFAULT_LIST_LIMIT) -> None:
        self._list_limit = list_limit
        self._namespaces: dict[str, dict[str, _Repository]] = {}
        self._serials = itertools.count()
        self._ledger: bytes | None = None

    def namespaces(self) -> list[str]:
        return list(self._namespaces)

    def repositories(self, namespace: str) -> list[str]:
        return list(self._namespace(namespace))

    def directory_mtime_ns(self, namespace: str | None = None, name: str | None = None) -> int:
        if namespace is not None:
            names = self._namespace(namespace)
            if name is not None and name not in names:
                raise RepositoryMissing(f"{namespace}/{name} is not in the store")
        return 0

    def make_namespace(self, namespace: str) -> None:
        check_namespace(namespace)
        if namespace in self._namespaces:
            raise AlreadyExists(f"{namespace} is in the store")
        self._namespaces[namespace] = {}

    def make_repository(self, key: RepositoryKey) -> None:
        names = self._namespace(key.namespace)
        if key.name in names:
            raise AlreadyExists(f"{key} is in the store")
        names[key.name] = _Repository()

    def remove_namespace(self, namespace: str) -> None:
        if self._namespace(namespace):
            raise DirectoryNotEmpty(f"{namespace} is not empty")
        del self._namespaces[namespace]

    def remove_repository(self, key: RepositoryKey) -> None:
        if self._repository(key).current is not None:
            raise DirectoryNotEmpty(f"{key} has a list")
        del self._namespaces[key.namespace][key.name]

    def examine(self, key: RepositoryKey, known: Version | None = None) -> Version:
        return self._current(key).version

    def open(self, key: RepositoryKey, ahead: int = 0) -> Snapshot:
        return _Pinned(self._current(key))

    def stage(self, key: RepositoryKey, plain: bytes) -> Stage:
        if len(plain) > self._list_limit:
            raise ListTooLarge(f"{key}: {len(plain)} bytes, at most {self._list_limit} are allowed")
        return _Stage(key, plain)

    def publish(self, stage: Stage, mtime_ns: int | None = None) -> Version:
        assert isinstance(stage, _Stage)
        assert stage.plain is not None, "the stage is used up"
        when = time.time_ns() if mtime_ns is None else mtime_ns
        repository = self._namespaces.setdefault(stage.key.namespace, {}).setdefault(stage.key.name, _Repository())
        repository.current, repository.hidden = _List(stage.plain, when, next(self._serials)), None
        stage.plain = None
        return repository.current.version

    def discard(self, stage: Stage) -> None:
        assert isinstance(stage, _Stage)
        stage.plain = None

    def is_stored_as(self, key: RepositoryKey, plain: bytes) -> bool:
        try:
            return self._current(key).plain == plain
        except (ListMissing, RepositoryMissing):
            return False

    def set_mtime(self, key: RepositoryKey, mtime_ns: int) -> None:
        plain = self._current(key).plain
        self._repository(key).current = _List(plain, mtime_ns, next(self._serials))

    def remove(self, key: RepositoryKey) -> None:
        self._current(key)
        self._repository(key).current = None

    def hide(self, key: RepositoryKey) -> None:
        hidden = self._current(key)
        repository = self._repository(key)
        repository.current, repository.hidden = None, hidden

    def recover(self, key: RepositoryKey) -> bool:
        try:
            repository = self._repository(key)
        except RepositoryMissing:
            return False
        hidden, repository.hidden = repository.hidden, None
        if hidden is None or repository.current is not None:
            return False
        repository.current = hidden
        return True

    def drop_hidden(self, key: RepositoryKey) -> None:
        try:
            self._repository(key).hidden = None
        except RepositoryMissing:
            return

    def space(self) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))

    def ledger(self, limit: int) -> bytes | None:
        return self._ledger and self._ledger[:limit]

    def write_ledger(self, content: bytes) -> None:
        self._ledger = content

    def close(self) -> None:
        self._namespaces.clear()

    def _namespace(self, namespace: str) -> dict[str, _Repository]:
        try:
            return self._namespaces[namespace]
        except KeyError:
            raise RepositoryMissing(f"{namespace} is not in the store") from None

    def _repository(self, key: RepositoryKey) -> _Repository:
        try:
            return self._namespace(key.namespace)[key.name]
        except KeyError:
            raise RepositoryMissing(f"{key} is not in the store") from None

    def _current(self, key: RepositoryKey) -> _List:
        current = self._repository(key).current
        if current is None:
            raise ListMissing(f"{key} has no list")
        return current


class _Stage(Stage):
    def __init__(self, key: RepositoryKey, plain: bytes) -> None:
        self.key = key
        self.size = len(plain)
        self.plain: bytes | None = plain


class _Pinned(Snapshot):
    def __init__(self, held: _List) -> None:
        self.version = held.version
        self._plain: bytes | None = held.plain

    def content(self) -> bytes:
        if self._plain is None:
            raise ListCorrupt("memory", "read after it was closed")
        return self._plain

    def decode(self) -> bytes:
        return self.content()

    def unload(self) -> None:
        pass

    def close(self) -> None:
        pass
