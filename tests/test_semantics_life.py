"""Clauses "Sentinels at mount", "Durability", "Ending" and "Limits" of `docs/semantics.md`."""

import ctypes
import errno
import gzip
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tagfs import mountpoint
from tests.conftest import MakeDaemon
from tests.support.daemon import Daemon, eventually
from tests.support.programs import Flux, listing, refused, shell, succeed, tags

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("either_path")]


# -- sentinels at mount


@pytest.mark.parametrize("kind", ["missing", "empty", "lost+found", "unfinished"])
def test_s50_a_store_is_made_where_none_is(daemons: MakeDaemon, tmp_path: Path, kind: str) -> None:
    store = tmp_path / "deep" / "store"
    if kind != "missing":
        store.mkdir(parents=True)
    if kind == "lost+found":
        (store / "lost+found").mkdir()
    if kind == "unfinished":
        (store / ".storage-version-123").touch()
    daemon = daemons(store=store)
    daemon.make("app").write_text("v1\n")
    assert (store / ".storage-version").read_text() == "3\n"
    assert (store / "lost+found").exists() == (kind == "lost+found")
    assert daemon.stop() == 0


@pytest.mark.parametrize("kind", ["wiping", "badger"])
def test_s50_a_wipe_is_finished_and_a_badgerdb_wiped(daemons: MakeDaemon, tmp_path: Path, kind: str) -> None:
    store = tmp_path / "store"
    if kind == "wiping":
        Flux.store(store).set_tags("app", b"v1\n")
        (store / ".storage-wipe-in-progress").touch()
    else:
        store.mkdir()
        for name in ("MANIFEST", "KEYREGISTRY", "000001.vlog", "000001.sst", "00001.mem", "DISCARD"):
            (store / name).write_bytes(b"badger")
    daemon = daemons(expected=("it is an empty store of format",))
    assert list((daemon.point / "imagerepository").iterdir()) == []
    daemon.await_message("a wipe of it was begun" if kind == "wiping" else "it holds a BadgerDB")
    assert {name for name in os.listdir(store) if name != ".tagfs-stage"} == {".storage-version"}
    assert (store / ".storage-version").read_text() == ("2\n" if kind == "wiping" else "3\n")


@pytest.mark.parametrize("kind", ["home", "lists", "version"])
def test_s50_anything_else_is_refused(daemons: MakeDaemon, tmp_path: Path, kind: str) -> None:
    store = tmp_path / "store"
    store.mkdir()
    if kind == "home":
        (store / "letter.txt").write_text("dear")
    if kind == "lists":
        Flux(store).set_tags("app", b"v1\n")
    if kind == "version":
        (store / ".storage-version").write_text("7\n")
    before = listing(store)
    daemon = daemons(start=False, expected=("is no tag store",)).start(wait=False)
    assert daemon.wait() == 3
    (message,) = daemon.messages("error")
    assert {"home": "letter.txt", "lists": "echo 2 >", "version": "'7'"}[kind] in message
    assert listing(store) == before
    daemon = daemons("--wipe-foreign", expected=("it is an empty store of format",))
    assert list((daemon.point / "imagerepository").iterdir()) == [] and not (store / "letter.txt").exists()


def test_s50_a_store_of_flux_stays_one(daemons: MakeDaemon, tmp_path: Path) -> None:
    flux = Flux.store(tmp_path / "store")
    flux.set_compressed("app", gzip.compress(tags(1000).encode()))
    daemon = daemons()
    assert daemon.list_path("app").read_text() == tags(1000)
    daemon.make("new").write_text(tags(2000))
    assert daemon.stop() == 0
    assert (tmp_path / "store" / ".storage-version").read_text() == "2\n"
    assert gzip.decompress((flux.directory("new") / "tags.txt.gz").read_bytes()).decode() == tags(2000)
    daemon = daemons("--codec=zstd", expected=("upgraded to format 3",))
    assert daemon.list_path("app").read_text() == tags(1000)
    assert (tmp_path / "store" / ".storage-version").read_text() == "3\n"


def test_s51_a_store_has_one_writer(daemons: MakeDaemon) -> None:
    first = daemons()
    first.make("app").write_text("v1\n")
    second = daemons(start=False, expected=("is held by another writer",)).start(wait=False)
    assert second.wait() == 4
    (message,) = second.messages("error")
    assert f"pid {first.pid}" in message and "tagfs" in message
    standby = daemons("--wait=60", start=False, expected=("is held by another writer",)).start(wait=False)
    standby.await_line("waits for its store")
    path = standby.list_path("app")
    assert refused(path.stat) == refused(lambda: os.listdir(standby.point)) == errno.EAGAIN
    window = daemons("--read-only")
    assert window.list_path("app").read_text() == "v1\n"
    assert first.stop() == 0
    standby.await_line(" shows ")
    assert path.read_text() == "v1\n"
    path.write_text("v2\n")
    standby.kill()
    third = daemons()
    assert third.list_path("app").read_text() in ("v1\n", "v2\n")


