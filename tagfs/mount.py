"""Mount: the life of a mount, from the sentinels to the unmount.  Async.

Owns: opening the store, the session with the kernel, the tasks beside it, signals, the end.
Does not know: tag bytes.
"""

import ctypes
import gc
import itertools
import logging
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from functools import partial

import pyfuse3
import trio

from tagfs import codec, mountpoint, sentinel, tidy
from tagfs.changes import Changes, Unwatched, watched
from tagfs.commits import Commits
from tagfs.directory import DirectoryStore
from tagfs.disk import DIRECTORY_MODE, Disk
from tagfs.errors import MountRefused, StoreHeld, StoreRefused, StoreWaiting, TagfsError
from tagfs.handles import Step
from tagfs.holder import holder_of
from tagfs.mountpoint import Mounted
from tagfs.names import BASE
from tagfs.notifier import Notifier
from tagfs.operations import Operations
from tagfs.plan import Rules
from tagfs.policy import Policy
from tagfs.removal import MountRemoval
from tagfs.replacing import WritableTree
from tagfs.sentinel import Condition
from tagfs.settings import MountSettings
from tagfs.sweeper import Sweeper
from tagfs.tree import Invalidation, Tree, View

log = logging.getLogger(__name__)

LOOK_AGAIN = 0.25
"""Seconds between two looks at a store that is not ready."""

GRACE = 5.0
"""Seconds that programs with open files have after a busy mount was told to end."""

LOOKED_UP = 16
"""Versions that a read-only mount keeps open after they were looked up; programs open within milliseconds."""

TIDIED_AT_ONCE = 64
"""Repositories that the tidying looks at before it lets readers go first."""

TIDY_PAUSE = 0.02
"""Seconds of that."""


def serve(settings: MountSettings, announce: Callable[[str], None]) -> None:
    """Mount, and return when the mount has ended.

    Args:
        announce: called with a line for a person when the mount answers, and when its store is ready.

    Raises:
        MountRefused, StoreRefused, StoreHeld, StoreWaiting: nothing stays mounted.
        SettingRefused, ClusterUnknown: there is no such inventory.
    """
    sweeper = None if settings.read_only else _sweeper(settings)
    logging.getLogger("pyfuse3").addFilter(_is_news)
    mountpoint.require_device()
    if mountpoint.clear_dead(settings.mountpoint):
        log.warning("%s: unmounted what a killed daemon had left there", settings.mountpoint)
    mountpoint.require_usable(settings.mountpoint, settings.store)
    _allow_many_files()
    failure: list[BaseException] = []
    trio.run(_Mount(settings, announce, sweeper).run, failure)
    for error in failure:
        raise error


@dataclass(frozen=True, slots=True)
class _Opened:
    """A store that is ready, and for a reader what watches it."""

    store: DirectoryStore
    changes: Changes | Unwatched


