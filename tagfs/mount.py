"""Mount: the life of a mount, from the first look at its store to the unmount.  Async.

Owns: showing the store while it is ready, and the tasks beside the session.
Does not know: tag bytes.
"""

import importlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import trio

from tagfs import descriptors, device, heap, mountpoint
from tagfs.changes import Unwatched
from tagfs.channel import Channel
from tagfs.commits import Commits
from tagfs.direct import Direct
from tagfs.errors import MountRefused, SettingRefused, StoreHeld, StoreWaiting, TagfsError
from tagfs.names import BASE
from tagfs.opening import Opened, Opener
from tagfs.policy import Policy
from tagfs.service import Service
from tagfs.session import Session
from tagfs.settings import MountSettings
from tagfs.stateless import StatelessTree
from tagfs.stream import Stream
from tagfs.tree import Tree
from tagfs.view import Invalidation, View
from tagfs.whereabouts import elsewhere

if TYPE_CHECKING:
    from tagfs.monitoring import Monitoring
    from tagfs.tending import Tending

log = logging.getLogger(__name__)

LOOK_AGAIN = 0.25
"""Seconds between two looks at a store that is not ready."""

MOVED = "its directory was moved, removed or unmounted"

LOOKED_UP = 16
"""Versions that stay open after a look at them or a close, on a read-only mount through libfuse: programs open within
milliseconds."""


def serve(settings: MountSettings, announce: Callable[[str], None]) -> None:
    """Mount, and return when the mount has ended.

    Args:
        announce: called with a line for a person when the mount answers, and when its store is ready.

    Raises:
        MountRefused, StoreRefused, StoreHeld, StoreWaiting: nothing stays mounted.
        SettingRefused, ClusterUnknown: there is no such inventory.
    """
    tending = None if settings.read_only else _tending(settings)
    if settings.device is None:
        mountpoint.prepare(settings.mountpoint, settings.store, settings.make_mountpoint)
    else:
        device.require_inherited(settings.device)
    descriptors.allow_many()
    failure: list[BaseException] = []
    trio.run(_Mount(settings, announce, tending).run, failure)
    for error in failure:
        raise error


def load(settings: MountSettings) -> None:
    """Import what `serve` would import when it is needed: then it is too late to say what to install, and as another
    user it may not be able to."""
    modules = [] if settings.fast_path else ["libfuse", "operations"]
    modules += [] if settings.read_only else ["tending"]
    modules += ["inventories"] if settings.inventory else []
    modules += ["following", "events", "past"] if settings.drop_privileges else []  # for who listens to `/.changes`
    for module in modules:
        importlib.import_module(f"tagfs.{module}")
    if settings.metrics_address or settings.health_address:
        try:
            importlib.import_module("tagfs.monitoring")
        except ImportError as error:
            raise SettingRefused(
                f"--metrics-addr and --health-addr need more ({error}): pip install 'tagfs[monitoring]'"
            ) from error