def test_s51_wait_bounds_standing_by(daemons: MakeDaemon) -> None:
    daemons()
    second = daemons("--wait=1", start=False, expected=("is held by another writer",)).start(wait=False)
    assert second.wait() == 4


# -- durability


def _calls(log: Path) -> list[str]:
    """The calls that make something durable, in their order."""
    wanted = ("fsync", "fdatasync", "rename", "renameat", "renameat2", "unlinkat", "unlink")
    found = re.findall(r"^(?:\d+ +)?(\w+)\((.*)", log.read_text(), re.MULTILINE)
    return ["rename" if call.startswith("rename") else call for call, _ in found if call in wanted]


@pytest.mark.parametrize("how", ["fsync", "rename", "truncate", "unlink"])
def test_s54_what_is_acknowledged_was_synced(daemons: MakeDaemon, tmp_path: Path, how: str) -> None:
    log = tmp_path / "calls"
    traced = ("strace", "-f", "-o", str(log), "-e", "trace=fsync,fdatasync,rename,renameat,renameat2,unlinkat,unlink")
    if shell("strace -e trace=none true").returncode != 0:
        pytest.skip("strace may not be used here")
    daemon = daemons(wrapper=traced)
    path = daemon.make("app")
    path.write_text("v1\nv2\n")
    assert path.read_text() == "v1\nv2\n"
    before = len(_calls(log))
    descriptor = -1
    if how == "fsync":
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
        os.write(descriptor, b"v2\n")
        os.fsync(descriptor)
    elif how == "rename":
        path.with_name("next").write_text("v2\n")
        before = len(_calls(log))
        os.rename(path.with_name("next"), path)
    elif how == "truncate":
        os.truncate(path, 3)
    else:
        path.unlink()
    done = _calls(log)[before:]
    if how == "unlink":
        assert done == ["unlinkat", "fsync"] or done == ["unlink", "fsync"]
    else:
        assert done[0] == "fsync" and done[done.index("rename") + 1] == "fsync", done
    daemon.kill()
    assert [file.read_text() for file in daemon.stored("app")] == {
        "fsync": ["v2\n"],
        "rename": ["v2\n"],
        "truncate": ["v1\n"],
        "unlink": [],
    }[how]
    if how == "fsync":
        assert refused(os.close, descriptor) == errno.ENOTCONN


def test_s55_what_was_closed_is_seen_by_the_next_open(mount: Daemon) -> None:
    path, other = mount.make("app"), mount.make("other")
    for number in range(200):
        plain = tags(number % 700 + 1, f"w{number}.")
        for one in (path, other):
            one.write_text(plain)
        assert path.read_text() == plain and other.stat().st_size == len(plain)
    command = "for n in $(seq 100); do echo v$n > $1; test $(cat $1) = v$n || echo $n; done"
    assert succeed(command, None, path) == ""
    eventually(lambda: mount.stored("app")[0].read_text() == "v100\n")


def test_s55_many_lists_are_committed_side_by_side(mount: Daemon, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(300):
        (source / f"app-{number}").mkdir(parents=True)
        (source / f"app-{number}" / "tags.txt").write_text(tags(number * 3 + 1))
    begun = time.monotonic()
    succeed("cp -r $1 $2/many && diff -r $1 $2/many", None, source, mount.point / "imagerepository")
    print(f"cp -r of 300 lists and diff -r: {300 / (time.monotonic() - begun):.0f} lists/s")


def test_s56_a_killed_daemon_leaves_the_old_list_or_the_new_one(daemons: MakeDaemon) -> None:
    contents = {letter: tags(50 + 900 * number, f"{letter}.") for number, letter in enumerate("ab")}
    point: Path | None = None
    for round_ in range(6):
        daemon = daemons(point=point, expected=("killed daemon", "put back"))
        point = daemon.point
        path = daemon.make("app")
        if round_:
            assert path.read_text() in contents.values()
        path.write_text(contents["a"])
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), *contents.values()],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert writer.stdout is not None
        for _ in range(5 + round_ * 3):
            writer.stdout.readline()
        daemon.kill()
        writer.wait()
        writer.stdout.close()
        names = [file.name for file in daemon.stored("app")]
        assert names, "no list at all"
    daemon = daemons(point=point, expected=("killed daemon", "put back"))
    assert daemon.list_path("app").read_text() in contents.values()
    eventually(lambda: len(daemon.stored("app")) == 1)


