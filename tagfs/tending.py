"""Tending: what a read-write mount does besides answering its kernel.  Async.

Owns: tidying what an earlier writer left, when the sweeper runs, what is committed after an unmount; the tree and the
channel that write.
Does not know: signals, how changes beneath are told.

A read-only mount does without all of this, and does not load it: half a MiB in every pod that only reads.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterable
from functools import partial

import trio

from tagfs import tidy
from tagfs.channel import Channel
from tagfs.commits import Commits
from tagfs.directory import DirectoryStore
from tagfs.duplex import Duplex
from tagfs.errors import StoreWaiting, TagfsError
from tagfs.handles import Step
from tagfs.plan import Rules
from tagfs.removal import MountRemoval
from tagfs.replacing import WritableTree
from tagfs.settings import MountSettings
from tagfs.sweeper import Sweeper
from tagfs.tree import Tree
from tagfs.view import Invalidation, View

log = logging.getLogger(__name__)

TIDIED_AT_ONCE = 64
"""Repositories that the tidying looks at before it lets readers go first."""

TIDY_PAUSE = 0.02
"""Seconds of that."""


class Tending:
    """Tends one mount.

    Raises:
        SettingRefused, ClusterUnknown: there is no such inventory.
    """

    def __init__(self, settings: MountSettings) -> None:
        self._settings = settings
        inventory = None
        if settings.inventory:
            from tagfs.inventories import inventory_of

            inventory = inventory_of(settings, os.environ, is_mount=True)
        rules = Rules(settings.max_percent, settings.allow_empty_inventory, settings.allow_mass_deletion)
        self.sweeper = Sweeper(inventory, rules, settings.gc_interval, settings.sweep_suspend)

    def channel(self, uid: int, gid: int, commits: Commits) -> Channel:
        return Duplex(uid, gid, commits)

    def tree(self, store: DirectoryStore) -> Tree:
        return WritableTree(store, self._settings.list_limit, View(self._settings.namespaces))

    def start(
        self,
        nursery: trio.Nursery,
        store: DirectoryStore,
        tree: Tree,
        commits: Commits,
        send: Callable[[Iterable[Invalidation]], None],
    ) -> None:
        """Tidy the store that `tree` is about to show, and sweep it, in tasks; `send` tells the kernel to forget.

        Before the first request: what is staged now is an earlier writer's.
        """
        assert isinstance(tree, WritableTree)
        nursery.start_soon(self._tidy, store, tree, commits, left_stages(store))
        nursery.start_soon(self.sweeper.run, MountRemoval(tree, commits, send))

    def commit_unseen(self, tree: Tree | None, commits: Commits) -> None:
        """Commit what was closed just before the unmount: the kernel then drops what it had yet to tell of it."""
        if isinstance(tree, WritableTree):
            for step in tree.closed_unseen():
                commits.submit(step)

    async def _tidy(self, store: DirectoryStore, tree: WritableTree, commits: Commits, stages: list[str]) -> None:
        """Remove what an earlier writer left, stale lists too, and put back what it had hidden."""
        try:
            removed = await trio.to_thread.run_sync(tidy.remove_stages, store, stages)
            if removed:
                log.info("%s: removed %d lists that were never committed", self._settings.store, removed)
            keys = store.scan()
            while batch := await trio.to_thread.run_sync(lambda: list(itertools.islice(keys, TIDIED_AT_ONCE))):
                for key in await trio.to_thread.run_sync(tidy.look, store, batch):
                    await commits.quiet(key)
                    await commits.run(tree.recovery(key))
                    await commits.run(Step(key, partial(store.drop_stale, key), lambda _: None))
                await trio.sleep(TIDY_PAUSE)
        except StoreWaiting:
            return  # told by whoever watches the store
        except (TagfsError, OSError) as error:
            log.error("%s: tidying ended early: %s", self._settings.store, error)


def left_stages(store: DirectoryStore) -> list[str]:
    """The stages of an earlier writer.  Where the disk is full, or fails, reading and deleting must go on."""
    try:
        return store.stages.names()
    except StoreWaiting:
        return []  # told by whoever watches the store
    except OSError as error:
        log.error("what an earlier writer left cannot be removed: %s", error)
        return []
