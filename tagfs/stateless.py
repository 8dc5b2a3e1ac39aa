"""Stateless: a tree that is read by node, for a kernel that does not say what is opened and closed.  Blocking.

Owns: reading without handles, which versions are kept open meanwhile, listings that are given out in parts.
Does not know: errnos, trio, how requests look.
Invariant: all bytes of a node are of one version; where that one is not to be had any more, an error.
"""

import errno
import itertools
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from tagfs.errors import ListMissing, NotPermitted, RepositoryMissing, VersionGone
from tagfs.inodes import ROOT_ID, DirectoryNode, ListNode, Node, SentinelNode
from tagfs.names import LIST, RepositoryKey
from tagfs.pins import Parts, Pins
from tagfs.store import Snapshot, Store
from tagfs.tree import LIST_NAME, PRESENTED_VERSION, Attributes, Tree, View

PARTS_LIMIT = 8 << 20
"""Bytes of lists that are being read in parts."""

AHEAD = 16 << 10
"""Bytes of a stored list that are read when it is looked up: most programs ask for them next."""

_LISTINGS = 63
"""Directories that are being read in parts at once, before one of them is listed anew for the rest of it."""

_SHIFT = 25
"""Bits of the place in a listing, in a position; above them the listing's number.  Both fit into the 31 bits that a
32-bit program can hold."""

_AFTER_LIST = 1
"""The position after the only name of a repository, which no listing has."""


_T = TypeVar("_T")


@dataclass(slots=True)
class _Listing:
    """`readers` have begun it and not come to its end."""

    directory: int
    names: list[bytes]
    readers: int = 1


