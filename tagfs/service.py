"""Service: what a mount tells the service manager that runs it: that it is ready, what it shows, that it lives.  Async.

Owns: when what is told; counting the repositories for its status.
Does not know: the protocol, signals.
Does nothing where no service manager is known.
"""

import itertools
import logging
import os
from collections.abc import Iterator, Mapping

import trio

from tagfs import notify
from tagfs.channel import Channel
from tagfs.errors import TagfsError
from tagfs.mountpoint import Mounted
from tagfs.names import RepositoryKey
from tagfs.opening import Opened
from tagfs.probe import Probe
from tagfs.settings import MountSettings

log = logging.getLogger(__name__)

RECOUNT = 15 * 60.0
"""Seconds between two counts of the repositories."""

COUNTED_AT_ONCE = 500
"""Repositories that are counted before requests go first."""

COUNT_PAUSE = 0.02
"""Seconds of that."""


class Service:
    """Of one mount, whose `channel` says whether its store is ready.

    INVARIANT: `_line` is the last that was announced; the status is it, and the count where there is one.
    """

    def __init__(self, settings: MountSettings, channel: Channel, environment: Mapping[str, str]) -> None:
        self._settings = settings
        self._channel = channel
        self._manager = notify.ServiceManager(environment)
        self._interval = notify.watchdog_interval(environment) if self._manager else None
        self._line = ""
        self._count: int | None = None

    def announce(self, line: str) -> None:
        """The mount answers; `line` says what it shows."""
        self._line = line
        self._count = None
        main = [notify.main_process(self._main_process())] if self._settings.background else []
        self._manager.tell(notify.READY, self._status(), *main)

    def reloading(self) -> None:
        self._manager.tell(notify.reloading())

    def ready(self) -> None:
        """A reload has ended."""
        self._manager.tell(notify.READY, self._status())

    def ending(self) -> None:
        self._manager.tell(notify.STOPPING, notify.status(f"{self._settings.mountpoint}: ending"))

    async def count(self, opened: Opened) -> None:
        """Count the repositories now and then, while their store is shown.  None where they cannot be counted: whoever
        meets what is wrong there tells it."""
        while self._manager:
            keys = opened.store.scan()
            count = 0
            try:
                while batch := await trio.to_thread.run_sync(_counted, keys):
                    count += batch
                    await trio.sleep(COUNT_PAUSE)
                self._count = count
            except (TagfsError, OSError) as error:
                log.info("%s: its repositories were not counted: %s", self._settings.store, error)
                self._count = None
            self._manager.tell(self._status())
            await trio.sleep(RECOUNT)

    async def live(self, mounted: Mounted | None) -> None:
        """Tell again and again that the mount answers, as long as it does."""
        if self._interval is None:
            return
        every = self._interval / 3
        async with trio.open_nursery() as nursery:
            # A mount that this process does not see cannot be asked: then it is the loop that is alive.
            probe = None if mounted is None else Probe(mounted.point, mounted.device, nursery)
            while True:
                if probe is None or await probe.look(every) is None or self._channel.waiting is not None:
                    self._manager.tell(notify.ALIVE)
                await trio.sleep(every)

    def _status(self) -> str:
        counted = "" if self._count is None else f"; {self._count} repositories"
        return notify.status(self._line + counted)

    def _main_process(self) -> int:
        """The process to be watched: who mounted, where another one did."""
        is_server = self._settings.drop_privileges and self._settings.device is not None
        return os.getppid() if is_server else os.getpid()


def _counted(keys: Iterator[RepositoryKey]) -> int:
    return sum(1 for _ in itertools.islice(keys, COUNTED_AT_ONCE))
