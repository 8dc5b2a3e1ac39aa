"""What is looked ahead for is what is there when it is asked for, and costs nothing that is kept."""

import os
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import pytest

from tagfs import entered
from tagfs.ahead import IN_ORDER
from tagfs.directory import DirectoryStore
from tagfs.errors import ListCorrupt, RepositoryMissing
from tagfs.inodes import ROOT_ID
from tagfs.names import BASE, RepositoryKey
from tagfs.stateless import AHEAD, DECODED_AHEAD
from tagfs.store import Snapshot, Steps
from tagfs.variants import PinnedFile, Variant
from tagfs.view import Attributes
from tests.support.beneath import no_descriptor_left, put
from tests.support.places import fast_directory, open_descriptors
from tests.support.watched import Watched

KEYS = [RepositoryKey("team", f"app-{number}") for number in range(6)]


STEPS = 3
"""In which a list is opened ahead."""


def finished(steps: Steps[Snapshot]) -> None:
    for _ in steps:
        pass


def plain_of(number: int) -> bytes:
    return b"".join(b"v%d.%d\n" % (number, patch) for patch in range(100))


class Counted(DirectoryStore):
    """Notes which lists are opened."""

    opened_lists: list[RepositoryKey]

    def _pin(self, directory: int, path: str, variant: Variant, ahead: int = 0) -> PinnedFile:
        pinned = super()._pin(directory, path, variant, ahead)
        namespace, name = (path if path.count("/") == 2 else f"{path}/{variant.name}").split("/")[1:3]
        self.opened_lists.append(RepositoryKey(namespace, name))
        return pinned


class Walked(Watched[Counted]):
    """A tree that is walked as programs do: a listing, its end, and a read where it is asked for."""

    def __init__(self, path: Path, is_listed: bool = True) -> None:
        self.path = path
        super().__init__(path, Counted, [(key, plain_of(number)) for number, key in enumerate(KEYS)])
        self.store.opened_lists = []
        self.namespace = self.tree.lookup(self.tree.lookup(ROOT_ID, BASE.encode()).id, b"team").id
        self.names = self._listed(self.namespace) if is_listed else {}

    def _listed(self, id_: int) -> dict[bytes, Attributes]:
        return {name: child for _, name, child in self.tree.children(id_, 0, 1000, len)}

    def tell(self) -> None:
        for change in self.changes.read():
            if change.path is not None:
                self.tree.changed(change.path, change.name)

    def directory(self, number: int) -> int:
        return self.names[KEYS[number].name.encode()].id

    def list_(self, number: int) -> Attributes:
        (child,) = self._listed(self.directory(number)).values()
        return child

    def idle(self) -> int:
        """Whatever is done while nobody asks; -> the steps that it took."""
        steps = 0
        while self.tree.ahead.work():
            steps += 1
        return steps

    def read(self, id_: int) -> bytes:
        return bytes(self.tree.read_node(id_, 0, 1 << 20))


@pytest.fixture
async def walked() -> AsyncIterator[Walked]:
    with fast_directory() as path, no_descriptor_left():
        one = Walked(path)
        yield one
        one.close()


@pytest.fixture
async def named() -> AsyncIterator[Walked]:
    """One that nobody has listed."""
    with fast_directory() as path, no_descriptor_left():
        one = Walked(path, is_listed=False)
        yield one
        one.close()


async def test_the_next_list_of_a_walk_is_opened_before_it_is_asked_for(walked: Walked) -> None:
    walked.list_(0)
    for number in range(1, len(KEYS)):
        walked.idle()
        assert walked.store.opened_lists == KEYS[: number + 1]
        assert walked.list_(number).size == len(plain_of(number))
    walked.idle()
    assert walked.store.opened_lists == KEYS


async def test_the_next_list_is_opened_for_who_looks_names_up(walked: Walked) -> None:
    for number in range(len(KEYS)):
        attributes = walked.tree.lookup(walked.directory(number), b"tags.txt")
        assert walked.read(attributes.id) == plain_of(number)
        walked.idle()
    assert walked.store.opened_lists == KEYS


