"""Stateless: a tree that is read by node, for a kernel that does not say what is opened and closed.  Blocking.

Owns: reading without handles, which versions are kept open meanwhile.
Does not know: errnos, trio, how requests look.
Invariant: all bytes of a node are of one version; where that one is not to be had any more, an error.
"""

import errno
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from tagfs.ahead import Ahead, Opening
from tagfs.compact import CompactInodes
from tagfs.entrance import Entrance
from tagfs.errors import ListMissing, NotPermitted, RepositoryMissing, VersionGone
from tagfs.inodes import ROOT_ID, DirectoryNode, ListNode, SentinelNode
from tagfs.listings import Listings
from tagfs.names import BASE, LIST, RepositoryKey, is_repository
from tagfs.pins import Parts, Pins
from tagfs.store import Entered, Snapshot, Store
from tagfs.tree import Tree
from tagfs.view import (
    FOREVER,
    LIST_NAME,
    PRESENTED_VERSION,
    UNWATCHED,
    Attributes,
    Invalidation,
    View,
    Watch,
    directory_mode,
    list_mode,
)

PARTS_LIMIT = 8 << 20
"""Bytes of lists that are being read in parts."""

AHEAD = 16 << 10
"""Bytes of a stored list that are read when it is looked up: most programs ask for them next."""

DECODED_AHEAD = 512 << 10
"""Plain bytes of a list that are decoded before anybody asks for them: less than a millisecond, and what is kept."""

_AFTER_LIST = 1
"""The position after the only name of a repository, which no listing has."""

_DIRECTORY = directory_mode(False)
_LIST = list_mode(False)

_T = TypeVar("_T")


