"""Clauses "Attributes and extended attributes", "Refusals" and "Namespaces" of `docs/semantics.md`."""

import contextlib
import errno
import hashlib
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.conftest import MakeDaemon
from tests.support.daemon import Daemon, eventually
from tests.support.programs import Flux, listing, refused, shell, succeed, tags

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("either_path")]

LONG_AGO = 1_234_567_890_123_456_789


def _modes(point: Path) -> dict[str, str]:
    found = succeed("find . -printf '%p %m %U %G\\n'", point).splitlines()
    return {path: rest for path, _, rest in (line.partition(" ") for line in found)}


def test_s39_modes_and_owners(daemons: MakeDaemon) -> None:
    mount = daemons("--uid=1234", "--gid=4321")
    path = mount.make("app")
    path.write_text("v1\n")
    path.with_name("next").write_text("v2\n")
    repository = "./imagerepository/team/app"
    directories = [".", "./imagerepository", "./imagerepository/team", repository]
    files = [f"{repository}/tags.txt", f"{repository}/next"]
    assert _modes(mount.point) == {
        **dict.fromkeys(directories, "755 1234 4321"),
        **dict.fromkeys(files, "644 1234 4321"),
        "./.storage-version": "444 1234 4321",
    }
    window = daemons("--read-only")
    ids = f"{os.getuid()} {os.getgid()}"
    assert _modes(window.point) == {
        **dict.fromkeys(directories, f"555 {ids}"),
        f"{repository}/tags.txt": f"444 {ids}",
        "./.storage-version": f"444 {ids}",
    }


