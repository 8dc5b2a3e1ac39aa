"""Ahead: what the next request will probably ask for, done while nobody waits for an answer.  Blocking.

Owns: the guess; what is to be done for it, in small steps; the one answer and the one list that are there beforehand.
Does not know: requests, how a list is opened or read.
Invariant: nothing is given out that was replaced before it was asked for.

A program that goes through a whole mount does so in the order of its listings, and needs some 20 µs between an answer
and its next request.  In that time the next repository's list is opened, and the list that was given out last is
decoded, where the program has read the one before.  Of a repository that is looked up by its name, its own list is
opened; once the program has read some in the order of their names, the repository with the next name is looked up too.
"""

from collections.abc import Callable

from tagfs.compact import CompactInodes, row_of
from tagfs.names import RepositoryKey
from tagfs.store import Steps
from tagfs.view import Attributes

Opening = Steps[Attributes | None]
"""Of a list: it ends with what a lookup is answered with; None where nobody would tell that the list changes."""

IN_ORDER = 3
"""Repositories that were looked up each after the one before, by its name, before the next one is guessed."""


class Ahead:
    """Looks ahead for one tree.

    Args:
        open_: the list of a repository as it is now, kept open for the kernel.
        look_after: looks the repository with the next name up; -> its directory and its key, None where there is none.
        give_back: undoes both, for a node that the kernel was not told of; else nothing.
        decode: the bytes of a node; None where there is too much to be read.
    """

    def __init__(
        self,
        inodes: CompactInodes,
        open_: Callable[[RepositoryKey], Opening],
        look_after: Callable[[RepositoryKey], tuple[int, RepositoryKey] | None],
        give_back: Callable[[int], None],
        decode: Callable[[int], bytes | None],
    ) -> None:
        self._inodes = inodes
        self._open = open_
        self._look_after = look_after
        self._give_back = give_back
        self._decode = decode
        self.has_news: Callable[[], bool] | None = None
        """Whether something has changed beneath that the tree has not been told yet; None: that is not known, so no
        list is opened ahead."""
        # What is to be done: a list to decode, one after which the next is to be decoded, a node after whose repository
        # the next one's list is to be opened; 0 for none.  A repository after which the next name is to be looked up.
        self._to_decode = 0
        self._to_decode_after = 0
        self._to_open_after = 0
        self._to_look_after: RepositoryKey | None = None
        # INVARIANT: the directory of each was watched before its list was opened.
        self._opening: tuple[int, Opening] | None = None
        self._found: tuple[int, Attributes] | None = None
        self._decoded: tuple[int, bytes] | None = None
        # Whether the program reads the lists that it is given.
        self._was_read = False
        self._last_read = 0
        # The repository that was looked up last by its name, and how many before it were in order.
        self._named: tuple[int, RepositoryKey] | None = None
        self._in_order = 0

    # -- what the program does

    def named(self, directory_id: int, key: RepositoryKey) -> None:
        """A repository was looked up: what it holds is asked for next."""
        self._in_order = self._in_order + 1 if self._named is not None and key > self._named[1] else 0
        self._named, self._to_look_after = (directory_id, key), None
        is_opening = self._opening is not None and self._opening[0] == directory_id
        if not is_opening and not self._inodes.list_of(directory_id):
            self._to_open_after = 0
            self._begin(directory_id, key)

    def given(self, list_id: int, directory_id: int) -> None:
        """A list was looked up or listed."""
        if self._named is not None and self._named[0] != directory_id:
            self._named = self._to_look_after = None
        self._to_open_after = directory_id
        self._to_decode, self._to_decode_after = list_id if self._was_read else 0, 0
        self._was_read = False

    def read(self, list_id: int) -> None:
        """A list was read to its end."""
        in_turn = row_of(list_id) == row_of(self._last_read) + 1
        self._to_decode, self._to_decode_after = 0, list_id if in_turn else 0
        self._was_read, self._last_read = True, list_id
        if self._in_order >= IN_ORDER and self._named is not None and row_of(list_id) == row_of(self._named[0]):
            self._to_look_after = self._named[1]

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
            elif self._opening is not None:
                self._go_on()
            elif self._to_decode_after:
                id_, self._to_decode_after = self._to_decode_after, 0
                self._decode_one(self._inodes.list_after(id_))
            elif self._to_look_after is not None:
                key, self._to_look_after = self._to_look_after, None
                self._look_up_next(key)
            else:
                return False
        except Exception:
            pass  # whoever asks for it in earnest is told, and the log, whatever it is
        return True

    def _decode_one(self, id_: int) -> None:
        if id_ and (self._decoded is None or self._decoded[0] != id_):
            content = self._decode(id_)
            self._decoded = None if content is None else (id_, content)

    def _open_next(self, id_: int) -> None:
        next_ = self._inodes.repository_after(id_)
        if next_ is not None and not self._inodes.list_after(id_):  # which is also what was opened ahead before
            self._begin(*next_)
            self._go_on()

    def _look_up_next(self, key: RepositoryKey) -> None:
        next_ = self._look_after(key) if self.has_news is not None else None
        if next_ is not None and self._inodes.list_of(next_[0]):
            self._give_back(next_[0])
        elif next_ is not None:
            self._begin(*next_)

    def _begin(self, directory_id: int, key: RepositoryKey) -> None:
        self._drop_found()
        if self.has_news is not None:
            self._opening = directory_id, self._open(key)

    def _go_on(self) -> None:
        """Take the next step of opening a list."""
        if self._opening is not None:
            try:
                next(self._opening[1])
            except StopIteration as end:
                (id_, _), self._opening = self._opening, None
                if end.value is not None:
                    self._found = id_, end.value
                else:
                    self._give_back(id_)
            except BaseException:
                (id_, _), self._opening = self._opening, None
                self._give_back(id_)
                raise

    # -- when it is asked for

    def look(self, directory_id: int, key: RepositoryKey) -> Attributes | None:
        """The list of a repository, opened now as it is ahead; None where that does not tell what is there."""
        self._begin(directory_id, key)
        return self.take_found(directory_id)

    def take_found(self, directory_id: int) -> Attributes | None:
        """The list of a repository, if it was opened ahead; whoever takes it gives it to the kernel."""
        if self._opening is not None and self._opening[0] == directory_id:
            try:
                while self._opening is not None:
                    self._go_on()
            except Exception:
                return None  # whoever looks in earnest is told
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
        self._to_decode = self._to_decode_after = 0
        self._decoded = None
        self.drop_opened()

    def drop_opened(self) -> None:
        """Let go of what may have been replaced; what was decoded is of a version, and stays true."""
        self._to_open_after, self._to_look_after = 0, None
        self._drop_found()

    def _drop_found(self) -> None:
        if self._opening is not None:
            (id_, steps), self._opening = self._opening, None
            steps.close()
            self._give_back(id_)
        if self._found is not None:
            (id_, found), self._found = self._found, None
            self._give_back(found.id)
            self._give_back(id_)
