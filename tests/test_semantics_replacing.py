"""Clauses "Replacing", "Renaming away", "Removing" and "Scratch" of `docs/semantics.md`."""

import errno
import gzip
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from tests.conftest import MakeDaemon
from tests.support.daemon import Daemon, eventually
from tests.support.programs import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Flux,
    in_pieces,
    refused,
    renameat2,
    shell,
    succeed,
    tags,
)

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("either_path")]

RENAME_REFUSED = r"rename to tags\.txt refused"


@pytest.mark.parametrize(
    "command",
    [
        "cat $1 > next; mv next tags.txt",
        "cp $1 next && mv -f next tags.txt",
        "sed -i s/old/new/ tags.txt",
        "sed --in-place=.bak s/old/new/ tags.txt && rm tags.txt.bak",
        "rsync -a $1 tags.txt",
        "rsync -rtc ${1%/*}/ .",
        "vim -u NONE -es -c 'set backupcopy=no' -c '%s/old/new/' -c wq tags.txt",
        "vim -u NONE -es -c 'set backupcopy=auto backup writebackup' -c '%s/old/new/' -c wq tags.txt; rm -f tags.txt~",
        "vim -u NONE -es -c 'set swapfile updatecount=1' -c '%s/old/new/' -c preserve -c wq tags.txt",
        "perl -pi -e s/old/new/ tags.txt",
        "perl -pi.bak -e s/old/new/ tags.txt && rm tags.txt.bak",
        "tar -C ${1%/*} -cf - tags.txt | tar xf -",
        "tar -C ${1%/*} -cf - tags.txt | tar xf - --overwrite",
        "tar -C ${1%/*} -cf - tags.txt | tar xf - --unlink-first",
        "tar -C ${1%/*} -cf - tags.txt | tar xpf - --same-owner",
        "install -m 600 $1 tags.txt",
        "cp --remove-destination $1 tags.txt",
        "cp -a $1 tags.txt",
        "mv $1 tags.txt",
        "python3 -c \"import os; open('n', 'w').write(open('$1').read()); os.replace('n', 'tags.txt')\"",
    ],
)
def test_s24_programs_replace(mount: Daemon, tmp_path: Path, command: str) -> None:
    path = mount.make("app")
    path.write_text(tags(1500, "old."))
    source = tmp_path / "source"
    source.mkdir()
    (source / "tags.txt").write_text(tags(1500, "new."))
    os.utime(source / "tags.txt", (1_600_000_000, 1_600_000_000))  # else it looks the same to rsync
    succeed(command, path.parent, source / "tags.txt")
    assert succeed("cat tags.txt; ls", path.parent) == tags(1500, "new.") + "tags.txt\n"
    assert mount.stop() == 0
    assert [file.name for file in mount.stored("app")] == ["tags.txt.zst"]


def test_s44_rsync_cannot_have_a_directory_of_its_own(mount: Daemon, tmp_path: Path) -> None:
    path = mount.make("app")
    path.write_text("v1\n")
    source = tmp_path / "tags.txt"
    source.write_text("v1\nv2\n")
    assert "Unable to create partial-dir" in shell("rsync --delay-updates $1 tags.txt", path.parent, source).stderr
    assert path.read_text() == "v1\n"


def test_s24_rsync_mirrors_both_ways(daemons: MakeDaemon, tmp_path: Path) -> None:
    first, second = daemons(store=tmp_path / "one"), daemons(store=tmp_path / "two")
    for namespace, name, count in (("a", "x", 3), ("a", "y", 2000), ("b", "x", 0)):
        first.make(name, namespace).write_text(tags(count))
    second.make("gone", "a").write_text("v1\n")
    second.make("x", "z").write_text("v1\n")
    base = "imagerepository/"
    assert succeed(f"rsync -ai --delete $1/{base} $2/{base}", None, first.point, second.point)
    assert (
        succeed(
            f"diff -r $1/{base} $2/{base}; rsync -aOin --delete $1/{base} $2/{base}", None, first.point, second.point
        )
        == ""
    )
    assert second.list_path("y", "a").stat().st_mtime_ns == first.list_path("y", "a").stat().st_mtime_ns
    out = tmp_path / "out"
    succeed(f"rsync -a $1/{base} $2/ && rsync -a --inplace $2/ $3/{base}", None, second.point, out, first.point)
    succeed(f"diff -r $1 $2/{base}; sed -i s/v1/v2/ $1/a/*/tags.txt", None, out, first.point)
    succeed(f"rsync -rc --inplace $1/ $2/{base}; diff -r $1 $2/{base}", None, out, first.point)
    assert first.list_path("x", "a").read_text() == tags(3, "v2.")


