"""A tree that is read by node: which bytes, how long, and what a listing shows while it changes."""

import errno
import os
import resource
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tagfs import codec
from tagfs.directory import DirectoryStore
from tagfs.disk import Disk, FileStatus
from tagfs.errors import ListCorrupt, NotPermitted, RepositoryMissing, VersionGone
from tagfs.inodes import ROOT_ID
from tagfs.names import BASE, RepositoryKey
from tagfs.stateless import PARTS_LIMIT, StatelessTree
from tagfs.view import FOREVER, Attributes, View
from tests.support.beneath import directory_store, list_file, no_descriptor_left, put
from tests.support.places import fast_directory, open_descriptors

KEY = RepositoryKey("team", "app")
LONG = b"".join(b"v%d\n" % number for number in range(300))
PINS = 3


@pytest.fixture
def path() -> Iterator[Path]:
    with fast_directory() as path, no_descriptor_left():
        yield path


@pytest.fixture
def store(path: Path) -> Iterator[DirectoryStore]:
    one = directory_store(path)
    one.replace(KEY, LONG)
    yield one
    one.close()


@pytest.fixture
def tree(store: DirectoryStore) -> Iterator[StatelessTree]:
    one = StatelessTree(store, View(None, lambda path, above=None: True), PINS)
    yield one
    one.close()


def directory(tree: StatelessTree, *names: str) -> int:
    node = ROOT_ID
    for name in names:
        node = tree.lookup(node, name.encode()).id
    return node


def look(tree: StatelessTree, key: RepositoryKey = KEY) -> Attributes:
    return tree.lookup(directory(tree, BASE, key.namespace, key.name), b"tags.txt")


def others(tree: StatelessTree, store: DirectoryStore, count: int) -> None:
    """Look so many other lists up."""
    for number in range(count):
        key = RepositoryKey("team", f"other-{number}")
        store.replace(key, LONG)
        look(tree, key)


def read(tree: StatelessTree, id_: int, size: int = 100, start: int = 0) -> bytes:
    """All from `start` on, in pieces of `size`."""
    whole, offset = b"", start
    while part := bytes(tree.read_node(id_, offset, size)):
        whole, offset = whole + part, offset + len(part)
    return whole


# -- which bytes


@pytest.mark.parametrize("size", [1, 100, len(LONG) - 1, len(LONG), len(LONG) + 1, 1 << 20])
def test_a_list_is_read_in_pieces_of_any_size(tree: StatelessTree, size: int) -> None:
    assert read(tree, look(tree).id, size) == LONG


def test_pieces_are_read_in_any_order(tree: StatelessTree) -> None:
    id_ = look(tree).id
    for start in (1000, 0, 500, len(LONG), len(LONG) + 5, 999):
        assert bytes(tree.read_node(id_, start, 10)) == LONG[start : start + 10]


def test_what_is_looked_up_stays_readable_to_its_end_beside_replacements(
    tree: StatelessTree, store: DirectoryStore
) -> None:
    id_ = look(tree).id
    begun = bytes(tree.read_node(id_, 0, 100))
    for number in range(5):
        store.replace(KEY, b"new-%d\n" % number)
        tree.changed(("team", "app"), "tags.txt")
    store.remove(KEY)
    tree.rest()
    assert begun + read(tree, id_, start=100) == LONG


def test_a_replaced_list_is_another_node(tree: StatelessTree, store: DirectoryStore) -> None:
    old = look(tree).id
    store.replace(KEY, b"new\n")
    new = look(tree).id
    assert new != old
    assert (read(tree, old), read(tree, new)) == (LONG, b"new\n")


def test_a_forgotten_version_is_let_go(tree: StatelessTree) -> None:
    look(tree)
    before = open_descriptors()
    id_ = look(tree).id
    assert open_descriptors() == before
    tree.forget([(id_, 1)])
    assert open_descriptors() == before
    tree.forget([(id_, 1)])
    assert open_descriptors() == before - 1
    with pytest.raises(VersionGone):
        tree.read_node(id_, 0, 10)


def test_beyond_the_bound_a_version_is_opened_again_by_its_name(tree: StatelessTree, store: DirectoryStore) -> None:
    id_ = look(tree).id
    others(tree, store, PINS)
    assert read(tree, id_) == LONG


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_beyond_the_bound_a_version_that_is_gone_is_an_error_and_never_another(
    tree: StatelessTree, store: DirectoryStore, change: str
) -> None:
    id_ = look(tree).id
    others(tree, store, PINS)
    if change == "replaced":
        store.replace(KEY, LONG[:-4] + b"x42\n")
    else:
        store.remove(KEY)
    with pytest.raises(VersionGone):
        tree.read_node(id_, 0, 10)