async def test_the_list_of_a_repository_is_opened_for_who_looks_that_up(walked: Walked) -> None:
    for number, key in enumerate(KEYS):
        directory = walked.tree.lookup(walked.namespace, key.name.encode())
        walked.idle()
        assert walked.store.opened_lists == KEYS[: number + 1]
        attributes = walked.tree.lookup(directory.id, b"tags.txt")
        assert walked.read(attributes.id) == plain_of(number)
    assert walked.store.opened_lists == KEYS


async def test_the_list_of_a_repository_that_is_looked_up_again_is_not_opened_again(walked: Walked) -> None:
    walked.list_(0)
    walked.tree.lookup(walked.namespace, KEYS[0].name.encode())
    walked.tree.rest()
    walked.tree.lookup(walked.namespace, KEYS[0].name.encode())
    walked.idle()
    assert walked.store.opened_lists == [KEYS[0]]


def read_by_names(walked: Walked, numbers: Iterable[int]) -> None:
    """As a program that is given names, to the end of the last list."""
    for number in numbers:
        directory = walked.tree.lookup(walked.namespace, KEYS[number].name.encode())
        walked.idle()
        attributes = walked.tree.lookup(directory.id, b"tags.txt")
        assert walked.read(attributes.id) == plain_of(number)


async def test_who_goes_by_names_in_order_has_the_next_one_looked_up(named: Walked) -> None:
    read_by_names(named, range(IN_ORDER))
    named.idle()
    assert named.store.opened_lists == KEYS[:IN_ORDER]
    read_by_names(named, range(IN_ORDER, len(KEYS) - 1))
    known = len(named.tree.inodes)
    named.idle()
    assert (named.store.opened_lists, len(named.tree.inodes)) == (KEYS, known + 2)
    directory = named.tree.lookup(named.namespace, KEYS[-1].name.encode())
    assert directory.mtime_ns == (named.path / KEYS[-1].directory).stat().st_mtime_ns
    assert named.read(named.tree.lookup(directory.id, b"tags.txt").id) == plain_of(len(KEYS) - 1)
    named.idle()
    assert named.store.opened_lists == KEYS


@pytest.mark.parametrize("numbers", [(4, 3, 2, 1, 0), (0, 1, 2, 3, 0)])
async def test_who_goes_by_names_in_no_order_has_none_looked_up(named: Walked, numbers: tuple[int, ...]) -> None:
    read_by_names(named, numbers)
    before = list(named.store.opened_lists)
    named.idle()
    assert named.store.opened_lists == before


async def test_a_large_namespace_is_not_listed_for_the_next_name(
    named: Walked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entered, "_SMALL", 0)
    read_by_names(named, range(len(KEYS) - 1))
    named.idle()
    assert named.store.opened_lists == KEYS[:-1]


@pytest.mark.parametrize("is_told", [False, True])
@pytest.mark.parametrize("steps", range(STEPS + 2))
async def test_a_repository_that_changed_after_it_was_looked_up_ahead_is_shown_as_it_is(
    named: Walked, steps: int, is_told: bool
) -> None:
    read_by_names(named, range(len(KEYS) - 1))
    for _ in range(steps):
        named.tree.ahead.work()
    put(named.path, KEYS[-1], b"new\n")
    if is_told:
        named.tell()
    directory = named.tree.lookup(named.namespace, KEYS[-1].name.encode())
    assert directory.mtime_ns == (named.path / KEYS[-1].directory).stat().st_mtime_ns
    assert named.read(named.tree.lookup(directory.id, b"tags.txt").id) == b"new\n"


@pytest.mark.parametrize("is_told", [False, True])
async def test_a_repository_that_went_after_it_was_looked_up_ahead_is_missing(named: Walked, is_told: bool) -> None:
    read_by_names(named, range(len(KEYS) - 1))
    named.idle()
    named.store.remove(KEYS[-1])
    named.store.remove_repository(KEYS[-1])
    if is_told:
        named.tell()
    with pytest.raises(RepositoryMissing):
        named.tree.lookup(named.namespace, KEYS[-1].name.encode())


@pytest.mark.parametrize("steps", range(STEPS + 2))
async def test_a_repository_that_was_looked_up_ahead_and_not_asked_for_is_let_go(named: Walked, steps: int) -> None:
    read_by_names(named, range(IN_ORDER + 1))
    known = len(named.tree.inodes)
    for _ in range(steps):
        named.tree.ahead.work()
    named.tree.rest()
    assert len(named.tree.inodes) == known


