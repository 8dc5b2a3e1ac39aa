"""A namespace that stays entered is the one that has the name, whatever happens beneath between two requests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tagfs.directory import DirectoryStore
from tagfs.errors import RepositoryMissing
from tagfs.inodes import ROOT_ID
from tagfs.names import BASE, RepositoryKey
from tagfs.store import Entered
from tests.support.beneath import no_descriptor_left
from tests.support.places import fast_directory, open_descriptors
from tests.support.watched import Watched

NAMES = ["app-0", "app-1", "app-2"]


class Counted(DirectoryStore):
    """Notes which namespaces are entered."""

    entered: list[str]

    def enter(self, namespace: str) -> Entered:
        self.entered.append(namespace)
        return super().enter(namespace)


class Asked(Watched[Counted]):
    """A tree that is asked for repositories by their names."""

    def __init__(self, path: Path, is_base_watched: bool = True) -> None:
        self.base = path / BASE
        self.is_base_watched = is_base_watched
        keys = [RepositoryKey(namespace, name) for namespace in ("team", "crew") for name in NAMES]
        super().__init__(path, Counted, [(key, b"v1\n") for key in keys])
        self.store.entered = []
        base = self.tree.lookup(ROOT_ID, BASE.encode()).id
        self.nodes = {name: self.tree.lookup(base, name.encode()).id for name in ("team", "crew")}

    def cover(self, path: tuple[str, ...], above: int | None = None) -> bool:
        return (self.is_base_watched or path != ()) and super().cover(path, above)

    def mtime_ns(self, name: str, namespace: str = "team") -> int:
        return self.tree.lookup(self.nodes[namespace], name.encode()).mtime_ns

    def tell(self) -> None:
        for change in self.changes.read():
            if change.path is not None:
                self.tree.changed(change.path, change.name)

    def replace(self) -> None:
        """Another directory takes the name of the namespace; it has one repository."""
        (self.base / "team").rename(self.base / "gone")
        (self.base / "team" / "new").mkdir(parents=True)


@pytest.fixture
async def asked() -> AsyncIterator[Asked]:
    with fast_directory() as path, no_descriptor_left():
        one = Asked(path)
        yield one
        one.close()


async def test_who_looks_up_many_enters_their_namespace_once(asked: Asked) -> None:
    for name in NAMES:
        assert asked.mtime_ns(name) == (asked.base / "team" / name).stat().st_mtime_ns
    assert asked.store.entered == ["team"]


async def test_one_namespace_is_entered_at_a_time(asked: Asked) -> None:
    asked.mtime_ns(NAMES[0])
    opened = open_descriptors()
    for name in NAMES[1:]:
        for namespace in ("crew", "team"):
            asked.mtime_ns(name, namespace)
            assert open_descriptors() == opened
    asked.tree.rest()
    assert open_descriptors() == opened - 1


@pytest.mark.parametrize("is_told", [False, True])
async def test_a_namespace_that_another_has_replaced_is_not_looked_into(asked: Asked, is_told: bool) -> None:
    asked.mtime_ns(NAMES[0])
    asked.replace()
    if is_told:
        asked.tell()
    with pytest.raises(RepositoryMissing):
        asked.mtime_ns(NAMES[1])
    assert asked.mtime_ns("new") == (asked.base / "team" / "new").stat().st_mtime_ns


@pytest.mark.parametrize("is_told", [False, True])
async def test_a_namespace_that_was_removed_is_missing(asked: Asked, is_told: bool) -> None:
    asked.mtime_ns(NAMES[0])
    (asked.base / "team").rename(asked.base.parent / "elsewhere")
    if is_told:
        asked.tell()
    with pytest.raises(RepositoryMissing):
        asked.mtime_ns(NAMES[1])


async def test_a_namespace_whose_replacement_nobody_would_tell_is_entered_anew() -> None:
    with fast_directory() as path, no_descriptor_left():
        asked = Asked(path, is_base_watched=False)
        namespace = asked.base / "team"
        for name in NAMES:
            asked.store.remove(RepositoryKey("team", name))
            asked.store.remove_repository(RepositoryKey("team", name))
        asked.tell()
        with pytest.raises(RepositoryMissing):
            asked.mtime_ns(NAMES[0])
        namespace.rmdir()
        (namespace / "new").mkdir(parents=True)
        assert not asked.changes.has_news()
        assert asked.mtime_ns("new") == (namespace / "new").stat().st_mtime_ns
        asked.close()


async def test_a_listing_uses_what_is_entered(asked: Asked) -> None:
    asked.mtime_ns(NAMES[0])
    names = [name.decode() for _, name, _ in asked.tree.children(asked.nodes["team"], 0, 1000, len)]
    assert (names, asked.store.entered) == (NAMES, ["team"])
