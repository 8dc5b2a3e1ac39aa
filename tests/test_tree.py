"""What a read-only mount shows, over each store."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tagfs.errors import (
    ListCorrupt,
    ListMissing,
    NameRefused,
    NotPermitted,
    RepositoryMissing,
    StoreWaiting,
    VersionGone,
)
from tagfs.inodes import ROOT_ID
from tagfs.memory import MemoryStore
from tagfs.names import BASE, RepositoryKey
from tagfs.store import Store, Version
from tagfs.tree import Tree
from tagfs.variants import PinnedFile
from tagfs.view import FOREVER, UNWATCHED, Attributes, Invalidation, View, check_path
from tests.support.beneath import LIST_LIMIT, directory_store, list_file, no_descriptor_left, put
from tests.support.driver import KEY, TAGS, Driver
from tests.support.places import fast_directory

HERE = ("team", "app")
OTHER = RepositoryKey("other", "app")


@pytest.fixture(params=["memory", "directory"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with fast_directory() as path, no_descriptor_left():
        one: Store = MemoryStore(LIST_LIMIT) if request.param == "memory" else directory_store(path)
        one.replace(KEY, b"v1\nv2\n", 1_500_000_000_000_000_000)
        yield one
        one.close()


@pytest.fixture
def beneath() -> Iterator[Path]:
    with fast_directory() as path:
        yield path


def watched(store: Store, namespaces: frozenset[str] | None = None) -> tuple[Driver, list[tuple[str, ...]]]:
    """A tree all of whose directories are watched, and which were."""
    asked: list[tuple[str, ...]] = []

    def watch(path: tuple[str, ...], above: int | None = None) -> bool:
        asked.append(path)
        return True

    return Driver(Tree(store, View(namespaces, watch))), asked


# -- names and attributes


def test_the_mount_point_shows_the_sentinel_and_the_base(store: Store) -> None:
    driver = Driver(Tree(store))
    assert driver.listing() == [b".storage-version", BASE.encode()]
    assert driver.listing(BASE) == [b"team"]
    assert driver.listing(BASE, "team") == [b"app"]
    assert driver.files() == [TAGS]


def test_an_empty_store_shows_the_base_all_the_same(beneath: Path) -> None:
    for store in (MemoryStore(), directory_store(beneath)):
        driver = Driver(Tree(store))
        assert driver.listing() == [b".storage-version", BASE.encode()]
        assert driver.listing(BASE) == []
        store.close()


def test_the_sentinel_says_format_2_whatever_the_store_has(store: Store) -> None:
    tree = Tree(store)
    attributes = tree.lookup(ROOT_ID, b".storage-version")
    assert attributes == Attributes(attributes.id, stat.S_IFREG | 0o444, 2, 1, 0, 0, FOREVER, FOREVER)
    handle = tree.open(attributes.id, os.O_RDONLY)
    assert (tree.read(handle, 0, 10), tree.read(handle, 1, 10)) == (b"2\n", b"\n")
    tree.release(handle)
    with pytest.raises(RepositoryMissing):
        tree.lookup(attributes.id, b"x")


def test_a_list_is_shown_plain(store: Store) -> None:
    attributes = Driver(Tree(store)).stat()
    version = store.examine(KEY)
    assert (attributes.mode, attributes.size, attributes.blocks) == (stat.S_IFREG | 0o444, 6, version.blocks)
    assert attributes.mtime_ns == version.mtime_ns == 1_500_000_000_000_000_000
    assert attributes.ctime_ns == version.ctime_ns


def test_directories_are_for_reading(store: Store) -> None:
    tree = Tree(store)
    assert tree.attributes(ROOT_ID).mode == stat.S_IFDIR | 0o555
    assert tree.lookup(ROOT_ID, BASE.encode()).mode == stat.S_IFDIR | 0o555


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ((), b"other"),
        ((), b"lost+found"),
        ((), b".tagfs-stage"),
        ((BASE,), b"UPPER"),
        ((BASE,), b"none"),
        ((BASE,), b"a" * 64),
        ((BASE,), b"\xff"),
        ((BASE, "team"), b"none"),
        ((BASE, "team"), b".hidden"),
        ((BASE, "team"), b"a" * 254),
        ((BASE, "team", "app"), b"tags.txt.gz"),
        ((BASE, "team", "app"), b"x"),
    ],
)
def test_what_is_not_there_is_missing(store: Store, path: tuple[str, ...], name: bytes) -> None:
    driver = Driver(Tree(store))
    with driver.directory(*path) as directory:
        before = len(driver.tree.inodes)
        with pytest.raises((ListMissing, RepositoryMissing)):
            driver.tree.lookup(directory, name)
        assert len(driver.tree.inodes) == before


def test_a_directory_without_a_list_is_there_and_its_list_is_not(store: Store) -> None:
    store.make_repository(RepositoryKey("team", "web"))
    driver = Driver(Tree(store))
    assert driver.listing(BASE, "team") == [b"app", b"web"]
    assert driver.listing(BASE, "team", "web") == []
    assert not driver.is_there(key=RepositoryKey("team", "web"))


def test_requests_that_fit_no_node_are_refused(store: Store) -> None:
    tree = Tree(store)
    driver = Driver(tree)
    with driver.inside() as directory:
        attributes = tree.lookup(directory, TAGS)
        with pytest.raises(RepositoryMissing):
            tree.lookup(attributes.id, b"x")
        with pytest.raises(RepositoryMissing):
            tree.open_directory(attributes.id)
        with pytest.raises(NotPermitted):
            tree.open(directory, os.O_RDONLY)
        tree.forget([(attributes.id, 1)])
        for request in (tree.attributes, tree.open_directory, lambda id_: tree.open(id_, os.O_RDONLY)):
            with pytest.raises(VersionGone):
                request(attributes.id)
    assert tree.key_of(attributes.id) is None


def test_nothing_is_remembered_that_was_forgotten(store: Store) -> None:
    driver = Driver(Tree(store))
    driver.read()
    driver.files()
    for path in ((), (BASE,), (BASE, "team"), (BASE, "team", "app")):
        driver.listing(*path)
    driver.tree.inodes.supersede(KEY)
    # A listing makes nodes that the kernel did not take.
    assert len(driver.tree.inodes) <= 2 + 3


def test_the_key_of_a_request_is_that_of_its_repository(store: Store) -> None:
    tree = Tree(store)
    driver = Driver(tree)
    with driver.inside() as directory:
        assert tree.key_of(directory) == KEY
        id_ = tree.lookup(directory, TAGS).id
        assert tree.key_of(id_) == KEY
    with driver.directory(BASE, "team") as above:
        assert tree.key_of(above) is None
    assert tree.key_of(ROOT_ID) is None


def test_only_the_namespaces_of_the_view_are_shown(store: Store) -> None:
    store.replace(OTHER, b"v9\n")
    driver = Driver(Tree(store, View(frozenset({"other", "absent"}))))
    assert driver.listing(BASE) == [b"other"]
    assert driver.read(key=OTHER) == b"v9\n"
    for name in ("team", "absent"):
        with pytest.raises(RepositoryMissing), driver.directory(BASE, name):
            pass


# -- directories


def test_a_directory_is_read_in_pieces_and_anew_from_its_start(store: Store) -> None:
    for name in ("b", "c", "d"):
        store.make_repository(RepositoryKey("team", name))
    tree = Tree(store)
    driver = Driver(tree)
    with driver.directory(BASE, "team") as directory:
        handle = tree.open_directory(directory)
        assert tree.directory_of(handle) == directory
        first = [name for (_, name, _, _), _ in zip(tree.entries(handle, 0), range(2), strict=False)]
        store.remove_repository(RepositoryKey("team", "c"))
        store.make_repository(RepositoryKey("team", "e"))
        rest = [(position, name) for position, name, _, _ in tree.entries(handle, 2)]
        assert (first, rest) == ([b"app", b"b"], [(4, b"d")])
        assert list(tree.entries(handle, 4)) == []
        assert [name for _, name, _, _ in tree.entries(handle, 0)] == [b"app", b"b", b"d", b"e"]
        tree.release_directory(handle)
        tree.release_directory(handle)


def test_reading_a_directory_that_is_gone_says_so(store: Store) -> None:
    store.make_repository(RepositoryKey("team", "web"))
    tree = Tree(store)
    driver = Driver(tree)
    with driver.directory(BASE, "team", "web") as directory:
        handle = tree.open_directory(directory)
        store.remove_repository(RepositoryKey("team", "web"))
        with pytest.raises(RepositoryMissing):
            list(tree.entries(handle, 0))
        with pytest.raises(RepositoryMissing):
            tree.attributes(directory)


# -- reading


def test_a_reader_keeps_its_version(store: Store) -> None:
    driver = Driver(Tree(store))
    old = driver.open()
    assert old.read(3) == b"v1\n"
    store.replace(KEY, b"v3\n")
    new = driver.open()
    store.remove(KEY)
    assert (old.read(), old.read(10, 3), old.read(10, 6)) == (b"v1\nv2\n", b"v2\n", b"")
    assert new.read() == b"v3\n"
    assert new.id != old.id
    with pytest.raises(ListMissing):
        driver.open()
    assert driver.tree.attributes(old.id).size == 6
    old.release()
    new.release()


def test_a_version_that_was_replaced_before_it_was_opened_is_gone(store: Store) -> None:
    tree = Tree(store)
    driver = Driver(tree)
    with driver.inside() as directory:
        id_ = tree.lookup(directory, TAGS).id
        store.replace(KEY, b"v3\n")
        with pytest.raises(VersionGone):
            tree.open(id_, os.O_RDONLY)
        assert tree.lookup(directory, TAGS).id != id_
    assert driver.read() == b"v3\n"


def test_a_version_that_another_reader_has_open_can_still_be_opened(store: Store) -> None:
    tree = Tree(store)
    old = Driver(tree).open()
    store.replace(KEY, b"v3\n")
    handle = tree.open(old.id, os.O_RDONLY)
    old.release()
    assert tree.read(handle, 0, 100) == b"v1\nv2\n"
    tree.release(handle)
    assert tree._pinned == {}


@pytest.mark.parametrize("was_read", [False, True])
def test_a_version_that_another_reader_has_closed_can_still_be_opened(store: Store, was_read: bool) -> None:
    tree = Tree(store, View(keeps=2))
    driver = Driver(tree)
    with driver.inside() as directory:
        id_ = tree.lookup(directory, TAGS).id
        assert tree.lookup(directory, TAGS).id == id_
        other = tree.open(id_, os.O_RDONLY)
        if was_read:
            assert tree.read(other, 0, 100) == b"v1\nv2\n"
        tree.release(other)
        store.replace(KEY, b"v3\n")
        handle = tree.open(id_, os.O_RDONLY)
        assert tree.read(handle, 0, 100) == b"v1\nv2\n"
        tree.release(handle)
    tree.everything()


def test_versions_that_were_closed_are_kept_without_their_bytes_and_no_more_than_are_wanted(beneath: Path) -> None:
    with no_descriptor_left():
        store = directory_store(beneath)
        tree = Tree(store, View(keeps=2))
        driver = Driver(tree)
        for number in range(6):
            store.replace(KEY, b"v%d\n" % number)
            assert driver.read() == b"v%d\n" % number
            assert len(tree._recent) <= 2
        assert [one._content for one in tree._recent.values() if isinstance(one, PinnedFile)] == [None, None]
        tree.everything()
        store.close()


def test_an_open_that_fails_holds_nothing(store: Store) -> None:
    tree = Tree(store)
    driver = Driver(tree)
    with driver.inside() as directory:
        id_ = tree.lookup(directory, TAGS).id
        store.remove(KEY)
        with pytest.raises(ListMissing):
            tree.open(id_, os.O_RDONLY)
        store.replace(KEY, b"v3\n")
        with pytest.raises(VersionGone):
            tree.open(id_, os.O_RDONLY)
    assert tree._pinned == {}
    assert tree._handles == {}


def test_releasing_what_is_not_open_is_no_error(store: Store) -> None:
    Tree(store).release(99)


def test_a_corrupt_list_is_an_error_to_its_readers_alone(beneath: Path) -> None:
    store = directory_store(beneath)
    bad = RepositoryKey("team", "bad")
    put(beneath, KEY, b"v1\n")
    put(beneath, bad, b"x")
    list_file(beneath, bad, ".gz").write_bytes(b"\x1f\x8b" + bytes(40))
    os.utime(list_file(beneath, bad), (1, 1))
    driver = Driver(Tree(store))
    assert driver.listing(BASE) == [b"team"]  # The first look at the sentinel opens it, for the life of the store.
    with no_descriptor_left():
        with pytest.raises(ListCorrupt):
            driver.open(key=bad)
        assert driver.listing(BASE, "team") == [b"app", b"bad"]
        assert driver.read() == b"v1\n"
        driver.stat(key=bad)
    store.close()


def test_a_store_that_was_wiped_beneath_is_an_error_and_not_empty(beneath: Path) -> None:
    store = directory_store(beneath)
    store.replace(KEY, b"v1\n")
    driver = Driver(Tree(store))
    (beneath / ".storage-version").unlink()
    for ask in (lambda: driver.listing(BASE), lambda: driver.listing(BASE, "team"), lambda: driver.stat(key=OTHER)):
        with pytest.raises(StoreWaiting):
            ask()
    store.close()


# -- what the kernel may keep


def test_nothing_is_kept_of_a_list_whose_changes_nobody_tells(store: Store) -> None:
    tree = Tree(store)
    attributes = Driver(tree).stat()
    assert (attributes.entry_timeout, attributes.attr_timeout) == (0.0, 0.0)
    with Driver(tree).inside() as directory:
        assert tree.absence_timeout(directory) == 0.0
        assert tree.attributes(directory).entry_timeout == UNWATCHED


def test_all_is_kept_of_what_is_watched(store: Store) -> None:
    driver, _ = watched(store)
    attributes = driver.stat()
    assert (attributes.entry_timeout, attributes.attr_timeout) == (FOREVER, FOREVER)
    with driver.inside() as directory:
        assert driver.tree.absence_timeout(directory) == FOREVER
    assert driver.tree.absence_timeout(ROOT_ID) == FOREVER


def test_little_is_kept_where_watches_have_run_out(store: Store) -> None:
    driver = Driver(Tree(store, View(None, lambda path, above=None: path != HERE)))
    attributes = driver.stat()
    assert (attributes.entry_timeout, attributes.attr_timeout) == (UNWATCHED, UNWATCHED)
    with driver.inside() as directory:
        assert driver.tree.absence_timeout(directory) == UNWATCHED
        assert driver.tree.attributes(directory).entry_timeout == FOREVER


class Ordered(MemoryStore):
    """Says when it was looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[object] = []

    def examine(self, key: RepositoryKey, known: Version | None = None):
        self.order.append("look")
        return super().examine(key, known)

    def namespaces(self) -> list[str]:
        self.order.append("look")
        return super().namespaces()

    def repositories(self, namespace: str) -> list[str]:
        self.order.append("look")
        return super().repositories(namespace)

    def directory_mtime_ns(self, namespace: str | None = None, name: str | None = None) -> int:
        self.order.append("look")
        return super().directory_mtime_ns(namespace, name)


def test_a_directory_is_watched_before_anything_of_it_is_given_out() -> None:
    store = Ordered()
    store.replace(KEY, b"v1\n")

    def watch(path: tuple[str, ...], above: int | None = None) -> bool:
        store.order.append(path)
        return True

    tree = Tree(store, View(None, watch))
    looked_at: list[tuple[int, bytes, tuple[str, ...]]] = [(0, b"team", ()), (1, b"app", ("team",)), (2, TAGS, HERE)]
    ids = [tree.lookup(ROOT_ID, BASE.encode()).id]
    for above, name, expected in looked_at:
        store.order.clear()
        ids.append(tree.lookup(ids[above], name).id)
        assert store.order[0] == expected
    for id_, expected in ((ids[0], ()), (ids[1], ("team",))):
        handle = tree.open_directory(id_)
        store.order.clear()
        assert len(list(tree.entries(handle, 0))) == 1
        assert store.order[0] == expected
    for id_, expected in ((ids[1], ()), (ids[2], ("team",))):
        store.order.clear()
        tree.attributes(id_)
        assert store.order[0] == expected


def test_another_watch_can_be_given(store: Store) -> None:
    driver, asked = watched(store)
    driver.tree.watch(None)
    assert driver.stat().entry_timeout == 0.0
    assert asked == []


# -- changes beneath


def test_a_changed_list_is_invalidated_and_looked_up_anew(store: Store) -> None:
    driver, _ = watched(store)
    tree = driver.tree
    with driver.inside() as directory:
        old = tree.lookup(directory, TAGS)
        store.replace(KEY, b"v3\n")
        assert tree.changed(HERE, "tags.txt.gz") == [Invalidation(directory, TAGS), Invalidation(directory)]
        new = tree.lookup(directory, TAGS)
        assert (new.id != old.id, new.size) == (True, 3)


def test_changes_of_what_the_kernel_does_not_know_are_none_of_its_business(store: Store) -> None:
    driver, _ = watched(store)
    assert driver.tree.changed(HERE, "tags.txt") == []
    assert driver.tree.changed(("team",), "app") == []
    assert driver.tree.changed((), "team") == []


def test_a_new_directory_is_an_entry_of_the_one_above(store: Store) -> None:
    driver, _ = watched(store)
    with driver.directory(BASE) as base, driver.directory(BASE, "team") as namespace:
        assert driver.tree.changed((), "new") == [Invalidation(base, b"new"), Invalidation(base)]
        assert driver.tree.changed(("team",), "\udcff") == [Invalidation(namespace, b"\xff"), Invalidation(namespace)]


@pytest.mark.parametrize("path", [(), ("team",)])
def test_what_was_below_a_replaced_directory_is_invalidated_too(store: Store, path: tuple[str, ...]) -> None:
    driver, _ = watched(store)
    tree = driver.tree
    with driver.directory(BASE) as base, driver.directory(BASE, "team") as namespace, driver.inside() as directory:
        old = tree.lookup(directory, TAGS)
        told = tree.changed(path, (*HERE, "")[len(path)])
        expected = {Invalidation(directory), Invalidation(directory, TAGS), Invalidation(namespace, b"app")}
        if not path:
            expected |= {Invalidation(base), Invalidation(base, b"team")}
        assert set(told) == expected | {Invalidation(namespace)}
        assert tree.lookup(directory, TAGS).id != old.id