class _Mount:
    def __init__(self, settings: MountSettings, announce: Callable[[str], None], sweeper: Sweeper | None) -> None:
        self._settings = settings
        self._announce = announce
        self._sweeper = sweeper
        self._disk = Disk()
        self._notifier = Notifier(pyfuse3.invalidate_entry, lambda node: pyfuse3.invalidate_inode(node, attr_only=True))
        self._following = trio.CancelScope()
        self._was_shown = False
        self._was_terminated = False
        self._mounted: Mounted | None = None

    async def run(self, failure: list[BaseException]) -> None:
        """Mount and serve until unmounted; an error that ends the mount is appended to `failure`."""
        waiting: str | None = None
        try:
            opened: _Opened | None = self._open()
        except (StoreWaiting, StoreHeld) as error:
            if not self._may_wait:
                failure.append(error)
                return
            log.warning("%s", error)
            opened, waiting = None, str(error)
        except TagfsError as error:
            failure.append(error)
            return
        # The signals before the mount: one that comes as soon as it is announced must not leave it behind dead.
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            await self._serve(opened, waiting, signals, failure)

    async def _serve(
        self, opened: _Opened | None, waiting: str | None, signals: AsyncIterator[int], failure: list[BaseException]
    ) -> None:
        settings = self._settings
        async with trio.open_nursery() as nursery:
            self._commits = Commits(nursery)
            uid = os.getuid() if settings.uid is None else settings.uid
            gid = os.getgid() if settings.gid is None else settings.gid
            self._operations = Operations(uid, gid, self._commits, not settings.read_only)
            try:
                self._session()
            except MountRefused as error:
                failure.append(error)
                return
            if waiting is not None:
                self._operations.waiting = waiting
                self._announce(f"{settings.mountpoint} is mounted and waits for its store: {waiting}")
            nursery.start_soon(self._end_on_signal, signals)
            nursery.start_soon(self._sweep_on_signal)
            nursery.start_soon(self._follow, opened, failure, nursery)
            _give_back_memory()
            await pyfuse3.main()
            self._following.cancel()
            self._commit_unseen()
            await self._commits.drain()
            await self._notifier.close()
            nursery.cancel_scope.cancel()
        pyfuse3.close(unmount=False)
        log.info("%s: unmounted", settings.mountpoint)

    def _commit_unseen(self) -> None:
        """Commit what was closed just before the unmount: the kernel then drops what it had yet to tell of it.  Not
        where the session was ended while files may be open."""
        tree = self._operations.tree
        if self._was_terminated or not isinstance(tree, WritableTree) or self._is_mounted():
            return
        for step in tree.closed_unseen():
            self._commits.submit(step)

    def _is_mounted(self) -> bool:
        """Whether it is still there, or that is not known.  Asks the mount table alone: only we can answer for a path
        in the mount, and not while the loop waits for the answer."""
        mounted = self._mounted
        return mounted is None or any(
            (one.point, one.device) == (mounted.point, mounted.device) for one in mountpoint.mounts()
        )

    # -- the session with the kernel

    def _session(self) -> None:
        settings = self._settings
        options = {"subtype=tagfs", f"fsname={_source(settings.store)}", "default_permissions"}
        if settings.read_only:
            options.add("ro")
        if settings.allow_other:
            options.add("allow_other")
        # Before: afterwards only a loop that runs can answer for it.
        point = os.path.realpath(settings.mountpoint)
        try:
            pyfuse3.init(self._operations, settings.mountpoint, options)
        except RuntimeError as error:
            raise MountRefused(
                f"{settings.mountpoint} cannot be mounted: run as root (or with fusermount3 installed, and"
                f" user_allow_other in /etc/fuse.conf for --allow-other) [{error}]"
            ) from error
        self._mounted = next((one for one in reversed(mountpoint.mounts()) if one.point == point), None)

    async def _end_on_signal(self, signals: AsyncIterator[int]) -> None:
        await anext(signals)
        log.info("%s: ending", self._settings.mountpoint)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_gently)
            async for _ in signals:
                log.warning("%s: ending at once", self._settings.mountpoint)
                await self._terminate()

    async def _sweep_on_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            async for _ in signals:
                if self._sweeper is not None:
                    self._sweeper.request()
                else:
                    log.info("%s: a read-only mount sweeps nothing", self._settings.mountpoint)

    async def _end_gently(self) -> None:
        """Unmount; where the mount is busy, take it out of sight and let open files come to their end for a while.
        Either way the kernel then ends the session."""
        point = self._settings.mountpoint
        try:
            await trio.to_thread.run_sync(mountpoint.unmount, point)
            return
        except MountRefused as error:
            log.info("%s; open files have %.0f s to come to their end", error, GRACE)
        try:
            await trio.to_thread.run_sync(mountpoint.unmount, point, True)
        except MountRefused as error:
            if self._is_mounted():
                log.error("%s", error)
        await trio.sleep(GRACE)
        await self._terminate()

    async def _terminate(self) -> None:
        """End the session while programs still use it.  The notifier first, while the loop still answers."""
        self._was_terminated = True
        self._following.cancel()
        await self._notifier.close()
        if self._mounted is not None and self._is_mounted():
            await trio.to_thread.run_sync(mountpoint.unmount, self._settings.mountpoint, True)
        pyfuse3.terminate()

    # -- the store

    @property
    def _may_wait(self) -> bool:
        wait = self._settings.wait
        return self._settings.read_only if wait is None else wait > 0

    def _open(self) -> _Opened:
        """The store, ready.

        Raises:
            StoreWaiting, StoreHeld: not now, maybe later.
            StoreRefused: never.
        """
        path = self._settings.store
        try:
            return self._open_read_only(path) if self._settings.read_only else self._open_to_write(path)
        except (NotADirectoryError, FileExistsError):
            raise StoreRefused(f"{path} is no directory") from None
        except PermissionError as error:
            raise StoreRefused(f"{error.filename or path} may not be used by uid {os.geteuid()}") from error

    def _open_read_only(self, path: str) -> _Opened:
        root = self._root(path)
        try:
            format_ = sentinel.require_ready(self._disk, root, path)
        except BaseException:
            self._disk.close(root)
            raise
        return self._opened(root, format_, Policy(list_limit=self._settings.list_limit))

    def _root(self, path: str) -> int:
        try:
            return self._disk.open_root(path)
        except FileNotFoundError:
            raise StoreWaiting(f"{path} is not there yet") from None

    def _open_to_write(self, path: str) -> _Opened:
        if not self._was_shown:
            os.makedirs(path, DIRECTORY_MODE, exist_ok=True)
        root = self._root(path)
        try:
            if self._was_shown:
                # No new store where another was, and no part in a wipe that another program has begun.
                sentinel.require_ready(self._disk, root, path)
            if not self._disk.lock(root):
                raise StoreHeld(path, holder_of(root))
            return self._prepared(root, path)
        except BaseException:
            self._disk.close(root)
            raise

    def _prepared(self, root: int, path: str) -> _Opened:
        settings = self._settings
        wanted = sentinel.FLUX_FORMAT if settings.codec == "gzip" else sentinel.ZSTD_FORMAT
        format_, found = sentinel.prepare(self._disk, root, path, wanted, settings.wipe_foreign)
        if found.condition is Condition.EMPTY:
            log.info("%s: a new store of format %d", path, format_)
        elif found.condition is not Condition.READY:
            log.warning("%s: %s; it is an empty store of format %d now", path, found.condition.value, format_)
        if settings.codec == "zstd" and format_ == sentinel.FLUX_FORMAT:
            format_ = sentinel.ZSTD_FORMAT
            sentinel.write_version(self._disk, root, format_)
            log.warning(
                "%s: upgraded to format %d, which Flux alone would wipe; tagfs convert goes back", path, format_
            )
        name = settings.codec
        if name == "auto":
            name = "gzip" if format_ == sentinel.FLUX_FORMAT else "zstd"
        return self._opened(root, format_, Policy(codec.named(name), settings.threshold, settings.list_limit))

    def _opened(self, root: int, format_: int, policy: Policy) -> _Opened:
        store = DirectoryStore(self._disk, root, format_, policy)
        return _Opened(store, watched(store.opened, root))

    async def _follow(self, opened: _Opened | None, failure: list[BaseException], nursery: trio.Nursery) -> None:
        """Show the store while it is ready, and wait while it is not."""
        try:
            with self._following:
                await trio.to_thread.run_sync(mountpoint.allow_background, self._settings.mountpoint)
                while True:
                    if opened is None:
                        opened = await self._wait()
                    self._show(opened)
                    waiting = await self._watch_and_tidy(opened)
                    log.error(
                        "%s: %s; until it is ready again everything is answered with EAGAIN",
                        self._settings.store,
                        waiting,
                    )
                    await self._hide(opened, waiting)
                    opened = None
        except (TagfsError, OSError) as error:
            failure.append(error)
            await self._terminate()

    async def _watch_and_tidy(self, opened: _Opened) -> str:
        async with trio.open_nursery() as nursery:
            if isinstance(self._operations.tree, WritableTree):
                nursery.start_soon(self._tidy, opened.store, self._operations.tree, _left_stages(opened.store))
                assert self._sweeper is not None
                removal = MountRemoval(self._operations.tree, self._commits, self._forget)
                nursery.start_soon(self._sweeper.run, removal)
            waiting = await self._watch(opened)
            nursery.cancel_scope.cancel()
        return waiting

    async def _wait(self) -> _Opened:
        """The store when it has become ready; StoreWaiting, StoreHeld when --wait is over, StoreRefused.

        Once it was shown, nothing that it has become meanwhile ends the mount: below it would be an empty directory.
        """
        wait = self._settings.wait
        deadline = trio.current_time() + (wait if wait is not None and not self._was_shown else float("inf"))
        while True:
            try:
                return self._open()
            except (TagfsError, OSError) as error:
                self._operations.waiting = str(error)
                may_pass = isinstance(error, (StoreWaiting, StoreHeld)) and trio.current_time() < deadline
                if not may_pass and not self._was_shown:
                    raise
            await trio.sleep(LOOK_AGAIN)

    def _show(self, opened: _Opened) -> None:
        settings, store = self._settings, opened.store
        if self._operations.tree is not None:
            self._operations.tree.store = store
        elif settings.read_only:
            self._operations.tree = Tree(store, View(settings.namespaces, keeps=LOOKED_UP))
        else:
            self._operations.tree = WritableTree(store, settings.list_limit, View(settings.namespaces))
        self._operations.tree.watch(opened.changes.cover if settings.read_only else None)
        self._operations.waiting = None
        self._was_shown = True
        how = "read-only" if settings.read_only else f"read-write, {_told(store.policy)}"
        self._announce(f"{settings.mountpoint} shows {settings.store}: {how}, format {store.format}")

    async def _hide(self, opened: _Opened, waiting: str) -> None:
        tree = self._operations.tree
        assert tree is not None
        self._operations.waiting = waiting
        self._notifier.send(tree.everything())
        opened.changes.close()
        await self._commits.drain()
        opened.store.close()

    async def _watch(self, opened: _Opened) -> str:
        """Tell the kernel what changes beneath; -> why the store is no longer ready."""
        tree, store = self._operations.tree, opened.store
        assert tree is not None
        while True:
            try:
                happened = await opened.changes.happened()
            except OSError as error:
                return f"its changes are not told any more: {error}"
            for change in happened:
                if change.path is not None:
                    self._notifier.send(tree.changed(change.path, change.name))
                    continue
                try:
                    if opened.changes.is_lost:
                        return "its directory was moved or removed"
                    sentinel.require_ready(self._disk, store.root, self._settings.store)
                except (TagfsError, OSError) as error:
                    return str(error)
                if change.is_lost or change.name == BASE:
                    self._notifier.send(tree.everything())

    def _forget(self, invalid: Iterable[Invalidation]) -> None:
        """Tell the kernel, unless the mount ends: then nobody answers what the notifier may have to wait for."""
        if not self._following.cancel_called:
            self._notifier.send(invalid)

    async def _tidy(self, store: DirectoryStore, tree: WritableTree, stages: list[str]) -> None:
        """Remove what an earlier writer left, stale lists too, and put back what it had hidden."""
        try:
            removed = await trio.to_thread.run_sync(tidy.remove_stages, store, stages)
            if removed:
                log.info("%s: removed %d lists that were never committed", self._settings.store, removed)
            keys = store.scan()
            while batch := await trio.to_thread.run_sync(lambda: list(itertools.islice(keys, TIDIED_AT_ONCE))):
                for key in await trio.to_thread.run_sync(tidy.look, store, batch):
                    await self._commits.quiet(key)
                    await self._commits.run(tree.recovery(key))
                    await self._commits.run(Step(key, partial(store.drop_stale, key), lambda _: None))
                await trio.sleep(TIDY_PAUSE)
        except StoreWaiting:
            return  # told by whoever watches the store
        except (TagfsError, OSError) as error:
            log.error("%s: tidying ended early: %s", self._settings.store, error)


