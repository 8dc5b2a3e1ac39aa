"""What programs should see of a read-write mount: the rules, said once more as simply as they can be.

Knows no store, no nodes and no steps; what is to happen later is returned as an effect for the caller to apply when it
happens.  Times are those that were asked for; None is whatever the clock says.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from tagfs.errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    EmptyingRefused,
    HandlePoisoned,
    ListMissing,
    RepositoryMissing,
    TagListInvalid,
)

Effect = Callable[[], None]


def is_list(plain: bytes) -> bool:
    """Of bytes that are letters, digits, newlines and NULs."""
    lines = plain.split(b"\n")
    return lines.pop() == b"" and all(line and b"\0" not in line for line in lines)


@dataclass(eq=False)
class Scratch:
    """`hides`: the list was renamed to it; `is_meant`: it was renamed over the list, so writing it writes the list."""

    content: bytes = b""
    hides: bool = False
    is_meant: bool = False
    is_changed: bool = False
    mtime: int | None = None
    open_count: int = 0

    def change(self, content: bytes) -> None:
        self.content, self.is_changed, self.mtime = content, True, None


@dataclass
class Staged:
    plain: bytes
    appends: bool


@dataclass(eq=False)
class Writer:
    """One handle of the list; `text` is what it has written: the whole, or what an appender appended.

    `base` is None for a list that was not there; `sent` are the bytes of `text` whose commit is under way.
    """

    base: bytes | None
    appends: bool
    truncates: bool
    text: bytes | None = None
    is_whole: bool = False
    is_changed: bool = False
    is_written: bool = False
    is_poisoned: bool = False
    is_deleted: bool = False
    is_closed: bool = False
    staged: Staged | None = None
    sent: int = 0
    began_with: bytes | None = None

    def __post_init__(self) -> None:
        self.began_with = self.base
        self.is_changed = self.base is None
        self.is_whole = self.truncates or not self.appends
        if self.base is None or self.truncates or self.appends:
            self.text = b""

    def content(self) -> bytes:
        if self.text is None:
            return self.base or b""
        return self.text if self.is_whole else (self.base or b"") + self.text

    def write(self, offset: int, data: bytes) -> None:
        if self.is_poisoned:
            raise HandlePoisoned
        text = self.content() if self.text is None else self.text
        if self.appends:
            offset = len(text)
        if b"\0" in data:
            self.is_poisoned, self.text = True, text
            raise TagListInvalid(None, "")
        text = text.ljust(offset, b"\0")
        self.text = text[:offset] + data + text[offset + len(data) :]
        self.is_changed = self.is_written = True

    def truncate(self, size: int) -> None:
        if size and self.is_poisoned:
            raise HandlePoisoned
        if size > len(self.content()):
            raise TagListInvalid(None, "")
        if size and size == len(self.content()):
            return
        self.text = self.content()[:size]
        self.is_poisoned, self.is_whole, self.sent = False, True, 0
        self.truncates = self.truncates or not size
        self.is_changed = self.is_written = True

    def flush(self) -> Staged | None:
        """What close(2) finds to stage."""
        if self.is_deleted:
            return None
        try:
            if self.is_poisoned:
                raise HandlePoisoned
            if self.truncates and not self.is_written and self.began_with:
                raise EmptyingRefused
            if not self.is_changed:
                return None
            assert self.text is not None
            if not is_list(self.text[self.sent :]):
                raise TagListInvalid(None, "")
        except (HandlePoisoned, EmptyingRefused, TagListInvalid):
            self.staged = None
            raise
        self.is_changed = False
        return Staged(self.text[self.sent :], not self.is_whole or not self.is_written)


@dataclass(eq=False)
class Directory:
    """A repository directory; `is_foreign`: another program stored its list otherwise than the mount would; `hidden`
    is the list (with its time and that) which comes back if its daemon dies."""

    plain: bytes | None = None
    mtime: int | None = None
    is_foreign: bool = False
    hidden: tuple[bytes, int | None, bool] | None = None
    scratch: dict[bytes, Scratch] = field(default_factory=dict)
    writers: list[Writer] = field(default_factory=list)
    meant: list[Scratch] = field(default_factory=list)
    """Open files that were renamed over the list."""

    def look(self) -> bytes | None:
        """The list, as a lookup finds it."""
        if self.plain is None and self.hidden is not None and not any(one.hides for one in self.scratch.values()):
            (self.plain, self.mtime, self.is_foreign), self.hidden = self.hidden, None
        return self.plain

    def require(self) -> bytes:
        if (plain := self.look()) is None:
            raise ListMissing
        return plain

    def listing(self) -> list[bytes]:
        return ([b"tags.txt"] if self.look() is not None else []) + sorted(self.scratch)

    # -- what commits

    def publish(self, staged: Staged, mtime: int | None = None) -> None:
        whole = (self.plain or b"") + staged.plain if staged.appends else staged.plain
        if whole != self.plain or self.is_foreign:
            self.plain, self.mtime, self.is_foreign, self.hidden = whole, mtime, False, None
            for one in self.scratch.values():
                one.hides = False
        elif mtime is not None:
            self.mtime = mtime

    def commit(self, writer: Writer) -> tuple[Effect, Effect] | None:
        """Commit what a writer has staged; -> what it does when it is done, and when it fails."""
        staged, writer.staged = writer.staged, None
        if writer.is_deleted or staged is None:
            return None
        if not writer.is_whole:
            writer.sent = len(staged.plain)

        def done() -> None:
            if writer.is_deleted:
                return
            self.publish(staged)
            if writer.sent and writer.text is not None:
                writer.text = writer.text[writer.sent :]
            writer.sent = 0
            if not writer.is_whole and not writer.is_closed:
                writer.base = self.plain

        def failed() -> None:
            writer.sent, writer.is_changed = 0, True

        return done, failed

    # -- names that change

    def rename_over(self, name: bytes) -> tuple[Effect, Effect]:
        if (one := self.scratch.get(name)) is None:
            raise ListMissing
        if not is_list(one.content):
            raise TagListInvalid(None, "")
        staged, mtime = Staged(one.content, False), one.mtime
        one.is_meant, one.is_changed = True, False
        self.meant.append(one)

        def done() -> None:
            self.publish(staged, mtime)
            self._forget(one)

        def failed() -> None:
            one.is_meant = False
            self.meant.remove(one)

        return done, failed

    def _forget(self, one: Scratch) -> None:
        self.scratch = {name: other for name, other in self.scratch.items() if other is not one}

    def commit_meant(self, one: Scratch) -> tuple[Effect, Effect] | None:
        """Commit what was written to a file since it was renamed over the list."""
        if not one.is_meant or not one.is_changed or not is_list(one.content):
            return None
        one.is_changed = False
        staged, mtime = Staged(one.content, False), one.mtime
        return lambda: self.publish(staged, mtime) if one.is_meant else None, lambda: None

    def rename_away(self, name: bytes) -> Effect:
        self.require()

        def done() -> None:
            assert self.plain is not None
            for other in self.scratch.values():
                other.hides = False
            self.scratch[name] = Scratch(self.plain, hides=True, mtime=self.mtime)
            self.hidden, self.plain = (self.plain, self.mtime, self.is_foreign), None
            self.is_foreign = False

        return done

    def rename_scratch(self, name: bytes, new: bytes) -> Effect | None:
        if name not in self.scratch:
            raise ListMissing
        if name == new:
            return None
        replaced = self.unlink_scratch(new) if new in self.scratch else None
        self.scratch[new] = self.scratch.pop(name)
        return replaced

    def unlink_scratch(self, name: bytes) -> Effect | None:
        if name not in self.scratch:
            raise ListMissing

        def done() -> None:
            self.hidden = None

        return done if self.scratch.pop(name).hides else None

    def unlink(self) -> Effect | None:
        if self.look() is None:
            for writer in self.writers:
                writer.is_deleted, writer.staged = True, None
            return None
        before, meant = list(self.writers), list(self.meant)

        def done() -> None:
            self.plain = self.hidden = None
            self.is_foreign = False
            for writer in (*before, *self.writers):
                writer.is_deleted, writer.staged = True, None
            for one in meant:
                one.is_meant = False

        return done

    def truncate(self, size: int) -> Effect:
        plain = self.require()
        if size > len(plain) or not is_list(plain[:size]):
            raise TagListInvalid(None, "")
        return lambda: self.publish(Staged(plain[:size], False))


class Model:
    """All repository directories."""

    def __init__(self) -> None:
        self.directories: dict[str, Directory] = {}

    def at(self, name: str) -> Directory:
        if name not in self.directories:
            raise RepositoryMissing
        return self.directories[name]

    def make(self, name: str) -> None:
        if name in self.directories:
            raise AlreadyExists
        self.directories[name] = Directory()

    def remove(self, name: str) -> None:
        directory = self.at(name)
        busy = any(not writer.is_deleted for writer in directory.writers) or any(
            one.is_meant and one.open_count for one in directory.meant
        )
        if directory.plain is not None or directory.scratch or busy:
            raise DirectoryNotEmpty
        del self.directories[name]

    def mount_again(self) -> None:
        """The daemon was killed: what was open, scratch and not committed is gone."""
        for directory in self.directories.values():
            directory.scratch.clear()
            directory.writers.clear()
            directory.meant.clear()
