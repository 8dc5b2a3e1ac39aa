"""`tagfs watch`: what it tells of stores and mounts, and how it ends."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from tagfs import events, mountpoint
from tagfs.events import Lines, difference
from tagfs.names import RepositoryKey
from tagfs.watching import TAGS_SHOWN, text
from tests.conftest import MakeDaemon
from tests.support.beneath import put
from tests.support.daemon import PATIENCE

pytestmark = pytest.mark.mount

APP, WEB = RepositoryKey("team", "app"), RepositoryKey("other", "web")


def start(path: Path, *flags: str) -> "subprocess.Popen[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TAGFS_")}
    return subprocess.Popen(
        [sys.executable, "-m", "tagfs", "watch", str(path), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, "PYTHONPATH": os.pathsep.join(sys.path), "TZ": "UTC"},
        # A shell that starts tests in the background has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


class Watch:
    """`tagfs watch` as a child process, whose lines are read as they come."""

    def __init__(self, path: Path, *flags: str) -> None:
        self.process = start(path, *flags)
        assert self.process.stdout is not None and self.process.stderr is not None
        self.told: queue.Queue[str] = queue.Queue()
        self.noted: queue.Queue[str] = queue.Queue()
        self._threads = [
            threading.Thread(target=self._read, args=(stream, lines))
            for stream, lines in ((self.process.stdout, self.told), (self.process.stderr, self.noted))
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _read(stream: IO[str], lines: "queue.Queue[str]") -> None:
        with stream:
            for line in stream:
                lines.put(line.rstrip("\n"))

    def line(self) -> str:
        return self.told.get(timeout=PATIENCE)

    def note(self, part: str) -> str:
        """The next note with `part` in it."""
        while part not in (note := self.noted.get(timeout=PATIENCE)):
            pass
        return note

    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.line())
        return event

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=PATIENCE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()


Watches = Callable[..., Watch]


@pytest.fixture
def watching() -> Iterator[Watches]:
    made: list[Watch] = []

    def make(path: Path, *flags: str) -> Watch:
        made.append(Watch(path, *flags))
        return made[-1]

    yield make
    for watch in made:
        watch.close()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    put(tmp_path / "store", APP, b"v1\n")
    (tmp_path / "store" / ".storage-version").write_text("3\n")
    return tmp_path / "store"


@pytest.fixture(params=["store", "mount"])
def path(request: pytest.FixtureRequest, store: Path, daemons: MakeDaemon) -> Path:
    """A store, or a read-only mount of it."""
    return store if request.param == "store" else daemons("--read-only").point


def test_a_person_is_told_what_changed(path: Path, store: Path, watching: Watches) -> None:
    watch = watching(path)
    watch.note("watching 1 lists")
    put(store, APP, b"v1\nv2\n")
    assert watch.line()[19:] == "  team/app  2 tags: +v2"
    put(store, WEB, b"w1\n")
    assert watch.line()[19:] == "  other/web  created, 1 tags: +w1"
    shutil.rmtree(store / "imagerepository" / "other")
    assert watch.line()[19:] == "  other/web  deleted: -w1"
    assert watch.end() == 130
    assert watch.noted.empty()


def test_json_is_what_a_mount_tells(path: Path, store: Path, watching: Watches) -> None:
    watch = watching(path, "--json")
    assert watch.event()["type"] == events.READY
    put(store, APP, b"v2\n")
    event = watch.event()
    assert (event["type"], event["subject"], event["data"]["added"]) == (events.CHANGED, "team/app", ["v2"])
    assert event["source"] == f"tagfs:{store}"


def test_namespaces(path: Path, store: Path, watching: Watches) -> None:
    watch = watching(path, "--json", "--namespace", "team", "--namespace", "third")
    watch.event()
    put(store, WEB, b"w1\n")
    put(store, APP, b"v2\n")
    assert watch.event()["subject"] == "team/app"


def test_nobody_reads_the_output_to_its_end(path: Path, store: Path) -> None:
    with start(path, "--json") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        put(store, APP, b"v2\n")
        assert process.wait(timeout=PATIENCE) == 141
        assert process.stderr.read() == ""


@pytest.mark.parametrize("is_stopped", [True, False], ids=["stopped", "unmounted lazily"])
def test_a_mount_that_comes_back(is_stopped: bool, store: Path, daemons: MakeDaemon, watching: Watches) -> None:
    mount = daemons("--read-only")
    watch = watching(mount.point / "imagerepository", "--json")
    assert watch.event()["type"] == events.READY
    if not is_stopped:
        mountpoint.unmount(str(mount.point), lazy=True)
    assert (mount.stop() if is_stopped else mount.wait()) == 0
    watch.note("has ended; waiting for it to come back")
    put(store, APP, b"v2\n")
    daemons("--read-only", point=mount.point)
    missed = watch.event()
    assert (missed["type"], missed["data"]) == (events.OVERFLOW, {"lost": None})
    assert watch.event()["type"] == events.READY
    put(store, APP, b"v3\n")
    assert watch.event()["data"]["added"] == ["v3"]
    assert watch.end() == 130


def test_a_store_that_is_wiped_and_made_again(store: Path, watching: Watches) -> None:
    watch = watching(store, "--json")
    assert watch.event()["type"] == events.READY
    (store / ".storage-wipe-in-progress").touch()
    shutil.rmtree(store / "imagerepository")
    while (event := watch.event())["type"] != events.WAITING:
        assert event["type"] == events.DELETED
    put(store, WEB, b"w1\n")
    (store / ".storage-wipe-in-progress").unlink()
    types = []
    while (event := watch.event())["type"] != events.READY:
        types.append((event["type"], event["subject"]))
    assert (events.CREATED, "other/web") in types


@pytest.fixture
def over(store: Path, tmp_path: Path) -> Iterator[Path]:
    """Another store, which has `APP` with another list; nothing stays mounted over the first one."""
    other = tmp_path / "other"
    put(other, APP, b"w1\n")
    (other / ".storage-version").write_text("3\n")
    yield other
    while mountpoint.mounted_at(str(store)) is not None:
        subprocess.run(["umount", "--lazy", store], check=True)


@pytest.mark.parametrize("is_over_first", [True, False], ids=["unmounted lazily", "mounted over"])
def test_a_store_that_is_elsewhere_is_left_for_what_is_at_its_path(
    is_over_first: bool, store: Path, over: Path, watching: Watches
) -> None:
    mount, unmount = ["mount", "--bind", str(over), str(store)], ["umount", "--lazy", str(store)]
    if is_over_first:
        subprocess.run(mount, check=True)
    watch = watching(store, "--json")
    assert watch.event()["type"] == events.READY
    subprocess.run(unmount if is_over_first else mount, check=True)
    waiting = watch.event()
    assert (waiting["type"], waiting["data"]["reason"]) == (
        events.WAITING,
        "the store's directory was moved, removed or unmounted",
    )
    changed = watch.event()["data"]
    assert changed["added"] + changed["removed"] == (["v1", "w1"] if is_over_first else ["w1", "v1"])
    assert watch.event()["type"] == events.READY


def test_what_is_neither_is_refused(tmp_path: Path, watching: Watches) -> None:
    for path in (tmp_path / "missing", Path("/usr")):
        watch = watching(path)
        assert watch.process.wait(timeout=PATIENCE) == 3
        assert str(path) in watch.noted.get(timeout=PATIENCE)


def test_a_line_for_a_person_is_short_and_harmless() -> None:
    lines = Lines("/s", now=lambda: 1_700_000_000)
    tags = "".join(f"v{number}\n" for number in range(TAGS_SHOWN + 5)).encode()
    assert text(json.loads(lines.of_list(APP, difference(None, tags)))).endswith("+v9 +5 more")
    hostile = difference(b"", b"\x1b[2Jx\n")
    assert "\x1b" not in text(json.loads(lines.of_list(APP, hostile)))
    order = text(json.loads(lines.of_list(APP, difference(b"a\nb\n", b"b\na\n"))))
    assert order.endswith("team/app  2 tags, in another order")
    unknown = events.unknown_before(b"a\n", None)
    assert text(json.loads(lines.of_list(APP, unknown))).endswith("which ones changed is not known, read the list")
    assert text(json.loads(lines.overflow(3))).endswith("3 changes were missed: read again what matters")
    broken = events.unreadable(None, "it is truncated")
    assert text(json.loads(lines.of_list(APP, broken))).endswith("cannot be read: it is truncated")
