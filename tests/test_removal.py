"""Removal beneath a mount, without one: what is left alone, what the kernel is told, what can be made again."""

import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio

from tagfs import replacing
from tagfs.commits import Commits
from tagfs.errors import ListMissing, RepositoryMissing
from tagfs.inodes import ROOT_ID
from tagfs.memory import MemoryStore
from tagfs.names import RepositoryKey
from tagfs.removal import MountRemoval, Outcome
from tagfs.replacing import WritableTree
from tagfs.view import Invalidation
from tests.support.daemon import PATIENCE

LONG_AGO = 1_000_000_000
KEY = RepositoryKey("apps", "web")


@dataclass
class Mounted:
    tree: WritableTree
    commits: Commits
    forgotten: list[Invalidation] = field(default_factory=list)

    @property
    def removal(self) -> MountRemoval:
        return MountRemoval(self.tree, self.commits, self.forgotten.extend)

    def directory(self, *names: str) -> int:
        node = ROOT_ID
        for name in ("imagerepository", *names):
            node = self.tree.lookup(node, name.encode()).id
        return node

    def create(self, name: bytes = b"tags.txt", flags: int = os.O_WRONLY | os.O_TRUNC) -> int:
        return self.tree.create(self.directory(KEY.namespace, KEY.name), name, flags)[0]

    async def close(self, handle: int) -> None:
        await self.commits.run(self.tree.flush(handle))
        await self.commits.run(self.tree.commit(handle))
        self.tree.release(handle)

    async def remove(self) -> Outcome:
        with self.removal.marked() as mark:
            return await self.removal.remove(KEY, mark)


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    made = MemoryStore()
    made.replace(KEY, b"v1\n", LONG_AGO)
    yield made
    made.close()


@asynccontextmanager
async def mounted(store: MemoryStore) -> AsyncIterator[Mounted]:
    async with trio.open_nursery() as nursery:
        yield Mounted(WritableTree(store, 1 << 20), Commits(nursery))
        nursery.cancel_scope.cancel()


async def test_an_orphan_goes_and_the_kernel_is_told_of_all_its_names(store: MemoryStore) -> None:
    async with mounted(store) as mount:
        repository = mount.directory("apps", "web")
        mount.tree.lookup(repository, b"tags.txt")
        assert await mount.remove() is Outcome.DELETED
        told = set(mount.forgotten)
        assert {Invalidation(repository, b"tags.txt"), Invalidation(mount.directory("apps"), b"web")} <= told
        with pytest.raises(RepositoryMissing):
            mount.directory("apps", "web")
        assert await mount.remove() is Outcome.GONE


async def test_a_list_that_is_open_for_writing_is_left(store: MemoryStore) -> None:
    async with mounted(store) as mount:
        handle = mount.create(flags=os.O_WRONLY)
        assert await mount.remove() is Outcome.LEFT
        await mount.close(handle)
        assert await mount.remove() is Outcome.DELETED


async def test_a_list_that_was_deleted_meanwhile_is_not_kept_by_its_writer(store: MemoryStore) -> None:
    async with mounted(store) as mount:
        handle = mount.create(flags=os.O_WRONLY)
        await mount.commits.run(mount.tree.unlink(mount.directory("apps", "web"), b"tags.txt"))
        assert await mount.remove() is Outcome.BARE
        await mount.close(handle)
        assert store.namespaces() == ["apps"]
        assert store.repositories("apps") == []


async def test_a_scratch_file_keeps_it_while_it_is_open_or_young(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(store) as mount:
        handle = mount.create(b"tags.txt123", os.O_WRONLY | os.O_CREAT)
        assert await mount.remove() is Outcome.LEFT
        mount.tree.release(handle)
        assert await mount.remove() is Outcome.LEFT
        node = mount.tree.lookup(mount.directory("apps", "web"), b"tags.txt123").id
        mount.tree.set_mtime(node, time.time_ns() - 7200 * 10**9)  # as `rsync -a` does before its rename
        assert await mount.remove() is Outcome.LEFT
        monkeypatch.setattr(replacing, "ABANDONED", 0.0)
        assert await mount.remove() is Outcome.DELETED
        store.replace(KEY, b"v2\n", LONG_AGO)
        with pytest.raises(ListMissing):
            mount.tree.lookup(mount.directory("apps", "web"), b"tags.txt123")


async def test_a_list_that_was_just_renamed_away_is_left(store: MemoryStore) -> None:
    """Its scratch file has the time of the list, but the editor that renamed it is about to write a successor."""
    async with mounted(store) as mount:
        directory = mount.directory("apps", "web")
        await mount.commits.run(mount.tree.rename(directory, b"tags.txt", directory, b"tags.txt~", 0))
        assert await mount.remove() is Outcome.LEFT


async def test_a_commit_that_changes_nothing_keeps_it_too(store: MemoryStore) -> None:
    """Whoever writes may be the controller of a successor, whose list is the same."""
    async with mounted(store) as mount:
        removal = mount.removal
        with removal.marked() as mark:
            handle = mount.create()
            mount.tree.write(handle, 0, b"v1\n")
            await mount.close(handle)
            assert store.examine(KEY).mtime_ns == LONG_AGO
            assert await removal.remove(KEY, mark) is Outcome.LEFT
        assert await mount.remove() is Outcome.DELETED


class Gated(MemoryStore):
    """Removes nothing before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_remove = threading.Event()

    def remove(self, key: RepositoryKey) -> None:
        assert self.may_remove.wait(PATIENCE)
        super().remove(key)


async def test_who_opens_it_while_it_goes_waits_and_finds_it_gone() -> None:
    store = Gated()
    store.replace(KEY, b"v1\n", LONG_AGO)
    async with mounted(store) as mount:
        outcomes: list[Outcome] = []

        async def remove() -> None:
            outcomes.append(await mount.remove())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(remove)
            while mount.commits.is_quiet(KEY):
                await trio.lowlevel.checkpoint()
            store.may_remove.set()
            await mount.commits.quiet(KEY)
            with pytest.raises(RepositoryMissing):
                mount.directory("apps", "web")
        assert outcomes == [Outcome.DELETED]


async def test_a_namespace_that_was_just_pruned_is_made_again_for_who_has_seen_it(store: MemoryStore) -> None:
    async with mounted(store) as mount:
        namespace = mount.directory("apps")
        removal = mount.removal
        with removal.marked() as mark:
            assert await removal.remove(KEY, mark) is Outcome.DELETED
            assert await removal.prune("apps", mark, True)
        assert store.namespaces() == []
        mount.tree.make_directory(namespace, b"other")
        assert store.repositories("apps") == ["other"]
        assert mount.directory("apps", "other")


async def test_a_namespace_that_was_pruned_long_ago_is_gone(store: MemoryStore) -> None:
    async with mounted(store) as mount:
        namespace = mount.directory("apps")
        removal = mount.removal
        with removal.marked() as mark:
            await removal.remove(KEY, mark)
            await removal.prune("apps", mark, True)
        mount.tree._pruned["apps"] -= 3
        with pytest.raises(RepositoryMissing):
            mount.tree.make_directory(namespace, b"other")


async def test_a_namespace_that_is_not_empty_stays(store: MemoryStore) -> None:
    async with mounted(store) as mount:
        with mount.removal.marked() as mark:
            assert not await mount.removal.prune("apps", mark, True)
            assert await mount.removal.prune("gone", mark, True)
        assert store.namespaces() == ["apps"]
