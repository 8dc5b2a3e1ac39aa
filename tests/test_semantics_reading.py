"""Clauses "Reading" of `docs/semantics.md`."""

import errno
import functools
import mmap
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MakeDaemon
from tests.support.daemon import Daemon, eventually
from tests.support.programs import Flux, in_pieces, is_ready, refused, succeed, tags

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("either_path")]

OLD, NEW = tags(3000, "old."), tags(2000, "new.")


def _by_rename(path: Path, content: str) -> None:
    temporary = path.with_name("next")
    temporary.write_text(content)
    os.replace(temporary, path)


def _in_place(path: Path, content: str) -> None:
    path.write_text(content)


def _without_truncation(path: Path, content: str) -> None:
    with path.open("r+") as file:
        file.write(content)
        file.truncate()


def _by_append(path: Path, content: str) -> None:
    with path.open("a") as file:
        file.write(content)


def _removed(path: Path, content: str) -> None:
    path.unlink()
    path.write_text(content)


def _truncated(path: Path, content: str) -> None:
    os.truncate(path, 0)
    path.write_text(content)


WRITERS = [_by_rename, _in_place, _without_truncation, _by_append, _removed, _truncated]


@pytest.mark.parametrize("write", WRITERS)
def test_s7_a_reader_holds_its_version(mount: Daemon, write: Callable[[Path, str], None]) -> None:
    path = mount.make("app")
    path.write_text(OLD)
    assert in_pieces(path, 256, lambda: write(path, NEW)).decode() == OLD
    path.write_text(OLD)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        last = os.pread(descriptor, 100, len(OLD) - 100)
        write(path, NEW)
        assert (os.pread(descriptor, 1 << 20, 0) + os.pread(descriptor, 100, len(OLD))).decode() == OLD
        assert os.pread(descriptor, 100, len(OLD) - 100) == last
        assert os.fstat(descriptor).st_size == len(OLD)
    finally:
        os.close(descriptor)
    assert path.read_text() == (OLD + NEW if write is _by_append else NEW)


def test_s7_readers_of_programs_hold_their_version(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text(OLD)
    command = "exec 3< $1; head -c 100 <&3; printf 'new\\n' > $1; cat <&3; cat $1"
    assert succeed(command, None, path) == OLD + "new\n"


def test_s7_no_read_is_torn_beside_writers(mount: Daemon) -> None:
    """Readers in pieces beside a writer in place, a writer by rename and an appender, for some seconds."""
    path = mount.make("app")
    path.write_text(tags(700, "a."))
    ends = time.monotonic() + 4
    torn: list[str] = []
    counts = {"reads": 0, "writes": 0, "missing": 0}

    def read(size: int) -> None:
        while time.monotonic() < ends:
            text = in_pieces(path, size).decode()
            counts["reads"] += 1
            lines = text.splitlines()
            letters = {line.split(".")[0] for line in lines}
            wanted = [f"{letter}.{number}" for letter in sorted(letters) for number in range(700)]
            if not text.endswith("\n") or len(letters) != 1 or lines != wanted:
                torn.append(f"{len(lines)} lines of {letters}")

    def write(how: Callable[[Path, str], None], letters: str) -> None:
        while time.monotonic() < ends:
            for letter in letters:
                how(path, tags(700, f"{letter}."))
                counts["writes"] += 1

    threads = [threading.Thread(target=read, args=(size,)) for size in (256, 1000, 4096, 1 << 20)]
    threads += [threading.Thread(target=write, args=one) for one in ((_in_place, "bc"), (_by_rename, "de"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{counts['reads']} reads beside {counts['writes']} writes, {len(torn)} torn")
    assert not torn and counts["reads"] > 50 and counts["writes"] > 20, (counts, torn[:5])


def test_s8_what_is_open_stays_readable(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text(OLD)
    with path.open() as file:
        first = file.read(10)
        succeed("rm -r $1", None, path.parent)
        assert not path.parent.exists()
        assert first + file.read() == OLD


def test_s8_what_is_open_stays_readable_while_the_store_is_not_ready(daemons: MakeDaemon, tmp_path: Path) -> None:
    flux = Flux.store(tmp_path / "store")
    flux.set_tags("app", OLD.encode())
    marker = tmp_path / "store" / ".storage-wipe-in-progress"
    for flag in ("--read-only", "--codec=gzip"):
        daemon = daemons(flag)
        with daemon.list_path("app").open() as file:
            first = file.read(10)
            marker.touch()
            daemon.await_message("until it is ready again")
            assert first + file.read() == OLD
        marker.unlink()
        path = daemon.list_path("app")
        assert eventually(functools.partial(is_ready, path))
        assert path.read_text() == OLD
        daemon.stop()


def _sendfile(descriptor: int, offset: int, size: int) -> bytes:
    reading, writing = os.pipe()
    try:
        sent = os.sendfile(writing, descriptor, offset, size)
        return os.read(reading, sent) if sent else b""
    finally:
        os.close(reading)
        os.close(writing)


def test_s9_sendfile_and_mmap_hold_their_version_beside_renames(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text(OLD)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        mapped = mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        sent = _sendfile(descriptor, 0, 5000)
        for number in range(5):
            _by_rename(path, tags(10 + number))
        while len(sent) < len(OLD):
            part = _sendfile(descriptor, len(sent), 5000)
            assert part, f"an early end after {len(sent)} of {len(OLD)} bytes"
            sent += part
        assert sent.decode() == OLD and mapped[:].decode() == OLD
        mapped.close()
    finally:
        os.close(descriptor)


def test_s9_shared_mmap_is_refused_on_a_read_write_mount(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text(OLD)
    with path.open("rb") as file:
        assert refused(lambda: mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)) == errno.ENODEV


def test_s9_a_read_only_mount_maps_one_version(daemons: MakeDaemon, tmp_path: Path) -> None:
    flux = Flux.store(tmp_path / "store")
    flux.set_tags("app", OLD.encode())
    path = daemons("--read-only").list_path("app")
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        sent = _sendfile(file.fileno(), 0, 5000)
        flux.set_tags("app", NEW.encode())
        eventually(lambda: path.read_text() == NEW)
        while part := _sendfile(file.fileno(), len(sent), 5000):
            sent += part
        assert sent.decode() == OLD and mapped[:].decode() == OLD
        mapped.close()


def test_s10_a_writer_reads_its_own_bytes_and_nobody_else_does(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\nv2\n")
    with path.open("r+b", buffering=0) as file:
        file.write(b"w1\n")
        assert os.pread(file.fileno(), 100, 0) == b"w1\nv2\n"
        assert succeed("cat $1", None, path) == "v1\nv2\n"
    assert path.read_text() == "w1\nv2\n"
    with path.open("a+b", buffering=0) as file:
        file.write(b"v3\n")
        assert os.pread(file.fileno(), 100, 0) == b"w1\nv2\nv3\n"
        assert succeed("cat $1", None, path) == "w1\nv2\n"
