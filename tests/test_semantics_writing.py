"""Clauses "Writing in place", "Appending" and "Truncating" of `docs/semantics.md`."""

import errno
import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from tests.conftest import MakeDaemon
from tests.support.daemon import Daemon, eventually
from tests.support.programs import refused, shell, succeed, tags

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("either_path")]

REFUSED = r"write refused"
NOT_COMMITTED = r"closed and not committed"


def _open(path: Path, flags: int = os.O_WRONLY | os.O_CREAT | os.O_TRUNC) -> int:
    return os.open(path, flags, 0o644)


# -- real programs


@pytest.mark.parametrize(
    "command",
    [
        "cat new > tags.txt",
        "cp new tags.txt",
        "tee tags.txt < new > /dev/null",
        "dd if=new of=tags.txt bs=7 status=none",
        "truncate -s 0 tags.txt; cat new >> tags.txt",
        "truncate -s 0 tags.txt; dd if=new of=tags.txt conv=notrunc status=none",
        "sort -R new > shuffled && cp shuffled tags.txt && sort -V -o tags.txt tags.txt && rm shuffled",
        "rsync --inplace new tags.txt",
        "printf '%s\\n' ',d' 'r new' w q | ed -s tags.txt",
        "vim -u NONE -es -c 'set backupcopy=yes' -c '%d' -c 'r new' -c wq tags.txt",
        "rm tags.txt && install -m 640 new tags.txt",
        "perl -e 'open(my $o, q(>), q(tags.txt)); open(my $i, q(<), q(new)); print $o $_ while <$i>; close $o or die'",
        "while read line; do echo $line; done < new > tags.txt",
        "{ head -n 10 new; tail -n +11 new; } > tags.txt",
    ],
)
def test_s14_s16_programs_write_in_place(mount: Daemon, command: str) -> None:
    path = mount.make("app")
    path.write_text(tags(50, "old."))
    new = tags(1500)
    path.with_name("new").write_text(new)
    succeed(command, path.parent)
    assert succeed("cat tags.txt", path.parent) == new
    assert path.stat().st_size == len(new)
    assert mount.stop() == 0
    assert [file.name for file in mount.stored("app")] == ["tags.txt.zst"]


def test_s11_a_byte_that_no_tag_has_is_refused_at_once(mount: Daemon) -> None:
    mount.expected.append(REFUSED)
    path = mount.make("app")
    path.write_text("v1\n")
    for bad in (b"a b\n", b"v1\r\n", b"v1\0\n", "é\n".encode(), b"a/b\n", b"a:b\n", b"\t"):
        for offset in (0, 1000):
            descriptor = _open(path)
            assert refused(os.pwrite, descriptor, bad, offset) == errno.EINVAL
            assert refused(os.close, descriptor) == errno.EINVAL
    assert path.read_text() == "v1\n"
    done = shell("echo 'two words' > $1", None, path)
    assert (done.returncode != 0 and "Invalid argument" in done.stderr) or "I/O error" in done.stderr
    done = shell("echo 'two words' > $1", None, path, name="bash")
    assert done.returncode != 0 and "Invalid argument" in done.stderr
    done = shell("cp /proc/self/status $1", None, path)
    assert done.returncode != 0 and "Invalid argument" in done.stderr
    assert path.read_text() == "v1\n"


@pytest.mark.parametrize("bad", [b"v1\n.v2\n", b"-v1\n", b"v1\n\nv2\n", b"\nv1\n", b"t" * 129 + b"\n", b"t" * 129])
def test_s12_a_bad_tag_is_refused_at_once_in_sequence(mount: Daemon, bad: bytes) -> None:
    mount.expected.append(REFUSED)
    path = mount.make("app")
    descriptor = _open(path)
    assert refused(lambda: os.write(descriptor, bad)) == errno.EINVAL
    assert refused(os.close, descriptor) == errno.EINVAL
    descriptor = _open(path)
    assert os.write(descriptor, b"v0\n") == 3
    with pytest.raises(OSError, match="Invalid argument"):
        for piece in (bad[:2], bad[2:]):
            os.write(descriptor, piece)
    assert refused(os.close, descriptor) == errno.EINVAL
    assert refused(path.stat) == errno.ENOENT