class StatelessTree(Tree):
    """The tree of a read-only mount whose kernel sends neither OPEN nor OPENDIR.

    Args:
        pins: how many versions stay open; a version beyond is opened again by its name while it is still there.  Fewer
            do where descriptors run out.
    """

    def __init__(self, store: Store, view: View | None, pins: int) -> None:
        super().__init__(store, view)
        self.inodes: CompactInodes = CompactInodes()
        self.ahead = Ahead(self.inodes, self._open_ahead, self._look_after, self._give_back, self._decode_ahead)
        self._pins = Pins(pins, self._revived)
        self._parts = Parts(PARTS_LIMIT)
        self._entrance = Entrance(self._enter_namespace, lambda: self._kept(()) == FOREVER)
        self._listings = Listings()

    # -- names

    def lookup(self, parent: int, name: bytes, pid: int = 0) -> Attributes:
        found = self.ahead.take_found(parent) if name == LIST_NAME else None
        return self._given(found, parent) if found is not None else self._looked_up(self._directory(parent), name)

    def sought(self, parent: int, name: bytes) -> Attributes | float:
        """`lookup`, or for how long the kernel may keep that there is no such name, seconds."""
        found = self.ahead.take_found(parent) if name == LIST_NAME else None
        if found is not None:
            return self._given(found, parent)
        directory = self._directory(parent)
        # First: what comes into being after the look must be told.
        kept = self._absence_kept(directory.path)
        if len(directory.path) == 3 and name != LIST_NAME:
            return kept
        try:
            return self._looked_up(directory, name)
        except (ListMissing, RepositoryMissing):
            return kept

    def _looked_up(self, directory: DirectoryNode, name: bytes) -> Attributes:
        depth = len(directory.path)
        if depth < 2:
            return super().lookup(directory.id, name)
        if depth == 2:
            return self._named_repository(directory.path, name)
        if name != LIST_NAME:
            raise ListMissing(f"{'/'.join(directory.path)} shows nothing but {LIST}")
        return self._given(self._look(directory), directory.id)

    def _named_repository(self, above: tuple[str, ...], name: bytes) -> Attributes:
        """A repository that is looked up by its name; RepositoryMissing."""
        path = (*above, name.decode("utf-8", "surrogateescape"))
        if not is_repository(path[2]):
            raise RepositoryMissing(f"{'/'.join(path)} cannot be in a store")
        kept = self._kept(above[1:])
        attributes = self._within(self._entrance.namespace(above[1]), path, kept)
        self.ahead.named(attributes.id, RepositoryKey.known(above[1], path[2]))
        return attributes

    def _look(self, directory: DirectoryNode) -> Attributes:
        """The list of a repository; ListMissing."""
        key = RepositoryKey.known(*directory.path[1:])
        found = self.ahead.look(directory.id, key)
        return self._enter(key, *self._with_room(partial(self._open_list, key))) if found is None else found

    def _open_list(self, key: RepositoryKey) -> tuple[Snapshot, float]:
        """(the list of a repository as it is now, for how long the kernel may keep it)."""
        # First: what changes after the look must be told.
        kept = 0.0 if self._view.watch is None else self._kept(key)
        return self.store.open(key, AHEAD), kept

    def _open_ahead(self, key: RepositoryKey) -> Opening:
        # It has been a directory since it was watched, or something was told, and what is found here is dropped.
        if self._kept(key) != FOREVER:
            return None
        snapshot = yield from self._entrance.namespace(key.namespace).opening(key.name, AHEAD)
        try:
            yield
        except GeneratorExit:
            snapshot.close()
            raise
        return self._enter(key, snapshot, FOREVER)

    def _look_after(self, key: RepositoryKey) -> tuple[int, RepositoryKey] | None:
        """The directory and the key of the repository after a name, for who may ask for it next."""
        entered = self._entrance.namespace(key.namespace)
        name = entered.name_after(key.name)
        if name is None:
            return None
        next_ = RepositoryKey.known(key.namespace, name)
        mtime_ns, is_watched = self._look_at(entered, next_)
        if not is_watched:
            return None
        entered.ahead[name] = mtime_ns
        return self.inodes.directory((BASE, *next_)).id, next_

    def _enter(self, key: RepositoryKey, snapshot: Snapshot, kept: float) -> Attributes:
        version = snapshot.version
        id_ = self.inodes.id_of_version(key, version)
        self._pins.add(id_, snapshot)
        return Attributes(id_, _LIST, version.size, version.blocks, version.mtime_ns, version.ctime_ns, kept, kept)

    def _given(self, found: Attributes, directory_id: int) -> Attributes:
        """What the kernel is told of a list from now on."""
        self.inodes.give_version(found.id)
        self.ahead.given(found.id, directory_id)
        return found

    def forget(self, references: list[tuple[int, int]]) -> None:
        super().forget(references)
        for id_, _ in references:
            try:
                self.inodes.get(id_)
            except VersionGone:
                self._pins.drop(id_)
                self._parts.drop(id_)

    def _give_back(self, id_: int) -> None:
        self.forget([(id_, 0)])

    # -- directories

    def children(
        self, id_: int, position: int, room: int, size_of: Callable[[bytes], int]
    ) -> list[tuple[int, bytes, Attributes]]:
        """(position of the next, name, child) of a directory from `position` on, as many as have room by the size of
        their names; 0 reads it anew.

        Each child is counted as one reference; what has gone meanwhile is left out.  A position stays good while others
        list the same directory, and while it changes.
        """
        if position == _AFTER_LIST or size_of(LIST_NAME) > room:
            return []
        found = self.ahead.take_found(id_)
        if found is not None:
            return [(_AFTER_LIST, LIST_NAME, self._given(found, id_))]
        directory = self._directory(id_)
        path = directory.path
        if len(path) == 3:
            try:
                return [(_AFTER_LIST, LIST_NAME, self._given(self._look(directory), id_))]
            except ListMissing:
                return []
        names = self._listings.names(id_, position, partial(self._names, directory))
        kept, entered = self._kept(path[1:]) if path else FOREVER, None
        if len(path) == 2:
            try:
                entered = self._entrance.namespace(path[1])
            except RepositoryMissing:
                return []
        children: list[tuple[int, bytes, Attributes]] = []
        for following, name in names:
            size = size_of(name)
            if size > room:
                break
            try:
                child = self._listed_directory(path, name, kept, entered) if path else self.lookup(ROOT_ID, name)
            except Exception:
                if not children:
                    raise
                break  # What is counted has to be given. The kernel goes on from there, and is told then.
            if child is not None:
                room -= size
                children.append((following, name, child))
        return children

    def _listed_directory(
        self, above: tuple[str, ...], name: bytes, kept: float, entered: Entered | None
    ) -> Attributes | None:
        path = (*above, name.decode("utf-8", "surrogateescape"))
        try:
            if entered is not None:
                return self._within(entered, path, kept)
            attributes_kept = self._kept(path[1:])
            return self._given_directory(path, self._mtime_ns(path), kept, attributes_kept)
        except RepositoryMissing:
            return None
        except OSError:
            # What cannot be entered must not hide its neighbours; entering it tells why.
            return self._given_directory(path, 0, 0.0, 0.0)

    def _within(self, entered: Entered, path: tuple[str, ...], kept: float) -> Attributes:
        """A repository of a namespace that is entered; RepositoryMissing, OSError."""
        mtime_ns, is_watched = entered.ahead.pop(path[2], None), True
        if mtime_ns is None:
            mtime_ns, is_watched = self._look_at(entered, path[1:])
        return self._given_directory(path, mtime_ns, kept, FOREVER if is_watched else UNWATCHED)

    def _look_at(self, entered: Entered, path: tuple[str, ...]) -> tuple[int, bool]:
        """(when a repository changed, whether it is told from now on that it does); RepositoryMissing, OSError."""
        # First: what changes after the look must be told.
        is_watched = self._view.watch is not None and self._view.watch(path, entered.descriptor)
        return entered.mtime_ns(path[1]), is_watched

    def _given_directory(self, path: tuple[str, ...], mtime_ns: int, kept: float, attributes_kept: float) -> Attributes:
        id_ = self.inodes.give_directory(path)
        return Attributes(id_, _DIRECTORY, 0, 0, mtime_ns, mtime_ns, kept, attributes_kept)

    def _enter_namespace(self, name: str) -> Entered:
        return self._with_room(partial(self.store.enter, name))

    # -- reading

    def read_node(self, id_: int, offset: int, size: int) -> bytes | memoryview:
        """Raises ListCorrupt, OSError; VersionGone where the version was replaced and is not kept open any more."""
        content = self._parts.get(id_)
        if content is None:
            content = self.ahead.take_decoded(id_)
        if content is None:
            snapshot = self._pins.get(id_)
            content = snapshot.decode() if snapshot is not None else self._unpinned(id_)
        if offset + size < len(content):
            self._parts.keep(id_, content)
            self._pins.begin(id_)
        else:
            self._parts.drop(id_)
            self._pins.end(id_)
            self.ahead.read(id_)
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

    def _decode_ahead(self, id_: int) -> bytes | None:
        """The bytes of a node, where little has to be read for them."""
        snapshot = self._pins.get(id_)
        if snapshot is None or snapshot.version.stored_size > AHEAD or snapshot.version.size > DECODED_AHEAD:
            return None
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

    # -- changes beneath

    def watch(self, watch: Watch | None, has_news: Callable[[], bool] | None = None) -> None:
        super().watch(watch)
        self._entrance.leave()
        self.ahead.drop()
        self.ahead.has_news = self._entrance.has_news = has_news

    def changed(self, path: tuple[str, ...], name: str) -> list[Invalidation]:
        self._entrance.leave()
        self.ahead.drop_opened()
        return super().changed(path, name)

    def everything(self) -> list[Invalidation]:
        self._entrance.leave()
        self.ahead.drop_opened()
        return super().everything()

    # -- the end

    def rest(self) -> None:
        """Let go of bytes that are only kept because they might be asked for soon."""
        self._entrance.leave()
        self.ahead.drop()
        self._parts.clear()
        self._pins.unload()

    def close(self) -> None:
        """Let go of all, when nobody asks any more."""
        self.rest()
        self._pins.clear()
