"""A soak: writers of every kind, readers of every kind, a read-only mount beside, and `kill -9` at random times.

By hand, for as long as wanted:  python -m tests.soak --seconds 3600 --seed 7

Each version of a list says which it is, and its whole content follows from that, so that every read is checked to the
byte: exactly one version, none that was not begun yet, and none older than the last one that was acknowledged before
the read began.  What each side knows of the other is on a board in shared memory.
"""

import argparse
import errno
import json
import mmap
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from tests.support.daemon import Daemon, eventually
from tests.support.verdict import check_command, problems

NAMESPACE = "soak"

LAG = 5.0
"""Seconds after which the read-only mount has to show what was acknowledged: far more than it takes."""

HANG = 30.0
"""Seconds without a sign of life from a worker that are a defect."""

GENERATION = 400
"""Lines that an appender writes to one list before it goes on to the next one."""

MOST_TAGS = 1500

WORKERS = 24
COUNTERS = ("reads", "commits", "absent", "cut_off", "stale", "bus_errors", "listings")

_KILLED = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENOENT, errno.ENODEV, errno.EAGAIN, errno.ESTALE)
"""What a program may be told whose daemon was killed beneath it."""


# -- the lists


@dataclass(frozen=True, slots=True)
class Series:
    """The versions that one writer gives to a list; `slot` is its place on the board.

    `gap` says that even events take the list away: 1 for good, 2 until the daemon is killed, which puts it back.
    """

    slot: int
    name: str
    gap: int = 0
    has_directory: bool = True


SERIES = (
    Series(0, "in-place-0"),
    Series(1, "in-place-1"),
    Series(2, "rename-0"),
    Series(3, "rename-1"),
    Series(4, "removed", gap=1),
    Series(5, "tree", gap=1, has_directory=False),
    Series(6, "away", gap=2),
    Series(7, "shared"),
    Series(8, "shared"),
)
APPENDERS = (9, 10)
SLOTS = 11

IN_PLACE, BY_RENAME, REMOVED, TREE, AWAY, SHARED = SERIES[:2], SERIES[2:4], SERIES[4], SERIES[5], SERIES[6], SERIES[7:]
ALWAYS = [series.name for series in SERIES if series.has_directory]


def version(slot: int, event: int) -> bytes:
    """The list that event number `event` makes."""
    tags = event * 7919 % MOST_TAGS + 1 if event % 3 else event * 31 % 60 + 1
    lines = [b"h-%d-%d-%d" % (slot, event, tags), *(b"t-%d-%d-%d" % (slot, event, tag) for tag in range(tags))]
    return b"\n".join(lines) + b"\n"


def which(text: bytes) -> tuple[int, int]:
    """(slot, event) of a list; ValueError unless it is one version, whole."""
    head = text[: text.find(b"\n")].split(b"-")
    if len(head) != 4 or head[0] != b"h":
        raise ValueError(f"does not begin as a version does: {text[:60]!r}")
    slot, event = int(head[1]), int(head[2])
    expected = version(slot, event)
    if text != expected:
        at = next((i for i, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b), -1)
        raise ValueError(f"event {event}: {len(text)} bytes of {len(expected)}, first other byte at {at}")
    return slot, event


# -- what all know


