"""What real programs do to a mount, and what others do beneath it."""

import ctypes
import errno
import os
import secrets
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


def shell(
    command: str, where: Path | None = None, *arguments: object, name: str = "sh"
) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in a directory, with `arguments` as $1 …; whatever it ends with."""
    return subprocess.run(
        [name, "-c", command, name, *map(str, arguments)],
        cwd=where,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "LC_ALL": "C", "HOME": "/nonexistent"},
    )


def succeed(command: str, where: Path | None = None, *arguments: object, name: str = "sh") -> str:
    """The same, which must succeed and say nothing on standard error; -> its output."""
    done = shell(command, where, *arguments, name=name)
    assert done.returncode == 0 and not done.stderr, f"{command}: {done.returncode} {done.stdout}{done.stderr}"
    return done.stdout


def refused(call: Callable[..., object], *arguments: object) -> int:
    """The errno that a call fails with."""
    try:
        result = call(*arguments)
    except OSError as error:
        return error.errno or 0
    raise AssertionError(f"not refused: {result!r}")


def refused_with(path: Path, number: int) -> bool:
    """Whether looking a name up fails with this errno; other errors are raised."""
    try:
        path.stat()
    except OSError as error:
        if error.errno != number:
            raise
        return True
    return False


def is_ready(path: Path) -> bool:
    """Whether a mount that answered EAGAIN has its store again."""
    return not refused_with(path, errno.EAGAIN)


def renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(new))


def tags(count: int, prefix: str = "v1.") -> str:
    """A list of so many tags."""
    return "".join(f"{prefix}{number}\n" for number in range(count))


class Flux:
    """Writes lists as Flux's `internal/storage/filesystem.go` does, natively or through a mount.

    Args:
        storage: `--storage-path`: a store, or a mount point.
    """

    def __init__(self, storage: Path) -> None:
        self.base = storage / "imagerepository"

    @classmethod
    def store(cls, path: Path) -> "Flux":
        """In a store that Flux has prepared."""
        path.mkdir(parents=True, exist_ok=True)
        (path / ".storage-version").write_text("2\n")
        return cls(path)

    def directory(self, name: str, namespace: str = "team") -> Path:
        return self.base / namespace / name

    def set_tags(self, name: str, plain: bytes, namespace: str = "team") -> Path:
        """Store a list plain; -> its file."""
        directory = self.directory(name, namespace)
        self.replace(directory, "tags.txt", plain)
        (directory / "tags.txt.gz").unlink(missing_ok=True)
        return directory / "tags.txt"

    def set_compressed(self, name: str, stored: bytes, namespace: str = "team") -> Path:
        """Store a list compressed, whose gzip bytes are `stored`."""
        directory = self.directory(name, namespace)
        self.replace(directory, "tags.txt.gz", stored)
        (directory / "tags.txt").unlink(missing_ok=True)
        return directory / "tags.txt.gz"

    @staticmethod
    def replace(directory: Path, name: str, content: bytes) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = directory / f"{name}{secrets.randbelow(10**10)}"
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            assert os.write(descriptor, content) == len(content)
        finally:
            os.close(descriptor)
        os.chmod(temporary, 0o600)
        os.rename(temporary, directory / name)


def listing(directory: Path) -> dict[str, tuple[int, ...]]:
    """Every path below a directory -> its inode, mode, size, mtime and ctime."""
    found: dict[str, tuple[int, ...]] = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        status = path.lstat()
        times = status.st_mtime_ns, status.st_ctime_ns
        found[str(path.relative_to(directory))] = (status.st_ino, status.st_mode, status.st_size, *times)
    return found


def in_pieces(path: Path, size: int = 256, between: Callable[[], object] = lambda: None) -> bytes:
    """The content as Flux's reader takes it, `size` bytes a read, with something happening after the first."""
    parts: list[bytes] = []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while part := os.read(descriptor, size):
            if not parts:
                between()
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts)


def percentile(figures: Iterable[float], share: float) -> float:
    ordered = sorted(figures)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
