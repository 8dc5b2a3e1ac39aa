"""A disk that does one call wrong: refuses it, tears it, or loses its power there."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from tagfs.disk import Disk, FileStatus

_T = TypeVar("_T")


class PowerCut(BaseException):
    """The machine is off: no handler of errors runs any more."""


class Wrong(Enum):
    EIO = "refused: input/output error"
    ENOSPC = "refused: no space left"
    TORN = "a prefix is written, then an error"
    CUT = "the power is lost before the call"
    TORN_CUT = "a prefix is written, then the power is lost"


@dataclass(frozen=True, slots=True)
class Fault:
    """The call number `at` (from 0) goes wrong."""

    at: int
    wrong: Wrong


class FaultyDisk(Disk):
    """Hands every call to `inner`, keeps a list of them, and does one wrong once it is armed.

    `remove_tree` is made of other calls, so each of those is one.
    """

    def __init__(self, inner: Disk) -> None:
        self.inner = inner
        self.calls: list[str] = []
        self._fault: Fault | None = None
        self._is_off = False

    def arm(self, fault: Fault | None) -> None:
        """Count the calls from here."""
        self.calls.clear()
        self._fault = fault
        self._is_off = False

    def _do(self, method: str, call: Callable[[], _T], tear: Callable[[], None] | None = None) -> _T:
        if self._is_off:
            raise PowerCut
        at = len(self.calls)
        self.calls.append(method)
        if self._fault is not None and self._fault.at == at:
            wrong = self._fault.wrong
            if tear is not None and wrong in (Wrong.TORN, Wrong.TORN_CUT):
                tear()
            if method == "close" and wrong is not Wrong.CUT:
                return call()  # Closing is never refused.
            if wrong in (Wrong.CUT, Wrong.TORN_CUT):
                self._is_off = True
                raise PowerCut
            number = errno.ENOSPC if wrong is Wrong.ENOSPC else errno.EIO
            raise OSError(number, os.strerror(number))
        return call()

    def open_root(self, path: str) -> int:
        return self._do("open_root", lambda: self.inner.open_root(path))

    def open_dir(self, directory: int, name: str) -> int:
        return self._do("open_dir", lambda: self.inner.open_dir(directory, name))

    def open_below(self, directory: int, path: str) -> int:
        raise OSError(errno.ENOSYS, "a kernel without openat2: each directory is a call")

    def open_file_below(self, directory: int, path: str) -> int:
        return self.open_below(directory, path)

    def open_file(self, directory: int, name: str) -> int:
        return self._do("open_file", lambda: self.inner.open_file(directory, name))

    def create(self, directory: int, name: str) -> int:
        return self._do("create", lambda: self.inner.create(directory, name))

    def close(self, descriptor: int) -> None:
        self._do("close", lambda: self.inner.close(descriptor))

    def read(self, file: int, size: int, offset: int = 0) -> bytes:
        return self._do("read", lambda: self.inner.read(file, size, offset))

    def write(self, file: int, data: bytes) -> None:
        self._do(
            "write",
            lambda: self.inner.write(file, data),
            lambda: self.inner.write(file, data[: len(data) // 2]),
        )

    def sync(self, file: int) -> None:
        self._do("sync", lambda: self.inner.sync(file))

    def sync_dir(self, directory: int) -> None:
        self._do("sync_dir", lambda: self.inner.sync_dir(directory))

    def sync_filesystem(self, directory: int) -> None:
        self._do("sync_filesystem", lambda: self.inner.sync_filesystem(directory))

    def kind(self, directory: int) -> int:
        return self.inner.kind(directory)

    def tells_of_lost_writes(self, release: str | None = None) -> bool:
        return self.inner.tells_of_lost_writes(release)

    def rename(self, directory: int, name: str, to_directory: int, to_name: str) -> None:
        self._do("rename", lambda: self.inner.rename(directory, name, to_directory, to_name))

    def unlink(self, directory: int, name: str) -> None:
        self._do("unlink", lambda: self.inner.unlink(directory, name))

    def make_dir(self, directory: int, name: str) -> None:
        self._do("make_dir", lambda: self.inner.make_dir(directory, name))

    def remove_dir(self, directory: int, name: str) -> None:
        self._do("remove_dir", lambda: self.inner.remove_dir(directory, name))

    def names(self, directory: int) -> list[tuple[str, bool]]:
        return self._do("names", lambda: self.inner.names(directory))

    def stat(self, directory: int, name: str) -> FileStatus:
        return self._do("stat", lambda: self.inner.stat(directory, name))

    def stat_open(self, descriptor: int) -> FileStatus:
        return self._do("stat_open", lambda: self.inner.stat_open(descriptor))

    def set_mtime(self, file: int, mtime_ns: int) -> None:
        self._do("set_mtime", lambda: self.inner.set_mtime(file, mtime_ns))

    def set_mode(self, descriptor: int, mode: int) -> None:
        self._do("set_mode", lambda: self.inner.set_mode(descriptor, mode))

    def lock(self, directory: int) -> bool:
        return self._do("lock", lambda: self.inner.lock(directory))

    def space(self, directory: int) -> os.statvfs_result:
        return self._do("space", lambda: self.inner.space(directory))