def _sweeper(settings: MountSettings) -> Sweeper:
    inventory = None
    if settings.inventory:
        from tagfs.inventories import inventory_of

        inventory = inventory_of(settings, os.environ, is_mount=True)
    rules = Rules(settings.max_percent, settings.allow_empty_inventory, settings.allow_mass_deletion)
    return Sweeper(inventory, rules, settings.gc_interval, settings.sweep_suspend)


def _left_stages(store: DirectoryStore) -> list[str]:
    """The stages of an earlier writer.  Where the disk is full, or fails, reading and deleting must go on."""
    try:
        return store.stages.names()
    except OSError as error:
        log.error("what an earlier writer left cannot be removed: %s", error)
        return []


def _told(policy: Policy) -> str:
    return f"{policy.compressed.name} from {policy.threshold / 1024:g} KiB on"


def _source(store: str) -> str:
    """The store as mount tables show it; libfuse takes no comma, and pyfuse3 nothing but ASCII."""
    return store if store.isascii() and "," not in store and "\\" not in store else "tagfs"


def _allow_many_files() -> None:
    """An open list holds a descriptor until it is read: take what the machine allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _give_back_memory() -> None:
    """Free what only the imports needed: 1.5 MiB in every pod.  malloc_trim(3); musl has none."""
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _is_news(record: logging.LogRecord) -> bool:
    """pyfuse3 logs an error for each answer that nobody waits for any more, because its client was killed."""
    return "fuse_reply" not in str(record.msg)