_WRITER = """
import itertools, os, sys
path, *contents = sys.argv[1:]
for number in itertools.count():
    target = path + ".next" if number % 4 < 2 else path
    with open(target, "w") as file:
        file.write(contents[number % 2])
    if target != path:
        os.replace(target, path)
    print(number, flush=True)
"""


# -- ending


def test_s57_what_was_closed_is_committed_when_the_mount_ends(daemons: MakeDaemon, tmp_path: Path) -> None:
    for how in ("SIGTERM", "SIGINT", "umount"):
        daemon = daemons(store=tmp_path / how)
        paths = [daemon.make(f"app-{number}") for number in range(150)]
        for number, path in enumerate(paths):
            path.write_text(tags(number * 4 + 1))
        if how == "umount":
            succeed("umount $1", None, daemon.point)
        else:
            os.kill(daemon.pid, getattr(signal, how))
        assert daemon.wait() == 0
        again = daemons("--read-only", store=daemon.store)
        for number in range(150):
            assert again.list_path(f"app-{number}").read_text() == tags(number * 4 + 1), how


def test_s57_a_store_at_rest_holds_its_lists_alone(daemons: MakeDaemon) -> None:
    daemon = daemons()
    path = daemon.make("app")
    path.write_text("v1\n")
    assert daemon.stop() == 0
    assert sorted(os.listdir(daemon.store)) == [".storage-version", "imagerepository"]


def test_s57_an_unmount_does_not_overtake_a_close(daemons: MakeDaemon, tmp_path: Path) -> None:
    """Nothing between the two system calls, several times, because it is a race."""
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(6):
        daemon = daemons(store=tmp_path / f"store{number}")
        path = daemon.make("app")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"v1\n")
        point, close, unmount = os.fsencode(daemon.point), libc.close, libc.umount2
        assert (close(descriptor), unmount(point, 0)) == (0, 0)
        assert daemon.wait() == 0
        assert [file.read_text() for file in daemon.stored("app")] == ["v1\n"]


@pytest.mark.parametrize("how", ["umount", "SIGTERM"])
def test_s57_what_was_closed_just_before_is_committed(daemons: MakeDaemon, how: str) -> None:
    """The kernel ends a mount without telling of the last closes that the daemon has not read yet."""
    daemon = daemons()
    paths = [daemon.make(f"app-{number}") for number in range(200)]
    for path in paths[::2]:
        path.write_text("old\n")
    descriptors = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in paths]
    for number, descriptor in enumerate(descriptors):
        os.write(descriptor, tags(number + 1).encode())
    pid = daemon.pid
    for descriptor in descriptors:
        os.close(descriptor)
    if how == "SIGTERM":
        os.kill(pid, signal.SIGTERM)
    else:
        mountpoint.unmount(str(daemon.point))
    assert daemon.wait() == 0
    again = daemons("--read-only")
    lost = [number for number in range(200) if again.list_path(f"app-{number}").read_text() != tags(number + 1)]
    assert not lost, f"{len(lost)} of 200"


