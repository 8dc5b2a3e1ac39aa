"""Device: what is mounted and by whom, and what is no device of a mount."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tagfs import device, mountpoint
from tagfs.errors import MountRefused

pytestmark = pytest.mark.mount


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "a b,c\\d"
    path.mkdir()
    yield path
    for _ in [one for one in mountpoint.mounts() if one.point == str(path)]:
        # Lazily and by its name alone: nobody answers for what is in it.
        subprocess.run(["umount", "--lazy", "--no-canonicalize", "--internal-only", path], check=True)


def mounted(point: Path) -> list[mountpoint.Mounted]:
    return [one for one in mountpoint.mounts() if one.point == str(point)]


@pytest.mark.parametrize("allow_other", [True, False])
@pytest.mark.parametrize("read_only", [True, False])
def test_what_was_asked_for_is_in_the_mount_table(point: Path, read_only: bool, allow_other: bool) -> None:
    descriptor = device.mount(device.Request(str(point), "/a,b\\c d", read_only, allow_other))
    try:
        [one] = mounted(point)
        assert (one.fstype, one.source, one.is_read_only) == (mountpoint.FSTYPE, "/a,b\\c d", read_only)
        assert {"nosuid", "nodev", "default_permissions", f"user_id={os.getuid()}"} <= one.options
        assert ("allow_other" in one.options) == allow_other
        assert not os.get_inheritable(descriptor)
        device.require_inherited(descriptor)
        assert device.point_of(descriptor) == str(point)
    finally:
        os.close(descriptor)


def test_a_user_mounts_through_fusermount(point: Path) -> None:
    os.chown(point, 65534, 65534)
    for above in point.parents[: len(point.parents) - len(Path(tempfile.gettempdir()).parents) - 1]:
        above.chmod(0o755)
    code = f"""
import encodings.ascii, os
from tagfs import device, mountpoint
os.setgroups([]); os.setgid(65534); os.setuid(65534)
descriptor = device.mount(device.Request({str(point)!r}, "/a,b\\\\c d", True, False))
device.require_inherited(descriptor)
[one] = [one for one in mountpoint.mounts() if one.point == {str(point)!r}]
print(device.point_of(descriptor) == one.point, os.get_inheritable(descriptor), one.source, one.is_read_only, end="")
"""
    # In a mount namespace with a device that a user may open, as udev makes it.
    own = 'mknod -m 666 "$0" c 10 229 && mount --bind "$0" /dev/fuse && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", own, point.parent / "fuse", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert (done.stdout, done.stderr) == ("True False /a,b\\c d True", "")


def test_what_cannot_be_mounted_leaves_no_descriptor(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(MountRefused, match="none cannot be mounted: No such file"):
        device.mount(device.Request(str(tmp_path / "none"), "s", False, False))
    assert os.listdir("/proc/self/fd") == before


def test_the_form_of_a_descriptor() -> None:
    assert device.inherited("/dev/fd/0") == 0
    assert device.inherited("/dev/fd/17") == 17
    for other in ("/dev/fd", "/dev/fd/", "/dev/fd/x", "/dev/fd/01", "/dev/fd/1/", "/proc/self/fd/1", "x/dev/fd/1"):
        assert device.inherited(other) is None


def test_a_descriptor_that_is_no_mount_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MountRefused, match="/dev/fd/12345 is not open"):
        device.require_inherited(12345)
    with open(tmp_path / "file", "w") as file, pytest.raises(MountRefused, match="is not /dev/fuse"):
        device.require_inherited(file.fileno())
    with open("/dev/null", "w") as file, pytest.raises(MountRefused, match="is not /dev/fuse"):
        device.require_inherited(file.fileno())
    unmounted = os.open(mountpoint.DEVICE, os.O_RDWR)
    try:
        with pytest.raises(MountRefused, match="is not mounted: mount it before"):
            device.require_inherited(unmounted)
        assert device.point_of(unmounted) is None
    finally:
        os.close(unmounted)


def test_a_descriptor_whose_mount_is_gone_is_refused(point: Path) -> None:
    descriptor = device.mount(device.Request(str(point), "s", True, True))
    subprocess.run(["umount", "--lazy", "--no-canonicalize", "--internal-only", point], check=True)
    with pytest.raises(MountRefused, match="is not mounted"):
        device.require_inherited(descriptor)
    os.close(descriptor)
