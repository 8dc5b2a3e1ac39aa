"""A disk that is full, and one that fails: the program is told, the old list stays, the daemon lives on."""

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import MakeDaemon
from tests.support.daemon import Daemon, eventually
from tests.support.tracing import Call, recorded, require_strace, threads, traced
from tests.support.verdict import problems, stages
from tests.support.volumes import Volume, ext4, tmpfs

pytestmark = pytest.mark.mount

FULL = (r"No space left on device", r"Read-only file system")
LARGE_TAGS = 2000


def incompressible(seed: int, tags: int = LARGE_TAGS) -> bytes:
    """A list of about 130 KiB, of which no codec saves more than a half."""
    numbers = random.Random(seed)
    return b"".join(b"%064x\n" % numbers.getrandbits(256) for _ in range(tags))


def by_rename(path: Path, content: bytes) -> None:
    scratch = path.with_name("tags.txt77")
    scratch.write_bytes(content)
    scratch.rename(path)


def in_place(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def in_place_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def remove(path: Path, content: bytes) -> None:
    path.unlink()


def rename_nothing(path: Path, content: bytes) -> None:
    path.with_name("nothing").rename(path)


Change = Callable[[Path, bytes], None]
CHANGES = pytest.mark.parametrize("change", [by_rename, in_place, in_place_synced])


def refusal(change: Change, path: Path, content: bytes) -> int | None:
    """The errno with which a program is refused; None where it is not."""
    try:
        change(path, content)
    except OSError as error:
        return error.errno
    return None


def loud(daemon: Daemon) -> list[str]:
    """What it logged above INFO."""
    return [message for level in ("WARNING", "ERROR", "CRITICAL") for message in daemon.messages(level)]


@pytest.fixture(params=["tmpfs", "ext4"])
def small_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A store of 4 MiB."""
    if request.param == "tmpfs":
        with tmpfs(tmp_path, "size=4m") as path:
            yield path / "store"
    else:
        with ext4(tmp_path, mebibytes=4) as volume:
            yield volume.path / "store"


@CHANGES
def test_a_full_disk_refuses_the_writer_and_keeps_every_list(
    change: Change, small_store: Path, daemons: MakeDaemon
) -> None:
    daemon = daemons(store=small_store, expected=FULL)
    try:
        written = {}
        refused = None
        for number in range(200):
            text = incompressible(number)
            refused = refusal(change, daemon.make(f"list{number}"), text)
            if refused:
                break
            written[f"list{number}"] = text
        assert refused == errno.ENOSPC
        assert len(written) > 10
        # The lists that are there are whole, also the one that is to be replaced.
        assert refusal(change, daemon.list_path("list0"), incompressible(999, 4 * LARGE_TAGS)) == errno.ENOSPC
        for name, text in written.items():
            assert daemon.list_path(name).read_bytes() == text
        eventually(lambda: not stages(small_store), "what was refused to be gone")
        eventually(partial(loud, daemon), "a line in the log")
        if change is in_place:  # bash and dash ignore what close answers
            daemon.await_message(rf"list{len(written)}/tags\.txt: closed and not committed: .*No space left")
        # What is deleted makes room.
        for name in list(written)[1:8]:
            daemon.list_path(name).unlink()
        assert refusal(change, daemon.list_path("list0"), incompressible(1000)) is None
        assert daemon.list_path("list0").read_bytes() == incompressible(1000)
        assert daemon.stop() == 0
        assert not problems(small_store)
    finally:
        daemon.end()


def test_a_disk_without_inodes_refuses_the_writer_and_keeps_every_list(tmp_path: Path, daemons: MakeDaemon) -> None:
    with tmpfs(tmp_path, "size=4m,nr_inodes=40") as path:
        daemon = daemons(store=path / "store", expected=FULL)
        try:
            written = []
            with pytest.raises(OSError) as refused:
                for number in range(100):
                    by_rename(daemon.make(f"list{number}"), b"v1\n")
                    written.append(f"list{number}")
            assert refused.value.errno == errno.ENOSPC
            assert len(written) > 5
            for name in written:
                assert daemon.list_path(name).read_text() == "v1\n"
            daemon.list_path(written[0]).unlink()
            daemon.list_path(written[0]).parent.rmdir()
            by_rename(daemon.list_path(written[1]), b"v2\n")
            assert daemon.list_path(written[1]).read_text() == "v2\n"
        finally:
            daemon.end()


def test_a_store_on_a_full_disk_is_mounted_and_lists_can_be_deleted(tmp_path: Path, daemons: MakeDaemon) -> None:
    with tmpfs(tmp_path, "size=4m") as path:
        lists = path / "store/imagerepository/team/app"
        lists.mkdir(parents=True)
        (path / "store/.storage-version").write_text("3\n")
        (lists / "tags.txt").write_bytes(incompressible(1))
        with (path / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(bytes(4096))
        daemon = daemons(store=path / "store", expected=FULL)
        try:
            assert daemon.list_path("app").read_bytes() == incompressible(1)
            daemon.list_path("app").unlink()
            by_rename(daemon.list_path("app"), b"v1\n")
            assert daemon.list_path("app").read_text() == "v1\n"
        finally:
            daemon.end()


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with ext4(tmp_path) as volume:
        yield volume


@CHANGES
def test_a_store_that_becomes_read_only_refuses_the_writer_and_stays_readable(
    change: Change, volume: Volume, daemons: MakeDaemon
) -> None:
    daemon = daemons(store=volume.path / "store", expected=FULL)
    try:
        path = daemon.make("app")
        by_rename(path, b"v1\n")
        volume.remount("ro")
        assert refusal(change, path, b"v2\n") == errno.EROFS
        assert refusal(remove, path, b"") == errno.EROFS
        assert refusal(rename_nothing, path, b"") == errno.ENOENT
        with pytest.raises(OSError, match="Read-only file system"):
            daemon.make("another")
        assert path.read_text() == "v1\n"
        eventually(partial(loud, daemon), "a line in the log")
        volume.remount("rw")
        change(path, b"v3\n")
        assert path.read_text() == "v3\n"
    finally:
        daemon.end()


# -- system calls that fail

OLD = b"".join(b"1.0.%d\n" % number for number in range(2000))
NEW = b"v1\nv2\n"
FAULTS = ("EIO", "ENOSPC", "EDQUOT")
CHANGING = frozenset(("write", "fsync", "renameat", "unlinkat", "utimensat"))


def has_told(daemon: Daemon, before: int) -> bool:
    """Whether it logged more than `before` complaints, or has logged the same one before."""
    return len(loud(daemon)) > before or before > 0


def record(daemon: Daemon, log: Path, act: Callable[[], object]) -> list[Call]:
    return [call for call in recorded(daemon.pid, act, log) if str(daemon.store) in call.arguments]


@pytest.mark.parametrize("fault", FAULTS)
@CHANGES
def test_a_call_that_fails_is_told_to_the_writer_and_leaves_the_old_list(
    change: Change, fault: str, daemons: MakeDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each call of a commit that replaces a compressed list by a plain one, one after another."""
    require_strace()
    daemon = daemons(expected=(r"the disk failed", r"not committed", r"whether it survives", r"after the rename"))
    path, neighbour = daemon.make("app"), daemon.make("neighbour")
    by_rename(neighbour, OLD)
    by_rename(path, OLD)

    def act() -> None:
        change(path, NEW)
        path.stat()

    points = [
        call
        for call in record(daemon, tmp_path / "strace", act)
        if call.name in CHANGING or "O_CREAT" in call.arguments
    ]
    assert len(points) >= 7
    is_renamed = False
    told = 0
    for call in points:
        by_rename(path, OLD)
        logged = len(loud(daemon))
        daemon.expected.append(rf"{call.name}\b")
        with traced(
            threads(daemon.pid, call.is_loop), f"--inject={call.injection(f'error={fault}')}", log=tmp_path / "f"
        ):
            refused = refusal(change, path, NEW)
            path.stat()
        after = path.read_bytes()
        assert neighbour.read_bytes() == OLD
        if refused is None:
            # Nobody waits for what happens after a close; and what only tidies may fail.
            assert change is in_place or after == NEW, f"{call}: nobody was told"
        elif is_renamed:
            assert refused == errno.EIO, f"{call}: an error after the rename means that it is not known"
        else:
            assert refused == getattr(errno, fault), f"{call}"
            # Where fsync(2) was refused, the close that follows tries again.
            assert after == OLD or change is in_place_synced, f"{call}"
        assert after in (OLD, NEW), f"{call}"
        if after == OLD:
            told += 1
            eventually(partial(has_told, daemon, logged), f"{call} in the log")
        is_renamed = is_renamed or call.name == "renameat"
        # The daemon goes on as if nothing had been.
        by_rename(path, b"v9\n")
        assert path.read_text() == "v9\n"
    assert told >= 3 or change is in_place_synced
    eventually(lambda: not problems(daemon.store), "nothing to be out of order")
    with capsys.disabled():
        print(f"\n  {change.__name__}, {fault}: {len(points)} calls failed, {told} left the old list")


def read(path: Path) -> object:
    return path.read_bytes()


class InputOutputError(Exception):
    """EIO."""


def asked(ask: Callable[[Path], object], path: Path) -> object:
    """What a program is told; InputOutputError."""
    try:
        return ask(path)
    except OSError as error:
        if error.errno == errno.EIO:
            raise InputOutputError from error
        raise


def read_names(path: Path) -> object:
    return sorted(os.listdir(path.parent.parent))


def ask_attributes(path: Path) -> object:
    return path.stat().st_size


@pytest.mark.parametrize("flags", [(), ("--read-only",)], ids=["read-write", "read-only"])
@pytest.mark.parametrize("ask", [read, read_names, ask_attributes])
def test_a_disk_that_cannot_be_read_is_an_error_and_never_an_empty_answer(
    ask: Callable[[Path], object], flags: tuple[str, ...], daemons: MakeDaemon, tmp_path: Path
) -> None:
    require_strace()
    writer = daemons()
    for name in ("app", "other"):
        by_rename(writer.make(name), OLD)
    assert writer.stop() == 0
    counts = 0
    recorder = daemons(*flags)
    points = record(recorder, tmp_path / "strace", lambda: ask(recorder.list_path("app")))
    assert recorder.stop() == 0
    points = [
        call for call in points if call.is_loop and call.name in ("openat", "newfstatat", "pread64", "getdents64")
    ]
    assert points
    daemon = daemons(*flags, expected=(r"the disk failed", r"Input/output error", r"cannot watch"))
    path = daemon.list_path("app")
    expected = OLD if ask is read else ["app", "other"] if ask is read_names else len(OLD)
    # The kernel keeps what it was told, so a fault is met by whoever is the first to ask.
    for call in points:
        with traced(threads(daemon.pid, call.is_loop), f"--inject={call.injection('error=EIO')}", log=tmp_path / "f"):
            answer: object = None
            with suppress(InputOutputError):
                answer = asked(ask, path)
        counts += answer is None
        assert answer in (None, expected), f"{call}"
        assert ask(path) == expected, f"{call}: still, after the disk is well again"
    assert counts or flags, f"no fault was met at {[str(call) for call in points]}"
