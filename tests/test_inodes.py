"""Node ids, versions and lookup counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagfs.codec import PLAIN
from tagfs.errors import VersionGone
from tagfs.inodes import ROOT_ID, DirectoryNode, Inodes, ListNode, Node, SentinelNode
from tagfs.names import BASE, RepositoryKey
from tagfs.store import Version

KEY = RepositoryKey("team", "app")
OTHER = RepositoryKey("team", "web")


def version(serial: int) -> Version:
    return Version(PLAIN, 3, 3, 1, serial, serial, (serial,))


def test_the_mount_point_has_the_id_that_the_kernel_knows() -> None:
    root = Inodes().get(ROOT_ID)
    assert isinstance(root, DirectoryNode)
    assert root.path == ()


def test_the_sentinel_is_always_there() -> None:
    inodes = Inodes()
    sentinel = inodes.sentinel()
    inodes.remember(sentinel)
    inodes.forget(sentinel.id, 1)
    assert inodes.get(sentinel.id) is sentinel is inodes.sentinel()


def test_the_root_cannot_be_forgotten() -> None:
    inodes = Inodes()
    inodes.forget(ROOT_ID, 1 << 40)
    assert inodes.get(ROOT_ID) is inodes.directory(())


def test_a_node_goes_with_its_last_reference() -> None:
    inodes = Inodes()
    node = inodes.version(KEY, version(1))
    inodes.remember(node)
    inodes.remember(node)
    inodes.forget(node.id, 1)
    assert inodes.get(node.id) is node
    inodes.forget(node.id, 1)
    with pytest.raises(VersionGone):
        inodes.get(node.id)


def test_forgetting_what_is_not_known_is_no_error() -> None:
    Inodes().forget(99, 1)


def test_the_same_version_is_the_same_node() -> None:
    inodes = Inodes()
    node = inodes.version(KEY, version(1))
    assert inodes.version(KEY, version(1)) is node
    assert inodes.version(OTHER, version(1)) is not node


def test_each_version_is_a_node_of_its_own() -> None:
    inodes = Inodes()
    old = inodes.version(KEY, version(1))
    inodes.remember(old)
    new = inodes.version(KEY, version(2))
    assert new.id != old.id
    assert inodes.get(old.id) is old  # a reader still has it
    assert old.version == version(1)
    assert list(inodes.current_lists()) == [new]


def test_a_version_that_nobody_looked_up_goes_when_it_is_superseded() -> None:
    inodes = Inodes()
    node = inodes.version(KEY, version(1))
    inodes.supersede(KEY)
    with pytest.raises(VersionGone):
        inodes.get(node.id)
    inodes.supersede(KEY)


def test_forgetting_an_old_version_leaves_the_current_one() -> None:
    inodes = Inodes()
    old = inodes.version(KEY, version(1))
    inodes.remember(old)
    new = inodes.version(KEY, version(2))
    inodes.remember(new)
    inodes.forget(old.id, 1)
    assert inodes.version(KEY, version(2)) is new


def test_a_forgotten_current_version_comes_back_under_another_id() -> None:
    inodes = Inodes()
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


def test_a_directory_keeps_its_node() -> None:
    inodes = Inodes()
    node = inodes.directory((BASE, "team"))
    assert inodes.directory((BASE, "team")) is node is inodes.known_directory((BASE, "team"))
    assert inodes.known_directory((BASE, "other")) is None


def test_a_directory_that_is_made_again_is_another_node() -> None:
    inodes = Inodes()
    path = (BASE, "team")
    old = inodes.directory(path)
    inodes.remember(old)
    inodes.remove_directory(path)
    new = inodes.directory(path)
    inodes.remember(new)
    assert new.id != old.id
    assert inodes.get(old.id) is old
    inodes.forget(old.id, 1)
    assert inodes.known_directory(path) is new


def test_a_removed_directory_that_nobody_knows_is_gone() -> None:
    inodes = Inodes()
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


@given(ACTS)
def test_only_the_root_and_the_sentinel_are_left_when_all_is_forgotten(
    acts: list[tuple[str, RepositoryKey, int]],
) -> None:
    inodes = Inodes()
    known: dict[int, tuple[Node, int]] = {}
    drafts: list[ListNode] = []
    met: dict[int, Node] = {}

    def remember(node: Node) -> None:
        assert met.setdefault(node.id, node) is node, "an id was used twice"
        inodes.remember(node)
        known[node.id] = node, known.get(node.id, (node, 0))[1] + 1

    for act, key, number in acts:
        path = (BASE, key.namespace, key.name)[:number]
        if act == "version":
            node = inodes.version(key, version(number))
            assert node.version == version(number)
            remember(node)
        elif act == "draft":
            drafts.append(inodes.draft(key))
            remember(drafts[-1])
        elif act == "promote" and drafts:
            draft = drafts.pop()
            inodes.promote(draft, version(number))
        elif act == "supersede":
            inodes.supersede(key)
        elif act == "scratch":
            remember(inodes.scratch(key, b"x"))
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
        for node in inodes.current_lists():
            assert inodes.get(node.id) is node
            assert inodes.version(node.key, node.version or version(0)) is node
        for id_, (node_, _) in known.items():
            assert inodes.get(id_) is node_
    for id_, (_, count) in known.items():
        inodes.forget(id_, count)
    assert len(inodes) == 2
    assert list(inodes.current_lists()) == []
    assert [node.path for node in inodes.directories()] == [()]
    assert isinstance(inodes.get(ROOT_ID), DirectoryNode)
    assert isinstance(inodes.get(inodes.sentinel().id), SentinelNode)
