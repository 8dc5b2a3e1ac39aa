"""What the kernel does for a program, without one: node ids for paths, opens repeated after ESTALE, a flush a close."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from tagfs.errors import AlreadyExists, ListMissing, RepositoryMissing, TagfsError, VersionGone
from tagfs.handles import Step
from tagfs.inodes import ROOT_ID
from tagfs.names import BASE, LIST, RepositoryKey
from tagfs.publishing import run
from tagfs.replacing import WritableTree
from tagfs.tree import Tree
from tagfs.view import Attributes

KEY = RepositoryKey("team", "app")
TAGS = LIST.encode()
PID = 100
"""Of the program, where a test has only one."""

READ, WRITE, BOTH = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
CREATE = os.O_WRONLY | os.O_CREAT
REPLACE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
"""As the shell's `>` opens."""
APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND
"""As the shell's `>>` opens."""


class Driver:
    """Asks a tree as the kernel does, holding no reference longer than it needs it.

    `perform` runs a step; by default at once.
    """

    def __init__(self, tree: Tree, perform: Callable[[Step | None], None] = run) -> None:
        self.tree = tree
        self.perform = perform

    @property
    def writable(self) -> WritableTree:
        assert isinstance(self.tree, WritableTree)
        return self.tree

    # -- names

    @contextmanager
    def directory(self, *path: str) -> Iterator[int]:
        """The node id of a directory below the mount point, referenced meanwhile."""
        ids: list[int] = []
        try:
            node = ROOT_ID
            for name in path:
                node = self.tree.lookup(node, name.encode(), PID).id
                ids.append(node)
            yield node
        finally:
            self.tree.forget([(id_, 1) for id_ in ids])

    def inside(self, key: RepositoryKey = KEY) -> AbstractContextManager[int]:
        return self.directory(BASE, key.namespace, key.name)

    def make(self, key: RepositoryKey = KEY) -> None:
        """Make the directories of a key, where they are missing."""
        for path in ((BASE, key.namespace), (BASE, key.namespace, key.name)):
            with self.directory(*path[:-1]) as above, suppress(AlreadyExists):
                self.tree.forget([(self.writable.make_directory(above, path[-1].encode()).id, 1)])

    def stat(self, name: bytes = TAGS, key: RepositoryKey = KEY, pid: int = PID) -> Attributes:
        with self.inside(key) as directory:
            attributes = self.tree.lookup(directory, name, pid)
            self.tree.forget([(attributes.id, 1)])
            return attributes

    def is_there(self, name: bytes = TAGS, key: RepositoryKey = KEY, pid: int = PID) -> bool:
        try:
            self.stat(name, key, pid)
        except (ListMissing, RepositoryMissing):
            return False
        return True

    def listing(self, *path: str) -> list[bytes]:
        with self.directory(*path) as node:
            handle = self.tree.open_directory(node)
            try:
                return [name for _, name, _, _ in self.tree.entries(handle, 0)]
            finally:
                self.tree.release_directory(handle)

    def files(self, key: RepositoryKey = KEY) -> list[bytes]:
        return self.listing(BASE, key.namespace, key.name)

    # -- open files

    def open(self, name: bytes = TAGS, flags: int = READ, key: RepositoryKey = KEY, pid: int = PID) -> "File":
        for attempt in (0, 1):
            try:
                return self._open(name, flags, key, pid)
            except VersionGone:
                if attempt:
                    raise
        raise AssertionError

    def _open(self, name: bytes, flags: int, key: RepositoryKey, pid: int) -> "File":
        with self.inside(key) as directory:
            try:
                id_ = self.tree.lookup(directory, name, pid).id
            except ListMissing:
                if not flags & os.O_CREAT:
                    raise
                handle, attributes = self.writable.create(directory, name, flags & ~os.O_CREAT, pid)
                return File(self, attributes.id, handle)
            try:
                if flags & os.O_CREAT and flags & os.O_EXCL:
                    raise AlreadyExists(repr(name))
                return File(self, id_, self.tree.open(id_, flags & ~os.O_CREAT, pid))
            except BaseException:
                self.tree.forget([(id_, 1)])
                raise

    def read(self, name: bytes = TAGS, key: RepositoryKey = KEY, pid: int = PID) -> bytes:
        """The content of a file, as `cat` reads it."""
        with self.open(name, READ, key, pid) as file:
            return file.read()

    def write(self, plain: bytes, name: bytes = TAGS, flags: int = REPLACE, key: RepositoryKey = KEY) -> None:
        """Open, write once, close; raises what any of them does."""
        with self.open(name, flags, key) as file:
            file.write(plain)

    # -- changes of names

    def rename(self, name: bytes, new_name: bytes, key: RepositoryKey = KEY, flags: int = 0) -> None:
        with self.inside(key) as directory:
            self.perform(self.writable.rename(directory, name, directory, new_name, flags))

    def unlink(self, name: bytes = TAGS, key: RepositoryKey = KEY) -> None:
        with self.inside(key) as directory:
            self.perform(self.writable.unlink(directory, name))

    def rmdir(self, *path: str) -> None:
        with self.directory(*path[:-1]) as above:
            self.writable.remove_directory(above, path[-1].encode())

    def truncate(self, size: int, name: bytes = TAGS, key: RepositoryKey = KEY) -> None:
        with self.inside(key) as directory:
            id_ = self.tree.lookup(directory, name, PID).id
            try:
                self.perform(self.writable.truncate(id_, size, None))
            finally:
                self.tree.forget([(id_, 1)])

    def set_mtime(self, mtime_ns: int, name: bytes = TAGS, key: RepositoryKey = KEY) -> None:
        with self.inside(key) as directory:
            id_ = self.tree.lookup(directory, name, PID).id
            try:
                self.perform(self.writable.set_mtime(id_, mtime_ns))
            finally:
                self.tree.forget([(id_, 1)])


class File:
    """An open file; leaving its context closes it, and raises what the close does."""

    def __init__(self, driver: Driver, id_: int, handle: int) -> None:
        self.id = id_
        self.handle = handle
        self._driver = driver
        self._position = 0

    @property
    def size(self) -> int:
        return self._driver.tree.attributes(self.id, PID).size

    def read(self, size: int = 1 << 20, offset: int = 0) -> bytes:
        return self._driver.tree.read(self.handle, offset, size)

    def write(self, data: bytes, offset: int | None = None) -> None:
        at = self._position if offset is None else offset
        self._driver.writable.write(self.handle, at, data)
        self._position = at + len(data)

    def truncate(self, size: int) -> None:
        self._driver.perform(self._driver.writable.truncate(self.id, size, self.handle))

    def flush(self) -> None:
        """As close(2) of one of several descriptors."""
        if isinstance(self._driver.tree, WritableTree):
            self._driver.perform(self._driver.tree.flush(self.handle))

    def commit(self) -> None:
        if isinstance(self._driver.tree, WritableTree):
            self._driver.perform(self._driver.tree.commit(self.handle))

    def fsync(self) -> None:
        self.flush()
        self.commit()

    def release(self) -> None:
        """As the kernel does some time after the last close(2)."""
        self.commit()
        self._driver.tree.release(self.handle)
        self._driver.tree.forget([(self.id, 1)])

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self.release()

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self.close()
        except TagfsError:
            if exc[0] is None:
                raise
