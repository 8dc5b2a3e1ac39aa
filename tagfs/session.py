"""Session: a mount point's connection with the kernel, from the mount to the unmount.  Async.

Owns: mounting, serving requests, what ends them: signals, an unmount, an abort.
Does not know: the store.
"""

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable

import trio

from tagfs import device, mountpoint
from tagfs.channel import Channel
from tagfs.errors import MountRefused
from tagfs.mountpoint import Mounted
from tagfs.notifier import Notifier
from tagfs.settings import MountSettings
from tagfs.view import Invalidation

log = logging.getLogger(__name__)

GRACE = 5.0
"""Seconds that programs with open files have after a busy mount was told to end."""


class Session:
    """Answers the kernel on `channel` at the mount point of `settings`.

    `use` is cancelled as soon as the session begins to end: nothing may wait for the kernel then.
    """

    def __init__(self, settings: MountSettings, channel: Channel) -> None:
        self._settings = settings
        self._channel = channel
        self.notifier = Notifier(channel.forget_entry, channel.forget_node)
        self.mounted: Mounted | None = None
        """Where the mount is, and which one it is; None where that is not known."""
        self.use = trio.CancelScope()
        self.ending: Callable[[], None] = lambda: None
        """Called when it has been asked to end, before it is unmounted."""
        self.was_terminated = False

    def mount(self) -> None:
        """Mount, so that programs wait for answers from now on; MountRefused."""
        settings = self._settings
        # Before: afterwards only a loop that runs can answer for it.
        point = settings.mountpoint if settings.device is not None else os.path.realpath(settings.mountpoint)
        self._channel.mount(settings)
        self.mounted = next((one for one in reversed(mountpoint.mounts()) if one.point == point), None)

    async def serve(self) -> None:
        """Answer the kernel until the mount has ended.

        Raises:
            MountRefused: somebody cut the connection while it was mounted; it is unmounted now.
        """
        await self._channel.serve()
        self.use.cancel()
        if self.mounted is not None and not self.was_terminated and self.is_mounted():
            await self._unmount_lazily()
            raise MountRefused(f"{self._settings.mountpoint}: its connection with the kernel was cut; unmounted")

    def close(self) -> None:
        """Let go of the device, when nothing is to be told to the kernel any more."""
        self._channel.close()
        log.info("%s: unmounted", self._settings.mountpoint)

    # -- what the kernel is told

    def send(self, invalid: Iterable[Invalidation]) -> None:
        """Tell the kernel to forget, unless the mount ends: then nobody answers what the notifier may have to wait
        for."""
        if not self.use.cancel_called:
            self.notifier.send(invalid)

    async def told(self) -> None:
        """Return when the kernel has been told all."""
        await self.notifier.close()

    # -- the end

    def is_mounted(self) -> bool:
        """Whether it is still there, or that is not known.  Asks the mount table alone: only we can answer for a path
        in the mount, and not while the loop waits for the answer."""
        mounted, handed_over = self.mounted, self._settings.device
        if mounted is None:
            return handed_over is None or device.is_connected(handed_over)
        return any((one.point, one.device) == (mounted.point, mounted.device) for one in mountpoint.mounts())

    async def end_on_signal(self, signals: AsyncIterator[int]) -> None:
        """End it at the first signal, and at once at the second."""
        await anext(signals)
        self.ending()
        log.info("%s: ending", self._settings.mountpoint)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_gently)
            async for _ in signals:
                log.warning("%s: ending at once", self._settings.mountpoint)
                await self.terminate()

    async def _end_gently(self) -> None:
        """Unmount; where the mount is busy, take it out of sight and let open files come to their end for a while.
        Either way the kernel then ends the session."""
        point = self._settings.mountpoint
        if self._settings.device is not None:
            # Who has mounted it has taken it out of sight, or has been killed.
            await trio.sleep(GRACE)
            await self.terminate()
            return
        try:
            await trio.to_thread.run_sync(mountpoint.unmount, point)
            return
        except MountRefused as error:
            log.info("%s; open files have %.0f s to come to their end", error, GRACE)
        try:
            await trio.to_thread.run_sync(mountpoint.unmount, point, True)
        except MountRefused as error:
            if self.is_mounted():
                log.error("%s", error)
        await trio.sleep(GRACE)
        await self.terminate()

    async def terminate(self) -> None:
        """End the session while programs still use it.  The notifier first, while the loop still answers."""
        self.was_terminated = True
        self.use.cancel()
        await self.notifier.close()
        if self.mounted is not None and self.is_mounted():
            await self._unmount_lazily()
        self._channel.terminate()

    async def _unmount_lazily(self) -> None:
        if self._settings.device is None:
            try:
                await trio.to_thread.run_sync(mountpoint.unmount, self._settings.mountpoint, True)
            except MountRefused:
                if self.is_mounted():
                    raise  # Else `_end_gently`, or somebody outside, has done it meanwhile.
