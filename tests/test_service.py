"""Service: what a mount tells the service manager that runs it, on a socket as systemd's."""

import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tagfs import notify
from tests.conftest import MakeDaemon
from tests.support.daemon import PATIENCE, Daemon

pytestmark = pytest.mark.mount


class Manager:
    """The other end of the socket."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self.path = str(listening.getsockname())
        self.heard: list[str] = []
        self._unread: list[str] = []

    def await_(self, condition: Callable[[str], bool], patience: float = PATIENCE) -> str:
        """The next assignment for which it is true; TimeoutError."""
        deadline = time.monotonic() + patience
        while True:
            while not self._unread:
                self._listening.settimeout(max(0.001, deadline - time.monotonic()))
                self._unread = self._listening.recv(1 << 16).decode().split("\n")
            self.heard.append(line := self._unread.pop(0))
            if condition(line):
                return line

    def await_line(self, expected: str, patience: float = PATIENCE) -> None:
        self.await_(lambda line: line == expected, patience)


@pytest.fixture
def manager() -> Iterator[Manager]:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"{directory}/notify")
        yield Manager(listening)


def started(daemon: Daemon, manager: Manager, **variables: str) -> Daemon:
    daemon.environment = {notify.SOCKET: manager.path, **variables}
    return daemon.start()


def test_a_mount_is_ready_when_it_answers_and_says_what_it_shows(daemons: MakeDaemon, manager: Manager) -> None:
    daemon = started(daemons(start=False), manager)
    manager.await_line(notify.READY)
    assert manager.await_(lambda line: line.startswith("STATUS=")) == (
        f"STATUS={daemon.point} shows {daemon.store}: read-write, zstd from 4 KiB on, format 3"
    )
    manager.await_(lambda line: line.endswith("; 0 repositories"))
    assert not [line for line in manager.heard if line.startswith("MAINPID")]
    assert daemon.stop() == 0
    manager.await_line(notify.STOPPING)


def test_its_status_counts(daemons: MakeDaemon, manager: Manager) -> None:
    daemon = daemons()
    for number in range(3):
        daemon.make(f"app-{number}").write_text("v1\n")
    assert daemon.stop() == 0
    started(daemons("--read-only", start=False), manager)
    manager.await_(lambda line: line.endswith("; 3 repositories"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what another user cannot read")
def test_what_cannot_be_counted_does_not_end_the_mount(daemons: MakeDaemon, manager: Manager) -> None:
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        lists = base / "store" / "imagerepository"
        for namespace in ("open", "shut"):
            (lists / namespace / "app").mkdir(parents=True)
            (lists / namespace / "app" / "tags.txt").write_text("v1\n")
        (base / "store" / ".storage-version").write_text("3\n")
        base.chmod(0o755)
        (lists / "shut").chmod(0)
        os.chmod(manager.path, 0o777)
        os.chmod(os.path.dirname(manager.path), 0o755)
        flags = ("--read-only", "--drop-privileges", "--allow-other")
        daemon = started(daemons(*flags, store=base / "store", point=base / "point", start=False), manager)
        daemon.await_message("its repositories were not counted: .*Permission denied")
        assert (daemon.point / "imagerepository" / "open" / "app" / "tags.txt").read_text() == "v1\n"
        assert daemon.stop() == 0


def test_a_mount_that_waits_is_ready_and_says_for_what(daemons: MakeDaemon, manager: Manager, tmp_path: Path) -> None:
    daemon = daemons("--read-only", start=False, expected=("is not there yet",))
    daemon.environment = {notify.SOCKET: manager.path, notify.WATCHDOG_TIME: "3000000"}
    daemon.start(wait=False)
    manager.await_line(notify.READY)
    assert "waits for its store" in manager.await_(lambda line: line.startswith("STATUS="))
    manager.await_line(notify.ALIVE)


@pytest.mark.parametrize("flags", [(), ("--read-only",), ("--read-only", "--no-fast-path")], ids=" ".join)
def test_a_reload_begins_and_ends_and_the_mount_goes_on(
    daemons: MakeDaemon, manager: Manager, flags: tuple[str, ...]
) -> None:
    writer = daemons()
    writer.make("app").write_text("v1\n")
    assert writer.stop() == 0
    daemon = started(daemons(*flags, start=False), manager)
    manager.await_line(notify.READY)
    os.kill(daemon.pid, signal.SIGHUP)
    manager.await_line("RELOADING=1")
    assert int(manager.await_(lambda line: line.startswith("MONOTONIC_USEC=")).partition("=")[2]) > 0
    manager.await_line(notify.READY)
    assert daemon.list_path("app").read_text() == "v1\n"
    daemon.await_message("afresh")


def test_a_mount_in_the_background_says_which_process_it_is(daemons: MakeDaemon, manager: Manager) -> None:
    daemon = daemons("--background", start=False)
    started(daemon, manager)
    process = int(manager.await_(lambda line: line.startswith("MAINPID=")).partition("=")[2])
    assert str(daemon.point) in Path(f"/proc/{process}/cmdline").read_text()
    os.kill(process, signal.SIGTERM)
    manager.await_line(notify.STOPPING)


def test_the_watchdog_hears_of_a_mount_that_answers_and_of_no_other(daemons: MakeDaemon, manager: Manager) -> None:
    daemon = started(daemons(start=False), manager, **{notify.WATCHDOG_TIME: "1500000"})
    manager.await_line(notify.ALIVE)
    manager.await_line(notify.ALIVE)
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        # What was said before may still come; afterwards nothing does.
        with pytest.raises(TimeoutError):
            for _ in range(10):
                manager.await_line(notify.ALIVE, patience=2.0)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    manager.await_line(notify.ALIVE)


def test_another_process_watchdog_is_not_ours() -> None:
    assert notify.watchdog_interval({notify.WATCHDOG_TIME: "3000000"}) == 3.0
    assert notify.watchdog_interval({notify.WATCHDOG_TIME: "3000000", notify.WATCHDOG_PROCESS: str(os.getpid())}) == 3.0
    assert notify.watchdog_interval({notify.WATCHDOG_TIME: "3000000", notify.WATCHDOG_PROCESS: "1"}) is None
    for text in ("", "0", "x", "-1"):
        assert notify.watchdog_interval({notify.WATCHDOG_TIME: text}) is None
    assert notify.watchdog_interval({}) is None


def test_an_abstract_socket_and_none_at_all() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"tagfs-test-{os.getpid()}"
        listening.bind("\0" + name)
        manager = notify.ServiceManager({notify.SOCKET: "@" + name})
        assert manager
        manager.tell(notify.READY, notify.status("two\nlines,  one status"))
        assert listening.recv(4096) == b"READY=1\nSTATUS=two lines, one status"
    manager.tell(notify.READY)  # nobody listens any more: no error
    for address in ("", "vsock:2:1234", "relative"):
        assert not notify.ServiceManager({notify.SOCKET: address})
        notify.ServiceManager({notify.SOCKET: address}).tell(notify.READY)
