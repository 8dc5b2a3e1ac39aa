"""Tag list: the grammar, each refusal with its line and reason, and the screen against the whole judgement."""

import hashlib
import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagfs import taglist
from tagfs.errors import TagListInvalid
from tagfs.taglist import TAG_LIMIT, Screen

FIRST = "abcxyzABCXYZ059_"
LATER = FIRST + ".-"
TAGS = st.builds(
    lambda first, rest: first + rest,
    st.sampled_from(FIRST),
    st.one_of(st.text(LATER, max_size=12), st.text(LATER, min_size=TAG_LIMIT - 2, max_size=TAG_LIMIT - 1)),
)
TAG_LISTS = st.lists(TAGS, max_size=30)
NEARLY_LISTS = st.lists(st.sampled_from([b"a", b"1", b".", b"-", b"\n", b"\n", b" ", b"v1.2", b"x" * 64]), max_size=30)
"""Bytes that are often a list, and often nearly one."""


def chopped(plain: bytes, cuts: list[int]) -> list[bytes]:
    """`plain` in pieces, cut at `cuts` (taken modulo its size)."""
    marks = sorted({0, len(plain), *(cut % (len(plain) + 1) for cut in cuts)})
    return [plain[start:end] for start, end in itertools.pairwise(marks)]


def screen_all(screen: Screen, pieces: list[bytes]) -> None:
    offset = 0
    for piece in pieces:
        screen.check(offset, piece)
        offset += len(piece)


def refusal(judge: Callable[[], None]) -> TagListInvalid | None:
    try:
        judge()
    except TagListInvalid as refused:
        return refused
    return None


# -- whole lists


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"latest\n",
        b"v1.0.0\nlatest\n",
        b"_\n0\nA\n",
        b"a.-_\n",
        b"a" * TAG_LIMIT + b"\n",
        b"same\nsame\n",
        b"\n".join([b"x" * TAG_LIMIT] * 3) + b"\n",
    ],
)
def test_a_list_is_valid(plain: bytes) -> None:
    taglist.validate(plain)
    assert list(taglist.faults(plain)) == []


REFUSALS = [
    (b"\n", 1, "a blank line"),
    (b"a\n\nb\n", 2, "a blank line"),
    (b"a\n\n", 2, "a blank line"),
    (b"a\nv1.20", 2, "no newline at the end of 'v1.20': is the list whole?"),
    (b"a", 1, "no newline at the end of 'a': is the list whole?"),
    (b".hidden\n", 1, "tag '.hidden' starts with '.'"),
    (b"a\n-flag\n", 2, "tag '-flag' starts with '-'"),
    (b"a\nb c\n", 2, "a space cannot be part of a tag"),
    (b"a\r\n", 1, "a carriage return (a Windows line ending?) cannot be part of a tag"),
    (b"a\tb\n", 1, "a tab cannot be part of a tag"),
    (b"a\0\n", 1, "a NUL cannot be part of a tag"),
    (b"a\nb\nx:y\n", 3, "byte 0x3a cannot be part of a tag"),
    (b"caf\xc3\xa9\n", 1, "byte 0xc3 cannot be part of a tag"),
    (b"\xef\xbb\xbfa\n", 1, "byte 0xef cannot be part of a tag"),
    (b"a\n" + b"x" * 129 + b"\n", 2, f"tag '{'x' * 40}…' has 129 characters, at most 128 are allowed"),
    (b"x" * 129 + b"\n", 1, f"tag '{'x' * 40}…' has 129 characters, at most 128 are allowed"),
    (b"a\n.b", 2, "tag '.b' starts with '.'"),
]


@pytest.mark.parametrize(("plain", "line", "reason"), REFUSALS)
def test_a_refusal_names_line_and_reason(plain: bytes, line: int, reason: str) -> None:
    with pytest.raises(TagListInvalid) as caught:
        taglist.validate(plain)
    assert (caught.value.line, caught.value.reason) == (line, reason)
    assert str(caught.value) == f"line {line}: {reason}"


def test_every_fault_is_told_in_order() -> None:
    told = [(fault.line, fault.reason[:12]) for fault in taglist.faults(b"a\n\nb c\n-d\ne\nf")]
    assert told == [(2, "a blank line"), (3, "a space cann"), (4, "tag '-d' sta"), (6, "no newline a")]


@given(st.one_of(st.binary(max_size=200), NEARLY_LISTS.map(b"".join)))
def test_validate_and_faults_agree(plain: bytes) -> None:
    faults = list(taglist.faults(plain))
    refused = refusal(lambda: taglist.validate(plain))
    if refused is None:
        assert faults == []
    else:
        assert (refused.line, refused.reason) == (faults[0].line, faults[0].reason)


@given(TAG_LISTS)
def test_tags_survive_being_a_list(tags: list[str]) -> None:
    plain = taglist.encode(tags)
    assert taglist.decode(plain) == tags
    assert taglist.count(plain) == len(tags)


@pytest.mark.parametrize(
    "tag", ["", " ", "a b", ".a", "-a", "x" * 129, "é", chr(0xDC80), chr(0xD800), "a\n", "a\nb", "\n"]
)
def test_what_is_no_tag_is_not_encoded(tag: str) -> None:
    with pytest.raises(TagListInvalid) as caught:
        taglist.encode(["good", tag, "good"])
    assert caught.value.line == 2