def test_a_version_that_is_being_read_outlives_those_that_are_only_looked_up(
    tree: StatelessTree, store: DirectoryStore
) -> None:
    id_ = look(tree).id
    begun = bytes(tree.read_node(id_, 0, 100))
    store.replace(KEY, b"new\n")
    others(tree, store, 5 * PINS)
    tree.rest()
    assert begun + read(tree, id_, start=100) == LONG


def test_a_plain_list_that_is_changed_in_place_is_an_error_after_its_first_bytes(
    tree: StatelessTree, store: DirectoryStore, path: Path
) -> None:
    put(path, KEY, LONG)
    file = list_file(path, KEY)
    id_ = look(tree).id
    assert bytes(tree.read_node(id_, 0, 100)) == LONG[:100]
    before = file.stat()
    file.write_bytes(LONG.replace(b"v", b"w"))
    os.utime(file, ns=(before.st_mtime_ns, before.st_mtime_ns + 1))
    assert bytes(tree.read_node(id_, 100, 100)) == LONG[100:200]  # decoded once, and kept
    tree.rest()
    with pytest.raises(VersionGone, match="in place"):
        tree.read_node(id_, 200, 100)


@pytest.fixture
def wide(store: DirectoryStore) -> Iterator[StatelessTree]:
    """A tree that keeps every version open, whatever it was."""
    one = StatelessTree(store, View(None, lambda path, above=None: True), 1 << 20)
    yield one
    one.close()


@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_every_version_stays_readable_while_descriptors_last(
    wide: StatelessTree, store: DirectoryStore, path: Path, suffix: str
) -> None:
    keys = [RepositoryKey("team", f"many-{number}") for number in range(100)]
    ids: dict[int, bytes] = {}
    for generation in range(3):
        for number, key in enumerate(keys):
            plain = LONG + b"%d-%d\n" % (generation, number)
            put(path, key, plain)
            if suffix:
                list_file(path, key).unlink()
                list_file(path, key, suffix).write_bytes(codec.ZSTD.encode(plain))
            ids[look(wide, key).id] = plain
    for key in keys[:50]:
        store.remove(key)
    for _ in range(2):
        assert {id_: read(wide, id_, 1000) for id_ in ids} == ids
        wide.rest()
    for id_ in ids:
        wide.forget([(id_, 1)])
    assert len(wide._pins) == 0


def test_a_plain_list_that_was_read_and_is_then_changed_in_place_is_an_error(wide: StatelessTree, path: Path) -> None:
    put(path, KEY, LONG)
    file = list_file(path, KEY)
    id_ = look(wide).id
    assert read(wide, id_) == LONG
    before = file.stat()
    file.write_bytes(LONG.replace(b"v", b"w"))
    os.utime(file, ns=(before.st_mtime_ns, before.st_mtime_ns + 1))
    wide.rest()
    for _ in range(2):
        with pytest.raises(VersionGone, match="in place"):
            wide.read_node(id_, 0, 100)


def test_a_plain_list_that_is_changed_in_place_before_it_is_read_is_never_shown_as_two(
    wide: StatelessTree, path: Path
) -> None:
    short = LONG[:1000]
    put(path, KEY, short)
    file = list_file(path, KEY)
    id_ = look(wide).id
    before = file.stat()
    file.write_bytes(short.replace(b"v", b"w"))
    os.utime(file, ns=(before.st_mtime_ns, before.st_mtime_ns + 1))
    assert bytes(wide.read_node(id_, 0, len(short))) == short  # read when it was looked up
    for _ in range(2):
        wide.rest()
        with pytest.raises(VersionGone, match="in place"):
            wide.read_node(id_, 0, 100)


def test_a_plain_list_whose_time_was_set_before_it_was_read_is_read_and_kept(wide: StatelessTree, path: Path) -> None:
    put(path, KEY, LONG)
    id_ = look(wide).id
    wide.rest()
    os.utime(list_file(path, KEY), ns=(1, 1))
    assert read(wide, id_) == LONG
    put(path, KEY, b"new\n")
    wide.rest()
    assert read(wide, id_) == LONG
    wide.forget([(id_, 1)])
    assert len(wide._pins) == 0


