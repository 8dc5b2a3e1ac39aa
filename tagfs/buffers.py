"""Buffers: bytes that programs have written, held in memory within a bound.  Pure.

Owns: the budget, the content of a writer, scratch files.
Does not know: which of it becomes a list when; the store's files, FUSE.
"""

from tagfs import taglist
from tagfs.errors import ListTooLarge, StagingFull, TagListInvalid
from tagfs.inodes import ScratchNode
from tagfs.names import RepositoryKey


class Budget:
    """The bytes that all writers and scratch files together may hold in memory."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def change(self, growth: int) -> None:
        """Take `growth` bytes, or give them back; StagingFull where they are not to be had."""
        if growth > 0 and self.used + growth > self.limit:
            raise StagingFull(f"open writers and scratch files hold {self.used} bytes, {self.limit} are allowed")
        self.used += growth


class Buffer:
    """Bytes that can be written anywhere, within a budget and below `limit`; `cost` bytes more count until released."""

    __slots__ = ("_budget", "_bytes", "_cost", "_limit")

    def __init__(self, budget: Budget, limit: int, content: bytes = b"", cost: int = 0) -> None:
        budget.change(len(content) + cost)
        self._budget = budget
        self._cost = cost
        self._bytes = bytearray(content)
        self._limit = limit

    def __len__(self) -> int:
        return len(self._bytes)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._bytes[offset : offset + size])

    def content(self) -> bytes:
        return bytes(self._bytes)

    def write(self, offset: int, data: bytes) -> None:
        """Raises ListTooLarge or StagingFull, with nothing written."""
        self._grow(offset + len(data))
        self._bytes[offset : offset + len(data)] = data

    def truncate(self, size: int) -> None:
        """Cut, or extend with NULs; raises as `write` does."""
        self._grow(size)
        self._budget.change(size - len(self._bytes))
        del self._bytes[size:]

    def cut_head(self, size: int) -> None:
        """Cut `size` bytes off the start."""
        del self._bytes[:size]
        self._budget.change(-size)

    def release(self) -> None:
        """Let the bytes go, and give the budget back."""
        self._budget.change(-len(self._bytes) - self._cost)
        self._bytes = bytearray()
        self._cost = 0

    def _grow(self, size: int) -> None:
        if size > self._limit:
            raise ListTooLarge(f"{size} bytes, --max-list-size allows {self._limit}")
        missing = size - len(self._bytes)
        if missing > 0:
            self._budget.change(missing)
            self._bytes.extend(bytes(missing))


class Scratch:
    """A file beside a list that programs replace the list with.

    `hides` says that the list was renamed to this name and its variant is kept; `is_linked` that it has a name;
    `is_torn` that a write to it failed since it was last empty, so that what is there may be a part of what was meant.
    `mtime_ns` is what programs see and may set, `ctime_ns` when it was last written.
    After a rename over the list, `list_key` is the list that what is still open writes to.
    """

    __slots__ = (
        "buffer",
        "ctime_ns",
        "hides",
        "is_changed",
        "is_linked",
        "is_torn",
        "list_key",
        "mtime_ns",
        "node",
        "open_count",
        "requested_mtime_ns",
    )

    def __init__(self, node: ScratchNode, buffer: Buffer, mtime_ns: int) -> None:
        self.node = node
        self.buffer = buffer
        self.mtime_ns = self.ctime_ns = mtime_ns
        self.requested_mtime_ns: int | None = None
        self.hides = False
        self.is_linked = True
        self.is_torn = False
        self.open_count = 0
        self.list_key: RepositoryKey | None = None
        self.is_changed = False

    def write(self, offset: int, data: bytes, now_ns: int) -> None:
        try:
            self.buffer.write(offset, data)
        except (ListTooLarge, StagingFull):
            self.is_torn = True
            raise
        self._change(now_ns)

    def truncate(self, size: int, now_ns: int) -> None:
        self.buffer.truncate(size)
        self.is_torn = self.is_torn and size > 0
        self._change(now_ns)

    def list_content(self, is_judged: bool = True) -> bytes:
        """The bytes, as a list that they are to become, or yet to be judged; TagListInvalid."""
        if self.is_torn:
            raise TagListInvalid(None, "a write to it failed: is the list whole?")
        plain = self.buffer.content()
        if is_judged:
            taglist.validate(plain)
        return plain

    def _change(self, now_ns: int) -> None:
        self.mtime_ns = self.ctime_ns = now_ns
        self.requested_mtime_ns = None
        self.is_changed = True