def test_s24_a_tree_is_copied_in_and_out(mount: Daemon, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(30):
        (source / "team" / f"app-{number}").mkdir(parents=True)
        (source / "team" / f"app-{number}" / "tags.txt").write_text(tags(number * 50))
    base = mount.point / "imagerepository"
    succeed("cp -r $1/team $2 && diff -r $1 $2", None, source, base)
    succeed("tar -C $1 -cf - . | tar -C $2 -xf - && diff -r $1 $2", None, source, base)
    succeed("cp -a $2/team $1/copy && diff -r $1/team $1/copy", None, source, base)
    succeed("tar -C $2 -cf $1.tar team && tar -xf $1.tar -C $1 && diff -r $1/team $1/copy", None, source, base)
    succeed("cp -r $1/team $1/other && diff -r $1/team $1/other", None, base)


def test_s24_a_rename_over_a_list_judges_it(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\n")
    for bad in (b"v1", b"a b\n", b".v1\n", b"\0", b"v1\n\n"):
        path.with_name("next").write_bytes(bad)
        assert refused(lambda: os.rename(path.with_name("next"), path)) == errno.EINVAL
        assert path.read_text() == "v1\n" and path.with_name("next").read_bytes() == bad
    mount.await_message(r"team/app/next: rename to tags\.txt refused: line 1: a NUL cannot be part")
    mount.expected.append(RENAME_REFUSED)
    done = shell("mv next tags.txt", path.parent)
    assert done.returncode == 1 and "to a subdirectory of itself" in done.stderr  # how mv words EINVAL
    path.with_name("next").write_bytes(b"")
    os.rename(path.with_name("next"), path)
    assert path.read_bytes() == b""


def test_s24_what_is_written_counts_closed_or_not(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("old\n")
    with path.with_name("next").open("wb", buffering=0) as file:
        file.write(b"new\n")
        os.rename(path.with_name("next"), path)
        assert path.read_text() == "new\n"
        (stored,) = mount.stored("app")
        assert stored.read_text() == "new\n"


def test_s24_the_old_list_is_there_until_the_new_one_is(mount: Daemon) -> None:
    path = mount.make("app")
    contents = [tags(300, "a."), tags(600, "b.")]
    path.write_text(contents[0])
    done = threading.Event()

    def write() -> None:
        try:
            for number in range(60):
                path.with_name("next").write_text(contents[number % 2])
                os.replace(path.with_name("next"), path)
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not done.is_set():
        assert path.read_text() in contents
        assert "tags.txt" in os.listdir(path.parent)
        reads += 1
    writer.join()
    assert reads > 10


def test_s25_what_is_written_after_the_rename_is_committed_at_close(mount: Daemon) -> None:
    path = mount.make("app")
    with path.with_name("next").open("wb", buffering=0) as file:
        file.write(b"v1\n")
        os.rename(path.with_name("next"), path)
        file.write(b"v2\n")
        assert path.read_text() == "v1\n"
    assert path.read_text() == "v1\nv2\n"


def test_s26_flags_of_renameat2(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\n")
    scratch = path.with_name("next")
    scratch.write_text("v2\n")
    assert refused(lambda: renameat2(scratch, path, RENAME_NOREPLACE)) == errno.EEXIST
    assert refused(lambda: renameat2(path, scratch, RENAME_NOREPLACE)) == errno.EEXIST
    assert refused(lambda: renameat2(scratch, path, RENAME_EXCHANGE)) == errno.EINVAL
    assert path.read_text() == "v1\n" and scratch.read_text() == "v2\n"
    path.unlink()
    renameat2(scratch, path, RENAME_NOREPLACE)
    assert path.read_text() == "v2\n"


def test_s27_a_rename_stays_in_its_directory(mount: Daemon) -> None:
    path, other = mount.make("app"), mount.make("other")
    path.write_text(tags(1000))
    path.with_name("next").write_text("v2\n")
    assert refused(lambda: os.rename(path, other)) == errno.EXDEV
    assert refused(lambda: os.rename(path.with_name("next"), other.with_name("next"))) == errno.EXDEV
    assert refused(lambda: os.rename(path.parent, path.parent.with_name("new"))) == errno.EXDEV
    assert refused(lambda: os.rename(path.parent.parent, mount.point / "imagerepository" / "new")) == errno.EXDEV
    succeed("rm app/next && mv app/tags.txt other/", path.parent.parent)
    assert not path.exists() and other.read_text() == tags(1000)
    succeed("rmdir app && mv other app", path.parent.parent)
    assert path.read_text() == tags(1000) and not other.parent.exists()
    succeed("mv team squad", mount.point / "imagerepository")
    assert mount.list_path("app", "squad").read_text() == tags(1000)
    assert not path.parent.parent.exists()


def test_s28_flux_writes_and_reads(mount: Daemon) -> None:
    flux = Flux(mount.point)
    for round_ in range(3):
        for name, count in (("podinfo", 91 + round_), ("app", 180), ("large", 20_000)):
            flux.set_tags(name, tags(count).encode())
            assert in_pieces(mount.list_path(name)).decode() == tags(count)
            assert succeed("ls -A", flux.directory(name)) == "tags.txt\n"
            assert refused((flux.directory(name) / "tags.txt.gz").stat) == errno.ENOENT
    assert mount.stop() == 0
    assert [file.name for file in mount.stored("large")] == ["tags.txt.zst"]


def test_s29_compressed_names_are_refused(mount: Daemon) -> None:
    flux = Flux(mount.point)
    flux.set_tags("app", b"v1\n")
    assert refused(lambda: flux.set_compressed("app", gzip.compress(b"v1\nv2\n"))) == errno.EPERM
    mount.await_message(r"team/app/tags\.txt\.gz: refused.*--storage-compression-threshold")
    path = mount.list_path("app")
    for suffix in (".gz", ".zst"):
        compressed = path.with_name(f"tags.txt{suffix}")
        assert refused(compressed.write_bytes, b"") == errno.EPERM
        assert refused(os.rename, path, compressed) == errno.EPERM
        mount.await_message(rf"tags\.txt\{suffix}: refused")
    assert path.read_text() == "v1\n"


# -- renaming away


def _store_files(mount: Daemon) -> list[str]:
    return [file.name for file in mount.stored("app")]


def test_s32_a_list_that_is_renamed_away_is_a_scratch_file(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text(tags(1000))
    with path.open() as reader:
        succeed("mv tags.txt old", path.parent)
        assert refused(path.stat) == errno.ENOENT
        assert succeed("ls; cat old", path.parent) == "old\n" + tags(1000)
        assert reader.read() == tags(1000)
    succeed("mv old older; mv older tags.txt", path.parent)
    assert succeed("ls; cat tags.txt", path.parent) == "tags.txt\n" + tags(1000)
    assert _store_files(mount) == ["tags.txt.zst"]
    succeed("mv tags.txt a; echo v1 > tags.txt; mv tags.txt b; mv a tags.txt; rm b", path.parent)
    assert path.read_text() == tags(1000) and _store_files(mount) == ["tags.txt.zst"]
    succeed("mv tags.txt a; echo v1 > tags.txt; rm a", path.parent)
    assert path.read_text() == "v1\n" and _store_files(mount) == ["tags.txt"]
    succeed("mv tags.txt a; rm a", path.parent)
    assert not path.exists() and _store_files(mount) == []


def test_s32_renaming_away_over_a_scratch_file_replaces_it(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\n")
    path.with_name("old").write_text("scratch")
    succeed("mv -f tags.txt old", path.parent)
    assert succeed("ls; cat old", path.parent) == "old\nv1\n"


def test_s33_a_list_that_was_renamed_away_is_put_back(daemons: MakeDaemon) -> None:
    daemon = daemons()
    plain = tags(1000)
    for name in ("lost", "replaced", "removed", "fresh"):
        path = daemon.make(name)
        path.write_text(plain)
        succeed("mv tags.txt old", path.parent)
    succeed("echo v1 > tags.txt", daemon.list_path("replaced").parent)
    assert daemon.list_path("replaced").read_text() == "v1\n"
    succeed("rm old", daemon.list_path("removed").parent)
    unfinished = os.open(daemon.list_path("fresh"), os.O_WRONLY | os.O_CREAT)
    os.write(unfinished, b"v1\n")
    daemon.kill()
    assert refused(lambda: os.close(unfinished)) == errno.ENOTCONN
    again = daemons(point=daemon.point, expected=("put back", "killed daemon"))
    assert again.list_path("lost").read_text() == plain
    assert again.list_path("replaced").read_text() == "v1\n"
    assert refused(again.list_path("removed").stat) == errno.ENOENT
    assert again.list_path("fresh").read_text() == plain
    assert succeed("ls -A", again.list_path("lost").parent) == "tags.txt\n"
    eventually(lambda: [file.name for file in again.stored("replaced")] == ["tags.txt"])
    again.await_message("lost/tags.txt: put back")


# -- removing


def test_s34_a_removed_list_is_gone_and_its_writers_commit_nothing(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\n")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"v2\n")
    path.unlink()
    assert mount.stored("app") == [] and path.parent.is_dir()
    os.write(descriptor, b"v3\n")
    os.close(descriptor)
    assert refused(path.stat) == errno.ENOENT
    path.write_text("v4\n")
    assert path.read_text() == "v4\n"
    descriptor = os.open(path.with_name("tags.txt"), os.O_WRONLY)
    path.unlink()
    path.write_text("v5\n")
    os.write(descriptor, b"v6\n")
    os.close(descriptor)
    assert path.read_text() == "v5\n"


def test_s35_directories_are_removed_when_they_show_nothing(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\n")
    assert refused(path.parent.rmdir) == errno.ENOTEMPTY
    assert refused(path.parent.parent.rmdir) == errno.ENOTEMPTY
    path.rename(path.with_name("old"))
    assert refused(path.parent.rmdir) == errno.ENOTEMPTY
    path.with_name("old").unlink()
    (mount.store / "imagerepository/team/app/tags.txt123").write_text("left over")
    path.parent.rmdir()
    assert not (mount.store / "imagerepository/team/app").exists()
    for name in ("one", "two"):
        mount.make(name).write_text(tags(2000))
        mount.make(name).with_name("scratch").write_text("x")
    succeed("rm -r team/one && ls team && rm -r team", mount.point / "imagerepository")
    assert list((mount.store / "imagerepository").iterdir()) == []
    mount.make("one").write_text("v1\n")
    assert mount.list_path("one").read_text() == "v1\n"
    done = shell("rm -r imagerepository", mount.point)
    assert "Operation not permitted" in done.stderr and (mount.point / "imagerepository").is_dir()


# -- scratch


def test_s36_scratch_holds_any_bytes_and_is_not_seen_elsewhere(daemons: MakeDaemon) -> None:
    mount, window = daemons(), daemons("--read-only")
    path = mount.make("app")
    eventually(window.list_path("app").parent.is_dir)
    for name in ("x", ".tags.txt.swp", "tags.txt~", "4913", "tags.txt.bak", "é" * 120, "n" * 255, "tags.txt.gz1"):
        scratch = path.with_name(name)
        scratch.write_bytes(bytes(range(256)) * 20)
        assert scratch.read_bytes() == bytes(range(256)) * 20 and scratch.stat().st_size == 5120
        with scratch.open("r+b") as file:
            file.seek(5110)
            file.write(b"a" * 20)
            file.truncate(5125)
        assert scratch.read_bytes() == bytes(range(256)) * 19 + bytes(range(246)) + b"a" * 15
        scratch.rename(path.with_name("again"))
        assert not scratch.exists()
        assert list(window.list_path("app").parent.iterdir()) == [] and mount.stored("app") == []
    assert refused(lambda: path.with_name("n" * 256).touch()) in (errno.EINVAL, errno.ENAMETOOLONG)
    assert refused(lambda: path.with_name("again").rename(path.with_name("n" * 256))) in (
        errno.EINVAL,
        errno.ENAMETOOLONG,
    )
    with path.with_name("again").open("rb") as file:
        path.with_name("again").unlink()
        assert len(file.read()) == 5125


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_s37_scratch_does_not_survive(daemons: MakeDaemon, how: str) -> None:
    daemon = daemons()
    path = daemon.make("app")
    path.write_text("v1\n")
    for name in ("next", "tags.txt123"):
        path.with_name(name).write_text("v2\n")
    getattr(daemon, how)()
    assert [file.name for file in daemon.stored("app")] == ["tags.txt"]
    again = daemons(point=daemon.point, expected=("killed daemon",))
    assert succeed("ls -A; cat tags.txt", path.parent) == "tags.txt\nv1\n"
    stages = daemon.store / ".tagfs-stage"
    eventually(lambda: not stages.exists() or not list(stages.iterdir()))
    assert again.stop() == 0


def _fill(path: Path, content: bytes) -> int:
    """Write as a program that notices no error: the errno of the first failure, 0 where all went well."""
    number = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        for start in range(0, len(content), 1 << 16):
            os.write(descriptor, content[start : start + (1 << 16)])
    except OSError as error:
        number = error.errno or -1
    try:
        os.close(descriptor)
    except OSError as error:
        number = number or error.errno or -1
    return number


def test_s38_scratch_and_writers_are_bounded(daemons: MakeDaemon) -> None:
    mount = daemons("--max-list-size=1")
    path = mount.make("app")
    path.write_text("v1\n")
    list_ = (b"v" * 63 + b"\n") * (1 << 14)
    assert _fill(path, list_ + b"v\n") == errno.EFBIG
    mount.await_message(r"team/app/tags\.txt: write refused: 10\d+ bytes, --max-list-size allows")
    assert path.read_text() == "v1\n"
    assert _fill(path.with_name("next"), list_ + b"v\n") == errno.EFBIG
    assert refused(lambda: path.with_name("next").rename(path)) == errno.EINVAL
    mount.await_message(r"next: rename to tags\.txt refused: a write to it failed")
    assert refused(lambda: os.truncate(path.with_name("next"), (1 << 20) + 1)) == errno.EFBIG
    assert path.read_text() == "v1\n"
    failures = [_fill(path.with_name(f"scratch{number}"), bytes(1 << 20)) for number in range(4)]
    assert failures == [0, 0, errno.ENOSPC, errno.ENOSPC]
    assert _fill(path.with_name("one-more"), bytes(1 << 20)) == errno.ENOSPC
    assert _fill(path, list_) == errno.ENOSPC
    mount.await_message(r"team/app/tags\.txt: write refused: open writers and scratch files hold")
    assert path.read_text() == "v1\n"
    succeed("rm -f scratch* next one-more", path.parent)
    assert _fill(path, list_) == 0
    assert path.read_bytes() == list_


def test_s38_a_part_is_no_list_after_a_failed_write(daemons: MakeDaemon) -> None:
    """A program that ignores the failure of a write leaves the old list, in place and by rename."""
    mount = daemons("--max-list-size=1", expected=("write refused", "rename to tags.txt refused"))
    path = mount.make("app")
    path.write_text("v1\n")
    line = b"v" * 63 + b"\n"
    for name in ("tags.txt", "next"):
        with path.with_name(name).open("wb", buffering=0) as file:
            file.write(line * 100)
            assert refused(os.pwrite, file.fileno(), line, 1 << 20) == errno.EFBIG
            if name == "next":
                assert refused(lambda: path.with_name("next").rename(path)) == errno.EINVAL
            else:
                assert refused(os.fsync, file.fileno()) == errno.EINVAL
            assert succeed("cat $1", None, path) == ("v1\n" if name == "tags.txt" else "v2\n")
            file.truncate(0)
            os.pwrite(file.fileno(), b"v2\n" if name == "tags.txt" else b"v3\n", 0)
    path.with_name("next").rename(path)
    assert path.read_text() == "v3\n"


def test_s38_a_rename_away_beyond_the_bound_is_refused(daemons: MakeDaemon) -> None:
    mount = daemons("--max-list-size=1")
    path = mount.make("app")
    path.write_text(tags(20_000))
    assert [_fill(path.with_name(f"scratch{number}"), bytes(1 << 20)) for number in range(4)][3] == errno.ENOSPC
    assert refused(lambda: path.rename(path.with_name("old"))) == errno.ENOSPC
    assert path.read_text() == tags(20_000)


def test_s38_empty_scratch_files_are_bounded_too(daemons: MakeDaemon) -> None:
    mount = daemons("--max-list-size=1")
    directory = mount.make("app").parent
    with pytest.raises(OSError, match="No space left"):
        for number in range(10_000):
            os.close(os.open(directory / f"{number}", os.O_CREAT | os.O_WRONLY))
    mount.list_path("app").parent.joinpath("0").unlink()
    (directory / "again").touch()


def test_s37_a_killed_writer_of_scratch_leaves_the_list(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\n")
    writer = subprocess.Popen(
        ["sh", "-c", "exec > $1; echo v2; echo ready >&2; exec sleep 60", "sh", str(path.with_name("next"))],
        stderr=subprocess.PIPE,
    )
    assert writer.stderr is not None and writer.stderr.readline() == b"ready\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stderr.close()
    assert path.read_text() == "v1\n"
