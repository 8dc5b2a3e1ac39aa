"""Ahead: what the next request will probably ask for, done while nobody waits for an answer.  Blocking.

Owns: the guess; what is to be done for it, in small steps; the one answer and the one list that are there beforehand.
Does not know: requests, how a list is opened or read.
Invariant: nothing is given out that was replaced before it was asked for.

A program that goes through a whole mount does so in the order of its listings, and needs some 30 µs between an answer
and its next request.  In that time the next repository's list is opened, and the list that was given out last is
decoded, where the program has read the one before.
"""

from collections.abc import Callable
from typing import NamedTuple

from tagfs.compact import CompactInodes, row_of
from tagfs.inodes import DirectoryNode, ListNode
from tagfs.names import RepositoryKey
from tagfs.store import Snapshot
from tagfs.tree import Attributes

Opened = tuple[RepositoryKey, Snapshot, float]
"""A list as it was when it was looked for, and for how long the kernel may keep it, seconds."""


class Found(NamedTuple):
    """The list of a repository: what a lookup is answered with, and its node."""

    node: ListNode
    attributes: Attributes


class Ahead:
    """Looks ahead for one tree.

    Args:
        open_: the list of a repository as it is now; None where nobody would tell that it changes.
        enter: makes an opened list one that is kept open for the kernel.
        give_back: undoes `enter`, for a node that the kernel was not told of.
        decode: the bytes of a node; None where there is too much to be read.
    """

    def __init__(
        self,
        inodes: CompactInodes,
        open_: Callable[[DirectoryNode], Opened | None],
        enter: Callable[[RepositoryKey, Snapshot, float], Found],
        give_back: Callable[[ListNode], None],
        decode: Callable[[int], bytes | None],
    ) -> None:
        self._inodes = inodes
        self._open = open_
        self._enter = enter
        self._give_back = give_back
        self._decode = decode
        self.has_news: Callable[[], bool] | None = None
        """Whether something has changed beneath that the tree has not been told yet; None: that is not known, so no
        list is opened ahead."""
        # What is to be done: a list to decode, a node after whose repository the next one is to be opened; 0 for none.
        self._to_decode = 0
        self._to_open_after = 0
        # INVARIANT: the directory of each was watched before its list was opened.
        self._opened: tuple[int, Opened] | None = None
        self._found: tuple[int, Found] | None = None
        self._decoded: tuple[int, bytes] | None = None
        # Whether the program reads the lists that it is given.
        self._was_read = False
        self._last_read = 0

    # -- what the program does

    def given(self, list_id: int, directory_id: int) -> None:
        """A list was looked up or listed."""
        self._to_open_after = directory_id
        self._to_decode = list_id if self._was_read else 0
        self._was_read = False

    def read(self, list_id: int) -> None:
        """A list was read to its end."""
        in_turn = row_of(list_id) == row_of(self._last_read) + 1
        self._to_decode = self._inodes.list_after(list_id) if in_turn else 0
        self._was_read, self._last_read = True, list_id

    # -- ahead of it

    def work(self) -> bool:
        """Do one step of what is to be done; -> whether there was one."""
        try:
            if self._to_decode:
                id_, self._to_decode = self._to_decode, 0
                self._decode_one(id_)
            elif self._to_open_after:
                id_, self._to_open_after = self._to_open_after, 0
                self._open_next(id_)
            elif self._opened is not None:
                self._enter_opened()
            else:
                return False
        except Exception:
            pass  # whoever asks for it in earnest is told, and the log, whatever it is
        return True

    def _decode_one(self, id_: int) -> None:
        if self._decoded is None or self._decoded[0] != id_:
            content = self._decode(id_)
            self._decoded = None if content is None else (id_, content)

    def _open_next(self, id_: int) -> None:
        next_ = self._inodes.directory_after(id_)
        if self.has_news is None or next_ is None or self._inodes.list_after(id_):
            return  # `list_after` is also what was opened ahead before
        self._drop_found()
        opened = self._open(next_)
        if opened is not None:
            self._opened = next_.id, opened

    def _enter_opened(self) -> None:
        if self._opened is not None:
            (id_, opened), self._opened = self._opened, None
            self._found = id_, self._enter(*opened)

    # -- when it is asked for

    def take_found(self, directory_id: int) -> Found | None:
        """The list of a repository, if it was opened ahead; whoever takes it gives it to the kernel."""
        if self._opened is not None and self._opened[0] == directory_id:
            self._enter_opened()
        if self._found is None or self._found[0] != directory_id:
            return None
        # While nothing was told since it was opened, it is what is there now.
        if self.has_news is None or self.has_news():
            self._drop_found()
            return None
        found, self._found = self._found[1], None
        return found

    def take_decoded(self, id_: int) -> bytes | None:
        """The bytes of a node, if they were decoded ahead."""
        if self._decoded is None or self._decoded[0] != id_:
            return None
        content, self._decoded = self._decoded[1], None
        return content

    def drop(self) -> None:
        """Let go of all."""
        self._to_decode = 0
        self._decoded = None
        self.drop_opened()

    def drop_opened(self) -> None:
        """Let go of what may have been replaced; what was decoded is of a version, and stays true."""
        self._to_open_after = 0
        self._drop_found()

    def _drop_found(self) -> None:
        if self._opened is not None:
            self._opened[1][1].close()
            self._opened = None
        if self._found is not None:
            self._give_back(self._found[1].node)
            self._found = None