def test_s57_a_list_that_is_open_at_the_end_is_not_committed(daemons: MakeDaemon) -> None:
    daemon = daemons()
    path = daemon.make("app")
    path.write_text("v1\n")
    writer = subprocess.Popen(
        ["sh", "-c", "exec > $1; /usr/bin/printf 'v2\n'; echo written >&2; exec sleep 60", "sh", str(path)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert writer.stderr is not None and writer.stderr.readline() == "written\n"
    os.kill(daemon.pid, signal.SIGTERM)
    eventually(lambda: not os.path.ismount(daemon.point))
    os.kill(daemon.pid, signal.SIGTERM)
    daemon.expected.append("ending at once")
    assert daemon.wait() == 0
    writer.kill()
    writer.wait()
    writer.stderr.close()
    assert [file.read_text() for file in daemon.stored("app")] == ["v1\n"]


def test_s58_a_dead_mount_is_cleared(daemons: MakeDaemon) -> None:
    daemon = daemons()
    daemon.make("app").write_text("v1\n")
    assert daemon.list_path("app").read_text() == "v1\n"
    daemon.kill()
    assert refused(lambda: os.listdir(daemon.point)) == errno.ENOTCONN
    assert "not connected" in shell("ls $1", None, daemon.point).stderr
    again = daemons(point=daemon.point)
    again.await_message("unmounted what a killed daemon had left there")
    assert again.list_path("app").read_text() == "v1\n"
    assert len([one for one in mountpoint.mounts() if one.point == str(daemon.point)]) == 1


# -- limits


@pytest.mark.parametrize("name", ["sh", "bash"])
def test_s59_shells_ignore_errors_of_close(mount: Daemon, name: str) -> None:
    path = mount.make("app")
    path.write_text("v1\n")
    assert shell("printf v2 > $1", None, path, name=name).returncode == 0
    assert path.read_text() == "v1\n"
    mount.await_message("closed and not committed: line 1: no newline at the end of 'v2'")
    mount.expected.append("write refused|closed and not committed")
    done = shell("echo 'v 2' > $1 || echo seen", None, path, name=name)
    assert done.stdout == "seen\n" and path.read_text() == "v1\n"


def test_s60_hundreds_of_descriptors_closed_at_once(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("old\n")
    descriptors = [os.open(path, os.O_WRONLY | os.O_TRUNC) for _ in range(300)]
    for number, descriptor in enumerate(descriptors):
        os.write(descriptor, f"v{number}\n".encode())
    seen = set()
    for descriptor in descriptors:
        os.close(descriptor)
        seen.add(path.read_text())
    assert seen <= {"old\n", *(f"v{number}\n" for number in range(300))}
    eventually(lambda: path.read_text() == "v299\n")


def test_s60_a_close_that_is_told_late_undoes_nothing_that_came_after_it(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\n")
    control = Path(f"/sys/fs/fuse/connections/{os.minor(mount.point.stat().st_dev)}/max_background")
    if not os.access(control, os.W_OK):
        pytest.skip("fusectl cannot be written, so the kernel cannot be made to tell late")
    eventually(lambda: control.read_text() == "1024\n")  # as tagfs has set it
    control.write_text("12\n")
    code = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (2500, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC), b"v2\\n")
for _ in range(2000):
    os.open(sys.argv[1], os.O_RDONLY)
"""
    subprocess.run([sys.executable, "-c", code, path], check=True)
    (path.parent / "new").write_text("v3\n")
    (path.parent / "new").rename(path)
    assert path.read_text() == "v3\n"
    # The kernel tells of closes in their order, so once one of now is known the late one was, too.
    other = mount.make("other")
    other.write_text("v1\n")
    eventually(lambda: other.exists() and other.read_text() == "v1\n")
    assert path.read_text() == "v3\n"


def test_s61_the_size_of_an_inherited_descriptor(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\nv2\n")
    with path.open("wb", buffering=0) as file:
        file.write(b"v3\n")
        assert os.fstat(file.fileno()).st_size == 3
        code = f"import os; print(os.fstat({file.fileno()}).st_size)"
        told = subprocess.run([sys.executable, "-c", code], pass_fds=[file.fileno()], capture_output=True, text=True)
        assert told.stdout == "6\n"
    assert path.stat().st_size == 3


def test_s62_inotify_sees_what_is_done_through_the_mount(daemons: MakeDaemon, tmp_path: Path) -> None:
    flux = Flux.store(tmp_path / "store")
    flux.set_tags("app", b"v1\n")
    mount, window = daemons(), daemons("--read-only")
    libc = ctypes.CDLL(None, use_errno=True)
    watches = []
    for daemon in (mount, window):
        descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert libc.inotify_add_watch(descriptor, os.fsencode(daemon.list_path("app").parent), 0x8 | 0x80) >= 0
        watches.append(descriptor)
    try:
        flux.set_tags("app", b"v2\n")
        eventually(lambda: window.list_path("app").read_text() == "v2\n")
        for descriptor in watches:
            assert refused(os.read, descriptor, 4096) == errno.EAGAIN
        mount.list_path("app").write_text("v3\n")
        event = os.read(watches[0], 4096)
        assert struct.unpack_from("iIII", event)[1] == 0x8 and b"tags.txt" in event
        assert refused(os.read, watches[1], 4096) == errno.EAGAIN
    finally:
        for descriptor in watches:
            os.close(descriptor)


def test_s63_a_flipped_bit_is_seen_in_compressed_lists_alone(daemons: MakeDaemon, tmp_path: Path) -> None:
    daemon = daemons()
    for name, count in (("plain", 3), ("compressed", 3000)):
        daemon.make(name).write_text(tags(count))
    daemon.stop()
    (plain,), (compressed,) = daemon.stored("plain"), daemon.stored("compressed")
    plain.write_bytes(plain.read_bytes().replace(b"1.2", b"1.3"))
    stored = bytearray(compressed.read_bytes())
    stored[len(stored) // 2] ^= 1
    compressed.write_bytes(stored)
    daemon = daemons("--read-only", expected=("compressed/tags.txt.zst",))
    assert daemon.list_path("plain").read_text() == "v1.0\nv1.1\nv1.3\n"
    assert refused(daemon.list_path("compressed").read_bytes) == errno.EIO
