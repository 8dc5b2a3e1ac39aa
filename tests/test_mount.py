"""The life of a mount, with the real kernel: how it begins, what refuses it, how it ends, what it costs."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tagfs import mountpoint
from tagfs.descriptors import AT_ONCE
from tagfs.endings import exit_code
from tagfs.errors import MountRefused
from tagfs.names import RepositoryKey
from tests.conftest import MakeDaemon
from tests.support.beneath import put
from tests.support.daemon import Daemon, eventually
from tests.support.places import fast_directory
from tests.support.programs import Flux, refused, shell, succeed, tags
from tests.support.volumes import tmpfs

pytestmark = pytest.mark.mount

NOBODY = 65534


def test_the_kernel_has_room_for_many_descriptors_before_they_are_opened(mount: Daemon) -> None:
    found = re.search(r"FDSize:\s+(\d+)", Path(f"/proc/{mount.pid}/status").read_text())
    hard = resource.prlimit(mount.pid, resource.RLIMIT_NOFILE)[1]
    assert found and int(found[1]) >= min(AT_ONCE, hard)


def test_a_list_written_through_the_mount_is_read_back(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\nv2\n")
    assert path.read_text() == "v1\nv2\n"
    assert mount.stop() == 0
    assert [file.name for file in mount.stored("app")] == ["tags.txt"]


def tagfs(*arguments: object, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run tagfs to its end."""
    return _run(["-m", "tagfs", *map(str, arguments)], environment or {})


def _run(arguments: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )


# -- what refuses it


def _not_empty(base: Path) -> None:
    (base / "point").mkdir()
    (base / "point" / "letter").touch()


def _store_within(base: Path) -> None:
    (base / "point" / "store").mkdir(parents=True)
    (base / "store").symlink_to("point/store")


def _point_within(base: Path) -> None:
    (base / "store" / "point").mkdir(parents=True)
    (base / "point").symlink_to("store/point")


def _same(base: Path) -> None:
    (base / "point").mkdir()
    (base / "store").symlink_to("point")


def _no_point(base: Path) -> None:
    pass


def _point_is_file(base: Path) -> None:
    (base / "point").touch()


def _store_is_file(base: Path) -> None:
    (base / "point").mkdir()
    (base / "store").touch()


def _foreign(base: Path) -> None:
    (base / "point").mkdir()
    (base / "store").mkdir()
    (base / "store" / "letter").touch()


def _unknown_version(base: Path) -> None:
    (base / "point").mkdir()
    (base / "store").mkdir()
    (base / "store" / ".storage-version").write_text("1\n")


def _fine(base: Path) -> None:
    (base / "point").mkdir()


REFUSALS = [
    (_not_empty, (), 5, r"point is not empty \(letter …\): the mount would hide what is there"),
    (_store_within, (), 5, r"the store .* is inside .*point"),
    (_point_within, (), 5, r"point is inside the store .*: choose a mount point outside"),
    (_same, (), 5, r"point is the store itself: a mount point of its own is needed"),
    (_no_point, (), 5, r"point does not exist: make the mount point first \(mkdir -p .*\), or say --make-mountpoint"),
    (_point_is_file, (), 5, r"point is no directory"),
    (_store_is_file, (), 3, r"store is no directory"),
    (_store_is_file, ("--read-only",), 3, r"store is no directory"),
    (_foreign, (), 3, r"no tag store: .*\(letter\); name an empty directory, or have `tagfs mount --wipe-foreign`"),
    (_unknown_version, (), 3, r"no tag store: .*says '1'.*; open it with the program that wrote it"),
    (_fine, ("-o", "nosuchthing"), 2, r"-o nosuchthing: there is no such option; `tagfs help mount` names them"),
    (_fine, ("-o", "uid=me"), 2, r"-o uid: 'me' cannot be used; give a numeric id"),
    (_fine, ("--max-list-size=0",), 2, r"'0' cannot be used; give a whole number of MiB, at least 1"),
    (
        _fine,
        ("--read-only", "--codec=gzip"),
        2,
        r"--codec has no effect on a read-only mount: leave one of the two out",
    ),
    (_fine, ("--read-only", "--wait=0"), 7, r"store is not there yet"),
]