@pytest.mark.parametrize("plain", [b"a\rb\n", b"a\x0bb\n", b"a\x0cb\n", b"a\x1cb\n", b"a\xc2\x85b\n"])
def test_only_a_line_feed_ends_a_tag(plain: bytes) -> None:
    assert len(taglist.decode(plain)) == taglist.count(plain) == 1


def test_the_revision_is_of_the_plain_bytes() -> None:
    assert taglist.revision(b"a\n") == f"sha256:{hashlib.sha256(b'a' + bytes([10])).hexdigest()}"
    assert taglist.revision(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# -- write by write


@given(TAG_LISTS, st.lists(st.integers(0, 5000), max_size=12))
def test_a_valid_list_passes_however_it_is_chopped(tags: list[str], cuts: list[int]) -> None:
    screen_all(Screen(), chopped(taglist.encode(tags), cuts))


@given(st.one_of(st.binary(max_size=80), NEARLY_LISTS.map(b"".join)), st.lists(st.integers(0, 2000), max_size=8))
def test_the_screen_refuses_what_is_refused_whole_and_nothing_else(plain: bytes, cuts: list[int]) -> None:
    """All rules but the final newline: what passes the screen is a list, or the beginning of one."""
    refused = refusal(lambda: screen_all(Screen(), chopped(plain, cuts)))
    if refused is None:
        assert all(fault.reason.startswith("no newline") for fault in taglist.faults(plain))
    else:
        assert refused.line == next(taglist.faults(plain)).line


@pytest.mark.parametrize("plain", [b"\n", b"a\n\n", b"a\n\nb\n"])
def test_a_blank_line_is_refused_where_it_is_written(plain: bytes) -> None:
    with pytest.raises(TagListInvalid, match="a blank line"):
        Screen().check(0, plain)


def test_a_blank_line_that_two_writes_make_is_refused() -> None:
    screen = Screen()
    screen.check(0, b"a\n")
    with pytest.raises(TagListInvalid) as caught:
        screen.check(2, b"\n")
    assert caught.value.line == 2


@pytest.mark.parametrize(
    ("pieces", "line"),
    [
        ([b"a\nb", b"\n", b".c"], 3),
        ([b"x" * 128, b"x"], 1),
        ([b"a\n" + b"x" * 100, b"y" * 28, b"\n", b"-"], 3),
        ([b"a\nb\n", b"c d"], 3),
    ],
)
def test_the_line_is_counted_over_all_writes(pieces: list[bytes], line: int) -> None:
    with pytest.raises(TagListInvalid) as caught:
        screen_all(Screen(), pieces)
    assert caught.value.line == line


def test_a_dot_that_continues_a_tag_is_none_that_starts_one() -> None:
    screen_all(Screen(), [b"v1", b".2", b"-rc", b"\nv", b".3\n"])


def test_elsewhere_only_the_alphabet_is_judged() -> None:
    screen = Screen()
    screen.check(0, b"abc\n")
    screen.check(100, b"\n\n.-" + b"x" * 300)
    screen.check(4, b"-\n\n")  # The lines are not known any more.
    with pytest.raises(TagListInvalid) as caught:
        screen.check(50, b"a b")
    assert caught.value.line is None
    assert str(caught.value) == "a space cannot be part of a tag"


def test_a_rewind_starts_anew() -> None:
    screen = Screen()
    screen.check(0, b"abc\nde")
    screen.check(3000, b"zz\n")
    screen.check(0, b"x\n")
    with pytest.raises(TagListInvalid) as caught:
        screen.check(2, b".")
    assert caught.value.line == 2


def test_an_overwritten_beginning_is_judged_again() -> None:
    screen = Screen()
    screen.check(0, b"x" * TAG_LIMIT)
    screen.check(0, b"y" * TAG_LIMIT)
    with pytest.raises(TagListInvalid, match="129 characters"):
        screen.check(TAG_LIMIT, b"y")


def test_a_hole_is_no_sequence() -> None:
    screen = Screen()
    screen.check(7, b".x")  # Nothing before it is known: it may continue a tag.


def test_an_append_starts_after_what_is_there() -> None:
    screen = Screen()
    screen.resume(b"aa\nbb\n")
    screen.check(6, b"c\n")
    with pytest.raises(TagListInvalid) as caught:
        screen.check(8, b"-")
    assert caught.value.line == 4


def test_an_append_may_go_on_with_an_unfinished_tag() -> None:
    screen = Screen()
    screen.resume(b"aa\n" + b"b" * TAG_LIMIT)
    with pytest.raises(TagListInvalid, match="129 characters"):
        screen.check(3 + TAG_LIMIT, b"b")
    screen.check(3 + TAG_LIMIT, b"\n")


def test_a_write_of_nothing_changes_nothing() -> None:
    screen = Screen()
    screen.check(0, b"a")
    screen.check(1, b"")
    screen.check(1, b".b\n")
    with pytest.raises(TagListInvalid):
        screen.check(4, b".")


def test_a_refused_write_leaves_the_screen_where_it_was() -> None:
    screen = Screen()
    screen.check(0, b"a\nb")
    with pytest.raises(TagListInvalid):
        screen.check(3, b"c d\n")
    screen.check(3, b"c\n")
    with pytest.raises(TagListInvalid) as caught:
        screen.check(5, b"\n")
    assert caught.value.line == 3
