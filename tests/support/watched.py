"""The tree of a read-only mount over a store on disk, which is told what changes beneath."""

from collections.abc import Iterable
from pathlib import Path
from typing import Generic, TypeVar

from tagfs import sentinel
from tagfs.changes import Changes
from tagfs.directory import DirectoryStore
from tagfs.disk import Disk
from tagfs.names import RepositoryKey
from tagfs.policy import Policy
from tagfs.stateless import StatelessTree
from tagfs.view import View
from tests.support.beneath import directory_store

S = TypeVar("S", bound=DirectoryStore)


class Watched(Generic[S]):
    """A store of this kind with these lists, and its tree."""

    def __init__(self, path: Path, kind: type[S], lists: Iterable[tuple[RepositoryKey, bytes]]) -> None:
        made = directory_store(path)
        for key, plain in lists:
            made.replace(key, plain)
        made.close()
        disk = Disk()
        self.store = kind(disk, disk.open_root(str(path)), sentinel.ZSTD_FORMAT, Policy())
        self.changes = Changes(self.store.opened, self.store.root)
        self.tree = StatelessTree(self.store, View(None), 100)
        self.tree.watch(self.cover, self.changes.has_news)

    def cover(self, path: tuple[str, ...], above: int | None = None) -> bool:
        return self.changes.cover(path, above)

    def close(self) -> None:
        self.tree.close()
        self.changes.close()
        self.store.close()
