"""Places: where the same lists can be read: plain files, tagfs, other FUSE daemons, kernel file systems in images.

Owns: making, mounting and unmounting each; what is missing, and why.
Does not know: what is read there.
"""

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tagfs import mountpoint
from tagfs.codec import ZSTD
from tagfs.names import BASE, LIST

PROJECT = Path(__file__).resolve().parent.parent
_BUILD = PROJECT / "bench" / "peers" / "build"
_PATIENCE = 60.0
_MOST = 64 << 20
_ADMIN_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


class PeerMissing(Exception):
    """A peer cannot be had or does not work here; the text says why."""


def built(*what: str) -> Path:
    """The path of a peer's program, built or installed where that was not done before."""
    done = subprocess.run([str(_BUILD), *what], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise PeerMissing(_last_line(done.stderr) or f"bench/peers/build {' '.join(what)} ended with {done.returncode}")
    return Path(done.stdout.strip())


def command(*words: str | Path) -> None:
    """Run a program that prepares a peer; PeerMissing with its last word where it fails."""
    try:
        done = subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PATH": _ADMIN_PATH},
        )
    except FileNotFoundError as error:
        raise PeerMissing(f"no {words[0]} on this machine") from error
    if done.returncode != 0:
        raise PeerMissing(f"{words[0]}: {_last_line(done.stderr) or _last_line(done.stdout) or done.returncode}")


class Place(ABC):
    """Somewhere to read lists from.  `point` is mounted between `start` and `stop`."""

    def __init__(self, name: str, point: Path) -> None:
        self.name = name
        self.point = point

    @property
    def lists(self) -> Path:
        """The directory whose entries are the namespaces."""
        return self.point / BASE

    @property
    def pid(self) -> int | None:
        """Of the daemon that answers, if there is one."""
        return None

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...

    @contextmanager
    def started(self) -> Iterator["Place"]:
        self.start()
        try:
            yield self
        finally:
            self.stop()


class PlainFiles(Place):
    """Files as they are, nothing to mount."""

    def start(self) -> None:
        if not self.lists.is_dir():
            raise PeerMissing(f"{self.lists} is not there")

    def stop(self) -> None:
        return


class Daemon(Place):
    """A FUSE daemon in the foreground, started anew for each mount.  `argv` ends in its mount point."""

    def __init__(self, name: str, point: Path, argv: list[str], is_ready: str | None = None) -> None:
        super().__init__(name, point)
        self.argv = argv
        self.is_ready = is_ready
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    def start(self) -> None:
        self.point.mkdir(exist_ok=True)
        log = Path(f"{self.point}.log")
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, cwd=PROJECT
            )
        try:
            self._await_up(log)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        if mountpoint.mounted_at(str(self.point)) is not None:
            subprocess.run(["fusermount3", "-u", str(self.point)], capture_output=True, check=False)
        else:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if mountpoint.mounted_at(str(self.point)) is not None:
            subprocess.run(["fusermount3", "-u", "-z", str(self.point)], capture_output=True, check=False)

    def _await_up(self, log: Path) -> None:
        assert self.process is not None
        deadline = time.monotonic() + _PATIENCE
        while not self._is_up(log):
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = _last_line(log.read_text(errors="replace"))
                raise PeerMissing(f"{self.name} does not mount: {said or 'it says nothing'}")
            time.sleep(0.002)

    def _is_up(self, log: Path) -> bool:
        if self.is_ready is not None:
            return self.is_ready in log.read_text(errors="replace")
        return mountpoint.mounted_at(str(self.point)) is not None


def tagfs(name: str, store: Path, point: Path, *flags: str) -> Daemon:
    argv = [sys.executable, "-m", "tagfs", "mount", str(store), str(point), "--log-level", "warning", *flags]
    return Daemon(name, point, argv, is_ready=" shows ")


def floor(name: str, plain: Path, point: Path) -> Daemon:
    """The same requests as with tagfs, answered from memory by a program in C, which looks at nothing."""
    return Daemon(name, point, [str(built("floor")), str(plain), str(point)], is_ready=" shows ")


