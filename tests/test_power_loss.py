"""A true power loss: an ext4 in a file is shut down beneath the mount, with all that was only in memory lost.

`EXT4_IOC_SHUTDOWN` without a flush of the log leaves the disk as a power cut would: what was not synced is gone.  The
journal does not commit by itself while a test runs, so nothing survives by luck.  The controls at the end show that
the same steps do lose lists when fsync, fdatasync and syncfs are answered by strace without being made.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tagfs.disk import Disk
from tagfs.names import VERSION_SENTINEL, WIPE_SENTINEL
from tests.conftest import MakeDaemon
from tests.support.daemon import Daemon, eventually
from tests.support.tracing import Call, is_change, recorded, require_strace, threads, traced
from tests.support.verdict import check_command, files, problems, stages
from tests.support.volumes import Volume, ext4

pytestmark = [pytest.mark.mount, pytest.mark.slow]

OPTIONS = "data=ordered,commit=300"
ANYTHING = (r".",)
"""What a daemon says whose disk is gone is not looked at."""

SYNCS = "fsync,fdatasync,syncfs"
WITHOUT_SYNCS = ("strace", "-f", "-qq", "-o", os.devnull, f"--trace={SYNCS}", f"--inject={SYNCS}:retval=0")

SMALL, SMALL_NEW = b"v1\nv2\n", b"v1\nv2\nv3\n"
LARGE = b"".join(b"1.0.%d\n" % number for number in range(2000))
LARGE_NEW = LARGE + b"2.0.0\n"


@dataclass
class Machine:
    """A daemon on a store on a disk that can lose its power."""

    volume: Volume
    make: MakeDaemon
    point: Path
    daemon: Daemon = field(init=False)

    @property
    def store(self) -> Path:
        return self.volume.path / "store"

    def start(self, *flags: str, wrapper: tuple[str, ...] = (), wait: bool = True) -> Daemon:
        self.daemon = self.make(
            *flags, store=self.store, point=self.point, wrapper=wrapper, expected=ANYTHING, start=False
        )
        return self.daemon.start(wait)

    def rest(self) -> None:
        """Make all that was written so far durable, and end the daemon."""
        assert self.daemon.stop() == 0
        self.sync()

    def sync(self) -> None:
        root = os.open(self.volume.path, os.O_RDONLY)
        Disk().sync_filesystem(root)
        os.close(root)

    def lose_power(self) -> None:
        self.volume.cut()
        if self.daemon.process is not None and self.daemon.process.poll() is None:
            self.daemon.kill()
        self.daemon.unmount_rest()
        self.volume.unmount()
        self.volume.repair()

    def show(self, *flags: str) -> Daemon:
        """What the next mount shows."""
        expected = (r"put back, after a writer", r"it is an empty")
        self.daemon = daemon = self.make(*flags, store=self.store, point=self.point, expected=expected)
        eventually(lambda: not stages(self.store), "stages to be tidied away")
        eventually(lambda: not problems(self.store), "nothing to be out of order")
        return daemon


@pytest.fixture
def machine(daemons: MakeDaemon, tmp_path: Path) -> Iterator[Machine]:
    with ext4(tmp_path, options=OPTIONS) as volume:
        machine = Machine(volume, daemons, tmp_path / "point")
        try:
            yield machine
        finally:
            # Before the volume: the daemon has it open.
            if hasattr(machine, "daemon"):
                machine.daemon.end()


# -- what was acknowledged


def by_rename(path: Path, content: bytes) -> None:
    scratch = path.with_name("tags.txt77")
    scratch.write_bytes(content)
    scratch.rename(path)


def in_place_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def appended(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content[len(path.read_bytes()) :])
        file.flush()
        os.fsync(file.fileno())


def truncated(path: Path, content: bytes) -> None:
    os.truncate(path, len(content))


def with_an_old_time(path: Path, content: bytes) -> None:
    scratch = path.with_name(".tags.txt.Xy12")
    scratch.write_bytes(content)
    os.utime(scratch, (1, 1))
    scratch.rename(path)


def after_renaming_away(path: Path, content: bytes) -> None:
    backup = path.with_name("tags.txt.bak")
    path.rename(backup)
    in_place_synced(path, content)
    backup.unlink()


def removed(path: Path, content: bytes) -> None:
    path.unlink()


def removed_by_its_backup(path: Path, content: bytes) -> None:
    backup = path.with_name("tags.txt.bak")
    path.rename(backup)
    backup.unlink()


Change = Callable[[Path, bytes], None]

CHANGES: dict[str, tuple[Change, bytes | None, bytes | None]] = {
    "rename": (by_rename, SMALL, SMALL_NEW),
    "rename-large": (by_rename, LARGE, LARGE_NEW),
    "fsync": (in_place_synced, SMALL, SMALL_NEW),
    "fsync-large": (in_place_synced, LARGE, LARGE_NEW),
    "append": (appended, SMALL, SMALL_NEW),
    "truncate": (truncated, SMALL_NEW, SMALL),
    "to-compressed": (by_rename, SMALL, LARGE),
    "to-plain": (by_rename, LARGE, SMALL),
    "to-plain-in-place": (in_place_synced, LARGE, SMALL),
    "old-time": (with_an_old_time, LARGE, SMALL),
    "away": (after_renaming_away, SMALL, LARGE),
    "first": (by_rename, None, SMALL),
    "first-large": (in_place_synced, None, LARGE),
    "unlink": (removed, SMALL, None),
    "unlink-large": (removed, LARGE, None),
    "backup-unlink": (removed_by_its_backup, SMALL, None),
}
"""Name of a list -> (how it is changed, what it was, what it is once that is acknowledged)."""


def make_old(daemon: Daemon) -> None:
    for name, (_, old, _) in CHANGES.items():
        if old is not None:
            by_rename(daemon.make(name), old)
    by_rename(daemon.make("unsynced"), SMALL)


def change_all(daemon: Daemon) -> None:
    for name, (change, old, new) in CHANGES.items():
        change(daemon.make(name) if old is None else daemon.list_path(name), new or b"")
    daemon.list_path("unsynced").write_bytes(LARGE)


def content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def test_what_was_acknowledged_survives(machine: Machine) -> None:
    make_old(machine.start())
    machine.rest()
    change_all(machine.start())
    machine.lose_power()
    daemon = machine.show()
    for name, (_, _, new) in CHANGES.items():
        assert content(daemon.list_path(name)) == new, name
    assert content(daemon.list_path("unsynced")) in (SMALL, LARGE)
    code, said = check_command(machine.store)
    assert code == 0, said


WRITERS = 4


def numbered(serial: int) -> bytes:
    """Version `serial` of a list, of any size from 20 bytes to 30 KiB, that says by itself whether it is whole."""
    tags = serial * 7919 % 2000 + 1
    return b"".join(b"s%d-%d-of-%d\n" % (serial, number, tags) for number in range(1, tags + 1))


def serial_of(text: bytes) -> int:
    serial = int(text[1 : text.index(b"-")])
    assert text == numbered(serial), "neither the old list nor the new one"
    return serial


@pytest.mark.parametrize("commits", [1, 10, 40, 41, 80, 120])
def test_writers_that_are_cut_off_lose_nothing_acknowledged(machine: Machine, commits: int) -> None:
    daemon = machine.start()
    paths = [daemon.make(f"list{number}") for number in range(WRITERS)]
    for path in paths:
        by_rename(path, numbered(0))
    begun, acknowledged = [0] * WRITERS, [0] * WRITERS

    def write(number: int) -> None:
        with suppress(OSError):
            while True:
                begun[number] += 1
                (by_rename, in_place_synced)[begun[number] // 3 % 2](paths[number], numbered(begun[number]))
                acknowledged[number] = begun[number]

    writers = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        eventually(lambda: sum(acknowledged) >= commits, f"{commits} commits")
    finally:
        machine.lose_power()
        for writer in writers:
            writer.join()
    daemon = machine.show()
    for number in range(WRITERS):
        serial = serial_of(daemon.list_path(f"list{number}").read_bytes())
        assert acknowledged[number] <= serial <= begun[number], f"list{number}"


# -- at each call


def is_stopped(log: Path) -> bool:
    return log.exists() and "stopped by SIGSTOP" in log.read_text(errors="replace")


def await_stop(log: Path, is_under_way: Callable[[], bool]) -> None:
    """Return when the traced program has been stopped, or has come to its end without."""
    eventually(lambda: is_stopped(log) or not is_under_way(), "a stop")


def is_running(process: subprocess.Popen[bytes]) -> Callable[[], bool]:
    return lambda: process.poll() is None


def is_starting(daemon: Daemon) -> Callable[[], bool]:
    return lambda: not any(" shows " in line for line in daemon.ready_lines)


TURNS = 3
"""How often a cut after one call is tried until the traced threads make it."""

CUT_WITHIN = {
    name: CHANGES[name] for name in ("to-compressed", "to-plain", "old-time", "unlink-large", "away", "first")
}


@pytest.mark.parametrize("name", CUT_WITHIN)
def test_a_commit_that_is_cut_off_after_any_call_leaves_the_old_list_or_the_new_one(
    name: str, machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_strace()
    change, old, new = CHANGES[name]
    log = tmp_path / "strace"
    daemon = machine.start()
    points = recorded_changes(daemon, machine.store, log, change, old, new)
    assert len(points) >= 2
    cut = 0
    missed: list[str] = []
    for number, call in enumerate(points):
        # A worker that was idle for long ends, and then another one, that is not traced, does the work: once more.
        for turn in range(TURNS):
            path = daemon.list_path(f"list{number}-{turn}")
            if old is not None:
                by_rename(daemon.make(path.parent.name), old)
            by_rename(daemon.make("neighbour"), LARGE)
            machine.sync()
            log.unlink(missing_ok=True)
            with traced(threads(daemon.pid, call.is_loop), f"--inject={call.injection('signal=STOP')}", log=log):
                program = threading.Thread(target=attempt, args=(change, path, new or b"", old is None))
                program.start()
                await_stop(log, program.is_alive)
                is_cut = is_stopped(log)
                machine.lose_power()
            program.join()
            daemon = machine.show()
            assert content(daemon.list_path(path.parent.name)) in (old, new), f"cut off after {call}"
            assert daemon.list_path("neighbour").read_bytes() == LARGE
            daemon.expected.extend(ANYTHING)
            if is_cut:
                cut += 1
                break
        else:
            missed.append(str(call))
    with capsys.disabled():
        print(f"\n  {name}: cut off after {cut} of {len(points)} calls")
    # The loop opens files for others too, so that a count of its calls may be another one's.
    assert len(missed) <= max(1, 0.1 * len(points)), f"not reached: {missed}"


def attempt(change: Change, path: Path, text: bytes, is_first: bool) -> None:
    with suppress(OSError):
        if is_first:
            path.parent.mkdir(parents=True)
        change(path, text)


def recorded_changes(
    daemon: Daemon, store: Path, log: Path, change: Change, old: bytes | None, new: bytes | None
) -> list[Call]:
    """The calls that change something on the disk while a list is changed, but those of directories, which a second
    list beside does not make again."""
    by_rename(daemon.make("warm"), SMALL)
    path = daemon.list_path("recorded")
    if old is not None:
        by_rename(daemon.make("recorded"), old)

    def act() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        change(path, new or b"")
        content(path)

    return [call for call in recorded(daemon.pid, act, log) if is_change(call, store)]


# -- a wipe, a conversion

BADGER = dict.fromkeys(("KEYREGISTRY", "MANIFEST", "000001.vlog", "000001.sst"), b"badger")
WIPE_POINTS = [
    *(f"fsync:signal=STOP:when={number}" for number in range(1, 6)),
    *(f"unlinkat:signal=STOP:when={number}" for number in range(1, 6)),
    "renameat:signal=STOP:when=1",
]


def test_a_wipe_that_is_cut_off_is_finished_by_the_next_mount(machine: Machine, tmp_path: Path) -> None:
    require_strace()
    log = tmp_path / "strace"
    cut = 0
    for point in WIPE_POINTS:
        machine.store.mkdir(exist_ok=True)
        for path in [path for path in machine.store.iterdir() if path.is_file()]:
            path.unlink()
        for name, data in BADGER.items():
            (machine.store / name).write_bytes(data)
        machine.sync()
        log.unlink(missing_ok=True)
        name = point.partition(":")[0]
        daemon = machine.start(
            wrapper=("strace", "-f", "-qq", "-o", str(log), f"--trace={name}", f"--inject={point}"), wait=False
        )
        await_stop(log, is_starting(daemon))
        cut += is_stopped(log)
        machine.lose_power()
        there = files(machine.store)
        if not (machine.store / WIPE_SENTINEL).exists():
            assert {name: data for name, data in there.items() if not name.startswith(".")} in (BADGER, {}), point
        assert set(there) & set(BADGER) or there[VERSION_SENTINEL] == b"3\n", point
        daemon = machine.show()
        assert files(machine.store) == {VERSION_SENTINEL: b"3\n"}, point
        by_rename(daemon.make("app"), SMALL)
        assert daemon.list_path("app").read_bytes() == SMALL
        assert daemon.stop() == 0
        for path in sorted(machine.store.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    assert cut >= len(WIPE_POINTS) - 2


LISTS = 100
"""More than one group of a conversion."""

CONVERT_POINTS = [
    *(f"syncfs:signal=STOP:when={number}" for number in (1, 2, 3, 4, 5, 8)),
    *(f"renameat:signal=STOP:when={number}" for number in (1, 20, 70)),
    *(f"unlinkat:signal=STOP:when={number}" for number in (1, 20, 70)),
    "utimensat:signal=STOP:when=150",
]


def test_a_conversion_that_is_cut_off_loses_nothing_and_is_taken_up_again(machine: Machine, tmp_path: Path) -> None:
    require_strace()
    log = tmp_path / "strace"
    expected = {f"list{number}": numbered(number + 1) for number in range(LISTS)}
    daemon = machine.start()
    for name, text in expected.items():
        by_rename(daemon.make(name), text)
    machine.rest()
    cut = 0
    for number, point in enumerate(CONVERT_POINTS):
        codec = ("gzip", "zstd")[number % 2]
        log.unlink(missing_ok=True)
        name = point.partition(":")[0]
        strace = ("strace", "-f", "-qq", "-o", str(log), f"--trace={name}", f"--inject={point}")
        converting = subprocess.Popen([*strace, *convert(machine.store, codec)], stdout=subprocess.DEVNULL)
        await_stop(log, is_running(converting))
        cut += is_stopped(log)
        machine.volume.cut()
        converted = children(converting.pid)
        for pid in converted:
            os.kill(pid, signal.SIGKILL)
        converting.wait()
        machine.lose_power()
        daemon = machine.show()
        for name, text in expected.items():
            assert daemon.list_path(name).read_bytes() == text, f"{name}, converted to {codec}, cut off after {point}"
        assert daemon.stop() == 0
        subprocess.run(convert(machine.store, codec), check=True, stdout=subprocess.DEVNULL)
        assert not problems(machine.store)
        machine.sync()
    assert cut >= len(CONVERT_POINTS) - 1


def convert(store: Path, codec: str) -> list[str]:
    return [sys.executable, "-m", "tagfs", "convert", str(store), "--codec", codec]


def children(pid: int) -> list[int]:
    try:
        return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    except FileNotFoundError:
        return []


# -- the controls


@pytest.mark.usefixtures("traceable")
def test_control_without_fsync_acknowledged_lists_are_lost(machine: Machine) -> None:
    make_old(machine.start())
    machine.rest()
    change_all(machine.start(wrapper=WITHOUT_SYNCS))
    machine.lose_power()
    lost = []
    daemon = machine.make(store=machine.store, point=machine.point, expected=ANYTHING)
    machine.daemon = daemon
    for name, (_, _, new) in CHANGES.items():
        try:
            is_lost = content(daemon.list_path(name)) != new
        except OSError:
            is_lost = True
        if is_lost:
            lost.append(name)
    assert len(lost) > len(CHANGES) // 2, f"only {lost} were lost: would the tests above find anything?"


@pytest.fixture
def traceable() -> None:
    require_strace()
