"""Directories: the namespaces and repositories of a backing directory.  Blocking.

Owns: making, listing and removing directories, their names opened safely; which of them are durable.
Does not know: what is in a list.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress

from tagfs import sentinel, variants
from tagfs.disk import Disk
from tagfs.durability import Together, Unsynced, Work
from tagfs.errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    RepositoryMissing,
    StoreRefused,
    StoreWaiting,
)
from tagfs.names import BASE, RepositoryKey, check_namespace, is_namespace, is_repository
from tagfs.policy import codecs_of
from tagfs.store import Store
from tagfs.variants import Variant

_CLOSED = -1
"""A number that no descriptor has."""


class Directories(Store):
    """The part of a directory store that is no list.  `root` is the store's descriptor, `format` what its version
    sentinel said."""

    def __init__(self, disk: Disk, root: int, format_: int) -> None:
        self.disk = disk
        self.root = root
        self.format = format_
        self.codecs = codecs_of(format_)
        self._currency = sentinel.Currency(disk, root, format_)
        # INVARIANT: holds only directories whose entry in the directory above is durable.
        self._durable: set[tuple[str, ...]] = set()
        self.together = Together(disk, root)
        self.has_made_base = False
        """That BASE came into being was its own doing, and nothing that was known before is wrong by it."""

    def namespaces(self) -> list[str]:
        names: list[str] = []
        with suppress(RepositoryMissing), self.opened() as base:
            names = [name for name, is_dir in self.disk.names(base) if is_dir and is_namespace(name)]
        self._require_current()
        return names

    def repositories(self, namespace: str) -> list[str]:
        with self.opened(namespace) as directory:
            names = [name for name, is_dir in self.disk.names(directory) if is_dir and is_repository(name)]
        self._require_current()
        return names

    def directory_mtime_ns(self, namespace: str | None = None, name: str | None = None) -> int:
        try:
            with self.opened(*(part for part in (namespace, name) if part is not None)) as directory:
                return self.disk.stat_open(directory).st_mtime_ns
        except (RepositoryMissing, StoreWaiting, StoreRefused):
            if namespace is not None:
                raise
            return self.disk.stat_open(self.root).st_mtime_ns

    def make_namespace(self, namespace: str) -> None:
        check_namespace(namespace)
        self._require_current()
        with suppress(AlreadyExists):
            self._make_dir(self.root, BASE, ())
            self.has_made_base = True
        with self.opened() as base:
            self._make_dir(base, namespace, (namespace,))

    def make_repository(self, key: RepositoryKey) -> None:
        self._require_current()
        with self.opened(key.namespace) as directory:
            self._make_dir(directory, key.name, (key.namespace, key.name))

    def remove_namespace(self, namespace: str) -> None:
        self._require_current()
        with self.opened(namespace), self.opened() as base:
            try:
                self.disk.remove_dir(base, namespace)
            except FileNotFoundError:
                raise RepositoryMissing(f"{namespace} is not in the store") from None
            except OSError as error:
                raise _not_empty(error, f"{BASE}/{namespace}") from error
            self._durable.discard((namespace,))

    def remove_repository(self, key: RepositoryKey) -> None:
        self._require_current()
        with self.opened(key.namespace) as directory:
            with self.opened(key.namespace, key.name) as inner:
                # The names first: a list that another program puts there now is not among them.
                names = self.disk.names(inner)
                if self._variants(inner):
                    raise DirectoryNotEmpty(f"{key.directory} has a list")
                if any(is_dir for _, is_dir in names):
                    raise DirectoryNotEmpty(f"{key.directory} holds a directory")
                for name, _ in names:
                    with suppress(FileNotFoundError):
                        self.disk.unlink(inner, name)
            try:
                self.disk.remove_dir(directory, key.name)
            except OSError as error:
                raise _not_empty(error, key.directory) from error
            self._durable.discard((key.namespace, key.name))

    def holdings(self, namespace: str) -> Iterator[tuple[RepositoryKey, bool]]:
        with self.opened(namespace) as above:
            for name in [name for name, is_dir in self.disk.names(above) if is_dir and is_repository(name)]:
                try:
                    yield RepositoryKey(namespace, name), self._has_list(above, name)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError:
                    yield RepositoryKey(namespace, name), True  # One that cannot be read is there all the same.
        self._require_current()

    def _has_list(self, above: int, name: str) -> bool:
        directory = self.disk.open_dir(above, name)
        try:
            return variants.exists(self.disk, directory, self.codecs)
        finally:
            self.disk.close(directory)

    def opened(self, *path: str) -> "_Opened":
        """The descriptor of a directory below BASE, reached without following a link; RepositoryMissing."""
        return _Opened(self, path)

    def _open(self, path: tuple[str, ...]) -> int:
        root = self._require_open()
        if all(map(is_repository, path)):
            try:
                return self.disk.open_below(root, "/".join((BASE, *path)))
            except OSError:
                pass  # name by name it is told why
        directory = root
        for name in (BASE, *path):
            try:
                if name != BASE and not is_repository(name):
                    raise FileNotFoundError
                inner = self.disk.open_dir(directory, name)
            except (FileNotFoundError, NotADirectoryError) as error:
                self._require_current()
                if directory == root and isinstance(error, NotADirectoryError):
                    raise StoreRefused(f"{BASE} in the store is no directory, and a link is not followed") from None
                raise RepositoryMissing(f"{'/'.join((BASE, *path))} is not in the store") from None
            finally:
                if directory != root:
                    self.disk.close(directory)
            directory = inner
        return directory

    def _open_key(self, key: RepositoryKey) -> int:
        """The descriptor of the directory of a key, reached without following a link; RepositoryMissing."""
        try:
            return self.disk.open_below(self._require_open(), key.directory)
        except OSError:
            return self._open((key.namespace, key.name))  # name by name it is told why

    def _make_dir(self, directory: int, name: str, path: tuple[str, ...]) -> None:
        try:
            self.disk.make_dir(directory, name)
        except FileExistsError:
            raise AlreadyExists(f"{name} is in the store") from None
        self._durable.discard(path)

    def space(self) -> os.statvfs_result:
        return self.disk.space(self._require_open())

    def _close_root(self) -> None:
        """Whoever still has this store is told so: the number of a closed descriptor may be another file's."""
        root, self.root = self.root, _CLOSED
        self._currency.close()
        self.disk.close(root)

    def _require_open(self) -> int:
        if self.root == _CLOSED:
            raise StoreWaiting("the store was closed")
        return self.root

    def _require_current(self) -> None:
        """A writer must not add lists to a directory that has become another program's."""
        self._require_open()
        if not self._currency.holds():
            raise StoreWaiting("the store was wiped, or its version changed, beneath")

    def _open_or_make(self, key: RepositoryKey) -> tuple[int, int | None]:
        """The descriptors of the directory of a key and, where it was made just now, of the one above it, which is made
        as well where it is missing.  For a writer that has seen that the store is current."""
        try:
            return self.disk.open_below(self._require_open(), key.directory), None
        except OSError:
            pass  # it is made, or what is in its way is told
        try:
            return self._made(key)
        except RepositoryMissing:
            with suppress(AlreadyExists):
                self.make_namespace(key.namespace)
            return self._made(key)

    def _made(self, key: RepositoryKey) -> tuple[int, int | None]:
        above = self._open((key.namespace,))
        try:
            self._make_dir(above, key.name, (key.namespace, key.name))
            return self.disk.open_dir(above, key.name), above
        except AlreadyExists:
            self.disk.close(above)
            return self._open((key.namespace, key.name)), None
        except BaseException:
            self.disk.close(above)
            raise

    def _syncing(
        self, key: RepositoryKey, files: tuple[int, ...] = (), directory: int | None = None, above: int | None = None
    ) -> Work[None]:
        """Make files durable, a directory, and the entries of all directories over a list: these once in the life of
        the store.  `above`, where it is open already, is the directory of the namespace."""
        paths = [p for p in ((), (key.namespace,), key) if p not in self._durable]
        directories = [] if directory is None else [directory]
        opened: list[int] = []
        try:
            for path in paths:
                if not path:
                    directories.append(self.root)
                elif above is not None and len(path) == 2:
                    directories.append(above)
                else:
                    opened.append(self._open(path[:-1]))
            yield Unsynced(self.together, self.disk, files, (*directories, *opened))
        finally:
            for descriptor in opened:
                self.disk.close(descriptor)
        self._durable.update(paths)

    def _variants(self, directory: int) -> list[Variant]:
        return variants.find(self.disk, directory, self.codecs)


class _Opened:
    """A directory that is open within a `with`."""

    __slots__ = ("_descriptor", "_directories", "_path")

    def __init__(self, directories: Directories, path: tuple[str, ...]) -> None:
        self._directories = directories
        self._path = path

    def __enter__(self) -> int:
        self._descriptor = self._directories._open(self._path)
        return self._descriptor

    def __exit__(self, *exc: object) -> None:
        self._directories.disk.close(self._descriptor)


def _not_empty(error: OSError, path: str) -> Exception:
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return DirectoryNotEmpty(f"{path} is not empty")
    return error