@pytest.mark.parametrize(("prepare", "flags", "code", "sentence"), REFUSALS)
@pytest.mark.parametrize("background", [False, True])
def test_what_cannot_be_mounted_is_refused_and_says_what_to_do(
    tmp_path: Path, prepare: Callable[[Path], None], flags: tuple[str, ...], code: int, sentence: str, background: bool
) -> None:
    prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    more = ("--background",) if background else ()
    done = tagfs("mount", *flags, *more, tmp_path / "store", tmp_path / "point")
    assert (done.returncode, done.stdout) == (code, ""), done
    assert re.search(sentence, done.stderr) and "Traceback" not in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert mountpoint.mounted_at(str(tmp_path / "point")) is None
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] in ([], [tmp_path / "store"])


@pytest.mark.parametrize("store", ["there", "empty", "none"])
def test_a_store_on_a_read_only_file_system_is_shown_read_only_alone(
    tmp_path: Path, daemons: MakeDaemon, store: str
) -> None:
    (tmp_path / "point").mkdir()
    with tmpfs(tmp_path, "size=4m") as memory:
        put(memory / "there", RepositoryKey("team", "app"), b"v1\n")
        (memory / "there" / ".storage-version").write_text("3\n")
        (memory / "empty").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", memory], check=True)
        done = tagfs("mount", memory / store, tmp_path / "point")
        assert done.returncode == 3, done
        assert re.search(rf"{memory / store} is on a read-only file system: say --read-only", done.stderr), done.stderr
        assert mountpoint.mounted_at(str(tmp_path / "point")) is None
        if store == "there":
            reading = daemons("--read-only", store=memory / store)
            assert reading.list_path("app").read_text() == "v1\n"
            reading.stop()


def test_a_mount_point_in_use_is_refused(mount: Daemon, tmp_path: Path) -> None:
    done = tagfs("mount", tmp_path / "other", mount.point)
    assert done.returncode == 5 and f"already shows {mount.store}: tagfs unmount {mount.point} first" in done.stderr


