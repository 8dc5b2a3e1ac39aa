"""SIGKILL at each system call: of every kind of commit, and of a wipe, through a real mount.

strace sends the signal when the call begins, so that the call is not made any more.  Between two calls that change
something on the disk nothing else can be found there, so each such call is one point, and so is the answer to the
kernel that follows; one kind of commit is killed at a sample of all its calls, whatever they do.
"""

import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tagfs.names import STAGE_DIRECTORY, VERSION_SENTINEL, WIPE_SENTINEL
from tests.conftest import MakeDaemon
from tests.support.daemon import Daemon, eventually
from tests.support.tracing import Call, calls, is_change, recorded, require_strace, threads, traced
from tests.support.verdict import check_command, files, problems, stages

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(600)]

_WAITING = "futex epoll_wait epoll_ctl restart_syscall prctl getpid poll ppoll select rt_sigprocmask"
WAITING = frozenset(_WAITING.split())
"""System calls that have nothing to do with the change, and come in no fixed number."""

EVERY_CALL = "TAGFS_KILL_AT_EVERY_CALL"
"""Environment variable: set, every commit is killed at all of its calls, which takes an hour."""
SAMPLE = 5
"""Without it, one commit is killed at each so-manieth of all its calls."""

OLD, NEW = b"v1\nv2\n", b"v1\nv2\nv3\n"
OLD_LARGE = b"".join(b"1.0.%d\n" % number for number in range(2000))
NEW_LARGE = OLD_LARGE + b"2.0.0\n"

KILLED = (r"unmounted what a killed daemon had left", r"put back, after a writer had renamed it away")
"""What a daemon says after another one was killed."""

Act = Callable[[Path, bytes], object]
"""Changes a list; when it returns, the change has been acknowledged as durable or it is none of those that are."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A change of a list from `old` to `new` (None: there is none) by `act`.

    `is_durable`: once `act` has returned, only the new one may be found.
    """

    name: str
    act: Act
    old: bytes | None = OLD
    new: bytes | None = NEW
    is_durable: bool = True


def in_place(path: Path, new: bytes) -> None:
    path.write_bytes(new)


def in_place_synced(path: Path, new: bytes) -> None:
    with path.open("wb") as file:
        file.write(new)
        file.flush()
        os.fsync(file.fileno())


def by_rename(path: Path, new: bytes) -> None:
    scratch = path.with_name("tags.txt123")
    scratch.write_bytes(new)
    scratch.rename(path)


def by_rename_with_an_old_time(path: Path, new: bytes) -> None:
    scratch = path.with_name(".tags.txt.Xy12")
    scratch.write_bytes(new)
    os.utime(scratch, (1, 1))
    scratch.rename(path)


def by_appending(path: Path, new: bytes) -> None:
    with path.open("ab") as file:
        file.write(new.removeprefix(OLD))
        file.flush()
        os.fsync(file.fileno())


def by_truncating(path: Path, new: bytes) -> None:
    os.truncate(path, len(new))


def by_removing(path: Path, new: bytes) -> None:
    path.unlink()


def by_renaming_away(path: Path, new: bytes) -> None:
    backup = path.with_name("tags.txt.bak")
    path.rename(backup)
    in_place_synced(path, new)
    backup.unlink()


def by_removing_the_backup(path: Path, new: bytes) -> None:
    backup = path.with_name("tags.txt.bak")
    path.rename(backup)
    backup.unlink()


def with_directories(path: Path, new: bytes) -> None:
    path.parent.mkdir(parents=True)
    by_rename(path, new)


OPERATIONS = (
    Operation("in place", in_place, is_durable=False),
    Operation("in place, with fsync", in_place_synced),
    Operation("rename over", by_rename),
    Operation("append, with fsync", by_appending),
    Operation("truncate", by_truncating, NEW, OLD),
    Operation("plain to compressed", by_rename, OLD, NEW_LARGE),
    Operation("compressed to plain", by_rename, OLD_LARGE, NEW),
    Operation("compressed to plain, with an old time", by_rename_with_an_old_time, OLD_LARGE, NEW),
    Operation("compressed, in place", in_place, OLD_LARGE, NEW_LARGE, is_durable=False),
    Operation("unlink", by_removing, OLD, None),
    Operation("rename away and a successor", by_renaming_away),
    Operation("rename away and unlink", by_removing_the_backup, OLD, None),
    Operation("mkdir and the first list", with_directories, None, NEW),
)
SAMPLED = "compressed to plain"


