"""Repositories are created, written and deleted while sweeps and departures run: nothing alive is lost."""

import os
import random
from collections.abc import Iterator

import pytest
import trio

from tagfs.commits import Commits
from tagfs.disk import Disk
from tagfs.errors import ListMissing, RepositoryMissing, VersionGone
from tagfs.inodes import ROOT_ID
from tagfs.memory import MemoryStore
from tagfs.names import RepositoryKey
from tagfs.plan import Rules
from tagfs.removal import MountRemoval
from tagfs.replacing import WritableTree
from tagfs.store import Store
from tagfs.sweep import Sweep
from tagfs.view import Invalidation
from tests.support.inventories import ToldInventory
from tests.support.places import fast_directory
from tests.support.stores import open_store

STEPS = 10_000
KEYS = [RepositoryKey(f"n{number % 4}", f"r{number}") for number in range(24)]


@pytest.fixture(params=["memory", pytest.param("directory", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with fast_directory() as place:
        made: Store = MemoryStore() if request.param == "memory" else open_store(Disk(), str(place))
        yield made
        made.close()


class Cluster:
    """Flux's controller on a mount: an object exists first, then its list; it ceases to be, then its list goes by a
    sweep.  `lists` has what it has committed of living objects and was told to be durable."""

    def __init__(self, tree: WritableTree, commits: Commits, inventory: ToldInventory, chance: random.Random) -> None:
        self._tree = tree
        self._commits = commits
        self._inventory = inventory
        self._chance = chance
        self.lists: dict[RepositoryKey, bytes] = {}
        self.refused = 0

    async def step(self) -> None:
        key = self._chance.choice(KEYS)
        what = self._chance.random()
        if key not in self._inventory.there:
            self._inventory.there.add(key)
            if what < 0.8:
                # Often the very list that it had before it was deleted, which changes nothing on the disk.
                await self._write(key, self._another())
        elif what < 0.35:
            self.lists.pop(key, None)
            if what < 0.2:
                self._inventory.there.discard(key)
            else:
                self._inventory.departs(key)
        elif what < 0.8:
            await self._write(key, self._another())
        else:
            self._check(key)

    def _another(self) -> bytes:
        return b"v%d\n" % self._chance.randrange(2)

    async def _write(self, key: RepositoryKey, plain: bytes) -> None:
        """Make the directories, write, flush, commit; a program that is told of an error tries again later."""
        self.lists.pop(key, None)
        for _ in range(3):
            try:
                await self._try(key, plain)
            except (RepositoryMissing, ListMissing, VersionGone):
                self.refused += 1
                await trio.lowlevel.checkpoint()
            else:
                self.lists[key] = plain
                return
        raise AssertionError(f"{key}: refused again and again")

    async def _try(self, key: RepositoryKey, plain: bytes) -> None:
        tree = self._tree
        parent = tree.lookup(ROOT_ID, b"imagerepository").id
        for name in (key.namespace, key.name):
            try:
                parent = tree.lookup(parent, name.encode()).id
            except (RepositoryMissing, ListMissing):
                parent = tree.make_directory(parent, name.encode()).id
            if self._chance.random() < 0.2:
                await trio.lowlevel.checkpoint()
        await self._commits.quiet(key)
        handle, _ = tree.create(parent, b"tags.txt", os.O_WRONLY | os.O_TRUNC)
        try:
            tree.write(handle, 0, plain)
            if self._chance.random() < 0.5:
                await trio.lowlevel.checkpoint()
            await self._commits.run(tree.flush(handle))
            await self._commits.run(tree.commit(handle))
        finally:
            tree.release(handle)

    def _check(self, key: RepositoryKey) -> None:
        if key in self.lists:
            assert self._tree.store.read(key) == self.lists[key]


async def test_nothing_alive_is_lost(store: Store) -> None:
    chance = random.Random(0)
    forgotten: list[Invalidation] = []
    inventory = ToldInventory()
    sweep = Sweep(inventory, Rules(allow_mass_deletion=True, allow_empty_inventory=True))
    async with trio.open_nursery() as nursery:
        commits = Commits(nursery)
        tree = WritableTree(store, 1 << 20)
        removal = MountRemoval(tree, commits, forgotten.extend)
        cluster = Cluster(tree, commits, inventory, chance)

        async def sweeps() -> None:
            while True:
                await sweep.run(removal)
                await trio.lowlevel.checkpoint()

        async def departures() -> None:
            async with inventory.departures() as departed:
                async for key in departed:
                    # Told at once, so nothing that is written later is before it.
                    with removal.marked() as mark:
                        await sweep.depart(removal, key, mark)

        nursery.start_soon(sweeps)
        nursery.start_soon(departures)
        for _ in range(STEPS):
            await cluster.step()
            if chance.random() < 0.3:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    for key, plain in cluster.lists.items():
        assert key in inventory.there
        assert store.read(key) == plain, key
    print(f"{sweep.counters}, {cluster.refused} times refused, {len(forgotten)} notifications")
    assert sweep.counters.sweeps > 50
    assert sweep.counters.deleted > 200
    assert not sweep.counters.errors