class StatelessTree(Tree):
    """The tree of a read-only mount whose kernel sends neither OPEN nor OPENDIR.

    Args:
        pins: how many versions stay open; a version beyond is opened again by its name while it is still there.  Fewer
            do where descriptors run out.
    """

    def __init__(self, store: Store, view: View | None, pins: int) -> None:
        super().__init__(store, view)
        self._pins = Pins(pins, self._revived)
        self._parts = Parts(PARTS_LIMIT)
        self._listings: dict[int, _Listing] = {}
        self._numbers = itertools.cycle(range(1, _LISTINGS + 1))

    # -- names

    def _file(self, key: RepositoryKey, name: bytes, pid: int) -> Node:
        if name != LIST_NAME:
            raise ListMissing(f"{key} shows nothing but {LIST}")
        self._watch((key.namespace, key.name))
        snapshot = self._with_room(partial(self.store.open, key, AHEAD))
        node = self.inodes.version(key, snapshot.version)
        self._pins.add(node.id, snapshot)
        return node

    def forget(self, references: list[tuple[int, int]]) -> None:
        super().forget(references)
        for id_, _ in references:
            try:
                self.inodes.get(id_)
            except VersionGone:
                self._pins.drop(id_)
                self._parts.drop(id_)

    # -- directories

    def children(self, id_: int, position: int) -> Iterator[tuple[int, bytes, Callable[[], Attributes | None]]]:
        """(position of the next, name, child) of a directory from `position` on; 0 reads it anew.

        Calling `child` gives its attributes, counted as one reference, or None where it has gone meanwhile.  A position
        stays good while others list the same directory, and while it changes.
        """
        if position == _AFTER_LIST:
            return
        directory = self._directory(id_)
        if len(directory.path) == 3:
            yield _AFTER_LIST, LIST_NAME, lambda: self._listed_list(directory)
            return
        number, place = position >> _SHIFT, position & (1 << _SHIFT) - 1
        listing = self._listings.get(number)
        if place == 0 or listing is None or listing.directory != id_:
            number = self._begin(id_, self._names(directory))
            listing = self._listings[number]
        names = listing.names
        if place >= len(names):
            listing.readers -= 1
            if listing.readers <= 0:
                del self._listings[number]  # read to its end; who seeks back has it listed anew
        look = self._listed_directory if directory.path else self._listed_at_top
        for index in range(place, len(names)):
            yield number << _SHIFT | index + 1, names[index], partial(look, directory.path, names[index])

    def _listed_at_top(self, path: tuple[str, ...], name: bytes) -> Attributes:
        return self.lookup(ROOT_ID, name)

    def _listed_directory(self, above: tuple[str, ...], name: bytes) -> Attributes | None:
        path = (*above, name.decode("utf-8", "surrogateescape"))
        kept, attributes_kept, mtime_ns = self._kept(path[1:-1]), 0.0, 0
        try:
            attributes_kept = self._kept(path[1:])
            mtime_ns = self._mtime_ns(path)
        except RepositoryMissing:
            return None
        except OSError:
            kept = attributes_kept = 0.0  # what cannot be entered must not hide its neighbours; entering it tells why
        node = self.inodes.directory(path)
        self.inodes.remember(node)
        return Attributes(node.id, self._mode(stat.S_IFDIR), 0, 0, mtime_ns, mtime_ns, kept, attributes_kept)

    def _listed_list(self, directory: DirectoryNode) -> Attributes | None:
        try:
            node = self._file(RepositoryKey(directory.path[1], directory.path[2]), LIST_NAME, 0)
        except ListMissing:
            return None
        self.inodes.remember(node)
        return self._attributes(node, 0)

    def _begin(self, directory: int, names: list[bytes]) -> int:
        """The number of a listing: of one that is kept where that has the same names, so that who begins many and ends
        none takes no more memory."""
        for number, known in self._listings.items():
            if known.directory == directory and known.names == names:
                known.readers += 1
                return number
        if len(self._listings) >= _LISTINGS:
            del self._listings[next(iter(self._listings))]
        number = next(number for number in self._numbers if number not in self._listings)
        self._listings[number] = _Listing(directory, names)
        return number

    # -- reading

    def read_node(self, id_: int, offset: int, size: int) -> bytes | memoryview:
        """Raises ListCorrupt, OSError; VersionGone where the version was replaced and is not kept open any more."""
        content = self._parts.get(id_)
        if content is None:
            snapshot = self._pins.get(id_)
            content = snapshot.decode() if snapshot is not None else self._unpinned(id_)
        if offset + size < len(content):
            self._parts.keep(id_, content)
            self._pins.begin(id_)
        else:
            self._parts.drop(id_)
            self._pins.end(id_)
        return content if offset == 0 and size >= len(content) else memoryview(content)[offset : offset + size]

    def _unpinned(self, id_: int) -> bytes:
        """The bytes of a node that is not kept open, or that is no list."""
        node = self.inodes.get(id_)
        if isinstance(node, SentinelNode):
            return PRESENTED_VERSION
        if not isinstance(node, ListNode):
            raise NotPermitted(f"node {id_} cannot be read")
        try:
            snapshot = self._with_room(partial(self.store.open, node.key, AHEAD))
        except (ListMissing, RepositoryMissing):
            raise VersionGone(f"{node.key} was removed") from None
        if node.version is None or snapshot.version.identity != node.version.identity:
            snapshot.close()
            raise VersionGone(f"{node.key} was replaced")
        self._pins.add(id_, snapshot)
        return snapshot.decode()

    def _revived(self, id_: int, descriptor: int, was_read: bool) -> Snapshot:
        """What was kept open of a node, to be read."""
        node = self.inodes.get(id_)
        assert isinstance(node, ListNode) and node.version is not None
        return self.store.adopt(node.key, node.version, descriptor, was_read)

    # -- descriptors

    def _mtime_ns(self, path: tuple[str, ...]) -> int:
        return self._with_room(partial(super()._mtime_ns, path))

    def _names(self, node: DirectoryNode) -> list[bytes]:
        return self._with_room(partial(super()._names, node))

    def _with_room(self, look: Callable[[], _T]) -> _T:
        """What a look at the store finds; where descriptors have run out, fewer versions stay open for it."""
        while True:
            try:
                return look()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._pins.spare():
                    raise

    # -- the end

    def rest(self) -> None:
        """Let go of bytes that are only kept because they might be asked for soon."""
        self._parts.clear()
        self._pins.unload()

    def close(self) -> None:
        """Let go of all, when nobody asks any more."""
        self.rest()
        self._pins.clear()
