"""tagfs's own store, as a program calls it that has lists to keep.

Owns: one list after another, and in groups; the store without its syncs.
Does not know: what is kept, what it costs.
"""

from tagfs import sentinel, taglist
from tagfs.bulk import Bulk, Outcome
from tagfs.directory import DirectoryStore
from tagfs.disk import Disk
from tagfs.names import RepositoryKey
from tagfs.policy import Policy

taglist.revision(b"")
"""What that loads is loaded before the clock starts, as the libraries of a Go program are."""


class Careless(Disk):
    """The real disk without its syncs: what is written is as durable as what Flux writes."""

    def sync(self, file: int) -> None:
        return

    def sync_dir(self, directory: int) -> None:
        return


class Tagfs:
    """One list after another, each durable before the next where the disk is the real one."""

    def __init__(self, path: str, disk: Disk | None = None) -> None:
        disk = disk or Disk()
        root = disk.open_root(path)
        format_, _ = sentinel.prepare(Disk(), root, path, sentinel.ZSTD_FORMAT, wipe_foreign=False)
        self.store = DirectoryStore(disk, root, format_, Policy())

    def set_tags(self, key: RepositoryKey, tags: list[str]) -> None:
        self.store.replace(key, _judged(tags))

    def tags(self, key: RepositoryKey) -> list[str]:
        return taglist.decode(self.store.read(key))

    def close(self) -> None:
        self.store.close()


class GroupedTagfs(Tagfs):
    """As `tagfs import` writes: durable in groups."""

    def __init__(self, path: str, group: int) -> None:
        super().__init__(path)
        self.bulk = Bulk(self.store, group)

    def set_tags(self, key: RepositoryKey, tags: list[str]) -> None:
        _require_done(self.bulk.replace(key, _judged(tags)))

    def close(self) -> None:
        _require_done(self.bulk.flush())
        super().close()


def _judged(tags: list[str]) -> bytes:
    """A valid list, whose revision was told as Flux tells it."""
    plain = taglist.encode(tags)
    taglist.revision(plain)
    return plain


def _require_done(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