class Board:
    """Numbers that all processes share.

    `epoch` is odd while the daemon is down.  `begun`, `durable` and `visible` are the numbers of events of each slot:
    the last one begun, the last one acknowledged as durable, and, with the epoch in which that holds, the last one
    that others can see.  `settled` is `durable` of LAG ago.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * (8 + 4 * SLOTS + WORKERS * (1 + len(COUNTERS))))
        self._view = memoryview(self._memory).cast("q")
        self.begun = self._view[8 : 8 + SLOTS]
        self.durable = self._view[8 + SLOTS : 8 + 2 * SLOTS]
        self._visible = self._view[8 + 2 * SLOTS : 8 + 3 * SLOTS]
        self.settled = self._view[8 + 3 * SLOTS : 8 + 4 * SLOTS]
        rest = 8 + 4 * SLOTS
        self.alive = self._view[rest : rest + WORKERS]
        self._counts = self._view[rest + WORKERS :]

    @property
    def epoch(self) -> int:
        return self._view[0]

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._view[0] = value

    @property
    def is_over(self) -> bool:
        return self._view[1] != 0

    def end(self) -> None:
        self._view[1] = 1

    def count(self, worker: int, counter: str, by: int = 1) -> None:
        self._counts[worker * len(COUNTERS) + COUNTERS.index(counter)] += by

    def total(self, counter: str) -> int:
        return sum(self._counts[w * len(COUNTERS) + COUNTERS.index(counter)] for w in range(WORKERS))

    def see(self, slot: int, epoch: int, event: int) -> None:
        self._visible[slot] = epoch << 40 | event

    def floor(self, slot: int, epoch: int) -> int:
        """The oldest event that may still be seen in `epoch`."""
        seen_epoch, event = divmod(self._visible[slot], 1 << 40)
        return max(self.durable[slot], event if seen_epoch == epoch else 0)


class Violation(Exception):
    """The invariant did not hold."""


class Worker:
    """One process of the soak.

    Args:
        point: the mount that it uses.
        is_late: it reads the read-only mount, which is told of changes.
    """

    def __init__(
        self, board: Board, number: int, point: Path, seed: int, violations: Path, is_late: bool = False
    ) -> None:
        self.board = board
        self.number = number
        self.point = point
        self.random = random.Random(f"{seed}-{number}")
        self.is_late = is_late
        self._violations = violations

    def path(self, name: str) -> Path:
        return self.point / "imagerepository" / NAMESPACE / name / "tags.txt"

    def up(self) -> int:
        """The epoch, once the daemon is up."""
        while True:
            self.live()
            epoch = self.board.epoch
            if epoch % 2 == 0 and epoch > 0:
                return epoch
            time.sleep(0.01)

    def live(self) -> None:
        self.board.alive[self.number] = time.monotonic_ns()
        if self.board.is_over:
            raise SystemExit(0)

    def count(self, counter: str) -> None:
        self.board.count(self.number, counter)

    def was_killed(self, epoch: int, error: OSError) -> bool:
        """Whether an error is what a killed daemon explains; else a violation."""
        if self.board.epoch != epoch and error.errno in _KILLED:
            self.count("cut_off")
            return True
        return False

    def run(self, task: Callable[["Worker"], None]) -> None:
        try:
            while True:
                self.live()
                task(self)
        except SystemExit:
            return
        except BaseException as error:
            told = {"worker": self.number, "error": repr(error), "trace": traceback.format_exc()}
            with self._violations.open("a") as file:
                file.write(json.dumps(told) + "\n")


# -- writers


def write_in_place(worker: Worker, path: Path, text: bytes, synced: bool) -> None:
    """One to four writes of any size, as a shell or a program with a buffer makes them."""
    cuts = sorted(worker.random.randrange(1, len(text) + 1) for _ in range(worker.random.randrange(4)))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            if end > start:
                os.write(descriptor, text[start:end])
        if synced:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_by_rename(worker: Worker, path: Path, text: bytes) -> None:
    scratch = path.with_name(f"tags.txt{worker.random.randrange(10**9)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, text)
    finally:
        os.close(descriptor)
    os.rename(scratch, path)


@dataclass(slots=True)
class Author:
    """Makes the events of one series, one after another."""

    series: Series
    worker: Worker
    event: int = 0
    hidden_in: int = 0
    """The epoch in which the list was renamed away and nothing put in its place."""

    def __call__(self, worker: Worker) -> None:
        board, slot = worker.board, self.series.slot
        epoch = worker.up()
        if self.series.gap == 2 and self.event and self.hidden_in != epoch:
            self._require_there(epoch)
        self.event += 1
        board.begun[slot] = self.event
        try:
            is_durable = self._take_away() if self.series.gap and self.event % 2 == 0 else self._publish()
        except OSError as error:
            if worker.was_killed(epoch, error):
                return
            raise Violation(f"{self.series.name}, event {self.event}: refused with {error}") from error
        if is_durable:
            board.durable[slot] = self.event
        board.see(slot, epoch, self.event)
        self.hidden_in = epoch if self.series.gap == 2 and self.event % 2 == 0 else 0
        worker.count("commits")
        time.sleep(worker.random.random() * 0.02)

    def _publish(self) -> bool:
        path, text = self.worker.path(self.series.name), version(self.series.slot, self.event)
        if not self.series.has_directory:
            path.parent.mkdir(exist_ok=True)
        if self.series in BY_RENAME or (self.series.gap and self.worker.random.random() < 0.5):
            write_by_rename(self.worker, path, text)
            is_durable = True
        else:
            is_durable = self.worker.random.random() < 0.5 or self.series.gap > 0
            write_in_place(self.worker, path, text, is_durable)
        if self.hidden_in:
            with suppress(FileNotFoundError):
                os.unlink(path.with_name("tags.txt.bak"))
        return is_durable

    def _take_away(self) -> bool:
        path = self.worker.path(self.series.name)
        if self.series.gap == 2:
            os.rename(path, path.with_name("tags.txt.bak"))
            return False
        with suppress(FileNotFoundError):
            os.unlink(path)
        if not self.series.has_directory:
            with suppress(FileNotFoundError):
                os.rmdir(path.parent)
        return True

    def _require_there(self, epoch: int) -> None:
        try:
            os.stat(self.worker.path(self.series.name))
        except OSError as error:
            if not self.worker.was_killed(epoch, error):
                raise Violation(f"{self.series.name} was not put back: {error}") from error


@dataclass(slots=True)
class Appender:
    """Appends line after line, each with its serial; goes on behind what is there after a kill."""

    slot: int
    worker: Worker
    serial: int = 0
    epoch: int = 0

    def __call__(self, worker: Worker) -> None:
        board = worker.board
        epoch = worker.up()
        try:
            if epoch != self.epoch:
                self.serial = self._last_there()
                if self.serial < board.durable[self.slot]:
                    raise Violation(
                        f"appender {self.slot}: {self.serial} is there, {board.durable[self.slot]} was acknowledged"
                    )
                self.epoch = epoch
            path = worker.path(append_name(self.serial + 1))
            path.parent.mkdir(exist_ok=True)
            board.begun[self.slot] = max(board.begun[self.slot], self.serial + 1)
            synced = worker.random.random() < 0.5
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            try:
                os.write(descriptor, b"a-%d-%d\n" % (self.slot, self.serial + 1))
                if synced:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            self.epoch = 0
            if worker.was_killed(epoch, error):
                return
            raise Violation(f"appender {self.slot}, {self.serial + 1}: refused with {error}") from error
        self.serial += 1
        if synced:
            board.durable[self.slot] = self.serial
        board.see(self.slot, epoch, self.serial)
        worker.count("commits")
        time.sleep(worker.random.random() * 0.03)

    def _last_there(self) -> int:
        """The serial of its last line, which is in the generation of the last one it began or in the one before."""
        last = self.worker.board.begun[self.slot]
        while last > 0:
            generation = (last - 1) // GENERATION
            try:
                text = self.worker.path(append_name(last)).read_bytes()
            except FileNotFoundError:
                text = b""
            mine = [int(line.split(b"-")[2]) for line in text.splitlines() if int(line.split(b"-")[1]) == self.slot]
            if mine:
                return mine[-1]
            last = generation * GENERATION
        return 0


def append_name(serial: int) -> str:
    return f"append-{(serial - 1) // GENERATION}"


# -- readers


def whole(worker: Worker, descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def in_pieces(worker: Worker, descriptor: int) -> bytes:
    parts, size = [], worker.random.choice((256, 1000, 4096, 4099))
    while part := os.read(descriptor, size):
        parts.append(part)
        if worker.random.random() < 0.02:
            time.sleep(0.005)
    return b"".join(parts)


def by_pread(worker: Worker, descriptor: int) -> bytes:
    """Pieces in any order; the size is asked by reading at the end."""
    size, step = os.lseek(descriptor, 0, os.SEEK_END), worker.random.choice((700, 4096, 5000))
    while os.pread(descriptor, 1, size):
        size += 1
    starts = list(range(0, size, step))
    worker.random.shuffle(starts)
    parts = {start: os.pread(descriptor, min(step, size - start), start) for start in starts}
    return b"".join(parts[start] for start in sorted(parts))


def by_sendfile(worker: Worker, descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    target = os.memfd_create("soak")
    try:
        while (sent := os.sendfile(target, descriptor, None, worker.random.choice((4096, 1 << 20)))) > 0:
            assert sent
        text = os.pread(target, size + (1 << 20), 0)
    finally:
        os.close(target)
    return text


def by_mmap(worker: Worker, descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    with mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, mmap.PROT_READ) as memory:
        if worker.random.random() < 0.2:
            time.sleep(0.002)
        return memory[:]


Method = Callable[[Worker, int], bytes]


@dataclass(slots=True)
class Reader:
    """Reads one list after another, each by one of `methods`; `any_methods` are right for every list."""

    any_methods: tuple[Method, ...]
    rename_methods: tuple[Method, ...] = ()

    def __call__(self, worker: Worker) -> None:
        if worker.random.random() < 0.15:
            read_appended(worker)
            return
        series = worker.random.choice(SERIES)
        if self.rename_methods and not self.any_methods:
            series = worker.random.choice(BY_RENAME)
        methods = self.any_methods + (self.rename_methods if series in BY_RENAME else ())
        read_one(worker, series, worker.random.choice(methods))


def read_one(worker: Worker, series: Series, method: Method) -> None:
    board = worker.board
    group = [one for one in SERIES if one.name == series.name]
    epoch = worker.up() if not worker.is_late else board.epoch
    floors = {one.slot: board.settled[one.slot] if worker.is_late else board.floor(one.slot, epoch) for one in group}
    durable = {one.slot: min(floors[one.slot], board.durable[one.slot]) for one in group}
    text: bytes | None = None
    try:
        descriptor = os.open(worker.path(series.name), os.O_RDONLY)
        try:
            text = method(worker, descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        text = None
    except OSError as error:
        if not worker.is_late and worker.was_killed(epoch, error):
            return
        if error.errno == errno.ESTALE:
            worker.count("stale")
            return
        raise Violation(f"{series.name} by {method.__name__}: {error}") from error
    worker.live()
    is_disturbed = not worker.is_late and board.epoch != epoch
    if is_disturbed:
        floors = durable
        if text is None:
            return  # Nothing was mounted.
    worker.count("reads")
    if text is None:
        worker.count("absent")
        ceiling = board.begun[series.slot]
        first_gap = floors[series.slot] + floors[series.slot] % 2
        if not series.gap or first_gap > ceiling:
            raise Violation(f"{series.name} is missing: events {floors[series.slot]} to {ceiling} may be seen")
        return
    try:
        slot, event = which(text)
    except ValueError as error:
        raise Violation(f"TORN {series.name} by {method.__name__}: {error}") from error
    if slot not in floors:
        raise Violation(f"{series.name} shows the list of slot {slot}")
    if not floors[slot] <= event <= board.begun[slot]:
        raise Violation(
            f"{series.name} by {method.__name__}: shows event {event}, but {floors[slot]} was acknowledged before and"
            f" {board.begun[slot]} is the last one begun"
        )


def read_appended(worker: Worker) -> None:
    board = worker.board
    epoch = worker.up() if not worker.is_late else board.epoch
    floors = {slot: board.settled[slot] if worker.is_late else board.floor(slot, epoch) for slot in APPENDERS}
    durable = {slot: min(floors[slot], board.durable[slot]) for slot in APPENDERS}
    newest = max(board.begun[slot] for slot in APPENDERS)
    generation = (
        worker.random.randrange(max(0, (newest - 1) // GENERATION - 1), (newest - 1) // GENERATION + 1) if newest else 0
    )
    try:
        text = worker.path(f"append-{generation}").read_bytes()
    except FileNotFoundError:
        text = b""
    except OSError as error:
        if not worker.is_late and worker.was_killed(epoch, error):
            return
        if error.errno == errno.ESTALE:
            worker.count("stale")
            return
        raise Violation(f"append-{generation}: {error}") from error
    if not worker.is_late and board.epoch != epoch:
        floors = durable
        if not text:
            return
    worker.count("reads")
    serials: dict[int, list[int]] = {slot: [] for slot in APPENDERS}
    for line in text.decode().split("\n")[:-1]:
        _, of_slot, serial = line.split("-")
        serials[int(of_slot)].append(int(serial))
    first = generation * GENERATION
    for slot, found in serials.items():
        if found != list(range(first + 1, first + len(found) + 1)):
            raise Violation(
                f"TORN append-{generation}: lines of {slot} are missing, double or out of order: {found[-20:]}"
            )
        if (
            not min(floors[slot], first + GENERATION) <= first + len(found)
            or first + len(found) > board.begun[slot] > first
        ):
            raise Violation(
                f"append-{generation}: {len(found)} lines of {slot}, {floors[slot] - first} were acknowledged"
            )


def list_names(worker: Worker) -> None:
    """Directories never come up empty."""
    board = worker.board
    epoch = worker.up() if not worker.is_late else board.epoch
    try:
        names = os.listdir(worker.point / "imagerepository" / NAMESPACE)
        files = os.listdir(worker.path(worker.random.choice((*IN_PLACE, *BY_RENAME)).name).parent)
    except OSError as error:
        if not worker.is_late and worker.was_killed(epoch, error):
            return
        raise Violation(f"listing: {error}") from error
    if not worker.is_late and board.epoch != epoch:
        return
    missing = set(ALWAYS) - set(names)
    if missing or "tags.txt" not in files:
        raise Violation(f"listing: {missing} of the repositories, or the list of {files}, are missing")
    worker.count("listings")
    time.sleep(0.05)


def map_in_children(worker: Worker) -> None:
    """mmap readers of the read-write mount: one whose daemon is killed dies of SIGBUS, so each is a child."""
    epoch = worker.up()
    child = os.fork()
    if child == 0:
        worker.run(Reader((), (by_mmap, by_sendfile)))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) == signal.SIGBUS and worker.board.epoch != epoch:
            worker.count("bus_errors")
        else:
            raise Violation(f"a reader by mmap ended with {signal.Signals(os.WTERMSIG(status)).name}")
    else:
        raise SystemExit(0)  # It has said why.


# -- the whole


@dataclass(slots=True)
class Report:
    """What a soak came to."""

    seed: int
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)
    kills: int = 0
    violations: list[str] = field(default_factory=list)
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Daemon -> KiB of resident memory when it was warm, and at the end."""
    descriptors: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Daemon -> open descriptors when it was new, and at the end."""

    @property
    def torn(self) -> int:
        return sum("TORN" in violation for violation in self.violations)

    def lines(self) -> list[str]:
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self.counts.items())
        return [
            f"soak of {self.seconds:.0f} s, seed {self.seed}: {counts}, {self.kills} kills, {self.torn} torn,"
            f" {len(self.violations)} violations",
            *(f"{who}: {now} KiB resident, {warm} when warm" for who, (warm, now) in self.memory.items()),
            *(f"{who}: {now} descriptors, {new} when new" for who, (new, now) in self.descriptors.items()),
            *self.violations,
        ]


class Soak:
    """Runs it in the directory `base`."""

    def __init__(self, base: Path, seconds: float, seed: int) -> None:
        self.report = Report(seed, seconds)
        self._base = base
        self._board = Board()
        self._violations = base / "violations"
        self._random = random.Random(f"{seed}-conductor")
        expected = [r"unmounted what a killed daemon had left", r"put back, after a writer had renamed it away"]
        self._writing = Daemon(base / "store", base / "mount", expected=expected)
        self._reading = Daemon(base / "store", base / "window", ("--read-only",), expected=list(expected))
        self._workers: list[int] = []
        self._history: list[tuple[float, list[int]]] = []

    def run(self) -> Report:
        self._base.mkdir(exist_ok=True)
        self._violations.touch()
        try:
            self._fork_all()  # Before the daemons, whose logs are read by threads.
            self._start_all()
            self._storm(self.report.seconds * 0.6)
            self._calm(self.report.seconds * 0.4)
            self._finish()
        finally:
            self._end()
        self.report.counts = {counter: self._board.total(counter) for counter in COUNTERS}
        return self.report

    # -- its parts

    def _fork_all(self) -> None:
        point, window = self._base / "mount", self._base / "window"
        pieces = (whole, in_pieces, by_pread)
        for series in SERIES:
            self._fork(point, partial(Author, series))
        for slot in APPENDERS:
            self._fork(point, partial(Appender, slot))
        for _ in range(3):
            self._fork(point, lambda worker: Reader(pieces, (by_sendfile,)))
        self._fork(point, lambda worker: map_in_children)
        self._fork(point, lambda worker: list_names)
        for _ in range(3):
            self._fork(window, lambda worker: Reader((*pieces, by_sendfile, by_mmap)), is_late=True)
        self._fork(window, lambda worker: list_names, is_late=True)

    def _fork(self, point: Path, make: Callable[[Worker], Callable[[Worker], None]], is_late: bool = False) -> None:
        number = len(self._workers)
        pid = os.fork()
        if pid:
            self._workers.append(pid)
            return
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            worker = Worker(self._board, number, point, self.report.seed, self._violations, is_late)
            worker.up()
            worker.run(make(worker))
            code = 0
        except SystemExit:
            code = 0
        finally:
            os._exit(code)

    def _start_all(self) -> None:
        self._writing.start()
        for series in SERIES:
            path = self._writing.make(series.name, NAMESPACE)
            if not series.gap:
                write = version(series.slot, 0)
                path.write_bytes(write)
        self._writing.list_path("away", NAMESPACE).write_bytes(version(AWAY.slot, 0))
        self._writing.make("append-0", NAMESPACE)
        self._reading.start()
        self.report.descriptors["read-only"] = descriptors_of(self._reading), 0
        self._board.epoch = 2

    def _watch(self, seconds: float) -> None:
        """Let time pass, while all are alive; Violation when one is not."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            self._history.append((now, list(self._board.durable)))
            while len(self._history) > 1 and self._history[1][0] < now - LAG:
                self._history.pop(0)
            if self._history[0][0] < now - LAG:
                for slot, event in enumerate(self._history[0][1]):
                    self._board.settled[slot] = event
            hung = [n for n in range(len(self._workers)) if 0 < self._board.alive[n] < (now - HANG) * 1e9]
            if hung:
                self._tell(f"HANG: no sign of life from workers {hung} for {HANG:.0f} s")
                self._board.end()
            if self._violations.stat().st_size or self._board.is_over:
                return
            time.sleep(min(0.1, max(0.0, until - now)))

    def _storm(self, seconds: float) -> None:
        """The daemon is killed and started again at random times."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._violations.stat().st_size:
            self._watch(self._random.uniform(0.3, 4.0))
            self._board.epoch += 1
            self._writing.kill()
            self.report.kills += 1
            self._writing.start()
            self._board.epoch += 1

    def _calm(self, seconds: float) -> None:
        """Nothing is killed, and nothing may grow."""
        self._watch(seconds * 0.4)
        daemons = {"read-write": self._writing, "read-only": self._reading}
        warm = {who: memory_of(daemon) for who, daemon in daemons.items()}
        self._watch(seconds * 0.6)
        self.report.memory = {who: (warm[who], memory_of(daemon)) for who, daemon in daemons.items()}

    def _finish(self) -> None:
        """Everybody ends; what is left is exactly what was acknowledged, and nothing is open any more."""
        self._board.end()
        for pid in self._workers:
            self._reap(pid)
        self._workers.clear()
        for who, daemon in (("read-write", self._writing), ("read-only", self._reading)):
            new = self.report.descriptors.get(who, (descriptors_when_new(self._base), 0))[0]
            with suppress(AssertionError):
                eventually(partial(has_at_most, daemon, new), patience=3)
            self.report.descriptors[who] = new, descriptors_of(daemon)
        self._writing.stop()
        self._writing.start()  # It puts back what was renamed away last.
        with suppress(AssertionError):
            # What is hidden is no problem as long as a mount holds the store.
            eventually(lambda: not any((self._base / "store").rglob(".tagfs-hidden.*")))
            eventually(lambda: not problems(self._base / "store"))
        self._writing.stop()
        code, said = check_command(self._base / "store")
        if code != 0:
            self._tell(f"the store is out of order: {said}")

    def _reap(self, pid: int) -> None:
        def is_gone() -> bool:
            return os.waitpid(pid, os.WNOHANG)[0] != 0

        try:
            eventually(is_gone, f"worker {pid} to end", patience=HANG)
        except AssertionError as error:
            self._tell(f"HANG: {error}")
            os.kill(pid, signal.SIGKILL)

    def _end(self) -> None:
        self._board.end()
        # The daemons first: whoever hangs in one of them is released.
        for daemon in (self._writing, self._reading):
            daemon.end()
        for pid in self._workers:
            self._reap(pid)
        for line in self._violations.read_text().splitlines():
            self.report.violations.append(json.loads(line)["error"])
        for daemon in (self._writing, self._reading):
            self.report.violations += [f"in the log: {message}" for message in daemon.surprises()]

    def _tell(self, sentence: str) -> None:
        with self._violations.open("a") as file:
            file.write(json.dumps({"error": sentence}) + "\n")


def memory_of(daemon: Daemon) -> int:
    """KiB of resident memory."""
    for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def descriptors_of(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def has_at_most(daemon: Daemon, descriptors: int) -> bool:
    return descriptors_of(daemon) <= descriptors


def descriptors_when_new(base: Path) -> int:
    """The descriptors of a read-write daemon that has shown and written one list."""
    daemon = Daemon(base / "new", base / "new-mount").start()
    try:
        daemon.make("app").write_text("v1\n")
        assert daemon.list_path("app").read_text() == "v1\n"
        return descriptors_of(daemon)
    finally:
        daemon.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("TAGFS_SOAK_SECONDS", "60")))
    parser.add_argument(
        "--seed", type=int, default=int(os.environ.get("TAGFS_SOAK_SEED", str(random.randrange(10**6))))
    )
    parser.add_argument("--json", type=Path, help="write the counts there too")
    parser.add_argument("--base", type=Path, help="a new directory for it (default: a temporary one)")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tagfs-soak-", ignore_cleanup_errors=True) as temporary:
        report = Soak(arguments.base or Path(temporary) / "soak", arguments.seconds, arguments.seed).run()
    print("\n".join(report.lines()), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(report)))
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