class _Mount:
    def __init__(self, settings: MountSettings, announce: Callable[[str], None], tending: "Tending | None") -> None:
        self._settings = settings
        self._announce = announce
        self._tending = tending
        self._opener = Opener(settings)
        self._was_shown = False

    async def run(self, failure: list[BaseException]) -> None:
        """Mount and serve until unmounted; an error that ends the mount is appended to `failure`."""
        waiting: str | None = None
        try:
            opened: Opened | None = self._opener.open(self._was_shown)
        except (StoreWaiting, StoreHeld) as error:
            if not self._opener.may_wait:
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
        self, opened: Opened | None, waiting: str | None, signals: AsyncIterator[int], failure: list[BaseException]
    ) -> None:
        settings = self._settings
        async with trio.open_nursery() as nursery:
            self._commits = Commits(nursery)
            self._channel = _channel(settings, self._commits, self._tending)
            self._session = Session(settings, self._channel)
            self._service = Service(settings, self._channel, os.environ)
            send, sent = self._session.send, self._session.notifier.caught_up
            self._stream = Stream(settings.store, send, sent, self._session.is_mounted, settings.namespaces)
            try:
                self._monitoring = self._monitored()
                if self._monitoring is not None:
                    await self._monitoring.listen()
                self._session.mount()
            except (MountRefused, SettingRefused) as error:
                failure.append(error)
                return
            if waiting is not None:
                self._channel.waiting = waiting
                self._tell(f"{settings.mountpoint} is mounted and waits for its store: {waiting}")
            if self._session.mounted is not None:
                # Where it is not known, this daemon cannot reach the pipes of those who listen.
                nursery.start_soon(self._stream.run)
                self._session.ending = self._stream.close
            nursery.start_soon(self._session.end_on_signal, signals)
            nursery.start_soon(self._sweep_on_signal)
            nursery.start_soon(self._reload_on_signal)
            nursery.start_soon(self._service.live, self._session.mounted)
            nursery.start_soon(self._follow, opened, failure)
            if self._monitoring is not None:
                nursery.start_soon(self._monitoring.run)
            heap.settle()
            try:
                await self._session.serve()
            except MountRefused as error:
                failure.append(error)
            self._service.ending()
            self._commit_unseen()
            await self._commits.drain()
            await self._session.told()
            nursery.cancel_scope.cancel()
        self._session.close()
        if self._channel.tree is not None and self._channel.waiting is None:
            self._channel.tree.store.close()

    def _monitored(self) -> "Monitoring | None":
        """What looks after the mount, where it is asked for."""
        settings = self._settings
        if settings.metrics_address is None and settings.health_address is None:
            return None
        from tagfs.monitoring import Monitoring

        sweeper = None if self._tending is None else self._tending.sweeper
        return Monitoring(settings, self._channel, self._commits, self._session, sweeper)

    def _commit_unseen(self) -> None:
        """Commit what was closed just before the unmount; not where the session was ended while files may be open."""
        if self._tending is not None and not self._session.was_terminated and not self._session.is_mounted():
            self._tending.commit_unseen(self._channel.tree, self._commits)

    async def _sweep_on_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            async for _ in signals:
                if self._tending is not None:
                    self._tending.sweeper.request()
                else:
                    log.info("%s: a read-only mount sweeps nothing", self._settings.mountpoint)

    async def _reload_on_signal(self) -> None:
        """SIGHUP: have the kernel ask anew for all that it keeps, and what ought to exist be looked at now."""
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            async for _ in signals:
                self._service.reloading()
                log.info("%s: looking at %s afresh", self._settings.mountpoint, self._settings.store)
                if self._channel.tree is not None:
                    self._session.send(self._channel.tree.everything())
                if self._tending is not None:
                    self._tending.sweeper.request()
                self._service.ready()

    def _tell(self, line: str) -> None:
        self._announce(line)
        self._service.announce(line)

    # -- the store

    async def _follow(self, opened: Opened | None, failure: list[BaseException]) -> None:
        """Show the store while it is ready, and wait while it is not."""
        try:
            with self._session.use:
                await trio.to_thread.run_sync(mountpoint.allow_background, self._settings.mountpoint)
                if self._session.mounted is not None:
                    await self._stream.offer(self._session.mounted.point)
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
            await self._session.terminate()

    async def _watch_and_tidy(self, opened: Opened) -> str:
        async with trio.open_nursery() as nursery:
            if self._tending is not None:
                assert self._channel.tree is not None
                self._tending.start(nursery, opened.store, self._channel.tree, self._commits, self._session.send)
            nursery.start_soon(self._service.count, opened)
            if self._monitoring is not None:
                nursery.start_soon(self._monitoring.count, opened)
            waiting = MOVED
            with trio.CancelScope() as watching:
                nursery.start_soon(self._watch_path, opened, watching)
                waiting = await self._watch(opened)
            nursery.cancel_scope.cancel()
        return waiting

    async def _watch_path(self, opened: Opened, watching: trio.CancelScope) -> None:
        """End `watching` when the path of the store leads elsewhere: lists would stay as they were, for ever."""
        await elsewhere(opened.store, self._settings.store)
        self._channel.waiting = MOVED
        watching.cancel()

    async def _wait(self) -> Opened:
        """The store when it has become ready; StoreWaiting, StoreHeld when --wait is over, StoreRefused.

        Once it was shown, nothing that it has become meanwhile ends the mount: below it would be an empty directory.
        """
        wait = self._settings.wait
        deadline = trio.current_time() + (wait if wait is not None and not self._was_shown else float("inf"))
        while True:
            try:
                return self._opener.open(self._was_shown)
            except (TagfsError, OSError) as error:
                self._channel.waiting = str(error)
                may_pass = isinstance(error, (StoreWaiting, StoreHeld)) and trio.current_time() < deadline
                if not may_pass and not self._was_shown:
                    raise
            await trio.sleep(LOOK_AGAIN)

    def _show(self, opened: Opened) -> None:
        settings, store = self._settings, opened.store
        if self._channel.tree is not None:
            self._channel.tree.store = store
        elif self._tending is not None:
            self._channel.tree = self._tending.tree(store)
        elif settings.fast_path:
            self._channel.tree = StatelessTree(store, View(settings.namespaces), descriptors.for_versions())
        else:
            self._channel.tree = Tree(store, View(settings.namespaces, keeps=LOOKED_UP))
        tree = self._channel.tree
        if isinstance(tree, StatelessTree):
            tree.watch(opened.changes.cover, opened.changes.has_news)
        else:
            tree.watch(opened.changes.cover if settings.read_only else None)
        if self._session.mounted is not None:
            self._channel.tree.pipes = self._stream.pipes
            self._stream.show(store, self._channel.tree, self._commits.quiet)
        self._channel.waiting = None
        self._was_shown = True
        how = "read-only" if settings.read_only else f"read-write, {_told(store.policy)}"
        self._tell(f"{settings.mountpoint} shows {settings.store}: {how}, format {store.format}")

    async def _hide(self, opened: Opened, waiting: str) -> None:
        tree = self._channel.tree
        assert tree is not None
        self._channel.waiting = waiting
        self._session.send(tree.everything())
        opened.changes.close()
        await self._stream.hide(waiting)
        await self._commits.drain()
        opened.store.close()

    async def _watch(self, opened: Opened) -> str:
        """Tell the kernel what changes beneath; -> why the store is no longer ready."""
        reason: str | None = None

        def look() -> bool:
            nonlocal reason
            reason = self._look(opened)
            return reason is None

        if opened.changes.descriptor is not None:
            await self._channel.attend(opened.changes.descriptor, look)
        while reason is None:
            await trio.sleep(Unwatched.EVERY)
            reason = self._look(opened)
        return reason

    def _look(self, opened: Opened) -> str | None:
        """Tell the kernel what has changed beneath; -> why the store is no longer ready, if it is not."""
        tree, reason = self._channel.tree, None
        assert tree is not None
        try:
            happened = opened.changes.read()
        except OSError as error:
            return f"its changes are not told any more: {error}"
        invalid: list[Invalidation] = []
        for change in happened:
            if self._monitoring is not None:
                self._monitoring.changed(change)
            if change.path is not None:
                invalid += tree.changed(change.path, change.name)
                continue
            reason = self._unready(opened)
            if reason is not None:
                # At once: what else has happened is not looked at any more.
                self._channel.waiting = reason
                break
            if change.name == BASE and opened.store.has_made_base:
                # Programs have entered it already, and would lose their working directory.
                opened.store.has_made_base = False
            elif change.is_lost or change.name == BASE:
                invalid += tree.everything()
        self._session.send(invalid)
        return reason

    def _unready(self, opened: Opened) -> str | None:
        """Why a store whose own directory has changed is no longer ready, if it is not."""
        if opened.changes.is_lost:
            return MOVED
        try:
            self._opener.require_ready(opened.store)
        except (TagfsError, OSError) as error:
            return str(error)
        return None


def _tending(settings: MountSettings) -> "Tending":
    from tagfs.tending import Tending

    return Tending(settings)


def _channel(settings: MountSettings, commits: Commits, tending: "Tending | None") -> Channel:
    """The channel that the settings ask for; what the other one needs is not imported."""
    uid = os.getuid() if settings.uid is None else settings.uid
    gid = os.getgid() if settings.gid is None else settings.gid
    if settings.fast_path:
        return Direct(uid, gid) if tending is None else tending.channel(uid, gid, commits)
    from tagfs.libfuse import Libfuse
    from tagfs.operations import Operations

    return Libfuse(Operations(uid, gid, commits, not settings.read_only))


def _told(policy: Policy) -> str:
    return f"{policy.compressed.name} from {policy.threshold / 1024:g} KiB on"
