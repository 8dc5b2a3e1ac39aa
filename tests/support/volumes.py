"""File systems of a test's own: small, and free to be filled, cut off and repaired.  Needs root.

Every volume is unmounted, and its loop device let go, at the end of its `with` block, whatever happened in it.
"""

import ctypes
import errno
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.daemon import eventually

_MNT_DETACH = 2
_SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN, `_IOR('X', 125, __u32)` in the kernel's `include/uapi/linux/ext4.h`."""
_NO_LOG_FLUSH = 2
"""EXT4_GOING_FLAGS_NOLOGFLUSH: what is only in memory is lost, the journal's running transaction too."""

_libc = ctypes.CDLL(None, use_errno=True)


class Volume:
    """An ext4 in a file, behind a loop device, mounted at `path`."""

    def __init__(self, image: Path, path: Path, options: str) -> None:
        self.image = image
        self.path = path
        self.options = options
        self.device = ""

    def attach(self) -> None:
        self.device = _run("losetup", "--find", "--show", str(self.image)).strip()

    def mount(self) -> None:
        _run("mount", "-t", "ext4", "-o", self.options, self.device, str(self.path))

    def remount(self, options: str) -> None:
        _run("mount", "-o", f"remount,{options}", str(self.path))

    def unmount(self, lazy: bool = False) -> None:
        """Unmount; where it is not lazy, once nothing of it is open any more."""

        def try_it() -> bool:
            if _libc.umount2(os.fsencode(self.path), _MNT_DETACH if lazy else 0) == 0:
                return True
            number = ctypes.get_errno()
            if number == errno.EBUSY:
                return False
            raise OSError(number, os.strerror(number), str(self.path))

        eventually(try_it, f"{self.path} to be free")

    def cut(self) -> None:
        """Lose the power: nothing that is only in memory reaches the disk, and every call fails from now on."""
        root = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(root, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        except OSError as error:
            pytest.skip(f"the kernel does not shut an ext4 down (EXT4_IOC_SHUTDOWN): {error.strerror}")
        finally:
            os.close(root)

    def repair(self) -> None:
        """Bring it back after `cut` and `unmount`: replay the journal, let e2fsck judge, mount."""

        def judged() -> subprocess.CompletedProcess[str] | None:
            # Without -y: the journal alone has to make it whole.
            done = subprocess.run(["e2fsck", "-p", self.device], capture_output=True, text=True, check=False)
            return None if "is in use" in done.stdout + done.stderr else done

        # Whoever made a mount namespace of its own meanwhile has it mounted there too, until it ends.
        done = eventually(judged, f"{self.device} to be free", patience=60)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        self.mount()

    def release(self) -> None:
        while os.path.ismount(self.path) and _libc.umount2(os.fsencode(self.path), _MNT_DETACH) == 0:
            pass
        if self.device:
            subprocess.run(["losetup", "--detach", self.device], capture_output=True, check=False)


@contextmanager
def ext4(above: Path, mebibytes: int = 32, options: str = "data=ordered", formatting: str = "") -> Iterator[Volume]:
    """A new ext4 below the directory `above`; `formatting` are further arguments of mkfs.ext4."""
    _require_root("mount")
    for program in ("mkfs.ext4", "e2fsck", "losetup"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}")
    image, path = above / "volume.ext4", above / "volume"
    path.mkdir()
    with image.open("wb") as file:
        file.truncate(mebibytes << 20)
    _run("mkfs.ext4", "-q", *formatting.split(), str(image))
    volume = Volume(image, path, options)
    try:
        try:
            volume.attach()
        except AssertionError as error:
            pytest.skip(f"there are no loop devices: {error}")
        try:
            volume.mount()
        except AssertionError as error:
            pytest.skip(f"an ext4 in a file cannot be mounted: {error}")
        yield volume
    finally:
        volume.release()
        with suppress(FileNotFoundError):
            image.unlink()


@contextmanager
def tmpfs(above: Path, options: str) -> Iterator[Path]:
    """A new tmpfs below the directory `above`."""
    _require_root("mount")
    path = above / "memory"
    path.mkdir()
    try:
        _run("mount", "-t", "tmpfs", "-o", options, "tagfs-test", str(path))
    except AssertionError as error:
        pytest.skip(f"a tmpfs cannot be mounted: {error}")
    try:
        yield path
    finally:
        while os.path.ismount(path) and _libc.umount2(os.fsencode(path), _MNT_DETACH) == 0:
            pass


def _require_root(what: str) -> None:
    if os.geteuid() != 0:
        pytest.skip(f"only root may {what}")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout
