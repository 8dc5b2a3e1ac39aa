"""Node ids, versions and lookup counts, in either table."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagfs.codec import CODECS, PLAIN, Codec
from tagfs.compact import CompactInodes, row_of
from tagfs.errors import VersionGone
from tagfs.inodes import ROOT_ID, DirectoryNode, Inodes, ListNode, Node, NodeTable, SentinelNode
from tagfs.names import BASE, RepositoryKey
from tagfs.store import Version

KEY = RepositoryKey("team", "app")
OTHER = RepositoryKey("team", "web")


Table = Callable[[], NodeTable]
either = pytest.mark.parametrize("table", [Inodes, CompactInodes])


def version(serial: int) -> Version:
    """One that a row of a compact table has a place for where the serial is odd."""
    identity = (1, serial, serial, serial, 3) if serial % 2 else (serial,)
    return Version(PLAIN, 3, 3, 1, serial, serial, identity)


@either
def test_the_mount_point_has_the_id_that_the_kernel_knows(table: Table) -> None:
    root = table().get(ROOT_ID)
    assert isinstance(root, DirectoryNode)
    assert root.path == ()


@either
def test_the_sentinel_is_always_there(table: Table) -> None:
    inodes = table()
    sentinel = inodes.sentinel()
    inodes.remember(sentinel)
    inodes.forget(sentinel.id, 1)
    assert inodes.get(sentinel.id) is sentinel == inodes.sentinel()


@either
def test_the_root_cannot_be_forgotten(table: Table) -> None:
    inodes = table()
    inodes.forget(ROOT_ID, 1 << 40)
    assert inodes.get(ROOT_ID) == inodes.directory(())


@either
def test_a_node_goes_with_its_last_reference(table: Table) -> None:
    inodes = table()
    node = inodes.version(KEY, version(1))
    inodes.remember(node)
    inodes.remember(node)
    inodes.forget(node.id, 1)
    assert inodes.get(node.id) == node
    inodes.forget(node.id, 1)
    with pytest.raises(VersionGone):
        inodes.get(node.id)


@either
def test_forgetting_what_is_not_known_is_no_error(table: Table) -> None:
    table().forget(99, 1)


@either
def test_the_same_version_is_the_same_node(table: Table) -> None:
    inodes = table()
    node = inodes.version(KEY, version(1))
    assert inodes.version(KEY, version(1)) == node
    assert inodes.version(OTHER, version(1)) != node


@either
def test_each_version_is_a_node_of_its_own(table: Table) -> None:
    inodes = table()
    old = inodes.version(KEY, version(1))
    inodes.remember(old)
    new = inodes.version(KEY, version(2))
    assert new.id != old.id
    assert inodes.get(old.id) == old  # a reader still has it
    assert old.version == version(1)
    assert list(inodes.current_lists()) == [new]


@either
def test_a_version_that_nobody_looked_up_goes_when_it_is_superseded(table: Table) -> None:
    inodes = table()
    node = inodes.version(KEY, version(1))
    inodes.supersede(KEY)
    with pytest.raises(VersionGone):
        inodes.get(node.id)
    inodes.supersede(KEY)


@either
def test_forgetting_an_old_version_leaves_the_current_one(table: Table) -> None:
    inodes = table()
    old = inodes.version(KEY, version(1))
    inodes.remember(old)
    new = inodes.version(KEY, version(2))
    inodes.remember(new)
    inodes.forget(old.id, 1)
    assert inodes.version(KEY, version(2)) == new


@either
def test_a_forgotten_current_version_comes_back_under_another_id(table: Table) -> None:
    inodes = table()
    node = inodes.version(KEY, version(1))
    inodes.remember(node)
    inodes.forget(node.id, 1)
    assert inodes.version(KEY, version(1)).id > node.id


def test_a_draft_is_not_current_until_it_is_promoted() -> None:
    inodes = Inodes()
    draft = inodes.draft(KEY)
    inodes.remember(draft)
    assert list(inodes.current_lists()) == []
    inodes.promote(draft, version(1))
    assert inodes.version(KEY, version(1)) is draft


def test_a_draft_that_was_forgotten_is_not_made_current() -> None:
    inodes = Inodes()
    draft = inodes.draft(KEY)
    inodes.remember(draft)
    inodes.forget(draft.id, 1)
    inodes.promote(draft, version(1))
    assert inodes.version(KEY, version(1)) is not draft


def test_a_draft_takes_the_place_of_a_node_that_nobody_knows() -> None:
    inodes = Inodes()
    draft = inodes.draft(KEY)
    inodes.remember(draft)
    unknown = inodes.version(KEY, version(1))
    before = len(inodes)
    inodes.promote(draft, version(1))
    assert list(inodes.current_lists()) == [draft]
    assert len(inodes) == before - 1
    with pytest.raises(VersionGone):
        inodes.get(unknown.id)


@either
def test_a_directory_keeps_its_node(table: Table) -> None:
    inodes = table()
    node = inodes.directory((BASE, "team"))
    assert inodes.directory((BASE, "team")) == node == inodes.known_directory((BASE, "team"))
    assert inodes.known_directory((BASE, "other")) is None


@either
def test_a_directory_that_is_made_again_is_another_node(table: Table) -> None:
    inodes = table()
    path = (BASE, "team")
    old = inodes.directory(path)
    inodes.remember(old)
    inodes.remove_directory(path)
    new = inodes.directory(path)
    inodes.remember(new)
    assert new.id != old.id
    assert inodes.get(old.id) == old
    inodes.forget(old.id, 1)
    assert inodes.known_directory(path) == new


@either
def test_a_removed_directory_that_nobody_knows_is_gone(table: Table) -> None:
    inodes = table()
    node = inodes.directory((BASE, "team"))
    inodes.remove_directory((BASE, "team"))
    inodes.remove_directory((BASE, "team"))
    with pytest.raises(VersionGone):
        inodes.get(node.id)


def test_a_scratch_node_may_be_known_again_after_it_was_forgotten() -> None:
    inodes = Inodes()
    node = inodes.scratch(KEY, b"x")
    inodes.remember(node)
    inodes.forget(node.id, 1)
    inodes.remember(node)
    assert inodes.get(node.id) is node
    assert node.lookups == 1


KEYS = st.sampled_from([KEY, OTHER])
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("version"), KEYS, st.integers(1, 3)),
        st.tuples(st.just("draft"), KEYS, st.just(0)),
        st.tuples(st.just("promote"), KEYS, st.integers(1, 3)),
        st.tuples(st.just("supersede"), KEYS, st.just(0)),
        st.tuples(st.just("scratch"), KEYS, st.just(0)),
        st.tuples(st.just("directory"), KEYS, st.integers(1, 3)),
        st.tuples(st.just("remove_directory"), KEYS, st.integers(1, 3)),
        st.tuples(st.just("forget"), KEYS, st.integers(0, 50)),
        st.tuples(st.just("sentinel"), KEYS, st.just(0)),
    ),
    max_size=40,
)


@either
@given(acts=ACTS)
def test_only_the_root_and_the_sentinel_are_left_when_all_is_forgotten(
    table: Table, acts: list[tuple[str, RepositoryKey, int]]
) -> None:
    inodes = table()
    known: dict[int, tuple[Node, int]] = {}
    versions: dict[int, Version | None] = {}
    drafts: list[ListNode] = []
    met: dict[int, object] = {}

    def remember(node: Node) -> None:
        stands_for = node.path if isinstance(node, DirectoryNode) else getattr(node, "key", type(node))
        assert met.setdefault(node.id, stands_for) == stands_for, "an id was used twice"
        inodes.remember(node)
        known[node.id] = node, known.get(node.id, (node, 0))[1] + 1

    for act, key, number in acts:
        path = (BASE, key.namespace, key.name)[:number]
        if act == "version":
            node = inodes.version(key, version(number))
            assert node.version == version(number)
            assert versions.setdefault(node.id, node.version) in (None, node.version), "its version changed"
            remember(node)
        elif act == "supersede":
            inodes.supersede(key)
        elif act == "directory":
            remember(inodes.directory(path))
        elif act == "remove_directory":
            inodes.remove_directory(path)
        elif act == "sentinel":
            remember(inodes.sentinel())
        elif act == "forget" and known:
            id_ = sorted(known)[number % len(known)]
            node_, count = known.pop(id_)
            inodes.forget(id_, count)
        elif isinstance(inodes, Inodes):
            if act == "draft":
                drafts.append(inodes.draft(key))
                versions[drafts[-1].id] = None
                remember(drafts[-1])
            elif act == "promote" and drafts:
                inodes.promote(drafts.pop(), version(number))
            elif act == "scratch":
                remember(inodes.scratch(key, b"x"))
        for node in inodes.current_lists():
            assert inodes.get(node.id) == node
            assert inodes.version(node.key, node.version or version(0)) == node
        for directory in inodes.directories():
            assert inodes.known_directory(directory.path) == directory == inodes.get(directory.id)
            assert directory in list(inodes.directories(directory.path))
        for id_, (node_, _) in known.items():
            found = inodes.get(id_)
            assert found == node_ and type(found) is type(node_)
            if isinstance(found, ListNode) and isinstance(node_, ListNode):
                assert (found.key, found.version) == (node_.key, node_.version)
    for id_, (_, count) in known.items():
        inodes.forget(id_, count)
    assert len(inodes) == 2
    assert list(inodes.current_lists()) == []
    assert [node.path for node in inodes.directories()] == [()]
    assert isinstance(inodes.get(ROOT_ID), DirectoryNode)
    assert isinstance(inodes.get(inodes.sentinel().id), SentinelNode)


@pytest.mark.parametrize("below", [(), (BASE,), (BASE, "team"), (BASE, "team", "app"), (BASE, "none"), ("none",)])
@either
def test_the_directories_below_one_are_told_apart(table: Table, below: tuple[str, ...]) -> None:
    inodes = table()
    paths = [(), (BASE,), (BASE, "team"), (BASE, "team", "app"), (BASE, "team", "web"), (BASE, "other", "app")]
    for path in paths:
        inodes.remember(inodes.directory(path))
    found = [node.path for node in inodes.directories(below)]
    assert sorted(found) == sorted(path for path in paths if path[: len(below)] == below)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("fault", [None, "torn"])
@pytest.mark.parametrize("size", [0, 1, 1 << 33, 1 << 70])
def test_a_row_gives_back_every_version_as_it_was(codec: Codec, fault: str | None, size: int) -> None:
    inodes = CompactInodes()
    times = -1, 1 << 60
    kept = Version(codec, size, size + 1, 8, *times, (1 << 40, 1 << 63, *times, size + 1), fault)
    node = inodes.version(KEY, kept)
    found = inodes.get(node.id)
    assert isinstance(found, ListNode)
    assert found.version == kept
    inodes.version(OTHER, version(1))
    inodes.supersede(KEY)
    assert inodes.version(KEY, version(1)).version == version(1)


def test_rows_are_used_again_and_their_ids_never() -> None:
    inodes = CompactInodes()
    ids = set()
    for number in range(1000):
        key = RepositoryKey("team" if number % 3 else "other", f"app{number % 7}")
        for node in (inodes.directory((BASE, key.namespace, key.name)), inodes.version(key, version(number))):
            inodes.remember(node)
            assert node.id not in ids
            ids.add(node.id)
        for id_ in sorted(ids)[-2:]:
            inodes.forget(id_, 1)
    assert len(inodes) == 2
    assert len(inodes._names) < 100
    assert inodes._namespaces == {} and inodes._odd == {}


def test_a_directory_that_is_given_is_known_and_referred_to() -> None:
    for path in ((BASE,), (BASE, "team"), (BASE, "team", "app")):
        inodes = CompactInodes()
        id_ = inodes.give_directory(path)
        assert [inodes.give_directory(path) for _ in range(2)] == [id_, id_]
        inodes.forget(id_, 2)
        assert inodes.get(id_) == inodes.directory(path)
        inodes.forget(id_, 1)
        with pytest.raises(VersionGone):
            inodes.get(id_)


def test_the_next_repository_is_that_which_was_given_next_in_its_namespace() -> None:
    inodes = CompactInodes()
    paths = [(BASE, namespace, name) for namespace in ("other", "team") for name in ("app", "web")]
    ids = [inodes.give_directory(path) for path in paths]
    node = inodes.version(RepositoryKey("other", "web"), version(1))
    assert [inodes.repository_after(id_) for id_ in ids] == [
        (ids[1], RepositoryKey("other", "web")),
        None,
        (ids[3], RepositoryKey("team", "web")),
        None,
    ]
    assert [inodes.list_after(id_) for id_ in ids] == [node.id, 0, 0, 0]
    assert (inodes.repository_after(node.id), inodes.list_after(ROOT_ID)) == (None, 0)
    inodes.forget(ids[3], 1)
    assert inodes.repository_after(ids[2]) is None


def test_a_second_walk_is_given_rows_in_its_order_again() -> None:
    inodes = CompactInodes()
    paths = [(BASE, "team", f"app{number}") for number in range(5)]
    first = [inodes.give_directory(path) for path in paths]
    for id_ in first:
        inodes.forget(id_, 1)
    assert [row_of(inodes.give_directory(path)) for path in paths] == [row_of(id_) for id_ in first]