async def test_what_is_opened_ahead_is_what_a_listing_shows(walked: Walked) -> None:
    ahead = [walked.list_(number) for number in range(2) if walked.idle() >= 0]
    walked.tree.rest()
    assert [walked.list_(number) for number in range(2)] == ahead


@pytest.mark.parametrize("steps", range(1, STEPS + 1))
async def test_a_change_after_it_was_opened_ahead_is_shown_though_nobody_has_told_it_yet(
    walked: Walked, steps: int
) -> None:
    walked.list_(0)
    for _ in range(steps):
        assert walked.tree.ahead.work()
    put(walked.path, KEYS[1], b"new\n")
    attributes = walked.list_(1)
    assert (attributes.size, walked.read(attributes.id)) == (4, b"new\n")


@pytest.mark.parametrize("steps", range(1, STEPS + 1))
async def test_a_change_that_was_told_is_shown(walked: Walked, steps: int) -> None:
    walked.list_(0)
    for _ in range(steps):
        assert walked.tree.ahead.work()
    put(walked.path, KEYS[1], b"new\n")
    walked.tree.changed(("team", KEYS[1].name), "tags.txt")
    assert walked.read(walked.list_(1).id) == b"new\n"


async def test_a_list_is_opened_in_its_own_namespace_though_another_is_entered_meanwhile(walked: Walked) -> None:
    walked.store.replace(RepositoryKey("crew", KEYS[1].name), b"other\n")
    walked.list_(0)
    assert walked.tree.ahead.work()
    walked.tree._entrance.namespace("crew")
    attributes = walked.list_(1)
    assert walked.read(attributes.id) == plain_of(1)


@pytest.mark.parametrize("steps", range(STEPS + 1))
@pytest.mark.parametrize("is_told", [False, True])
async def test_a_repository_that_became_a_link_is_not_followed(walked: Walked, steps: int, is_told: bool) -> None:
    elsewhere = walked.path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "tags.txt").write_bytes(b"elsewhere\n")
    walked.list_(0)
    for _ in range(steps):
        assert walked.tree.ahead.work()
    directory = walked.path / KEYS[1].directory
    directory.rename(walked.path / "gone")
    directory.symlink_to(elsewhere)
    if is_told:
        walked.tell()
    with pytest.raises(RepositoryMissing):
        walked.list_(1)


async def test_a_link_in_place_of_a_repository_is_not_opened_through(walked: Walked) -> None:
    directory = walked.path / KEYS[1].directory
    inside = walked.store.enter(KEYS[1].namespace)
    directory.rename(walked.path / "elsewhere")
    directory.symlink_to(walked.path / "elsewhere")
    with pytest.raises(ListCorrupt, match="symbolic links"):
        finished(inside.opening(KEYS[1].name, AHEAD))
    inside.close()


async def test_a_list_that_went_after_it_was_opened_ahead_is_not_shown(walked: Walked) -> None:
    walked.list_(0)
    walked.idle()
    walked.store.remove(KEYS[1])
    assert list(walked.tree.children(walked.directory(1), 0, 100, len)) == []


async def test_what_was_opened_ahead_and_not_asked_for_is_let_go(walked: Walked) -> None:
    walked.list_(0)
    walked.tree.rest()
    known, opened = len(walked.tree.inodes), open_descriptors()
    for steps in range(1, STEPS + 1):
        walked.list_(0)
        for _ in range(steps):
            assert walked.tree.ahead.work()
        assert open_descriptors() == opened + 1 + (steps > 1)  # the namespace, and the list
        walked.tree.rest()
        assert (len(walked.tree.inodes), open_descriptors()) == (known, opened)


async def test_at_most_one_list_is_open_ahead(walked: Walked) -> None:
    before = open_descriptors()
    for given, number in enumerate((0, 2, 4), 1):
        walked.list_(number)
        walked.idle()
        assert open_descriptors() == before + given + 1


async def test_what_was_opened_ahead_is_no_reference(walked: Walked) -> None:
    walked.list_(0)
    walked.idle()
    attributes = walked.list_(1)
    walked.tree.forget([(attributes.id, 1)])
    assert attributes.id not in walked.tree._pins


