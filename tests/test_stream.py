"""What a program reads from `.changes`, and what a slow one loses."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagfs import pipes, taglist
from tagfs.events import Lines
from tagfs.listeners import Queue
from tagfs.names import RepositoryKey
from tests.conftest import MakeDaemon
from tests.support.beneath import list_file, put
from tests.support.daemon import Daemon, eventually
from tests.support.listening import Opened, listen, watches, write

pytestmark = pytest.mark.mount

APP, WEB = RepositoryKey("team", "app"), RepositoryKey("other", "web")


# -- what waits for one listener


def overflow(lost: int) -> bytes:
    return b"lost %d\n" % lost


def drained(queue: Queue, step: int = 1 << 20) -> bytes:
    read = b""
    while (part := queue.first()) is not None:
        read += part[:step]
        queue.wrote(min(step, len(part)))
    return read


def test_lines_wait_in_order() -> None:
    queue = Queue(overflow)
    for line in (b"one\n", b"two\n"):
        queue.add(line)
    assert drained(queue, 3) == b"one\ntwo\n"
    assert queue.first() is None


def test_a_line_that_is_begun_is_ended_before_the_overflow() -> None:
    queue = Queue(overflow, most=10)
    queue.add(b"12345\n")
    queue.wrote(2)
    queue.add(b"678\n")
    queue.add(b"9\n")
    queue.add(b"10\n")
    assert drained(queue) == b"345\nlost 3\n"
    queue.add(b"11\n")
    assert drained(queue) == b"11\n"


def test_one_line_may_be_larger_than_all_that_may_wait() -> None:
    queue = Queue(overflow, most=4)
    queue.add(b"123456789\n")
    assert drained(queue) == b"123456789\n"


@given(st.lists(st.integers(0, 12) | st.none(), max_size=60))
def test_every_line_is_told_or_counted_as_lost(steps: list[int | None]) -> None:
    """A number: so many bytes are read; None: another line is added."""
    queue, read, added = Queue(overflow, most=12), b"", 0
    for step in steps:
        if step is None:
            queue.add(b"%04d\n" % added)
            added += 1
        elif step and (part := queue.first()) is not None:
            read += part[:step]
            queue.wrote(min(step, len(part)))
    read += drained(queue)
    next_ = 0
    for line in read.decode().splitlines():
        if line.startswith("lost "):
            next_ += int(line.removeprefix("lost "))
        else:
            assert int(line) == next_
            next_ += 1
    assert next_ == added


# -- through a mount


def test_every_listener_is_told_every_change(mounted: Daemon) -> None:
    listeners = [listen(mounted), listen(mounted)]
    write(mounted, APP, b"v1\nv2\n")
    for listener in listeners:
        event = listener.expect("list.changed")
        assert event["subject"] == "team/app"
        assert event["data"] == {
            "revision": taglist.revision(b"v1\nv2\n"),
            "previous": taglist.revision(b"v1\n"),
            "count": 2,
            "added": ["v2"],
            "removed": [],
        }
    write(mounted, WEB, b"w1\n")
    for listener in listeners:
        assert listener.expect("list.created")["data"]["added"] == ["w1"]
    shutil.rmtree(mounted.store / "imagerepository" / "other") if "--read-only" in mounted.flags else os.unlink(
        mounted.list_path("web", "other")
    )
    for listener in listeners:
        assert listener.expect("list.deleted")["data"]["removed"] == ["w1"]


def test_18000_tags_at_once_are_one_line(mounted: Daemon) -> None:
    listener = listen(mounted)
    tags = [f"v1.2.{number}-alpine" for number in range(18_000)]
    write(mounted, APP, taglist.encode(tags))
    assert listener.expect("list.changed")["data"]["added"] == tags


def test_who_sees_the_names_that_are_opened_takes_nothing_from_a_listener(mounted: Daemon) -> None:
    opened = Opened(mounted.point)
    listener = listen(mounted)
    names = [name for name in opened.names() if name != ".changes"]
    assert names and all(name.startswith(".changes.") for name in names)
    for name in names:
        with pytest.raises(FileNotFoundError):
            os.open(mounted.point / name, os.O_RDONLY | os.O_NONBLOCK)
    write(mounted, APP, b"v2\n")
    listener.expect("list.changed")


def test_nothing_is_watched_while_nobody_listens(mounted: Daemon) -> None:
    before = watches(mounted.pid)
    with open(mounted.point / ".changes", "rb") as stream:
        assert json.loads(stream.readline())["data"] == {"lists": 1, "unwatched": 0}
        assert watches(mounted.pid) >= before + 4  # the store and three directories
    eventually(lambda: watches(mounted.pid) == before, "the watches go with the last listener")
    listener = listen(mounted)
    write(mounted, APP, b"v3\n")
    assert listener.expect("list.changed")["data"]["added"] == ["v3"]


def test_who_only_looks_leaves_nothing_behind(mounted: Daemon) -> None:
    for _ in range(pipes.MOST + 50):
        eventually(lambda: try_stat(mounted.point / ".changes"), "the kernel forgets what was only looked at")
    listen(mounted)


def try_stat(path: Path) -> bool:
    try:
        path.stat()
    except BlockingIOError:
        return False
    return True


def test_only_the_namespaces_of_the_mount_are_told(daemons: MakeDaemon, tmp_path: Path) -> None:
    put(tmp_path / "store", APP, b"v1\n")
    (tmp_path / "store" / ".storage-version").write_text("3\n")
    mount = daemons("--read-only", "--namespace", "team")
    listener = listen(mount)
    put(mount.store, WEB, b"w1\n")
    put(mount.store, APP, b"v2\n")
    assert listener.expect("list.changed")["subject"] == "team/app"


def test_a_program_in_another_mount_namespace_listens(daemons: MakeDaemon, tmp_path: Path) -> None:
    mount = daemons("--allow-other")
    command = ["unshare", "--mount", "--propagation", "slave", "setpriv", "--reuid=65534", "--regid=65534"]
    tmp_path.chmod(0o755)
    for above in list(tmp_path.parents)[:3]:
        if above != Path("/tmp"):
            above.chmod(0o755)
    with subprocess.Popen(
        [*command, "--clear-groups", "cat", mount.point / ".changes"], stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert json.loads(reader.stdout.readline())["type"] == "io.tagfs.ready"
        mount.make("app").write_text("v1\n")
        assert json.loads(reader.stdout.readline())["data"]["added"] == ["v1"]
        reader.terminate()


def test_the_end_of_the_mount_is_the_end_of_the_file(mounted: Daemon) -> None:
    listener = listen(mounted)
    assert mounted.stop() == 0
    assert listener.next() is None


def test_who_comes_when_the_mount_ends_does_not_wait_for_ever(mounted: Daemon) -> None:
    above = os.open(mounted.point, os.O_RDONLY)
    try:
        os.kill(mounted.pid, signal.SIGTERM)
        eventually(lambda: not os.path.ismount(mounted.point), "it is out of sight, and busy")
        with pytest.raises(FileNotFoundError):
            os.open(".changes", os.O_RDONLY | os.O_NONBLOCK, dir_fd=above)
    finally:
        os.close(above)
    assert mounted.wait() == 0


def test_a_mount_out_of_sight_is_the_end_of_the_file(mounted: Daemon) -> None:
    """Else whoever listens would keep it alive, and be told of a mount that nobody can reach."""
    listener = listen(mounted)
    subprocess.run(["umount", "-l", mounted.point], check=True)
    assert listener.next() is None
    assert mounted.wait() == 0


def test_a_killed_daemon_is_the_end_of_the_file(mounted: Daemon) -> None:
    listener = listen(mounted)
    mounted.kill()
    assert listener.next() is None


def test_a_paused_daemon_tells_when_it_goes_on(mounted: Daemon) -> None:
    listener = listen(mounted)
    if "--read-only" not in mounted.flags:
        pytest.skip("through a paused daemon nothing is written")
    os.kill(mounted.pid, signal.SIGSTOP)
    put(mounted.store, APP, b"v2\n")
    put(mounted.store, APP, b"v3\n")
    os.kill(mounted.pid, signal.SIGCONT)
    assert listener.expect("list.changed")["data"]["added"] == ["v3"]


def test_a_store_that_is_wiped_and_filled_again_is_told(daemons: MakeDaemon, tmp_path: Path) -> None:
    store = tmp_path / "store"
    put(store, APP, b"v1\n")
    put(store, WEB, b"w1\n")
    (store / ".storage-version").write_text("3\n")
    mount = daemons("--read-only", expected=("until it is ready again",))
    listener = listen(mount)
    (store / ".storage-wipe-in-progress").touch()
    listener.until("waiting")
    shutil.rmtree(store / "imagerepository")
    put(store, APP, b"v2\n")
    (store / ".storage-wipe-in-progress").unlink()
    told = [listener.next(), listener.next(), listener.next()]
    kinds = {(event["type"], event.get("subject")) for event in told if event is not None}
    assert kinds == {
        ("io.tagfs.list.changed", "team/app"),
        ("io.tagfs.list.deleted", "other/web"),
        ("io.tagfs.ready", None),
    }
    assert list_file(store, APP).read_bytes() == b"v2\n"


def test_every_line_has_the_fields_of_its_type() -> None:
    """docs/changes.md shows one line of each type; they are as they are made."""
    shown = [
        json.loads(line)
        for line in (Path(__file__).parent.parent / "docs" / "changes.md").read_text().splitlines()
        if line.startswith('{"specversion"')
    ]
    lines = Lines("/var/lib/tags")
    made = [json.loads(line) for line in (lines.ready(1, 0), lines.waiting("x"), lines.overflow(1))]
    for event in made:
        example = next(one for one in shown if one["type"] == event["type"])
        assert list(example) == list(event) and set(example["data"]) == set(event["data"])
    assert {one["type"] for one in shown} > {one["type"] for one in made}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
@pytest.mark.parametrize("others", [(), ("--allow-other",)], ids=["alone", "allow-other"])
def test_a_daemon_that_may_not_enter_its_mount_offers_no_stream(daemons: MakeDaemon, others: tuple[str, ...]) -> None:
    """Else whoever opens it would wait for ever."""
    with tempfile.TemporaryDirectory(prefix="tagfs-stream-") as name:
        base = Path(name)
        base.chmod(0o755)
        (base / "store").mkdir(0o700)
        os.chown(base / "store", 65534, 65534)
        mount = daemons("--drop-privileges", *others, store=base / "store", point=base / "point")
        path = mount.point / ".changes"
        if others:
            listener = listen(mount)
            write(mount, APP, b"v1\n")
            assert listener.expect("list.created")["data"]["added"] == ["v1"]
        else:
            assert not path.exists()
            assert any("no .changes, uid 65534 may not enter it" in said for said in mount.messages("INFO"))
        mount.stop()
