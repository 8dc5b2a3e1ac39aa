"""Mount point: what the machine's mount table says, however odd its lines are."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tagfs import mountpoint
from tagfs.errors import MountRefused
from tagfs.mountpoint import Mounted


@pytest.fixture
def tmpfs(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Two mounts at one point, the upper one with the source that the test names."""
    point = tmp_path / "a b\\c"
    point.mkdir()
    for source in ("below", request.param):
        subprocess.run(["mount", "-t", "tmpfs", source, point], check=True)
    yield point
    for _ in range(2):
        subprocess.run(["umount", point], check=True)


@pytest.mark.mount
@pytest.mark.parametrize("tmpfs", ["", "a source\twith\nspaces", "-"], indirect=True)
def test_of_two_mounts_at_one_point_the_upper_one_is_told(tmpfs: Path, request: pytest.FixtureRequest) -> None:
    source = request.node.callspec.params["tmpfs"]
    for found in (mountpoint.mounted_at(str(tmpfs)), mountpoint.holding(str(tmpfs)), mountpoint.holding(f"{tmpfs}/x")):
        assert found is not None
        assert (found.point, found.fstype, found.source, found.is_read_only) == (str(tmpfs), "tmpfs", source, False)


# -- the table


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n",
            Mounted(
                *("/mnt2", "ext3", "/dev/root", frozenset({"rw", "noatime", "errors=continue"}), (98, 0)),
                propagation=frozenset({"master"}),
            ),
        ),
        (
            "36 35 0:41 / /a\\040b\\011c\\012d\\134e ro - fuse.tagfs /st\\040ore rw,user_id=0\n",
            Mounted("/a b\tc\nd\\e", "fuse.tagfs", "/st ore", frozenset({"ro", "rw", "user_id=0"}), (0, 41)),
        ),
        (
            "36 35 0:41 / /x rw shared:1 master:2 propagate_from:3 - tmpfs  rw\n",
            Mounted(
                *("/x", "tmpfs", "", frozenset({"rw"}), (0, 41)),
                propagation=frozenset({"shared", "master", "propagate_from"}),
            ),
        ),
        ("36 35 0:41 / /- rw - tmpfs - rw\n", Mounted("/-", "tmpfs", "-", frozenset({"rw"}), (0, 41))),
    ],
)
def test_a_line_of_the_table_is_read(line: str, expected: Mounted) -> None:
    assert mountpoint._parsed(line) == expected


def test_a_mount_is_read_only_where_either_side_says_so() -> None:
    assert mountpoint._parsed("36 35 0:41 / /x ro - fuse.tagfs s rw\n").is_read_only
    assert mountpoint._parsed("36 35 0:41 / /x rw - fuse.tagfs s ro\n").is_read_only
    assert not mountpoint._parsed("36 35 0:41 / /x rw - fuse.tagfs s rw\n").is_read_only


def test_the_machines_own_table_is_read() -> None:
    root = mountpoint.mounted_at("/")
    assert root is not None and root.point == "/"
    assert root in mountpoint.mounts()


def test_a_path_with_links_is_in_the_mount_that_they_lead_to(tmp_path: Path) -> None:
    (tmp_path / "there" / "below").mkdir(parents=True)
    (tmp_path / "to-proc").symlink_to("/proc")
    (tmp_path / "around").symlink_to("there/below/../../to-proc")
    (tmp_path / "loop").symlink_to("loop")
    proc = mountpoint.mounted_at("/proc")
    assert proc is not None
    for path in ("to-proc", "around", "there/../around", "there/below/../../to-proc/"):
        assert mountpoint.mounted_at(str(tmp_path / path)) == proc
    assert mountpoint.holding(str(tmp_path / "around" / "self" / "status")) == proc
    assert mountpoint.mounted_at(str(tmp_path / "loop")) is None


def test_a_path_is_in_the_nearest_mount_above_it(tmp_path: Path) -> None:
    assert mountpoint.mounted_at(str(tmp_path)) is None
    above = mountpoint.holding(str(tmp_path / "not" / "there"))
    assert above is not None and str(tmp_path).startswith(above.point)
    proc = mountpoint.holding("/proc/self/status")
    assert proc is not None and proc.fstype == "proc"


# -- the checks before a mount


def test_an_empty_directory_apart_from_the_store_is_usable(tmp_path: Path) -> None:
    (tmp_path / "point").mkdir()
    mountpoint.require_usable(str(tmp_path / "point"), str(tmp_path / "store"))
    (tmp_path / "store").mkdir()
    mountpoint.require_usable(str(tmp_path / "point"), str(tmp_path / "store"))
    (tmp_path / "point2").mkdir()
    mountpoint.require_usable(str(tmp_path / "point2"), str(tmp_path / "point"))  # a prefix by chance


@pytest.mark.parametrize(
    ("point", "store", "message"),
    [
        ("none", "store", "does not exist: make the mount point first"),
        ("file", "store", "is no directory"),
        ("file/x", "store", "cannot be used"),
        ("full", "store", r"is not empty \(a …\)"),
        ("store", "store", "is the store itself"),
        ("link", "store", "is the store itself"),
        ("empty", "empty/store", "is inside"),
        (".", "store", "is inside"),
        ("store/point", "store", "is inside the store"),
        ("link/point", "store", "is inside the store"),
    ],
)
def test_what_is_not_usable_says_why(tmp_path: Path, point: str, store: str, message: str) -> None:
    for name in ("full", "store/point", "empty"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").touch()
    for name in "ba":
        (tmp_path / "full" / name).touch()
    (tmp_path / "link").symlink_to("store")
    with pytest.raises(MountRefused, match=message):
        mountpoint.require_usable(str(tmp_path / point), str(tmp_path / store))


def test_what_is_no_tagfs_is_not_unmounted(tmp_path: Path) -> None:
    with pytest.raises(MountRefused, match="is not mounted"):
        mountpoint.unmount(str(tmp_path))
    with pytest.raises(MountRefused, match=r"\(proc\) and no tagfs"):
        mountpoint.unmount("/proc", lazy=True)


def test_a_living_directory_is_not_cleared(tmp_path: Path) -> None:
    assert not mountpoint.clear_dead(str(tmp_path))
    assert not mountpoint.clear_dead(str(tmp_path / "none"))


def test_what_is_not_mounted_has_no_background(tmp_path: Path) -> None:
    assert not mountpoint.allow_background(str(tmp_path))
