"""Supervisor: one process mounts, another one without any privilege serves, and neither leaves a mount that hangs."""

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tagfs import device, mountpoint, notify, privileges, supervisor
from tagfs.errors import MountRefused, ServerFailed
from tests.conftest import MakeDaemon
from tests.support.daemon import PATIENCE, Daemon, eventually

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop"),
]

NOBODY = 65534
FLAGS = ("--drop-privileges",)


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory that other users can enter, unlike pytest's, with a store that is nobody's."""
    with tempfile.TemporaryDirectory(prefix="tagfs-drop-") as name:
        path = Path(name)
        path.chmod(0o755)
        (path / "store").mkdir(0o700)
        os.chown(path / "store", NOBODY, NOBODY)
        (path / "point").mkdir()
        yield path


@pytest.fixture
def make(base: Path, daemons: MakeDaemon) -> MakeDaemon:
    def made(*flags: str, **more: object) -> Daemon:
        return daemons(*FLAGS, *flags, store=base / "store", point=base / "point", **more)

    return made


def server_of(daemon: Daemon) -> int:
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children")
    return int(eventually(lambda: children.read_text().split(), "the server has been started")[0])


def status_of(process: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: values.split() for name, _, values in (line.partition(":") for line in lines)}


def devices_of(process: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{process}/fd").iterdir():
        try:
            found.append(os.readlink(entry))
        except FileNotFoundError:
            continue  # closed meanwhile
    return [target for target in found if target == mountpoint.DEVICE]


def ended(process: int) -> bool:
    try:
        return status_of(process)["State"][0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def asked(path: Path) -> str:
    """What a program is told that asks for `path`; it does not wait for ever."""
    code = "import os, sys\ntry: os.statvfs(sys.argv[1])\nexcept OSError as error: print(error.strerror)"
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout.strip()


def close_dead(descriptor: int) -> None:
    """Close a file of a mount that has ended."""
    with pytest.raises(OSError, match="not connected"):
        os.close(descriptor)


@pytest.mark.parametrize("flags", [(), ("--read-only",)], ids=["read-write", "read-only"])
def test_the_server_has_no_privilege_and_the_supervisor_no_device(make: MakeDaemon, flags: tuple[str, ...]) -> None:
    writer = make()
    writer.make("app").write_text("v1\n")
    assert writer.stop() == 0
    daemon = make(*flags)
    assert daemon.list_path("app").read_text() == "v1\n"
    server, supervisor = server_of(daemon), daemon.pid
    told = status_of(server)
    assert told["Uid"] == told["Gid"] == [str(NOBODY)] * 4
    assert told["Groups"] == []
    assert told["NoNewPrivs"] == ["1"]
    for capabilities in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"):
        assert int(told[capabilities][0], 16) == 0, capabilities
    assert devices_of(supervisor) == []
    assert devices_of(server) == [mountpoint.DEVICE]
    assert daemon.stop() == 0
    assert ended(server)
    assert mountpoint.mounted_at(str(daemon.point)) is None


def test_what_was_written_is_nobodys_and_shown_as_roots(make: MakeDaemon) -> None:
    daemon = make()
    daemon.make("app").write_text("v1\n")
    assert (daemon.list_path("app").stat().st_uid, daemon.list_path("app").stat().st_gid) == (0, 0)
    assert daemon.stop() == 0
    [stored] = daemon.stored("app")
    assert (stored.stat().st_uid, stored.stat().st_gid) == (NOBODY, NOBODY)


def test_lists_that_were_closed_are_committed_at_the_end(make: MakeDaemon) -> None:
    daemon = make()
    for number in range(50):
        daemon.make(f"app-{number}").write_text(f"v{number}\n")
    assert daemon.stop() == 0
    assert all(daemon.stored(f"app-{number}") for number in range(50))


def test_a_busy_mount_ends_too(make: MakeDaemon) -> None:
    daemon = make()
    daemon.make("app").write_text("v1\n")
    held = os.open(daemon.list_path("app"), os.O_RDONLY)
    assert daemon.stop() == 0
    assert mountpoint.mounted_at(str(daemon.point)) is None
    close_dead(held)


def test_who_is_told_to_end_while_it_starts_has_not_failed(make: MakeDaemon) -> None:
    daemon = make(start=False)
    daemon.start(wait=False)
    server = server_of(daemon)
    os.kill(server, signal.SIGSTOP)
    try:
        os.kill(daemon.pid, signal.SIGTERM)
        eventually(lambda: mountpoint.mounted_at(str(daemon.point)) is None, "it is unmounted")
    finally:
        os.kill(server, signal.SIGCONT)
    assert daemon.wait() == 0
    assert daemon.messages() == []


def test_ctrl_c_reaches_the_supervisor_alone(make: MakeDaemon) -> None:
    daemon = make()
    assert os.getsid(server_of(daemon)) != os.getsid(daemon.pid)
    os.kill(daemon.pid, signal.SIGINT)
    assert daemon.wait() == 0


def test_other_signals_reach_the_server(make: MakeDaemon) -> None:
    assert make().stop() == 0
    daemon = make("--read-only")
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.await_message("afresh")
    os.kill(daemon.pid, signal.SIGUSR1)
    daemon.await_message("a read-only mount sweeps nothing")
    assert daemon.stop() == 0


def test_a_server_that_is_killed_leaves_no_mount(make: MakeDaemon) -> None:
    daemon = make()
    daemon.make("app").write_text("v1\n")
    held = os.open(daemon.list_path("app"), os.O_RDONLY)
    os.kill(server_of(daemon), signal.SIGKILL)
    assert daemon.wait() == 1
    assert any("the process that served it was killed (SIGKILL); unmounted" in said for said in daemon.messages())
    daemon.expected.append("was killed")
    assert mountpoint.mounted_at(str(daemon.point)) is None
    assert asked(daemon.point) == ""
    close_dead(held)
    assert make().list_path("app").read_text() == "v1\n"


def test_a_mount_that_was_made_since_is_left_alone(make: MakeDaemon, base: Path) -> None:
    first = make()
    server = server_of(first)
    os.kill(first.pid, signal.SIGSTOP)  # it learns of nothing before the next one is there
    mountpoint.unmount(str(first.point))
    eventually(lambda: ended(server), "the server ends with its mount")
    second = make()
    second.make("app").write_text("v1\n")
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait() == 0
    assert second.list_path("app").read_text() == "v1\n"
    assert second.stop() == 0


def test_a_supervisor_that_is_killed_leaves_no_mount_that_hangs(make: MakeDaemon) -> None:
    daemon = make()
    daemon.make("app").write_text("v1\n")
    server = server_of(daemon)
    daemon.kill()
    eventually(lambda: ended(server), "the server ends with its supervisor")
    assert asked(daemon.point) == os.strerror(107)  # ENOTCONN: dead, and says so
    following = make(expected=("unmounted what a killed daemon had left",))
    assert following.list_path("app").read_text() == "v1\n"


def test_a_store_of_somebody_else_is_refused_with_the_way_out(make: MakeDaemon, base: Path) -> None:
    os.chown(base / "store", 0, 0)
    daemon = make(start=False)
    daemon.start(wait=False)
    assert daemon.wait() == 3
    assert any(f"chown -R {NOBODY}:{NOBODY} {base / 'store'}" in said for said in daemon.messages())
    daemon.expected.append("may not be used")
    assert mountpoint.mounted_at(str(daemon.point)) is None


def test_a_store_that_is_foreign_is_refused_with_its_own_code(make: MakeDaemon, base: Path) -> None:
    (base / "store" / "thesis.tex").touch()
    daemon = make(start=False)
    daemon.start(wait=False)
    assert daemon.wait() == 3
    daemon.expected.append(r"thesis\.tex")
    assert any("thesis.tex" in said for said in daemon.messages())
    assert mountpoint.mounted_at(str(daemon.point)) is None


def test_another_user_serves_where_one_is_named(make: MakeDaemon, base: Path) -> None:
    os.chown(base / "store", 4321, 1234)
    daemon = make("--drop-user", "4321:1234")
    told = status_of(server_of(daemon))
    assert (told["Uid"][0], told["Gid"][0]) == ("4321", "1234")
    daemon.make("app").write_text("v1\n")
    assert daemon.stop() == 0


def run(base: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tagfs", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize("option", ["drop_privileges", "setuid=65534", "drop_privileges,setuid=nobody"])
def test_the_form_of_a_mount_helper_drops_privileges(base: Path, option: str) -> None:
    store, point = str(base / "store"), str(base / "point")
    done = run(base, store, point, "-o", f"rw,{option}")
    try:
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{point} shows {store}" in done.stdout
        (base / "point/imagerepository/team/app").mkdir(parents=True)
        (base / "point/imagerepository/team/app/tags.txt").write_text("v1\n")
    finally:
        mountpoint.unmount(point)
    stored = base / "store/imagerepository/team/app/tags.txt"
    assert eventually(stored.exists)
    assert stored.stat().st_uid == NOBODY


# -- a mount that somebody else has made


def hand_over(base: Path, *flags: str, wrapper: tuple[str, ...] = ()) -> tuple["subprocess.Popen[str]", str]:
    """Mount, and have tagfs serve it on the descriptor; -> it, and its first line."""
    descriptor = device.mount(device.Request(str(base / "point"), "handed over", False, True))
    try:
        server = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "tagfs", "mount", str(base / "store"), f"/dev/fd/{descriptor}", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=(descriptor,),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    finally:
        os.close(descriptor)
    assert server.stdout is not None
    return server, server.stdout.readline()


@pytest.mark.parametrize("flags", [("--drop-privileges",), ()], ids=["drops", "has none"])
def test_a_mount_that_was_made_before_is_served_without_capabilities(base: Path, flags: tuple[str, ...]) -> None:
    wrapper = () if flags else ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
    if not flags:
        os.chown(base / "store", 0, 0)
    server, line = hand_over(base, *flags, wrapper=wrapper)
    try:
        assert line.startswith(f"{base / 'point'} shows {base / 'store'}"), line
        assert int(status_of(server.pid)["CapEff"][0], 16) == 0
        (base / "point/imagerepository/team/app").mkdir(parents=True)
        (base / "point/imagerepository/team/app/tags.txt").write_text("v1\n")
        mountpoint.unmount(str(base / "point"))
        assert server.wait(PATIENCE) == 0
        assert (base / "store/imagerepository/team/app/tags.txt").read_text() == "v1\n"
    finally:
        server.kill()
        server.communicate()
        for _ in [one for one in mountpoint.mounts() if one.point == str(base / "point")]:
            mountpoint.unmount(str(base / "point"), lazy=True)


def test_who_was_handed_a_mount_ends_when_told_and_leaves_it_to_its_maker(base: Path) -> None:
    server, _ = hand_over(base, "--drop-privileges")
    try:
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
        assert asked(base / "point") == os.strerror(107)
    finally:
        server.kill()
        server.communicate()
        mountpoint.unmount(str(base / "point"), lazy=True)


def test_what_is_no_mount_is_refused(base: Path) -> None:
    done = run(base, "mount", str(base / "store"), "/dev/fd/77")
    assert done.returncode == 5
    assert "/dev/fd/77 is not open" in done.stderr


# -- what the supervisor takes from a process that may have been taken over


def test_what_the_server_says_is_only_said(tmp_path: Path) -> None:
    lines = [
        b'[null, "a line\\u001b[31m\\nand another"]',
        b'[3, "why\\u0007"]',
        b'[0, "no failure"]',
        b'[999, "no exit code"]',
        b'[true, "no exit code"]',
        b'{"code": 1}',
        b"[null]",
        b"\xff\xfe",
        b"[" * 5000,
        b"x" * (2 * supervisor.LINE_LIMIT),
    ]
    for order in (lines, lines[::-1]):
        told: list[str] = []
        reading, writing = os.pipe2(os.O_NONBLOCK)
        server = supervisor._Server(0, -1, reading)
        one = supervisor._Supervisor(str(tmp_path), server, told.append, -1, {})
        for line in order:
            os.write(writing, line + b"\n")
            one._listen()
        os.close(writing)
        while one._listen():
            pass
        os.close(reading)
        assert told == ["a line?[31m?and another"]
        assert one._failure == (3, "why?")


def test_whatever_signal_the_server_was_killed_by_is_told(tmp_path: Path) -> None:
    one = supervisor._Supervisor(str(tmp_path), supervisor._Server(0, -1, -1), print, -1, {})
    for signum, name in ((signal.SIGSEGV, "SIGSEGV"), (signal.SIGRTMIN + 1, f"signal {signal.SIGRTMIN + 1}")):
        with pytest.raises(ServerFailed, match=rf"was killed \({name}\)"):
            one._judge(-signum)


# -- whom to become


def test_who_can_serve() -> None:
    nobody = privileges.Account(NOBODY, NOBODY)
    assert privileges.account(None) == privileges.account("nobody") == privileges.account("65534") == nobody
    assert privileges.account("7:8") == privileges.Account(7, 8)
    for name in ("root", "0", "0:7"):
        with pytest.raises(MountRefused, match="root does not serve"):
            privileges.account(name)
    for name in ("4294967295", "7:4294967295", "99999999999"):
        with pytest.raises(MountRefused, match="ids are at most"):
            privileges.account(name)
    with pytest.raises(MountRefused, match="there is no user nobody-here"):
        privileges.account("nobody-here")


# -- the service manager's watchdog


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"{directory}/notify")
        os.chmod(f"{directory}/notify", 0o777)
        os.chmod(directory, 0o755)
        listening.settimeout(PATIENCE)
        yield listening


def test_the_watchdog_hears_of_a_mount_that_answers_and_of_no_other(make: MakeDaemon, manager: socket.socket) -> None:
    daemon = make(start=False)
    # The limit is one of seconds, so that a busy machine is late but not silent.
    daemon.environment = {notify.SOCKET: manager.getsockname(), notify.WATCHDOG_TIME: "1500000"}
    daemon.start()

    def alive() -> bool:
        return notify.ALIVE in manager.recv(4096).decode().split("\n")

    while not alive():
        pass
    server = server_of(daemon)
    os.kill(server, signal.SIGSTOP)
    try:
        children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children")
        # A look that is under way, and stays so: everything that was alive has been told by then.
        eventually(lambda: any(int(child) != server and waits(int(child)) for child in children.read_text().split()))
        manager.settimeout(1.0)
        with pytest.raises(TimeoutError):
            while not alive():
                pass
        # What is sent to a child that looks is not for the supervisor.
        for child in children.read_text().split():
            if int(child) != server:
                os.kill(int(child), signal.SIGTERM)
    finally:
        os.kill(server, signal.SIGCONT)
    manager.settimeout(PATIENCE)
    for _ in range(2):  # the look that was under way, and a later one
        while not alive():
            pass
    assert daemon.stop() == 0


def test_a_mount_that_cannot_be_looked_at_is_served_all_the_same(make: MakeDaemon, manager: socket.socket) -> None:
    daemon = make(start=False, expected=("cannot be looked at: .*Too many open files",))
    daemon.environment = {notify.SOCKET: manager.getsockname(), notify.WATCHDOG_TIME: "300000"}
    daemon.start()
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    daemon.await_message("cannot be looked at")
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
    daemon.make("app").write_text("v1\n")
    assert daemon.stop() == 0


def waits(process: int) -> bool:
    """Whether it waits for an answer of the mount."""
    try:
        return (
            "fuse" in Path(f"/proc/{process}/wchan").read_text()
            or "request_wait" in Path(f"/proc/{process}/stack").read_text()
        )
    except (FileNotFoundError, ProcessLookupError):
        return False
