"""Clauses "What is shown" of `docs/semantics.md`."""

import contextlib
import errno
import gzip
import os
import socket
from pathlib import Path

import pytest

from tests.conftest import MakeDaemon
from tests.support.daemon import Daemon
from tests.support.programs import Flux, listing, refused, shell, succeed, tags

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("either_path")]


def test_s1_only_the_layout_is_shown(daemons: MakeDaemon, tmp_path: Path) -> None:
    flux = Flux.store(tmp_path / "store")
    flux.set_tags("app", b"v1\n")
    flux.set_compressed("small", gzip.compress(b"v2\n"))
    directory = flux.directory("app")
    (directory / "notes").write_text("not shown")
    (directory / "tags.txt123").write_text("half a li")
    (directory / "tags.txt.zst").write_text("of another format")
    (flux.base / "team" / "Upper").mkdir()
    (flux.base / "team" / "file").touch()
    (flux.base / "bad_namespace").mkdir()
    (flux.base / ("n" * 64)).mkdir()
    (flux.base / "link").symlink_to("/etc")
    (flux.base / "team" / "link").symlink_to("/etc")
    (flux.base / "team" / "loop").symlink_to("loop")
    linked = flux.directory("linked")
    linked.mkdir()
    (linked / "tags.txt").symlink_to("/etc/passwd")
    flux.directory("holder").mkdir()
    (flux.directory("holder") / "tags.txt").mkdir()
    flux.directory("pipe").mkdir()
    os.mkfifo(flux.directory("pipe") / "tags.txt")
    flux.directory("socket").mkdir()
    with contextlib.chdir(flux.directory("socket")), socket.socket(socket.AF_UNIX) as bound:
        bound.bind("tags.txt")
    (tmp_path / "store" / "lost+found").mkdir()
    (tmp_path / "store" / "foreign").touch()
    shown = [
        ".",
        "./.storage-version",
        "./imagerepository",
        "./imagerepository/team",
        *(f"./imagerepository/team/{name}" for name in ("app", "holder", "linked", "pipe", "small", "socket")),
        "./imagerepository/team/app/tags.txt",
        "./imagerepository/team/small/tags.txt",
    ]
    before = listing(tmp_path / "store")
    for flag in ("--read-only", "--log-level=info"):
        point = daemons(flag).point
        assert sorted(succeed("find .", point).split()) == sorted(shown)
        succeed("ls -lR . && du . && grep -r v1 .", point)
        repositories = point / "imagerepository" / "team"
        for hidden in ("link", "loop", "linked/tags.txt", "pipe/tags.txt", "holder/tags.txt", "app/tags.txt123"):
            assert refused((repositories / hidden).stat) == errno.ENOENT
    assert listing(tmp_path / "store" / "imagerepository") == {
        path.removeprefix("imagerepository/") if path != "imagerepository" else ".": status
        for path, status in before.items()
        if path.startswith("imagerepository")
    }


@pytest.mark.parametrize("flag", ["--codec=gzip", "--codec=zstd"])
def test_s2_the_version_is_shown_and_stays(daemons: MakeDaemon, flag: str) -> None:
    version = daemons(flag).point / ".storage-version"
    assert version.read_text() == "2\n" and version.stat().st_size == 2
    assert refused(lambda: version.write_text("3\n")) == errno.EPERM
    assert refused(lambda: version.open("r+")) == errno.EPERM
    assert refused(os.open, version, os.O_RDONLY | os.O_TRUNC) in (errno.EPERM, errno.EROFS)
    assert refused(version.unlink) == errno.EPERM
    assert refused(lambda: version.rename(version.with_name("other"))) in (errno.EPERM, errno.EXDEV)
    assert refused(lambda: os.truncate(version, 0)) == errno.EPERM
    assert version.read_text() == "2\n"