def test_where_descriptors_run_out_fewer_versions_stay_open_and_nothing_fails(
    wide: StatelessTree, store: DirectoryStore
) -> None:
    keys = [RepositoryKey("team", f"many-{number}") for number in range(100)]
    for key in keys:
        store.replace(key, LONG)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() + 20, hard))
    try:
        ids = [look(wide, key).id for key in keys]
        assert 1 < len(wide._pins) < 20
        assert len(listed(wide, directory(wide, BASE, "team"))[0]) == 101
        assert all(read(wide, id_) == LONG for id_ in ids)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_was_read_ahead_is_read_again_where_it_was_let_go(tree: StatelessTree) -> None:
    id_ = look(tree).id
    tree.rest()
    assert read(tree, id_) == LONG


def test_large_lists_are_kept_in_parts_within_a_bound(path: Path, tree: StatelessTree) -> None:
    store = tree.store
    assert isinstance(store, DirectoryStore)
    store.policy = type(store.policy)(list_limit=64 << 20)
    large = b"v1.2.3\n" * (PARTS_LIMIT // 14)
    keys = [RepositoryKey("team", f"large-{number}") for number in range(4)]
    for key in keys:
        put(path, key, large)
    ids = [look(tree, key).id for key in keys[:PINS]]
    for offset in range(0, len(large), len(large) // 3):
        for id_ in ids:
            piece = bytes(tree.read_node(id_, offset, 1000))
            assert zlib.crc32(piece) == zlib.crc32(large[offset : offset + 1000])


# -- what cannot be read


@pytest.mark.parametrize("stored", [b"", b"junk", codec.ZSTD.encode(LONG)[:-1], codec.ZSTD.encode(b"")[:-1]])
def test_a_damaged_list_never_looks_empty(tree: StatelessTree, path: Path, stored: bytes) -> None:
    list_file(path, KEY).unlink(missing_ok=True)
    list_file(path, KEY, ".zst").write_bytes(stored)
    attributes = look(tree)
    assert attributes.size > 0
    with pytest.raises(ListCorrupt):
        tree.read_node(attributes.id, 0, 4096)


def test_an_empty_list_is_empty(tree: StatelessTree, store: DirectoryStore, path: Path) -> None:
    store.replace(KEY, b"")
    assert look(tree).size == 0
    list_file(path, KEY).unlink()
    list_file(path, KEY, ".zst").write_bytes(codec.ZSTD.encode(b""))
    assert look(tree).size == 0


def test_a_directory_cannot_be_read(tree: StatelessTree) -> None:
    with pytest.raises(NotPermitted):
        tree.read_node(ROOT_ID, 0, 10)


def test_the_sentinel_is_read(tree: StatelessTree) -> None:
    id_ = tree.lookup(ROOT_ID, b".storage-version").id
    assert (bytes(tree.read_node(id_, 0, 10)), bytes(tree.read_node(id_, 2, 10))) == (b"2\n", b"")


# -- listings


def one_each(name: bytes) -> int:
    """The size of a name, where room is counted in names."""
    return 1


def listed(tree: StatelessTree, id_: int, position: int = 0, at_most: int = 1000) -> tuple[list[str], int]:
    """(names, position of the next) of the children that are there; each is forgotten again."""
    names: list[str] = []
    for following, name, child in tree.children(id_, position, at_most, one_each):
        position = following
        names.append(name.decode())
        tree.forget([(child.id, 1)])
    return names, position


def test_each_level_is_listed(tree: StatelessTree) -> None:
    assert listed(tree, ROOT_ID)[0] == [".storage-version", BASE]
    assert listed(tree, directory(tree, BASE))[0] == ["team"]
    assert listed(tree, directory(tree, BASE, "team"))[0] == ["app"]
    names, position = listed(tree, directory(tree, BASE, "team", "app"))
    assert names == ["tags.txt"]
    assert listed(tree, directory(tree, BASE, "team", "app"), position) == ([], position)


def test_a_listed_child_is_what_a_lookup_finds(tree: StatelessTree) -> None:
    for names in ((), (BASE,), (BASE, "team"), (BASE, "team", "app")):
        id_ = directory(tree, *names)
        for _, name, child in tree.children(id_, 0, 1000, one_each):
            assert child == tree.lookup(id_, name)


def test_a_repository_without_a_list_is_empty_and_a_missing_one_an_error(
    tree: StatelessTree, store: DirectoryStore
) -> None:
    id_ = directory(tree, BASE, "team", "app")
    store.remove(KEY)
    assert listed(tree, id_)[0] == []
    store.remove_repository(KEY)
    with pytest.raises(RepositoryMissing):
        listed(tree, id_)


def test_what_goes_while_it_is_listed_is_left_out(tree: StatelessTree, store: DirectoryStore) -> None:
    others(tree, store, 3)
    id_ = directory(tree, BASE, "team")
    ((position, first, _),) = tree.children(id_, 0, 1, one_each)
    store.remove(RepositoryKey("team", "other-1"))
    store.remove_repository(RepositoryKey("team", "other-1"))
    rest = [name for _, name, _ in tree.children(id_, position, 1000, one_each)]
    assert [first, *rest] == [b"app", b"other-0", b"other-2"]


def test_a_listing_that_is_continued_shows_each_name_once_while_names_come_and_go(
    tree: StatelessTree, store: DirectoryStore
) -> None:
    others(tree, store, 20)
    id_ = directory(tree, BASE, "team")
    expected = ["app", *sorted(f"other-{number}" for number in range(20))]
    names, position = listed(tree, id_, at_most=5)
    for key in (RepositoryKey("team", "aaa"), RepositoryKey("team", "other-00")):
        store.replace(key, LONG)
    tree.changed(("team",), "aaa")
    for _ in range(10):
        assert len(listed(tree, id_)[0]) == 23  # others list it anew meanwhile
    while True:
        more, position = listed(tree, id_, position, at_most=5)
        if not more:
            break
        names += more
    assert names == expected


def test_a_listing_that_is_no_longer_kept_is_continued_in_a_new_one(tree: StatelessTree, store: DirectoryStore) -> None:
    others(tree, store, 5)
    id_ = directory(tree, BASE, "team")
    names, position = listed(tree, id_, at_most=3)
    tree.rest()
    assert names + listed(tree, id_, position)[0] == ["app", *(f"other-{number}" for number in range(5))]


@pytest.mark.parametrize("meanwhile", ["a pause", "many listings"])
def test_a_name_that_goes_hides_no_other_from_who_lists_slowly(
    tree: StatelessTree, store: DirectoryStore, meanwhile: str
) -> None:
    others(tree, store, 5)
    id_ = directory(tree, BASE, "team")
    names, position = listed(tree, id_, at_most=3)
    if meanwhile == "a pause":
        tree.rest()
    for number in range(200 if meanwhile == "many listings" else 0):
        store.make_namespace(f"namespace-{number}")
        other = directory(tree, BASE, f"namespace-{number}")
        assert listed(tree, other, listed(tree, other)[1]) == ([], 0)
    store.remove(KEY)
    store.remove_repository(KEY)
    assert names + listed(tree, id_, position)[0] == ["app", *(f"other-{number}" for number in range(5))]


def test_who_begins_listings_and_ends_none_takes_the_memory_of_one(tree: StatelessTree, store: DirectoryStore) -> None:
    others(tree, store, 5)
    id_ = directory(tree, BASE, "team")
    for _ in range(100):
        listed(tree, id_, at_most=2)
    assert len(tree._listings) == 1


def test_many_listings_at_once_stay_bounded(tree: StatelessTree, store: DirectoryStore) -> None:
    others(tree, store, 5)
    id_ = directory(tree, BASE, "team")
    positions = [listed(tree, id_, at_most=2)[1] for _ in range(500)]
    assert len(tree._listings) < 100
    assert all(0 < position < 1 << 31 for position in positions)
    for position in positions:
        assert listed(tree, id_, position)[0] == ["other-1", "other-2", "other-3", "other-4"]


def test_what_cannot_be_entered_does_not_hide_its_neighbours(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = StatelessTree(store, View(None, lambda path, above=None: True), PINS)
    others(tree, store, 2)
    look = Disk.stat

    def closed(disk: Disk, directory: int, name: str) -> FileStatus:
        if name == "other-0":
            raise PermissionError(errno.EACCES, "Permission denied")
        return look(disk, directory, name)

    monkeypatch.setattr(Disk, "stat", closed)
    children = tree.children(directory(tree, BASE, "team"), 0, 1000, one_each)
    assert {name: child.attr_timeout for _, name, child in children} == {
        b"app": FOREVER,
        b"other-0": 0.0,
        b"other-1": FOREVER,
    }
    tree.close()