def test_s13_a_poisoned_handle_commits_nothing_until_it_is_emptied(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\n")
    descriptor = _open(path)
    assert os.write(descriptor, b"good\n") == 5
    assert refused(lambda: os.write(descriptor, b"bad tag\n")) == errno.EINVAL
    assert refused(lambda: os.write(descriptor, b"good\n")) == errno.EINVAL
    assert refused(lambda: os.fsync(descriptor)) == errno.EINVAL
    assert refused(lambda: os.close(os.dup(descriptor))) == errno.EINVAL
    assert refused(os.close, descriptor) == errno.EINVAL
    assert path.read_text() == "v1\n"
    mount.await_message(r"team/app/tags\.txt: write refused: line 2: a space cannot be part of a tag")
    mount.expected.append(REFUSED)
    descriptor = _open(path)
    assert refused(lambda: os.write(descriptor, b"bad tag\n")) == errno.EINVAL
    os.ftruncate(descriptor, 0)
    assert os.pwrite(descriptor, b"v2\n", 0) == 3
    os.close(descriptor)
    assert path.read_text() == "v2\n"


def test_s14_close_judges_the_whole(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\nv2\n")
    for writes in ([(0, b"v1.20")], [(3, b".bad\n"), (0, b"v1\n")], [(0, b"v1\n"), (10, b"v2\n")]):
        descriptor = _open(path)
        for offset, text in writes:
            assert os.pwrite(descriptor, text, offset) == len(text)
        assert refused(os.close, descriptor) == errno.EINVAL
        assert path.read_text() == "v1\nv2\n"
    mount.await_message(r"team/app/tags\.txt: closed and not committed: .*newline")
    mount.expected.append(NOT_COMMITTED)


def test_s14_a_killed_writer_leaves_the_old_list(mount: Daemon) -> None:
    mount.expected.append(NOT_COMMITTED)
    for name, start in (("app", "v1.0\n"), ("new", None)):
        path = mount.make(name)
        if start is not None:
            path.write_text(start)
        writer = subprocess.Popen(
            ["sh", "-c", "exec > $1; printf 'v1.1\\nv1.2'; echo written >&2; exec sleep 60", "sh", str(path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert writer.stderr is not None and writer.stderr.readline() == "written\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stderr.close()
        mount.await_message(rf"team/{name}/tags\.txt: closed and not committed")
        if start is None:
            assert refused(path.stat) == errno.ENOENT
        else:
            assert path.read_text() == start


def test_s15_children_may_close_a_list_that_is_not_whole_yet(mount: Daemon) -> None:
    path = mount.make("app")
    printf = "/usr/bin/printf"
    done = shell(f"{{ {printf} v1; {printf} '.2\\n'; {printf} 'v1.'; {printf} '3\\n'; }} > $1", None, path)
    assert done.returncode == 0 and done.stderr.count("Invalid argument") == 2, done
    assert path.read_text() == "v1.2\nv1.3\n"
    shell(f"{{ {printf} v1; {printf} '.4\\n'; {printf} 'v1.5\\n'; }} >> $1", None, path)
    assert path.read_text() == "v1.2\nv1.3\nv1.4\nv1.5\n"


def test_s16_others_see_the_old_list_until_the_last_close_or_fsync(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\n")
    descriptor = _open(path)
    os.write(descriptor, b"v2\n")
    copy = os.dup(descriptor)
    os.close(descriptor)
    assert succeed("cat $1", None, path) == "v1\n"
    os.fsync(copy)
    assert succeed("cat $1", None, path) == "v2\n"
    os.write(copy, b"v3\n")
    assert succeed("cat $1", None, path) == "v2\n"
    os.close(copy)
    assert succeed("cat $1", None, path) == "v2\nv3\n"


def test_s17_a_new_list_is_not_there_before_its_first_commit(mount: Daemon) -> None:
    path = mount.make("app")
    descriptor = _open(path)
    os.write(descriptor, b"v1\n")
    assert shell("cat $1", None, path).returncode != 0
    assert shell("ls $1", None, path.parent).stdout == ""
    assert succeed("rmdir $1 2>/dev/null || echo busy", None, path.parent) == "busy\n"
    os.fsync(descriptor)
    assert succeed("cat $1", None, path) == "v1\n"
    os.close(descriptor)
    for command in ("touch $1", ": > $1", "cp /dev/null $1"):
        path.unlink()
        succeed(command, None, path)
        assert path.read_bytes() == b"" and succeed("ls $1", None, path.parent) == "tags.txt\n"


def test_s17_two_creators_of_one_list(mount: Daemon) -> None:
    path = mount.make("app")
    first = _open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.write(first, b"first\n")
    succeed("printf 'second\\n' > $1", None, path)
    assert path.read_text() == "second\n"
    os.close(first)
    assert path.read_text() == "first\n"


def test_s18_the_last_close_wins_whole(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v0\n")
    first, second, third = _open(path), _open(path, os.O_RDWR), _open(path)
    os.write(first, b"first\n" * 20)
    os.pwrite(second, b"w0\n", 0)
    os.write(third, b"third\n")
    os.close(third)
    assert path.read_text() == "third\n"
    os.close(first)
    assert path.read_text() == "first\n" * 20
    os.close(second)
    assert path.read_text() == "w0\n"


def test_s18_many_writers_at_once_leave_one_whole_list(mount: Daemon) -> None:
    path = mount.make("app")
    lists = [tags(500 + number, f"w{number}.") for number in range(8)]

    def write(text: str) -> None:
        for _ in range(5):
            path.write_text(text)

    threads = [threading.Thread(target=write, args=(text,)) for text in lists]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in lists


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_TRUNC])
def test_s18_opening_a_list_to_write_while_others_replace_it(mount: Daemon, flags: int) -> None:
    path = mount.make("app")
    path.write_text("v0\n")
    is_over = threading.Event()

    def replace() -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            (path.parent / "new").write_text(f"v{number}\n" * 300)
            (path.parent / "new").rename(path)

    thread = threading.Thread(target=replace)
    thread.start()
    refusals = set()
    try:
        for _ in range(150):
            try:
                descriptor = os.open(path, flags)
            except OSError as error:
                refusals.add(error.errno)
                continue
            if flags != os.O_RDWR:
                os.write(descriptor, b"mine\n")
            else:
                content = os.pread(descriptor, 1 << 20, 0)
                assert content.endswith(b"\n") and len(set(content.splitlines())) == 1
            os.close(descriptor)
    finally:
        is_over.set()
        thread.join()
    assert refusals <= ({errno.ESTALE} if flags == os.O_RDWR else set())


def test_s19_a_producer_that_failed_does_not_empty_a_list(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\n")
    shell("cat /missing > $1", None, path)
    assert path.read_text() == "v1\n"
    mount.await_message(r"team/app/tags\.txt: closed and not committed: opened with O_TRUNC and nothing was written")
    descriptor = _open(path)
    assert refused(os.close, descriptor) == errno.EINVAL
    assert shell("cp /dev/null $1", None, path).returncode != 0
    assert path.read_text() == "v1\n"
    succeed("truncate -s 0 $1", None, path)
    assert path.read_bytes() == b""
    succeed(": > $1", None, path)
    path.write_text("v1\n")
    succeed("touch empty && mv empty tags.txt", path.parent)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("count", [3, 2000])
def test_s20_an_unchanged_list_is_not_rewritten(mount: Daemon, count: int) -> None:
    path = mount.make("app")
    path.write_text(tags(count))
    (file,) = eventually(lambda: mount.stored("app"))
    before, shown = file.stat(), path.stat()
    path.with_name("new").write_text(tags(count))
    succeed(
        "cat new > tags.txt; cp new tags.txt; tee tags.txt < new > /dev/null; dd if=new of=tags.txt status=none; "
        "sort -V -o tags.txt tags.txt",
        path.parent,
    )
    assert path.stat().st_ino == shown.st_ino
    succeed("mv new tags.txt", path.parent)
    after = file.stat()
    same = (before.st_ino, before.st_mtime_ns, before.st_ctime_ns)
    assert (after.st_ino, after.st_mtime_ns, after.st_ctime_ns) == same
    path.write_text(tags(count + 1))
    assert path.stat().st_ino != shown.st_ino and file.stat().st_ino != before.st_ino


def test_s20_the_time_of_an_unchanged_list_can_be_set(mount: Daemon, tmp_path: Path) -> None:
    path = mount.make("app")
    path.write_text(tags(2000))
    (file,) = eventually(lambda: mount.stored("app"))
    before = file.stat()
    (tmp_path / "source").write_text(tags(2000))
    for how, seconds in (("cp -p $1 tags.txt", 1_500_000_000), ("cp -p $1 next; mv next tags.txt", 1_500_000_001)):
        os.utime(tmp_path / "source", (seconds, seconds))
        succeed(how, path.parent, tmp_path / "source")
        assert path.stat().st_mtime == seconds
        assert (file.stat().st_ino, file.stat().st_mtime) == (before.st_ino, seconds)


def test_s21_a_failed_commit_leaves_the_old_list(daemons: MakeDaemon, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(full)], check=True)
    try:
        daemon = daemons(store=full / "store", expected=("No space left", "the disk failed"))
        path = daemon.make("app")
        path.write_text("v1\n")
        with path.open() as reader:
            (full / "ballast").write_bytes(bytes(os.statvfs(full).f_bavail * os.statvfs(full).f_bsize))
            for how in ("cat $2 > $1", "cp $2 $1", "cp $2 $1.next && mv $1.next $1", "cat $2 >> $1"):
                source = tmp_path / "new"
                source.write_text(tags(200))
                done = shell(how, None, path, source)
                assert "No space left on device" in done.stderr or how.startswith("cat"), (how, done)
                assert succeed("cat $1", None, path) == "v1\n"
            descriptor = _open(path)
            os.write(descriptor, b"v2\n")
            assert refused(os.close, descriptor) == errno.ENOSPC
            assert reader.read() == "v1\n"
        (full / "ballast").unlink()
        path.write_text("v2\n")
        assert path.read_text() == "v2\n"
        assert daemon.stop() == 0
    finally:
        subprocess.run(["umount", "-l", str(full)], check=True)


# -- appending


def test_s22_programs_append(mount: Daemon) -> None:
    path = mount.make("app")
    succeed(
        "echo v1 >> tags.txt; echo v2 >> tags.txt; echo v3 | tee -a tags.txt > /dev/null; "
        "echo v4 | dd of=tags.txt oflag=append conv=notrunc status=none",
        path.parent,
    )
    assert path.read_text() == "v1\nv2\nv3\nv4\n"
    descriptor = _open(path, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"v5\n")
    os.fsync(descriptor)
    assert succeed("cat $1", None, path).endswith("v4\nv5\n")
    succeed("echo other >> $1", None, path)
    os.write(descriptor, b"v6\n")
    os.pwrite(descriptor, b"v7\n", 0)
    os.close(descriptor)
    assert path.read_text() == "v1\nv2\nv3\nv4\nv5\nother\nv6\nv7\n"


def test_s22_parallel_appends_lose_nothing(mount: Daemon) -> None:
    path = mount.make("app")
    path.touch()
    command = "for n in $(seq 40); do echo $2.$n >> $1; done"
    writers = [subprocess.Popen(["sh", "-c", command, "sh", str(path), f"w{number}"]) for number in range(10)]
    assert [writer.wait() for writer in writers] == [0] * 10
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"w{writer}.{number}" for writer in range(10) for number in range(1, 41))
    for writer in range(10):
        assert [line for line in lines if line.startswith(f"w{writer}.")] == [f"w{writer}.{n}" for n in range(1, 41)]


def test_s22_an_append_beside_a_replacement_is_behind_it(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("old\n")
    descriptor = _open(path, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"more\n")
    succeed("echo new > next; mv next tags.txt", path.parent)
    os.close(descriptor)
    assert path.read_text() == "new\nmore\n"


def test_s23_an_append_without_its_last_line_feed_is_refused(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\n")
    shell("printf v2 >> $1", None, path)
    mount.await_message(NOT_COMMITTED)
    assert path.read_text() == "v1\n"
    shell("printf 'v2\\nv3' >> $1", None, path)
    assert path.read_text() == "v1\n"


def test_s23_an_append_to_a_list_without_its_last_line_feed_is_refused(daemons: MakeDaemon, tmp_path: Path) -> None:
    directory = tmp_path / "store" / "imagerepository" / "team" / "app"
    directory.mkdir(parents=True)
    (tmp_path / "store" / ".storage-version").write_text("2\n")
    (directory / "tags.txt").write_text("v1")
    daemon = daemons(expected=(NOT_COMMITTED,))
    path = daemon.list_path("app")
    assert path.read_text() == "v1"
    descriptor = _open(path, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"2\n")
    assert refused(os.close, descriptor) == errno.EINVAL
    daemon.await_message(NOT_COMMITTED + ": the list has no newline at its end")
    assert path.read_text() == "v1"
    path.write_text("v1\nv2\n")
    assert path.read_text() == "v1\nv2\n"


# -- truncating


def test_s30_a_list_is_cut_at_the_end_of_a_line(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\nv2\nv3\n")
    succeed("truncate -s 6 $1", None, path)
    assert path.read_text() == "v1\nv2\n" and path.stat().st_size == 6
    os.truncate(path, 3)
    assert path.read_text() == "v1\n"
    assert refused(lambda: os.truncate(path, 2)) == errno.EINVAL
    assert refused(lambda: os.truncate(path, 100)) == errno.EINVAL
    assert "Invalid argument" in shell("truncate -s +1 $1", None, path).stderr
    descriptor = _open(path, os.O_RDWR)
    os.ftruncate(descriptor, 1)
    assert refused(os.close, descriptor) == errno.EINVAL
    mount.await_message(NOT_COMMITTED)
    assert path.read_text() == "v1\n"
    descriptor = _open(path, os.O_RDWR)
    os.pwrite(descriptor, b"v2\nv3\n", 3)
    os.ftruncate(descriptor, 6)
    os.close(descriptor)
    assert path.read_text() == "v1\nv2\n"
    os.truncate(path, 0)
    assert path.read_bytes() == b""


def test_s31_truncate_by_path_commits_before_it_answers(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text(tags(1000))
    with path.open() as reader:
        os.truncate(path, len(tags(500)))
        assert reader.read() == tags(1000) and os.fstat(reader.fileno()).st_size == len(tags(1000))
    (file,) = mount.stored("app")
    assert file.name == "tags.txt" and file.read_text() == tags(500)
    os.truncate(path, 0)
    assert [file.name for file in mount.stored("app")] == ["tags.txt"]
    assert mount.stored("app")[0].stat().st_size == 0
    assert not [message for message in mount.messages() if re.search(NOT_COMMITTED, message)]