def test_s39_chmod_and_chown_change_nothing(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\n")
    path.with_name("next").write_text("v2\n")
    before, stored = _modes(mount.point), listing(mount.store / "imagerepository")
    succeed("chmod 600 tags.txt next && chmod -R 700 . && chown -R 1:1 ../.. && chgrp 3 tags.txt", path.parent)
    assert _modes(mount.point) == before and listing(mount.store / "imagerepository") == stored


def test_s40_size_and_blocks(mount: Daemon) -> None:
    path = mount.make("app")
    plain = tags(20_000)
    path.write_text(plain)
    (stored,) = eventually(lambda: mount.stored("app"))
    status = path.stat()
    assert status.st_size == len(plain) and status.st_blocks == stored.stat().st_blocks
    apparent = int(succeed("du --apparent-size -B1 $1", None, path).split()[0])
    used = int(succeed("du -B1 $1", None, path).split()[0])
    assert apparent == len(plain) and used == stored.stat().st_blocks * 512 and used * 2 < apparent
    total = int(succeed("du -sB1 $1", None, mount.point / "imagerepository").split()[0])
    assert total == used
    for column in ("size", "itotal"):
        there, beneath = (succeed(f"df --output={column} $1", None, at) for at in (mount.point, mount.store))
        assert there == beneath
    space = os.statvfs(mount.point)
    assert space.f_namemax == 255 and space.f_blocks == os.statvfs(mount.store).f_blocks
    assert succeed("df --output=source,fstype,target $1 | tail -n 1", None, mount.point).split() == [
        str(mount.store),
        "fuse.tagfs",
        str(mount.point),
    ]


def test_s41_the_mtime_is_that_of_the_commit(mount: Daemon) -> None:
    path = mount.make("app")
    path.write_text("v1\n")
    (stored,) = eventually(lambda: mount.stored("app"))
    assert path.stat().st_mtime_ns == stored.stat().st_mtime_ns
    assert path.stat().st_atime_ns == path.stat().st_mtime_ns
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    assert path.stat().st_mtime_ns == stored.stat().st_mtime_ns == LONG_AGO
    succeed("touch -d '2020-02-02 02:02:02 UTC' tags.txt", path.parent)
    assert path.stat().st_mtime == stored.stat().st_mtime == 1_580_608_922
    succeed("touch tags.txt", path.parent)
    assert path.stat().st_mtime > 1_600_000_000
    before = path.parent.stat().st_mtime_ns, path.parent.parent.stat().st_mtime_ns
    succeed("touch -d 2020-02-02 . ..", path.parent)
    assert (path.parent.stat().st_mtime_ns, path.parent.parent.stat().st_mtime_ns) == before


@pytest.mark.parametrize("count", [5, 3000])
@pytest.mark.parametrize(
    "command",
    [
        "cp -p $1 tags.txt",
        "cp -a $1 tags.txt",
        "rsync -a $1 tags.txt",
        "rsync -a --inplace $1 tags.txt",
        "tar -C ${1%/*} -cf - tags.txt | tar xf -",
        "tar -C ${1%/*} -cf - tags.txt | tar xf - --overwrite",
        "install -p $1 tags.txt",
        "cat $1 > next; touch -r $1 next; mv next tags.txt",
        "cat $1 > tags.txt; touch -r $1 tags.txt",
        "mv $1 tags.txt",
    ],
)
def test_s41_programs_keep_the_time_of_their_source(mount: Daemon, tmp_path: Path, command: str, count: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "tags.txt").write_text(tags(count))
    os.utime(source / "tags.txt", (1_500_000_000, 1_500_000_000))
    path = mount.make("app")
    for _ in range(2):
        succeed(f"cp -p $1 $1.kept; {command}; mv $1.kept $1", path.parent, source / "tags.txt")
        assert path.read_text() == tags(count)
        assert path.stat().st_mtime == 1_500_000_000, command
        (stored,) = mount.stored("app")
        assert stored.stat().st_mtime == 1_500_000_000
        # The second time over a list in the other codec, from now.
        path.write_text(tags(3000 if count == 5 else 5, "other."))


def test_s42_extended_attributes(mount: Daemon) -> None:
    path = mount.make("app")
    plain = tags(3000)
    path.write_text(plain)
    (stored,) = eventually(lambda: mount.stored("app"))
    expected = {
        "user.tagfs.revision": "sha256:" + hashlib.sha256(plain.encode()).hexdigest(),
        "user.tagfs.count": "3000",
        "user.tagfs.codec": "zstd",
        "user.tagfs.stored-size": str(stored.stat().st_size),
    }
    assert {name: os.getxattr(path, name).decode() for name in os.listxattr(path)} == expected
    told = succeed("getfattr -d $1 2>/dev/null", None, path)
    assert all(f'{name}="{value}"' in told for name, value in expected.items())
    os.truncate(path, 0)
    assert os.getxattr(path, "user.tagfs.codec") == b"plain" and os.getxattr(path, "user.tagfs.count") == b"0"
    assert refused(lambda: os.getxattr(path, "user.other")) == errno.ENODATA
    assert refused(lambda: os.setxattr(path, "user.other", b"1")) == errno.EOPNOTSUPP
    assert refused(lambda: os.setxattr(path, "user.tagfs.count", b"1")) == errno.EOPNOTSUPP
    assert refused(lambda: os.removexattr(path, "user.tagfs.count")) == errno.EOPNOTSUPP
    assert "not supported" in shell("setfattr -n user.x -v 1 $1", None, path).stderr
    assert os.listxattr(path.parent) == [] and os.listxattr(mount.point / ".storage-version") == []
    path.with_name("next").touch()
    assert os.listxattr(path.with_name("next")) == []


def test_s42_a_read_only_mount_has_none(daemons: MakeDaemon, tmp_path: Path) -> None:
    Flux.store(tmp_path / "store").set_tags("app", b"v1\n")
    path = daemons("--read-only").list_path("app")
    assert refused(lambda: os.getxattr(path, "user.tagfs.count")) == errno.EOPNOTSUPP
    assert refused(lambda: os.listxattr(path)) == errno.EOPNOTSUPP
    assert "Operation not supported" in shell("getfattr -d $1", None, path).stderr
    succeed("ls -lR . && cp -a $1 $2", path.parent, path, tmp_path / "copy")


def test_s43_each_version_has_its_inode_number(mount: Daemon) -> None:
    path = mount.make("app")
    seen = []
    for number in range(5):
        path.write_text(f"v{number}\n")
        seen.append(path.stat().st_ino)
        assert path.stat().st_ino == seen[-1]
        with path.open() as file:
            assert os.fstat(file.fileno()).st_ino == seen[-1]
    assert len(set(seen)) == 5


def test_s44_what_the_layout_does_not_have_is_refused(mount: Daemon, tmp_path: Path) -> None:
    path = mount.make("app")
    path.write_text("v1\n")
    base = mount.point / "imagerepository"
    for above in (mount.point, base, base / "team"):
        assert refused((above / "tags.txt").touch) == errno.EPERM
        assert refused((above / "link").symlink_to, "/etc") == errno.EPERM
    for directory in (mount.point / "other", base / "Team", base / "team" / "App", path.parent / "deeper"):
        assert refused(directory.mkdir) == errno.EINVAL
    assert refused(lambda: path.with_name("link").symlink_to("tags.txt")) == errno.EPERM
    assert refused(lambda: path.with_name("link").hardlink_to(path)) == errno.EPERM
    assert refused(lambda: os.mkfifo(path.with_name("pipe"))) == errno.EPERM
    assert refused(lambda: os.mknod(path.with_name("device"), stat.S_IFCHR | 0o600, os.makedev(1, 3))) == errno.EPERM
    assert refused(lambda: os.mknod(path.with_name("file"), stat.S_IFREG | 0o600)) == errno.EPERM
    with socket.socket(socket.AF_UNIX) as bound:
        with contextlib.chdir(path.parent):  # a socket's path has at most 107 bytes
            assert refused(lambda: bound.bind("socket")) == errno.EPERM
    (tmp_path / "tree" / "app").mkdir(parents=True)
    (tmp_path / "tree" / "app" / "link").symlink_to("/etc/passwd")
    done = shell("cp -a $1 $2", None, tmp_path / "tree" / "app", base / "team")
    assert "Operation not permitted" in done.stderr
    assert succeed("ls -A", path.parent) == "tags.txt\n"


def test_s45_no_failure_ends_the_daemon(mount: Daemon) -> None:
    """What nothing else asks for: odd system calls, each answered."""
    path = mount.make("app")
    path.write_text("v1\n")
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
        assert refused(lambda: os.open(".", os.O_TMPFILE | os.O_WRONLY, dir_fd=directory)) == errno.EOPNOTSUPP
        assert refused(lambda: os.open("tags.txt", os.O_CREAT | os.O_EXCL, dir_fd=directory)) == errno.EEXIST
        assert refused(lambda: os.open("tags.txt", os.O_DIRECTORY, dir_fd=directory)) == errno.ENOTDIR
        assert refused(lambda: os.mkdir("tags.txt", dir_fd=directory)) in (errno.EEXIST, errno.EINVAL)
        assert refused(lambda: os.rmdir("tags.txt", dir_fd=directory)) == errno.ENOTDIR
        assert refused(lambda: os.unlink("../app", dir_fd=directory)) in (errno.EISDIR, errno.EPERM)
        assert (
            refused(lambda: os.rename("missing", "tags.txt", src_dir_fd=directory, dst_dir_fd=directory))
            == errno.ENOENT
        )
        assert refused(lambda: os.unlink("missing", dir_fd=directory)) == errno.ENOENT
        assert refused(lambda: os.readlink("tags.txt", dir_fd=directory)) == errno.EINVAL
        assert refused(lambda: os.stat(b"\xff\xfe", dir_fd=directory)) == errno.ENOENT
        assert refused(lambda: os.mkdir(b"../\xff", dir_fd=directory)) == errno.EINVAL
        assert refused(lambda: os.rmdir("../missing", dir_fd=directory)) == errno.ENOENT
        assert refused(lambda: os.rmdir("../Bad", dir_fd=directory)) == errno.ENOENT
        assert refused(lambda: os.mkdir("../../missing/app", dir_fd=directory)) == errno.ENOENT
    finally:
        os.close(directory)
    scratch = path.with_name(os.fsdecode(b"\xff\xfe"))
    scratch.write_bytes(b"x")
    assert scratch.name in os.listdir(path.parent)
    scratch.unlink()
    descriptor = os.open(path, os.O_RDWR)
    assert refused(lambda: os.posix_fallocate(descriptor, 0, 100)) in (errno.EOPNOTSUPP, errno.EINVAL)
    assert os.pread(descriptor, 10, 10**12) == b"" and os.lseek(descriptor, 0, os.SEEK_DATA) == 0
    assert refused(lambda: os.pwrite(descriptor, b"v\n", 1 << 40)) in (errno.EFBIG, errno.EINVAL)
    assert refused(lambda: os.close(descriptor)) == errno.EINVAL
    mount.expected.append("write refused")
    for option in ("--reflink=always", "--sparse=always", "--reflink=auto"):
        done = shell(f"cp {option} tags.txt copy && cmp tags.txt copy", path.parent)
        assert (done.returncode == 0) != (option == "--reflink=always"), done
    subprocess.run(["flock", "-n", str(path), "true"], check=True)
    assert path.read_text() == "v1\n"
    assert mount.stop() == 0


def test_s49_a_tenant_sees_its_namespaces(daemons: MakeDaemon, tmp_path: Path) -> None:
    flux = Flux.store(tmp_path / "store")
    for namespace in ("a", "b", "c"):
        flux.set_tags("app", f"{namespace}\n".encode(), namespace)
    for flags, shown in ((("--namespace=a", "--namespace=c"), "a\nc\n"), (("-o", "namespace=b"), "b\n")):
        for mode in ("--read-only", "--codec=gzip"):
            daemon = daemons(mode, *flags)
            base = daemon.point / "imagerepository"
            assert succeed("ls; cat */*/tags.txt", base) == shown * 2
            for namespace in ("a", "b", "c", "d"):
                if f"{namespace}\n" not in shown:
                    assert refused((base / namespace).stat) == errno.ENOENT
                    assert refused((base / namespace).mkdir) in (errno.EPERM, errno.EROFS)
            if mode == "--read-only":
                flux.set_tags("new", b"v1\n", shown[0])
                eventually((base / shown[0] / "new" / "tags.txt").exists)
                succeed("rm -r $1", None, flux.directory("new", shown[0]))
            else:
                succeed("mkdir $1/more && echo v1 > $1/more/tags.txt && rm -r $1/more", base, shown[0])
            assert daemon.stop() == 0
