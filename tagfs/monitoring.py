"""Monitoring: what a mount tells machines that look after it: figures, health, readiness.  Async.

Owns: what healthy and ready mean; the tasks that measure.
Does not know: HTTP, which figure is read from where, pyfuse3.
Imported only where one of the two addresses is set.
"""

import logging
from collections.abc import Mapping
from http import HTTPStatus

import trio

from tagfs import logs
from tagfs.changes import Change
from tagfs.channel import Channel
from tagfs.commits import Commits
from tagfs.counting import Counting
from tagfs.endpoints import Answer, Endpoints, Route
from tagfs.figures import Owners
from tagfs.metrics import CONTENT_TYPE, Exposition
from tagfs.opening import Opened
from tagfs.probe import Probe
from tagfs.session import Session
from tagfs.settings import MountSettings
from tagfs.sweeper import Sweeper
from tagfs.timings import Distribution

log = logging.getLogger(__name__)

LAG_EVERY = 1.0
"""Seconds between two looks at how late the loop wakes up."""

LAG_BOUNDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Monitoring:
    """Of one mount.  `listen` comes before the mount, `run` and `count` are tasks beside it."""

    def __init__(
        self,
        settings: MountSettings,
        operations: Channel,
        commits: Commits,
        session: Session,
        sweeper: Sweeper | None,
    ) -> None:
        self._settings = settings
        self._operations = operations
        self._commits = commits
        self._session = session
        self._sweeper = sweeper
        self._owners = Owners(settings, operations, commits, session, sweeper, Distribution(LAG_BOUNDS))
        self._exposition: Exposition | None = None
        self._was_synced = False
        self._probe: Probe | None = None
        self._endpoints: list[Endpoints] = []

    async def listen(self) -> None:
        """Take the addresses; SettingRefused."""
        routes: dict[tuple[str, int], dict[str, Route]] = {}
        if (address := self._settings.metrics_address) is not None:
            self._exposition = Exposition(self._owners.figures)
            self._owners.logged = logs.tally()
            self._operations.measure(self._owners.timings)
            routes.setdefault(address, {})["/metrics"] = self._metrics
        if (address := self._settings.health_address) is not None:
            routes.setdefault(address, {}).update({"/healthz": self._healthz, "/readyz": self._readyz})
        for address, paths in routes.items():
            endpoints = Endpoints(address, paths)
            await endpoints.listen()
            self._endpoints.append(endpoints)
            log.info("listening on port %d: %s", endpoints.port, ", ".join(paths))

    async def run(self) -> None:
        """Answer and measure, until cancelled, which has to be before the session is closed: then nobody answers the
        probe any more."""
        async with trio.open_nursery() as nursery:
            mounted = self._session.mounted
            if mounted is not None:
                self._probe = Probe(mounted.point, mounted.device, nursery)
            for endpoints in self._endpoints:
                nursery.start_soon(endpoints.serve)
            if self._exposition is not None:
                nursery.start_soon(self._measure_lag)

    async def count(self, opened: Opened) -> None:
        """Count a store while it is shown."""
        if self._exposition is None:
            return
        cover = opened.changes.cover if self._settings.read_only else None
        counting = self._owners.counting = Counting(opened.store, cover, self._settings.namespaces)
        self._commits.ended = counting.changed_key
        try:
            await counting.run()
            await trio.sleep_forever()  # with the figures of before
        finally:
            self._owners.counting = None
            self._commits.ended = None

    def changed(self, change: Change) -> None:
        """Take note of what happened beneath."""
        if self._owners.counting is None:
            return
        if change.path is not None:
            self._owners.counting.changed(change.path, change.name)
        elif change.is_lost:
            self._owners.counting.changed(())

    async def _measure_lag(self) -> None:
        while True:
            due = trio.current_time() + LAG_EVERY
            await trio.sleep_until(due)
            self._owners.lag.note(trio.current_time() - due)

    # -- what is answered

    async def _metrics(self, headers: Mapping[bytes, bytes]) -> Answer:
        assert self._exposition is not None
        return Answer(HTTPStatus.OK, self._exposition.text(), CONTENT_TYPE)

    async def _healthz(self, headers: Mapping[bytes, bytes]) -> Answer:
        if self._probe is None:
            return Answer.of(
                HTTPStatus.OK, "the loop runs; where the mount is, and so whether it answers, is not known"
            )
        silence = await self._probe.look()
        if silence is not None:
            return Answer.of(HTTPStatus.SERVICE_UNAVAILABLE, silence)
        return Answer.of(HTTPStatus.OK, "the loop runs, the mount answers")

    async def _readyz(self, headers: Mapping[bytes, bytes]) -> Answer:
        missing = self.missing()
        if missing:
            return Answer.of(HTTPStatus.SERVICE_UNAVAILABLE, "\n".join(missing))
        return Answer.of(HTTPStatus.OK, "mounted, the store is shown, what ought to exist is known")

    def missing(self) -> list[str]:
        """Why it is not ready; none: it is.  A cluster that is lost later is no reason: lists are still shown."""
        missing = []
        if self._session.use.cancel_called:
            missing.append("mount: it ends")
        if self._operations.waiting is not None:
            missing.append(f"store: {self._operations.waiting}")
        inventory = self._sweeper.inventory if self._sweeper is not None else None
        self._was_synced = self._was_synced or inventory is None or inventory.is_synced
        if not self._was_synced and inventory is not None:
            missing.append(f"inventory: {inventory.name} has not told yet what ought to exist")
        return missing