def test_s3_the_base_is_always_there(mount: Daemon) -> None:
    base = mount.point / "imagerepository"
    assert base.is_dir() and list(base.iterdir()) == []
    assert refused(base.rmdir) == errno.EPERM
    base.joinpath("n" * 63).mkdir()
    base.joinpath("n" * 63, "a.b-c" + "d" * 248).mkdir()
    assert refused(base.joinpath("n" * 64).mkdir) == errno.EINVAL
    for bad in ("Upper", "under_score", "-dash", "dash-", "dot.dot", "é"):
        assert refused(base.joinpath(bad).mkdir) == errno.EINVAL
    for bad in ("Upper", "a..b", ".hidden", "a-", "d" * 254):
        assert refused(base.joinpath("n" * 63, bad).mkdir) == errno.EINVAL
        assert not base.joinpath("n" * 63, bad).exists()


def test_s4_a_list_is_plain_text(mount: Daemon) -> None:
    path = mount.make("app")
    succeed("printf '%s\\n' v1 v1.0 latest _x A > $1", None, path)
    assert path.read_bytes() == b"v1\nv1.0\nlatest\n_x\nA\n"
    longest = "t" * 128
    path.write_text(f"{longest}\n")
    assert succeed("cat $1", None, path) == f"{longest}\n"
    empty = mount.make("empty")
    succeed("touch $1", None, empty)
    assert empty.read_bytes() == b"" and empty.stat().st_size == 0
    large = mount.make("large")
    large.write_text(tags(20_000))
    assert succeed("wc -l < $1", None, large).strip() == "20000" and large.read_text() == tags(20_000)


@pytest.mark.parametrize(("plain_age", "expected"), [(10, b"compressed\n"), (0, b"compressed\n"), (-10, b"plain\n")])
def test_s5_the_newer_variant_wins(daemons: MakeDaemon, tmp_path: Path, plain_age: int, expected: bytes) -> None:
    directory = Flux.store(tmp_path / "store").directory("app")
    directory.mkdir(parents=True)
    (directory / "tags.txt").write_bytes(b"plain\n")
    (directory / "tags.txt.gz").write_bytes(gzip.compress(b"compressed\n"))
    now = (directory / "tags.txt.gz").stat().st_mtime_ns
    os.utime(directory / "tags.txt.gz", ns=(now, now))
    os.utime(directory / "tags.txt", ns=(now, now - plain_age * 10**9))
    before = listing(directory)
    assert daemons("--read-only").list_path("app").read_bytes() == expected
    assert listing(directory) == before
    assert daemons().list_path("app").read_bytes() == expected


def _bad_stores(flux: Flux) -> dict[str, bytes]:
    good = gzip.compress(tags(400).encode())
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0x10
    lying = good[:-4] + (5).to_bytes(4, "little")
    return {
        "truncated": good[: len(good) // 2],
        "flipped": bytes(flipped),
        "lying": lying,
        "bomb": gzip.compress(bytes(3 << 20)),
        "text": b"v1\nv2\n",
        "nothing": b"",
    }


def test_s6_a_damaged_list_cannot_be_read_and_its_neighbours_can(daemons: MakeDaemon, tmp_path: Path) -> None:
    flux = Flux.store(tmp_path / "store")
    flux.set_tags("good", b"v1\n")
    bad = _bad_stores(flux)
    for name, stored in bad.items():
        flux.set_compressed(name, stored)
    for flag in ("--read-only", "--codec=gzip"):
        daemon = daemons(flag, "--max-list-size=1", expected=(r"tags\.txt\.gz: ",))
        for name in bad:
            path = daemon.list_path(name)
            assert path.is_file()
            assert refused(path.read_bytes) == errno.EIO, name
            daemon.await_message(f"imagerepository/team/{name}/tags.txt.gz: ")
            assert daemon.list_path("good").read_bytes() == b"v1\n"
        done = shell("grep -rc v1 .", daemon.point / "imagerepository")
        assert "good/tags.txt:1" in done.stdout and done.stderr.count("Input/output error") == len(bad)
        daemon.stop()
    daemon = daemons("--max-list-size=1", expected=(r"tags\.txt\.gz: ",))
    for name in ("truncated", "bomb"):
        daemon.list_path(name).write_bytes(b"v2\n")
        assert daemon.list_path(name).read_bytes() == b"v2\n"
    daemon.list_path("flipped").unlink()
    assert not daemon.list_path("flipped").exists()
    descriptor = os.open(daemon.list_path("lying"), os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"v3\n")
    assert refused(os.close, descriptor) == errno.EIO
