"""What holds for every test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tagfs import mountpoint
from tagfs.names import RepositoryKey
from tests.support.beneath import put
from tests.support.daemon import Daemon

# No deadline: a busy machine is no defect.
settings.register_profile("tagfs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tagfs")

MakeDaemon = Callable[..., Daemon]


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[MakeDaemon]:
    """Make daemons: `daemons(*flags, store=…, point=…)`, each started unless `start` is False; by default all serve
    `tmp_path/store`.  Afterwards all are ended, and their logs held no surprise."""
    made: list[Daemon] = []

    def make(
        *flags: str,
        store: Path | None = None,
        point: Path | None = None,
        start: bool = True,
        wrapper: tuple[str, ...] = (),
        expected: tuple[str, ...] = (),
    ) -> Daemon:
        number = len(made)
        daemon = Daemon(
            store or tmp_path / "store", point or tmp_path / f"mount{number}", flags, wrapper, expected=list(expected)
        )
        made.append(daemon)
        return daemon.start() if start else daemon

    yield make
    for daemon in reversed(made):
        daemon.end()
    surprises = [surprise for daemon in made for surprise in daemon.surprises()]
    assert not surprises, f"unexpected in the log: {surprises}"


@pytest.fixture(params=["fast", "libfuse"])
def either_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let mounts be answered in both ways, one after the other."""
    monkeypatch.setenv("TAGFS_FAST_PATH", "1" if request.param == "fast" else "0")


@pytest.fixture
def mount(daemons: MakeDaemon) -> Daemon:
    """A read-write mount of a new store."""
    return daemons()


@pytest.fixture(params=["read-write", "read-only"])
def mounted(request: pytest.FixtureRequest, daemons: MakeDaemon, tmp_path: Path) -> Daemon:
    """A mount of either kind, of a store with the list of team/app."""
    store = tmp_path / "store"
    put(store, RepositoryKey("team", "app"), b"v1\n")
    (store / ".storage-version").write_text("3\n")
    return daemons(*(["--read-only"] if request.param == "read-only" else []))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A mount that a test left behind fails the run."""
    base = str(getattr(session.config, "_tmp_path_factory", None) and session.config._tmp_path_factory.getbasetemp())  # type: ignore[attr-defined]
    left = [one.point for one in mountpoint.mounts() if one.fstype == mountpoint.FSTYPE and one.point.startswith(base)]
    for point in left:
        mountpoint.unmount(point, lazy=True)
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nleft mounted, and unmounted now: {left}")