class Victim:
    """A store with two lists, and a daemon on it that is killed and started again."""

    def __init__(self, daemon: Daemon, operation: Operation, log: Path) -> None:
        self.daemon = daemon
        self.operation = operation
        self.log = log
        neighbour = daemon.make("neighbour", "others")
        by_rename(neighbour, OLD_LARGE)
        self.path = daemon.list_path("app")

    def content(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None

    def restore(self) -> None:
        """The old list again, by a worker thread that the next change will use too."""
        if self.operation.old is None:
            with suppress(FileNotFoundError):
                self.path.unlink()
            for directory in (self.path.parent, self.path.parent.parent):
                with suppress(FileNotFoundError):
                    directory.rmdir()
            by_rename(self.daemon.make("neighbour", "others"), OLD_LARGE + b"1\n")
            by_rename(self.daemon.make("neighbour", "others"), OLD_LARGE)
        else:
            by_rename(self.daemon.make("app"), self.operation.old + b"0\n")
            by_rename(self.path, self.operation.old)
        assert self.content() == self.operation.old

    def record(self) -> list[Call]:
        """Every call that the change makes each time: a daemon that was just started tidies beside the first."""
        first = {(call.is_loop, call.name, call.number) for call in self._recorded()}
        return [call for call in self._recorded() if (call.is_loop, call.name, call.number) in first]

    def _recorded(self) -> list[Call]:
        self.restore()

        def act() -> None:
            self.operation.act(self.path, self.operation.new or b"")
            self.settle()

        found = recorded(self.daemon.pid, act, self.log)
        assert self.content() == self.operation.new
        return found

    def settle(self) -> None:
        """Return when the change is done with, because a lookup waits for it; OSError where the daemon is dead."""
        with suppress(FileNotFoundError):
            os.stat(self.path)

    def kill_at(self, call: Call) -> bool:
        """Change the list and kill the daemon at `call`; whether it came to that.  Checks what the next mount shows."""
        self.restore()
        before = self.others()
        targets = threads(self.daemon.pid, call.is_loop)
        is_acknowledged = is_killed = False
        with traced(targets, f"--inject={call.injection('signal=KILL')}", log=self.log):
            try:
                self.operation.act(self.path, self.operation.new or b"")
                is_acknowledged = self.operation.is_durable
                self.settle()
            except OSError:
                is_killed = True
        if not is_killed:
            return False
        assert self.daemon.wait() == -signal.SIGKILL
        self.daemon.start()
        allowed = [self.operation.new] if is_acknowledged else [self.operation.new, self.operation.old]
        assert self.content() in allowed, f"killed at {call}: the list is neither whole old nor whole new"
        eventually(lambda: not stages(self.daemon.store), f"stages to be tidied away after a kill at {call}")
        eventually(lambda: not problems(self.daemon.store), f"no problem after a kill at {call}")
        assert self.others() == before, f"killed at {call}: something else changed"
        return True

    def others(self) -> dict[str, bytes]:
        return files(self.daemon.store, (STAGE_DIRECTORY, "imagerepository/team"))


def changes(found: list[Call], store: Path) -> list[Call]:
    """The calls that change something on the disk, and after each the first answer to the kernel."""
    points = []
    is_answered = True
    for call in found:
        if is_change(call, store):
            points.append(call)
            is_answered = False
        elif call.name == "writev" and "/dev/fuse" in call.arguments and not is_answered:
            points.append(call)
            is_answered = True
    return points


def test_the_next_mount_clears_a_dead_one_whose_attributes_the_kernel_still_has(daemons: MakeDaemon) -> None:
    daemon = daemons(expected=KILLED)
    daemon.make("app")
    assert daemon.point.stat().st_mode
    daemon.kill()
    assert daemon.point.stat().st_mode
    daemon.start()
    assert daemon.make("app").parent.is_dir()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_a_commit_killed_at_any_call_leaves_the_old_list_or_the_new_one(
    operation: Operation, daemons: MakeDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_strace()
    victim = Victim(daemons(expected=KILLED), operation, tmp_path / "strace")
    found = victim.record()
    points = changes(found, victim.daemon.store)
    assert any(call.name == "fsync" for call in points)
    every = [call for call in found if call.name not in WAITING]
    if EVERY_CALL in os.environ:
        points = every
    elif operation.name == SAMPLED:
        points = sorted({*points, *every[::SAMPLE]}, key=found.index)
    # Twice, because a worker that was idle for long ends, and then another one, that is not traced, does the work.
    killed = [call for call in points if victim.kill_at(call) or victim.kill_at(call)]
    code, said = check_command(victim.daemon.store)
    assert code == 0, said
    with capsys.disabled():
        print(f"\n  {operation.name}: killed at {len(killed)} of {len(points)} calls")
    missed = [str(call) for call in points if call not in killed]
    assert len(missed) <= max(1, 0.1 * len(points)), f"not reached: {missed}"


# -- a wipe

BADGER = dict.fromkeys(("KEYREGISTRY", "MANIFEST", "000001.vlog", "000001.sst", "DISCARD"), b"badger")
FOREIGN = {"holiday.jpg": b"jpeg", "imagerepository/team/app/tags.txt": b"v0\n", "deep/er/and/deeper": b"!"}
KEPT = {"lost+found/#12": b"found"}


def fill(store: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(data)


def killed_from_start(daemon: Daemon, log: Path, injection: str) -> bool:
    """Start a daemon that is killed at a call; whether it came to that before it showed its store."""
    name = injection.partition(":")[0]
    daemon.wrapper = ("strace", "-f", "-qq", "-o", str(log), f"--trace={name}", f"--inject={injection}")
    daemon.ready_lines.clear()
    daemon.start(wait=False)
    assert daemon.process is not None
    process = daemon.process
    eventually(lambda: process.poll() is not None or any(" shows " in line for line in daemon.ready_lines))
    if process.poll() is None:
        daemon.await_line(" shows ")
        daemon.stop()
    daemon.wait()
    daemon.wrapper = ()
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("content", "flags"), [(BADGER, ()), (FOREIGN, ("--wipe-foreign",))], ids=["BadgerDB", "foreign"]
)
def test_a_wipe_killed_at_any_call_and_once_more_is_finished_by_the_next_mount(
    content: dict[str, bytes],
    flags: tuple[str, ...],
    daemons: MakeDaemon,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    require_strace()
    log, store = tmp_path / "strace", tmp_path / "store"
    wiped = (*KILLED, r"it is an empty store of format 3 now")
    daemon = daemons(*flags, start=False, expected=wiped)
    fill(store, content | KEPT)
    daemon.wrapper = ("strace", "-f", "-y", "-qq", "-o", str(log))
    daemon.start()
    points = [call for call in changes(calls(log, daemon.pid), store) if call.is_loop and call.name != "writev"]
    daemon.stop()
    assert len(points) > len(content) + 9
    killed = 0
    for number, call in enumerate(points):
        shutil.rmtree(store)
        fill(store, content | KEPT)
        killed += killed_from_start(daemon, log, call.injection("signal=KILL"))
        require_safe(store, content, f"killed at {call}")
        if number % 2:
            again = ("unlinkat", "fsync")[number // 2 % 2]
            killed += killed_from_start(daemon, log, f"{again}:signal=KILL:when={1 + number % 3}")
            require_safe(store, content, f"killed at {call}, then at {again}")
        daemon.start()
        assert files(store) == {VERSION_SENTINEL: b"3\n", **KEPT}, f"killed at {call}"
        path = daemon.make("app")
        by_rename(path, NEW)
        assert path.read_bytes() == NEW
        assert not problems(store)
        daemon.kill()
        daemon.unmount_rest()
    with capsys.disabled():
        print(f"\n  wipe: killed {killed} times, at each of {len(points)} calls, and some of them once more")
    assert killed > len(points)


def require_safe(store: Path, content: dict[str, bytes], when: str) -> None:
    """The store says that it is being wiped, or it is as it was, or it is new."""
    if (store / WIPE_SENTINEL).exists():
        return
    there = files(store)
    sentinels = {name for name in there if name.startswith(VERSION_SENTINEL)}
    rest = {name: data for name, data in there.items() if name not in sentinels}
    assert rest in (content | KEPT, KEPT), f"{when}: a part of it is gone, and nothing says so"
    assert rest == content | KEPT or there[VERSION_SENTINEL] == b"3\n", when