@contextmanager
def _open_directory() -> Iterator[Path]:
    """A directory that other users can enter, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="tagfs-mount-") as name:
        path = Path(name)
        path.chmod(0o755)
        for below in ("store", "point"):
            (path / below).mkdir()
        yield path


_AS_NOBODY = f"""
import os, sys, tagfs.background, tagfs.cli, tagfs.libfuse, tagfs.logs, tagfs.tending  # others may not read these
import tagfs.mount
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
sys.exit(tagfs.cli.main(["mount", *sys.argv[1:]]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_missing_rights_are_told() -> None:
    with _open_directory() as base:
        names = [str(base / "store"), str(base / "point")]
        os.chmod(base / "store", 0o700)
        done = _run(["-c", _AS_NOBODY, *names], {})
        if not os.stat(mountpoint.DEVICE).st_mode & 0o002:
            assert done.returncode == 5 and "/dev/fuse may not be opened: run as root" in done.stderr, done
            return
        assert done.returncode == 3 and f"may not be used by uid {NOBODY}" in done.stderr, done
        os.chown(base / "store", NOBODY, NOBODY)
        done = _run(["-c", _AS_NOBODY, *names], {})
        assert done.returncode == 5 and "cannot be mounted: run as root" in done.stderr, done
        os.chmod(base / "point", 0o700)
        done = _run(["-c", _AS_NOBODY, *names], {})
        assert done.returncode == 5 and "Permission denied" in done.stderr, done


def test_other_users_may_enter_where_they_are_allowed_to(daemons: MakeDaemon) -> None:
    with _open_directory() as base:
        for flags, may in ((("--allow-other",), True), (("--log-level=info",), False)):
            daemon = daemons(*flags, store=base / "store", point=base / "point")
            daemon.make("app").write_text("v1\n")
            done = subprocess.run(
                ["cat", daemon.list_path("app")], user=NOBODY, capture_output=True, text=True, check=False
            )
            assert (done.stdout == "v1\n") is may
            refusal = subprocess.run(["touch", daemon.list_path("app")], user=NOBODY, capture_output=True, check=False)
            assert refusal.returncode != 0
            assert daemon.stop() == 0


# -- how it ends


def test_a_signal_ends_an_idle_mount(daemons: MakeDaemon) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        daemon = daemons()
        daemon.make("app").write_text("v1\n")
        os.kill(daemon.pid, number)
        assert daemon.wait() == 0
        assert not os.path.ismount(daemon.point) and list(daemon.point.iterdir()) == []
        assert any("unmounted" in message for message in daemon.messages("info"))


def test_a_signal_lets_open_files_come_to_their_end(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text(tags(5000))
    with path.open() as reader, path.with_name("tags.txt").open("a") as writer:
        start = reader.read(10)
        writer.write("last\n")
        os.kill(mount.pid, signal.SIGTERM)
        eventually(lambda: not os.path.ismount(mount.point))
        assert list(mount.point.iterdir()) == []
        assert start + reader.read() == tags(5000)
    begun = time.monotonic()
    assert mount.wait() == 0
    assert time.monotonic() - begun < 4, "not as soon as the last file was closed"
    assert any("busy" in message for message in mount.messages("info"))
    again = Daemon(mount.store, mount.point, ("--read-only",)).start()
    try:
        assert again.list_path("app").read_text() == tags(5000) + "last\n"
    finally:
        again.end()


def test_open_files_are_not_waited_for_for_ever(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text(tags(5000))
    descriptor = os.open(path, os.O_RDONLY)
    begun = time.monotonic()
    assert mount.stop() == 0
    assert 4.5 < time.monotonic() - begun < 15
    assert refused(os.read, descriptor, 10) in (errno.ENOTCONN, errno.ECONNABORTED)
    assert refused(os.close, descriptor) in (errno.ENOTCONN, errno.ECONNABORTED)


def test_a_second_signal_ends_at_once(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\n")
    descriptor = os.open(path, os.O_RDONLY)
    begun = time.monotonic()
    os.kill(mount.pid, signal.SIGTERM)
    eventually(lambda: not os.path.ismount(mount.point))
    os.kill(mount.pid, signal.SIGTERM)
    assert mount.wait() == 0
    assert time.monotonic() - begun < 4
    assert refused(os.close, descriptor) in (errno.ENOTCONN, errno.ECONNABORTED)
    mount.await_message("ending at once")


def test_a_second_signal_ends_a_mount_whose_store_went_away(mount: Daemon) -> None:
    """The kernel keeps nothing of the mount then: whatever the daemon asks of its own mount waits for itself."""
    path = mount.make("app")
    path.write_text("v1\n")
    descriptor = os.open(path, os.O_RDONLY)
    (mount.store / ".storage-version").unlink()
    mount.await_message("until it is ready again")
    os.kill(mount.pid, signal.SIGTERM)
    os.kill(mount.pid, signal.SIGINT)
    mount.expected.append("ending at once")
    assert mount.wait() == 0
    assert refused(os.close, descriptor) in (errno.ENOTCONN, errno.ECONNABORTED)
    assert not os.path.ismount(mount.point)


def test_a_mount_point_is_made_where_that_is_asked_for(tmp_path: Path) -> None:
    store, point = tmp_path / "store", tmp_path / "lists" / "flux"
    said = tagfs("mount", "--background", "--make-mountpoint", store, point)
    try:
        assert said.returncode == 0, said.stderr
        assert (point / ".storage-version").exists()
    finally:
        assert tagfs("unmount", point).returncode == 0
    assert point.is_dir()
    (tmp_path / "file").touch()
    for wrong, why in ((tmp_path / "file", "is no directory"), (tmp_path / "file" / "below", "cannot be made")):
        said = tagfs("mount", "--make-mountpoint", store, wrong)
        assert (said.returncode, why in said.stderr) == (exit_code(MountRefused("")), True), said.stderr


def test_a_connection_that_is_cut_leaves_no_dead_mount(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\n")
    there = mountpoint.mounted_at(str(mount.point))
    assert there is not None
    abort = Path(f"/sys/fs/fuse/connections/{there.device[1]}/abort")
    if not abort.exists():
        pytest.skip("the fusectl file system is not mounted here")
    path.write_text("v2\n")
    abort.write_text("1")
    assert mount.wait() == exit_code(MountRefused(""))
    assert not os.path.ismount(mount.point)
    mount.await_message("cut")
    assert [file.read_text() for file in mount.stored("app")] in (["v1\n"], ["v2\n"])


def test_a_mount_that_waits_ends_on_a_signal(daemons: MakeDaemon) -> None:
    daemon = daemons("--read-only", start=False, expected=("is not there yet",)).start(wait=False)
    daemon.await_line("waits for its store")
    assert daemon.stop() == 0
    assert not os.path.ismount(daemon.point)


@pytest.mark.parametrize("command", ["umount $1", "umount -l $1", "fusermount3 -u $1"])
def test_an_unmount_from_outside_ends_it(mount: Daemon, command: str) -> None:
    mount.make("app").write_text("v1\n")
    succeed(command, None, mount.point)
    assert mount.wait() == 0
    assert [file.read_text() for file in mount.stored("app")] == ["v1\n"]


def test_tagfs_unmount(daemons: MakeDaemon, tmp_path: Path) -> None:
    daemon = daemons()
    daemon.make("app").write_text("v1\n")
    with daemon.list_path("app").open() as reader:
        busy = tagfs("unmount", daemon.point)
        assert busy.returncode == 5 and "is busy: end what uses it" in busy.stderr and "--lazy" in busy.stderr
        assert os.path.ismount(daemon.point)
        assert tagfs("unmount", "--lazy", daemon.point).returncode == 0
        assert not os.path.ismount(daemon.point)
        assert reader.read() == "v1\n"
    assert daemon.wait() == 0
    daemon = daemons()
    done = tagfs("unmount", daemon.point)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert daemon.wait() == 0
    for point, sentence in (
        (daemon.point, "is not mounted"),
        (tmp_path / "none", "is not mounted"),
        ("/proc", "no tagfs"),
    ):
        done = tagfs("unmount", point)
        assert done.returncode == 5 and sentence in done.stderr
    daemon = daemons()
    daemon.kill()
    assert tagfs("unmount", daemon.point).returncode == 0
    assert not os.path.ismount(daemon.point)


# -- how it begins


@contextmanager
def _in_background(*arguments: object, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """A mount in the background; what its starter printed.  Its mount point is the second argument."""
    point = Path(str(arguments[1]))
    point.mkdir(exist_ok=True)
    command = arguments if "-o" in arguments else ("mount", "--background", *arguments)
    done = tagfs(*command, environment=environment)
    try:
        assert done.returncode == 0 and not done.stderr, done
        assert os.path.ismount(point)
        yield done.stdout
    finally:
        if os.path.ismount(point):
            assert tagfs("unmount", point).returncode == 0
        eventually(lambda: not _serves(point), "the end of the background process")


def _serves(point: Path) -> bool:
    """Whether a process for this mount point is left."""
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes() if process.name.isdigit() else b""
        except OSError:
            continue
        if os.fsencode(point) in command.split(b"\0") and b"tagfs" in command:
            return True
    return False


def test_a_mount_in_the_background_returns_when_it_answers(tmp_path: Path) -> None:
    with _in_background(tmp_path / "store", tmp_path / "point") as printed:
        assert printed == f"{tmp_path}/point shows {tmp_path}/store: read-write, zstd from 4 KiB on, format 3\n"
        path = tmp_path / "point" / "imagerepository" / "team" / "app" / "tags.txt"
        path.parent.mkdir(parents=True)
        path.write_text("v1\n")
        assert path.read_text() == "v1\n"


def test_a_shell_can_take_what_it_prints(tmp_path: Path) -> None:
    (tmp_path / "point").mkdir()
    command = 'said=$("$1" -m tagfs mount --background "$2/store" "$2/point") && echo "[$said]" && ls "$2/point"'
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        told = succeed(command, None, sys.executable, tmp_path)
        assert told.startswith(f"[{tmp_path}/point shows") and told.endswith("]\nimagerepository\n")
    finally:
        del os.environ["PYTHONPATH"]
        tagfs("unmount", tmp_path / "point")
    eventually(lambda: not _serves(tmp_path / "point"))


def test_mount8_and_fstab_are_served(tmp_path: Path) -> None:
    """What mount(8) runs for `mount -t fuse.tagfs`: options after the two names, and return when it answers."""
    Flux.store(tmp_path / "store").set_tags("app", b"v1\n")
    point = tmp_path / "point"
    with _in_background(
        tmp_path / "store", point, "-o", "rw,noatime,nofail,x-systemd.automount,uid=7,gid=8"
    ) as printed:
        assert "read-write" in printed
        status = (point / "imagerepository").stat()
        assert (status.st_uid, status.st_gid) == (7, 8)
    with _in_background(tmp_path / "store", point, "-o", "ro", "-o", "namespace=team") as printed:
        assert "read-only" in printed and os.listdir(point / "imagerepository") == ["team"]


def test_mount8_itself(tmp_path: Path) -> None:
    if not os.path.exists("/sbin/mount.fuse3") and not os.path.exists("/sbin/mount.fuse"):
        pytest.skip("no mount.fuse here")
    Flux.store(tmp_path / "store").set_tags("app", b"v1\n")
    (tmp_path / "point").mkdir()
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "tagfs"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{os.pathsep.join(sys.path)}" exec "{sys.executable}" -m tagfs "$@"\n')
    script.chmod(0o755)
    try:
        done = shell('PATH="$1/bin:$PATH" mount -t fuse."$1/bin/tagfs" "$1/store" "$1/point" -o ro', None, tmp_path)
        assert done.returncode == 0, done
        assert (tmp_path / "point/imagerepository/team/app/tags.txt").read_text() == "v1\n"
    finally:
        shell("umount $1", None, tmp_path / "point")
    eventually(lambda: not _serves(tmp_path / "point"))


def test_variables_are_flags(tmp_path: Path) -> None:
    Flux.store(tmp_path / "store").set_tags("app", b"v1\n")
    given = {"TAGFS_READ_ONLY": "1", "TAGFS_UID": "11", "TAGFS_NAMESPACE": "team,other", "TAGFS_LOG_LEVEL": "error"}
    with _in_background(tmp_path / "store", tmp_path / "point", environment=given) as printed:
        assert "read-only" in printed and (tmp_path / "point" / "imagerepository").stat().st_uid == 11
    done = tagfs("mount", tmp_path / "store", tmp_path / "point", environment={"TAGFS_WAIT": "soon"})
    assert done.returncode == 2 and "TAGFS_WAIT: 'soon' cannot be used; give a number of seconds" in done.stderr


def test_what_is_odd_in_a_path_is_shown_all_the_same(daemons: MakeDaemon, tmp_path: Path) -> None:
    for name in ("with space", "with,comma", "ünïcode", "back\\slash"):
        daemon = daemons(store=tmp_path / f"{name} store", point=tmp_path / f"{name} point")
        daemon.make("app").write_text("v1\n")
        assert daemon.list_path("app").read_text() == "v1\n"
        (tmp_path / "link").symlink_to(daemon.point)
        assert tagfs("unmount", tmp_path / "link").returncode == 0
        assert daemon.wait() == 0
        (tmp_path / "link").unlink()


# -- what it costs


def test_it_answers_within_a_second_whatever_the_size_of_the_store(daemons: MakeDaemon) -> None:
    with fast_directory() as store:
        Flux.store(store).set_tags("app-19999", b"v1\n")
        with_one = _seconds_to_read(daemons, store)
        for number in range(19_999):
            directory = store / "imagerepository" / "team" / f"app-{number}"
            directory.mkdir()
            (directory / "tags.txt").write_bytes(b"v1\n")
        took = _seconds_to_read(daemons, store)
    print(f"from the start to the first read: {took:.2f} s with 20,000 lists, {with_one:.2f} s with one")
    assert took < max(1, 2 * with_one), f"{took:.2f} s, and {with_one:.2f} s with one list on this busy machine"


def _seconds_to_read(daemons: MakeDaemon, store: Path) -> float:
    """From the start of a mount to the first list read, at best."""
    took = []
    for flag in ("--read-only", "--codec=auto") * 2:
        begun = time.monotonic()
        daemon = daemons(flag, store=store)
        assert daemon.list_path("app-19999").read_text() == "v1\n"
        took.append(time.monotonic() - begun)
        assert daemon.stop() == 0
    return min(took)


def _resident_kib(daemon: Daemon) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{daemon.pid}/status").read_text())
    assert found
    return int(found[1])


@pytest.mark.parametrize("flag", ["--codec=auto", "--read-only"])
def test_an_idle_mount_is_small(daemons: MakeDaemon, tmp_path: Path, flag: str) -> None:
    Flux.store(tmp_path / "store")
    daemon = daemons(flag)
    assert os.listdir(daemon.point / "imagerepository") == []
    resident = _resident_kib(daemon)
    print(f"{flag}: {resident / 1024:.1f} MiB resident")
    assert resident <= 32 << 10, f"{resident / 1024:.1f} MiB resident, at most 32 are allowed"


@pytest.mark.slow
@pytest.mark.parametrize(("count", "each"), [(5000, 400), (50, 18_000)])
def test_many_and_large_lists(daemons: MakeDaemon, count: int, each: int) -> None:
    daemon = daemons()
    contents = [tags(each, f"v{number % 7}.") for number in range(7)]
    paths = [daemon.list_path(f"app-{number}") for number in range(count)]
    begun = time.monotonic()
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contents[number % 7])
    assert daemon.stop() == 0
    written = time.monotonic() - begun
    daemon = daemons()
    paths = [daemon.list_path(f"app-{number}") for number in range(count)]
    begun = time.monotonic()
    for number, path in enumerate(paths):
        assert path.read_text() == contents[number % 7]
    read = time.monotonic() - begun
    print(
        f"{count} lists of {each} tags: written at {count / written:.0f}/s, to the end of the mount; "
        f"read at {count / read:.0f}/s; {_resident_kib(daemon) / 1024:.0f} MiB resident"
    )
    found = succeed("grep -rc ^v $1 | grep -c :$2", None, daemon.point / "imagerepository", each)
    assert int(found) == count
