"""Handles: what programs have open, and the bytes that they have written and not committed.  Pure.

Owns: the content of a writer and of a scratch file, poisoning, the bound on what all of them hold in memory.
Does not know: node ids, the store's files, FUSE.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tagfs import taglist
from tagfs.errors import EmptyingRefused, HandlePoisoned, ListTooLarge, StagingFull, TagfsError, TagListInvalid
from tagfs.inodes import DirectoryNode, ListNode, ScratchNode
from tagfs.names import RepositoryKey
from tagfs.store import Snapshot, Stage


@dataclass(frozen=True, slots=True)
class Step:
    """Something that blocks, for one key: `run` touches the store alone and may run in a thread, then `settle` takes
    its result into the tables of the tree, or `fail` its error.  `size` is the bytes that `run` has to work through."""

    key: RepositoryKey
    run: Callable[[], Any]
    settle: Callable[[Any], None]
    fail: Callable[[BaseException], None] = field(default=lambda error: None)
    size: int = 0


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
    After a rename over the list, `list_key` is the list that what is still open writes to.
    """

    __slots__ = (
        "buffer",
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
        self.mtime_ns = mtime_ns
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

    def list_content(self) -> bytes:
        """The bytes, as a list that they are to become; TagListInvalid."""
        if self.is_torn:
            raise TagListInvalid(None, "a write to it failed: is the list whole?")
        plain = self.buffer.content()
        taglist.validate(plain)
        return plain

    def _change(self, now_ns: int) -> None:
        self.mtime_ns = now_ns
        self.requested_mtime_ns = None
        self.is_changed = True


@dataclass(frozen=True, slots=True)
class Staged:
    """What a flush found valid and nobody has committed yet.

    `stage` is the same written beside (for an appender: with the list before it), None where it was the list already.
    """

    plain: bytes
    stage: Stage | None = None
    appends: bool = False


class Writer:
    """What one handle has written to a list.  It has one commit under way at a time.

    Args:
        base: the version that it was opened on, None for a list that is not there yet.
        appends: opened with O_APPEND: its bytes go behind whatever is the list when they are committed.
        truncates: opened with O_TRUNC.
    """

    def __init__(
        self, budget: Budget, limit: int, base: Snapshot | None, appends: bool, truncates: bool, pid: int
    ) -> None:
        self.base = base
        self.appends = appends
        self.truncates = truncates
        self._pid = pid
        self.requested_mtime_ns: int | None = None
        self.staged: Staged | None = None
        self.is_detached = False
        """The list was deleted since: closing commits nothing."""
        self.is_changed = base is None
        """Differs from what was staged last; a new list does without a byte written: it is an empty one."""
        self.was_written = False
        """At least one write or truncation, as opposed to O_TRUNC alone."""
        self.is_closed = False
        self._poison: TagfsError | None = None
        self._screen = taglist.Screen()
        self._budget = budget
        self._limit = limit
        # INVARIANT: None until the content differs from that of `base`; for an appender only what it appended.
        self._buffer: Buffer | None = None
        # INVARIANT: of an appender's buffer, the bytes from its start whose commit is under way.
        self._under_way = 0
        self._own_base: Snapshot | None = None
        self._is_cut = False
        """An appender that was truncated has the whole list, and still writes at its end."""
        if base is None or truncates or appends:
            self._buffer = Buffer(budget, limit)

    def is_of(self, pid: int) -> bool:
        """Whether the thread `pid` opened it; one in another PID namespace has 0 and is nobody known."""
        return pid != 0 and pid == self._pid

    @property
    def size(self) -> int:
        """Bytes of the list as this writer sees it."""
        base = self.base.version.size if self.base is not None else 0
        if self._buffer is None:
            return base
        return len(self._buffer) + (base if self.is_appending else 0)

    @property
    def is_appending(self) -> bool:
        """Its bytes go behind whatever is the list when they are committed."""
        return self.appends and not self.truncates and not self._is_cut

    @property
    def is_pending(self) -> bool:
        """Closing it now would commit something, unless that is refused."""
        return not self.is_detached and (self.is_changed or self.staged is not None)

    def read(self, offset: int, size: int) -> bytes:
        if self._buffer is not None and not self.is_appending:
            return self._buffer.read(offset, size)
        return self.content()[offset : offset + size]

    def content(self) -> bytes:
        """The list as this writer sees it; raises as `Snapshot.content` does."""
        if self._buffer is None:
            assert self.base is not None
            return self.base.content()
        if self.is_appending and self.base is not None:
            return self.base.content() + self._buffer.content()
        return self._buffer.content()

    def write(self, offset: int, data: bytes) -> None:
        """Write, or refuse what can never become part of a list.

        Raises:
            TagListInvalid: refused; the handle is poisoned.
            HandlePoisoned: it was poisoned before.
            ListTooLarge, StagingFull: nothing was written, and the handle is poisoned too: a program may ignore it,
                and what it wrote before is a part.
        """
        self._require_sound()
        try:
            buffer = self._load()
            if self.appends:
                offset = len(buffer)
            self._screen.check(offset, data)
            buffer.write(offset, data)
        except (TagListInvalid, ListTooLarge, StagingFull) as error:
            self._poison = error
            raise
        self._change()

    def truncate(self, size: int) -> None:
        """Cut the content to `size` bytes; to none, a poisoned handle is sound again.

        Raises:
            TagListInvalid: it would grow.
            HandlePoisoned: it is poisoned, and `size` is not 0.
        """
        if size == 0:
            self._poison = None
            self.truncates = True
            if self._buffer is not None:
                self._buffer.truncate(0)
            else:
                self._buffer = Buffer(self._budget, self._limit)
            self._under_way = 0
            self._screen.resume(b"")
            self._change()
            return
        self._require_sound()
        if size > self.size:
            raise TagListInvalid(None, f"cannot grow from {self.size} to {size} bytes: NULs are no tags")
        if size == self.size:
            return
        if self._buffer is None or self.is_appending:
            cut = Buffer(self._budget, self._limit, self.content()[:size])
            if self._buffer is not None:
                self._buffer.release()
            self._buffer = cut
            self._is_cut = True
            self._under_way = 0
        else:
            self._buffer.truncate(size)
        self._screen.resume(self._buffer.content())
        self._change()

    def take(self) -> bytes | None:
        """The bytes that closing now would commit, valid as a list (for an appender: as the end of one); None where
        there is nothing new.

        Raises:
            HandlePoisoned, TagListInvalid: closing now commits nothing.
            EmptyingRefused: O_TRUNC, and nothing written, over a list that is not empty.
        """
        self._require_sound()
        if self.truncates and not self.was_written and self.base is not None and self.base.version.size > 0:
            raise EmptyingRefused("opened with O_TRUNC and nothing was written: the list stays as it was")
        if not self.is_changed:
            return None
        assert self._buffer is not None
        plain = self._buffer.content()[self._under_way :]
        taglist.validate(plain)
        self.is_changed = False
        return plain

    def begin(self) -> Staged | None:
        """Begin to commit what was staged last; ends with `committed` or `failed`."""
        staged, self.staged = self.staged, None
        if staged is not None and staged.appends and self.is_appending:
            self._under_way = len(staged.plain)
        return staged

    def committed(self, base: Snapshot | None = None) -> None:
        """What was begun is in the list now: an appender goes on behind `base`, which this writer closes."""
        if self._under_way and self._buffer is not None:
            self._buffer.cut_head(self._under_way)
        self._under_way = 0
        if base is not None:
            self._close_base()
            self.base = self._own_base = base

    def failed(self) -> None:
        """What was begun is not in the list: the next flush takes it again."""
        self._under_way = 0
        self.is_changed = True

    def close(self) -> None:
        self.is_closed = True
        self._close_base()
        if self._buffer is not None:
            self._buffer.release()
            self._buffer = None

    def _close_base(self) -> None:
        if self._own_base is not None:
            self._own_base.close()
            self._own_base = None

    def _change(self) -> None:
        self.is_changed = True
        self.was_written = True
        self.requested_mtime_ns = None

    def _load(self) -> Buffer:
        if self._buffer is None:
            assert self.base is not None
            content = self.base.content()
            self._buffer = Buffer(self._budget, self._limit, content)
        return self._buffer

    def _require_sound(self) -> None:
        if self._poison is not None:
            raise HandlePoisoned(f"refused before ({self._poison}): closing this handle commits nothing")


@dataclass(slots=True)
class ReadHandle:
    """A reader: one version to the end; `node` shares its snapshot among its readers."""

    node: ListNode | None
    content: Callable[[], bytes]


@dataclass(slots=True)
class WriteHandle:
    """A writer; `is_pinned`: its base is the snapshot of `node` that the tree shares."""

    node: ListNode
    writer: Writer
    is_pinned: bool


@dataclass(slots=True)
class ScratchHandle:
    scratch: Scratch


@dataclass(slots=True)
class DirectoryHandle:
    """`names` is what the directory showed when it was last read from its start."""

    node: DirectoryNode
    names: list[bytes] = field(default_factory=list)


Handle = ReadHandle | WriteHandle | ScratchHandle | DirectoryHandle