def test_everything_names_every_directory_entry_and_list(store: Store) -> None:
    driver, _ = watched(store)
    tree = driver.tree
    store.replace(OTHER, b"v1\n")
    with driver.directory(BASE) as base, driver.directory(BASE, "team") as namespace, driver.inside() as directory:
        old = tree.lookup(directory, TAGS)
        with driver.directory(BASE, "other") as other:
            assert set(tree.everything()) == {
                Invalidation(ROOT_ID),
                Invalidation(ROOT_ID, BASE.encode()),
                Invalidation(base),
                Invalidation(base, b"team"),
                Invalidation(base, b"other"),
                Invalidation(namespace),
                Invalidation(namespace, b"app"),
                Invalidation(directory),
                Invalidation(directory, TAGS),
                Invalidation(other),
            }
        assert tree.lookup(directory, TAGS).id != old.id


def test_what_is_open_outlives_its_store(beneath: Path) -> None:
    with fast_directory() as second, no_descriptor_left():
        first, other = directory_store(beneath), directory_store(second)
        first.replace(KEY, b"v1\n")
        other.replace(KEY, b"v2\n")
        driver = Driver(Tree(first))
        file = driver.open()
        driver.tree.everything()
        driver.tree.store = other
        first.close()
        assert driver.read() == b"v2\n"
        assert file.read() == b"v1\n"
        file.release()
        other.close()


# -- names that may be made


@pytest.mark.parametrize(
    "path", [("x",), (BASE,), (BASE, "Team"), (BASE, "team", "App"), (BASE, "team", "app", "x"), ("x", "team")]
)
def test_no_other_directory_may_be_made(path: tuple[str, ...]) -> None:
    with pytest.raises(NameRefused):
        check_path(path)


def test_namespaces_and_repositories_may_be_made() -> None:
    check_path((BASE, "team"))
    check_path((BASE, "team", "a.b-c"))
