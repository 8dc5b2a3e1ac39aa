"""Writer: what one handle has written to a list, and what of it may be committed.  Pure.

Owns: judging writes, poisoning, what a close would commit, what an appender goes on behind.
Does not know: node ids, the store's files, FUSE.
"""

from dataclasses import dataclass

from tagfs import taglist
from tagfs.buffers import Budget, Buffer
from tagfs.errors import EmptyingRefused, HandlePoisoned, ListTooLarge, StagingFull, TagfsError, TagListInvalid
from tagfs.store import Snapshot, Stage


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
        self.unstaged: BaseException | None = None
        """Why the last close that had something to commit could not stage it."""
        self.is_closed = False
        self.closed_at = 0
        """Which of all closes its last one was so far; the kernel tells of each at once, and of the release late."""
        self.overtaken_at = 0
        """Which of them made the newest list that was committed since: an earlier one of this writer came before it."""
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

    def take(self, is_judged: bool = True) -> bytes | None:
        """The bytes that closing now would commit, valid as a list (for an appender: as the end of one), or yet to be
        judged; None where there is nothing new.

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
        if is_judged:
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
