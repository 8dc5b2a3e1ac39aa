"""Writers, buffers and the budget, without a tree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagfs.buffers import Budget, Buffer, Scratch
from tagfs.codec import PLAIN
from tagfs.errors import EmptyingRefused, HandlePoisoned, ListCorrupt, ListTooLarge, StagingFull, TagListInvalid
from tagfs.inodes import Inodes
from tagfs.names import RepositoryKey
from tagfs.store import Snapshot, Version
from tagfs.writer import Staged, Writer

KEY = RepositoryKey("team", "app")
PID = 7


class Held(Snapshot):
    """A snapshot of given bytes that counts how often it was closed."""

    def __init__(self, plain: bytes) -> None:
        self.version = Version(PLAIN, len(plain), len(plain), 1, 0, 0, (len(plain),))
        self.plain = plain
        self.closed = 0

    def content(self) -> bytes:
        if self.closed:
            raise ListCorrupt("held", "read after it was closed")
        return self.plain

    def decode(self) -> bytes:
        return self.content()

    def unload(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


def writer(
    base: bytes | None = None,
    *,
    appends: bool = False,
    truncates: bool = False,
    budget: Budget | None = None,
    limit: int = 1000,
) -> Writer:
    held = None if base is None else Held(base)
    return Writer(budget or Budget(10_000), limit, held, appends, truncates, PID)


# -- the budget


def test_a_budget_gives_what_it_has_and_no_more() -> None:
    budget = Budget(10)
    budget.change(10)
    with pytest.raises(StagingFull):
        budget.change(1)
    assert budget.used == 10
    budget.change(-4)
    budget.change(4)
    assert budget.used == 10


def test_giving_back_is_never_refused() -> None:
    budget = Budget(10)
    budget.change(10)
    budget.limit = 5
    budget.change(-1)
    assert budget.used == 9


def test_a_buffer_that_finds_no_room_keeps_what_it_has() -> None:
    budget = Budget(8)
    buffer = Buffer(budget, 100, b"abcd")
    with pytest.raises(StagingFull):
        buffer.write(2, b"0123456789")
    assert buffer.content() == b"abcd"
    assert budget.used == 4


def test_a_buffer_over_its_limit_keeps_what_it_has() -> None:
    budget = Budget(1000)
    buffer = Buffer(budget, 8, b"abcd")
    with pytest.raises(ListTooLarge):
        buffer.write(8, b"x")
    with pytest.raises(ListTooLarge):
        buffer.truncate(9)
    assert buffer.content() == b"abcd"
    assert budget.used == 4


def test_a_buffer_fills_a_hole_with_nuls() -> None:
    buffer = Buffer(Budget(100), 100)
    buffer.write(3, b"x")
    assert buffer.content() == b"\0\0\0x"
    assert buffer.read(2, 10) == b"\0x"


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 40), st.binary(max_size=20)),
        st.tuples(st.just("truncate"), st.integers(0, 40), st.just(b"")),
        st.tuples(st.just("cut_head"), st.integers(0, 5), st.just(b"")),
    ),
    max_size=20,
)


@given(OPERATIONS, st.integers(0, 60))
def test_a_buffer_is_a_file_within_its_bounds(operations: list[tuple[str, int, bytes]], limit: int) -> None:
    budget = Budget(40)
    other = Buffer(budget, 100, b"12345")
    buffer, expected = Buffer(budget, limit), b""
    for operation, position, data in operations:
        wanted = expected
        if operation == "write":
            wanted = expected.ljust(position, b"\0")
            wanted = wanted[:position] + data + wanted[position + len(data) :]
        elif operation == "truncate":
            wanted = expected[:position].ljust(position, b"\0")
        else:
            position = min(position, len(expected))
            wanted = expected[position:]
        try:
            if operation == "write":
                buffer.write(position, data)
            elif operation == "truncate":
                buffer.truncate(position)
            else:
                buffer.cut_head(position)
        except ListTooLarge:
            assert max(position + len(data), len(wanted)) > limit
        except StagingFull:
            assert len(wanted) + len(other) > budget.limit
        else:
            expected = wanted
        assert buffer.content() == expected
        assert budget.used == len(buffer) + len(other)
    buffer.release()
    buffer.release()
    other.release()
    assert budget.used == 0


# -- what a writer sees and what it would commit


def test_a_writer_shows_its_base_until_it_writes() -> None:
    one = writer(b"v1\nv2\n")
    assert (one.size, one.content(), one.read(3, 2)) == (6, b"v1\nv2\n", b"v2")
    assert one.take() is None
    assert not one.is_pending
    one.write(3, b"v9\n")
    assert (one.size, one.content(), one.read(3, 9)) == (6, b"v1\nv9\n", b"v9\n")
    assert one.take() == b"v1\nv9\n"


def test_only_what_is_new_is_taken() -> None:
    one = writer(b"v1\n")
    one.write(0, b"v2\n")
    assert one.take() == b"v2\n"
    assert one.take() is None
    one.write(3, b"v3\n")
    assert one.take() == b"v2\nv3\n"


def test_a_new_list_without_a_write_is_an_empty_one() -> None:
    one = writer(None)
    assert one.is_pending
    assert one.take() == b""
    assert one.take() is None


def test_a_list_without_its_last_newline_is_refused_and_can_be_completed() -> None:
    one = writer(None)
    one.write(0, b"v1.20")
    with pytest.raises(TagListInvalid, match="no newline"):
        one.take()
    one.write(5, b".1\n")
    assert one.take() == b"v1.20.1\n"


@pytest.mark.parametrize("bad", [b"v 1\n", b"\0", b".x\n", b"-x", b"\n", b"a" * 129, b"v1\n\n"])
def test_a_write_that_can_never_become_a_list_poisons(bad: bytes) -> None:
    one = writer(b"v1\n")
    one.write(0, b"v2\n")
    with pytest.raises(TagListInvalid):
        one.write(0, bad)
    with pytest.raises(HandlePoisoned):
        one.write(0, b"v3\n")
    with pytest.raises(HandlePoisoned):
        one.take()
    with pytest.raises(HandlePoisoned):
        one.truncate(2)


def test_a_foreign_byte_poisons_at_any_offset() -> None:
    one = writer(b"v1\nv2\n")
    with pytest.raises(TagListInvalid):
        one.write(4, b"\t")


def test_truncating_to_nothing_heals() -> None:
    one = writer(b"v1\n")
    with pytest.raises(TagListInvalid):
        one.write(0, b"\0")
    one.truncate(0)
    one.write(0, b"v2\n")
    assert one.take() == b"v2\n"


def test_truncating_to_nothing_is_a_change_of_its_own() -> None:
    one = writer(b"v1\n", truncates=True)
    one.truncate(0)
    assert one.take() == b""


def test_opening_with_truncation_and_writing_nothing_is_refused() -> None:
    one = writer(b"v1\n", truncates=True)
    assert not one.is_pending
    with pytest.raises(EmptyingRefused):
        one.take()
    one.write(0, b"v2\n")
    assert one.take() == b"v2\n"


def test_opening_an_empty_list_with_truncation_changes_nothing() -> None:
    assert writer(b"", truncates=True).take() is None


def test_growing_by_truncation_is_refused_and_keeps_the_handle_sound() -> None:
    one = writer(b"v1\n")
    with pytest.raises(TagListInvalid, match="cannot grow from 3 to 4"):
        one.truncate(4)
    assert one.content() == b"v1\n"
    one.write(0, b"v2\n")
    assert one.take() == b"v2\n"


def test_truncating_to_the_same_size_changes_nothing() -> None:
    one = writer(b"v1\n")
    one.truncate(3)
    assert one.take() is None


def test_cutting_loads_the_base() -> None:
    one = writer(b"v1\nv2\n")
    one.truncate(3)
    assert one.take() == b"v1\n"
    one.write(3, b"v3\n")
    assert one.take() == b"v1\nv3\n"


def test_what_is_over_the_limit_writes_nothing_and_poisons() -> None:
    """A program may ignore it: what it wrote before would be a part of its list."""
    one = writer(b"v1\n", limit=6)
    one.write(0, b"v8\n")
    with pytest.raises(ListTooLarge):
        one.write(3, b"v2\nv3\nv4\n")
    assert one.content() == b"v8\n"
    for use in (lambda: one.write(3, b"v9\n"), one.take):
        with pytest.raises(HandlePoisoned):
            use()
    one.truncate(0)
    one.write(0, b"v9\n")
    assert one.take() == b"v9\n"


def test_a_new_write_forgets_a_requested_time() -> None:
    one = writer(b"v1\n")
    one.write(0, b"v2\n")
    one.requested_mtime_ns = 5
    one.write(0, b"v3\n")
    assert one.requested_mtime_ns is None


# -- appenders


def test_an_appender_takes_only_what_it_appended_wherever_the_kernel_says() -> None:
    one = writer(b"v1\n", appends=True)
    one.write(99, b"v2\n")
    one.write(0, b"v3\n")
    assert one.content() == b"v1\nv2\nv3\n"
    assert one.size == 9
    assert one.take() == b"v2\nv3\n"


def test_an_appender_that_truncates_writes_a_whole_list() -> None:
    one = writer(b"v1\n", appends=True, truncates=True)
    one.write(3, b"v2\n")
    one.write(3, b"v3\n")
    assert not one.is_appending
    assert one.take() == b"v2\nv3\n"


def test_a_cut_appender_still_writes_at_its_end() -> None:
    one = writer(b"v1\nv2\n", appends=True)
    one.write(0, b"v3\n")
    one.truncate(6)
    assert one.content() == b"v1\nv2\n"
    one.write(100, b"v4\n")
    assert not one.is_appending
    assert one.take() == b"v1\nv2\nv4\n"


def test_a_cut_that_finds_no_room_loses_nothing() -> None:
    budget = Budget(10)
    one = writer(b"v1\nv2\nv3\nv4\n", appends=True, budget=budget)
    one.write(0, b"v5\n")
    with pytest.raises(StagingFull):
        one.truncate(9)
    assert one.take() == b"v5\n"
    one.close()
    assert budget.used == 0


def test_an_appender_goes_on_behind_what_it_committed() -> None:
    budget = Budget(100)
    one = writer(b"v1\n", appends=True, budget=budget)
    one.write(0, b"v2\n")
    one.staged = Staged(one.take() or b"", appends=True)
    assert one.begin() == Staged(b"v2\n", appends=True)
    assert one.content() == b"v1\nv2\n"  # while it is under way
    one.committed(Held(b"v1\nother\nv2\n"))
    assert one.content() == b"v1\nother\nv2\n"
    assert budget.used == 0
    assert one.take() is None
    one.write(0, b"v3\n")
    assert one.take() == b"v3\n"


def test_what_is_appended_during_a_commit_is_not_committed_twice() -> None:
    one = writer(b"v1\n", appends=True)
    one.write(0, b"v2\n")
    one.staged = Staged(one.take() or b"", appends=True)
    one.begin()
    one.write(0, b"v3\n")
    assert one.take() == b"v3\n"
    one.committed(Held(b"v1\nv2\n"))
    assert one.content() == b"v1\nv2\nv3\n"


@pytest.mark.parametrize("appends", [False, True])
def test_a_failed_commit_is_taken_again(appends: bool) -> None:
    one = writer(b"v1\n", appends=appends)
    one.write(0, b"v2\n")
    one.staged = Staged(one.take() or b"", appends=appends)
    one.begin()
    one.failed()
    assert one.is_pending
    assert one.take() == b"v2\n"


def test_truncating_an_appender_during_its_commit_leaves_the_rest_alone() -> None:
    one = writer(b"v1\n", appends=True)
    one.write(0, b"v2\n")
    one.staged = Staged(one.take() or b"", appends=True)
    one.begin()
    one.truncate(0)
    one.write(0, b"v3\n")
    one.committed()
    assert one.content() == b"v3\n"
    assert one.take() == b"v3\n"


def test_a_base_that_was_handed_over_is_closed_once() -> None:
    one = writer(b"v1\n", appends=True)
    first, second = Held(b"v1\nv2\n"), Held(b"v1\nv2\nv3\n")
    one.committed(first)
    one.committed(second)
    assert (first.closed, second.closed) == (1, 0)
    one.close()
    one.close()
    assert (first.closed, second.closed) == (1, 1)


def test_the_base_of_a_tree_is_left_to_it() -> None:
    held = Held(b"v1\n")
    one = Writer(Budget(10), 10, held, False, False, PID)
    one.write(0, b"v2\n")
    one.close()
    assert held.closed == 0


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 30), st.sampled_from([b"v1\n", b"x", b"\n", b" ", b"a" * 50])),
        st.tuples(st.just("truncate"), st.integers(0, 30), st.just(b"")),
        st.tuples(st.just("flush"), st.just(0), st.just(b"")),
        st.tuples(st.just("begin"), st.just(0), st.just(b"")),
        st.tuples(st.just("committed"), st.just(0), st.just(b"")),
        st.tuples(st.just("failed"), st.just(0), st.just(b"")),
    ),
    max_size=15,
)


@given(
    st.lists(st.tuples(st.sampled_from([None, b"", b"v1\n", b"v1\nv2\n"]), st.booleans(), st.booleans()), max_size=4),
    st.lists(st.tuples(st.integers(0, 3), ACTS), max_size=4),
)
def test_the_budget_is_whole_when_all_are_closed(
    kinds: list[tuple[bytes | None, bool, bool]], acts: list[tuple[int, list[tuple[str, int, bytes]]]]
) -> None:
    budget = Budget(60)
    writers = [writer(base, appends=appends, truncates=truncates, budget=budget) for base, appends, truncates in kinds]
    scratch = Scratch(Inodes().scratch(KEY, b"x"), Buffer(budget, 40), 0)
    begun: list[Writer] = []
    for which, steps in acts:
        for act, position, data in steps:
            try:
                if which >= len(writers):
                    if act == "write":
                        scratch.write(position, data, 1)
                    elif act == "truncate":
                        scratch.truncate(position, 1)
                    continue
                one = writers[which]
                if act == "write":
                    one.write(position, data)
                elif act == "truncate":
                    one.truncate(position)
                elif act == "flush":
                    plain = one.take()
                    if plain is not None:
                        one.staged = Staged(plain, appends=one.is_appending)
                elif act == "begin" and one not in begun:
                    if one.begin() is not None:
                        begun.append(one)
                elif act in ("committed", "failed") and one in begun:
                    begun.remove(one)
                    one.committed() if act == "committed" else one.failed()
            except (TagListInvalid, HandlePoisoned, EmptyingRefused, ListTooLarge, StagingFull):
                pass
            assert 0 <= budget.used <= budget.limit
    for one in writers:
        one.close()
        one.close()
    scratch.buffer.release()
    assert budget.used == 0


def test_scratch_takes_any_byte_and_keeps_its_times() -> None:
    scratch = Scratch(Inodes().scratch(KEY, b".tags.txt.swp"), Buffer(Budget(100), 100), 1)
    scratch.requested_mtime_ns = 3
    scratch.write(0, b"\0\xff b\r\n", 2)
    assert scratch.is_changed and not scratch.requested_mtime_ns
    assert scratch.mtime_ns == 2
    scratch.truncate(1, 5)
    assert (scratch.buffer.content(), scratch.mtime_ns) == (b"\0", 5)