def fuse_zstd(store: Path, every: Path, point: Path) -> Daemon:
    """It shows each FILE.zst of a directory as FILE, and nothing else: `every` is made, a store with no plain list.

    The size that it shows is what an extended attribute says, which it sets on what is written through it.
    """
    program = built("fuse-zstd")
    for path in store.rglob(f"{LIST}*"):
        stored = path.read_bytes()
        plain = ZSTD.decode(stored, _MOST) if path.suffix == ZSTD.suffix else stored
        target = every / path.relative_to(store).parent / (LIST + ZSTD.suffix)
        target.parent.mkdir(parents=True)
        target.write_bytes(ZSTD.encode(plain))
        os.setxattr(target, "user.real_size", len(plain).to_bytes(8, "big"))
    return Daemon("fuse-zstd", point, [str(program), "--data-dir", str(every), "--mount-point", str(point)])


class Image(Place):
    """A kernel file system in a file on a loop device."""

    def __init__(self, name: str, point: Path, image: Path, options: str) -> None:
        super().__init__(name, point)
        self.image = image
        self.options = options

    def start(self) -> None:
        self.point.mkdir(exist_ok=True)
        command("mount", "-o", f"loop,{self.options}", self.image, self.point)

    def stop(self) -> None:
        command("umount", self.point)


def squashfs_image(plain: Path, image: Path) -> None:
    command(built("mksquashfs", "squashfs-tools"), plain, image, "-comp", "zstd", "-quiet", "-no-progress", "-noappend")


def squashfuse(image: Path, point: Path) -> Daemon:
    program = built("squashfuse", "squashfuse")
    return Daemon("squashfuse (zstd)", point, [str(program), "-f", str(image), str(point)])


def squashfs(image: Path, point: Path) -> Image:
    _require_kernel("squashfs")
    return Image("squashfs (zstd)", point, image, "ro")


def erofs(plain: Path, image: Path, point: Path) -> Image:
    """With zstd where mkfs.erofs can (1.8), else with lz4hc."""
    _require_kernel("erofs")
    program = built("mkfs.erofs", "erofs-utils")
    for codec in ("zstd", "lz4hc"):
        try:
            command(program, f"-z{codec}", image, plain)
        except PeerMissing:
            if codec == "lz4hc":
                raise
            continue
        return Image(f"erofs ({codec})", point, image, "ro")
    raise AssertionError


def btrfs(plain: Path, image: Path, point: Path) -> Image:
    _require_kernel("btrfs")
    built("mkfs.btrfs", "btrfs-progs")
    return _filled(Image("btrfs (zstd:1)", point, image, "compress-force=zstd:1,noatime"), plain, "mkfs.btrfs", "-q")


def ext4(plain: Path, image: Path, point: Path) -> Image:
    """A file system of its own, so that it too can be mounted anew."""
    made = Image("ext4, plain files", point, image, "noatime")
    return _filled(made, plain, "mkfs.ext4", "-q", "-N", str(4 * _entries(plain) + 1000))


def _filled(made: Image, plain: Path, *mkfs: str) -> Image:
    """Make the image with room for one block and two directories a list, and copy the lists into it."""
    size = (256 << 20) + 3 * sum(max(path.stat().st_size, 4096) + 8192 for path in plain.rglob("*.txt"))
    with made.image.open("wb") as file:
        file.truncate(size)
    command(*mkfs, made.image)
    with made.started():
        command("cp", "-r", *sorted(plain.iterdir()), made.point)
    return made


def _entries(plain: Path) -> int:
    return sum(1 for _ in plain.rglob("*.txt"))


def _require_kernel(name: str) -> None:
    if name not in Path("/proc/filesystems").read_text().split():
        subprocess.run(["modprobe", name], capture_output=True, check=False)
        if name not in Path("/proc/filesystems").read_text().split():
            raise PeerMissing(f"this kernel has no {name}")


def disk_bytes(root: Path) -> int:
    """Bytes that a tree, or an image with holes, takes on the disk."""
    every = [root, *root.rglob("*")] if root.is_dir() else [root]
    return sum(path.lstat().st_blocks for path in every) * 512


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