async def test_nothing_is_opened_ahead_where_nobody_tells_of_changes(walked: Walked) -> None:
    walked.tree.watch(lambda path, above=None: False, walked.changes.has_news)
    walked.list_(0)
    walked.idle()
    walked.tree.watch(walked.changes.cover)
    walked.list_(0)
    walked.idle()
    assert walked.store.opened_lists == [KEYS[0], KEYS[0]]


async def test_a_list_that_the_kernel_knows_is_not_opened_ahead(walked: Walked) -> None:
    for number in (1, 0):
        walked.list_(number)
        walked.idle()
    assert walked.store.opened_lists == [KEYS[1], KEYS[2], KEYS[0]]


async def test_an_error_ahead_is_told_to_who_asks(walked: Walked) -> None:
    walked.list_(0)
    (walked.path / KEYS[1].directory / "tags.txt.zst").write_bytes(b"no list")
    walked.idle()
    attributes = walked.list_(1)
    with pytest.raises(ListCorrupt):
        walked.read(attributes.id)


async def test_an_error_ahead_that_should_not_happen_ends_nothing(
    walked: Walked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(key: RepositoryKey) -> Iterator[None]:
        yield
        raise MemoryError

    monkeypatch.setattr(walked.tree.ahead, "_open", fail)
    walked.list_(0)
    assert walked.idle() > 0
    assert walked.list_(1).size == len(plain_of(1))


# -- bytes


async def test_who_reads_what_it_lists_has_the_next_one_decoded(
    walked: Walked, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def decode(id_: int) -> bytes | None:
        decoded.append(id_)
        return walked.tree._decode_ahead(id_)

    monkeypatch.setattr(walked.tree.ahead, "_decode", decode)
    first = walked.list_(0)
    walked.idle()
    assert walked.read(first.id) == plain_of(0)
    ids = []
    for number in range(1, len(KEYS)):
        ids.append(walked.list_(number).id)
        walked.idle()
        assert walked.read(ids[-1]) == plain_of(number)
        walked.idle()
    assert decoded == ids


async def test_who_only_lists_has_nothing_decoded(walked: Walked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walked.tree.ahead, "_decode", lambda id_: pytest.fail("nobody reads"))
    for number in range(len(KEYS)):
        walked.list_(number)
        walked.idle()


async def test_who_reads_in_turn_has_the_next_one_decoded(walked: Walked) -> None:
    ids = [walked.list_(number).id for number in range(len(KEYS))]
    walked.tree.rest()
    for number, id_ in enumerate(ids):
        assert walked.read(id_) == plain_of(number)
        assert walked.tree.ahead._decoded is None
        walked.idle()
        expected = (ids[number + 1], plain_of(number + 1)) if 0 < number < len(ids) - 1 else None
        assert walked.tree.ahead._decoded == expected


@pytest.mark.parametrize(("size", "stored_size"), [(100, AHEAD + 1), (DECODED_AHEAD + 1, 100)])
async def test_a_large_list_is_not_decoded_ahead(walked: Walked, size: int, stored_size: int) -> None:
    ids = [walked.list_(number).id for number in range(3)]
    snapshot = walked.tree._pins.get(ids[2])
    assert snapshot is not None
    snapshot.version = snapshot.version._replace(size=size, stored_size=stored_size)
    for id_ in ids[:2]:
        walked.read(id_)
        walked.idle()
    assert walked.tree.ahead._decoded is None


async def test_bytes_that_were_decoded_ahead_are_of_their_version(walked: Walked) -> None:
    ids = [walked.list_(number).id for number in range(3)]
    for id_ in ids[:2]:
        walked.read(id_)
        walked.idle()
    put(walked.path, KEYS[2], b"new\n")
    assert walked.read(ids[2]) == plain_of(2)
    walked.tree.changed(("team", KEYS[2].name), "tags.txt")
    assert walked.read(walked.list_(2).id) == b"new\n"


async def test_bytes_that_were_decoded_ahead_outlive_a_change_in_place(walked: Walked) -> None:
    ids = [walked.list_(number).id for number in range(3)]
    for id_ in ids[:2]:
        walked.read(id_)
        walked.idle()
    file = walked.path / KEYS[2].directory / "tags.txt"
    file.write_bytes(plain_of(2).replace(b"v", b"w"))
    os.utime(file, ns=(1, 1))
    walked.tree.changed(("team", KEYS[2].name), "tags.txt")
    assert walked.read(ids[2]) == plain_of(2)
