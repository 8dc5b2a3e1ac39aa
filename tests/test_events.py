"""What is told of a change."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tagfs import events, taglist
from tagfs.events import Lines, difference
from tagfs.names import RepositoryKey
from tagfs.past import Past

KEY = RepositoryKey("team", "app")
LISTS = st.none() | st.lists(st.sampled_from([f"v{n}" for n in range(12)]), unique=True).map(taglist.encode)


@given(LISTS, LISTS)
def test_who_applies_a_difference_has_the_new_tags(old: bytes | None, new: bytes | None) -> None:
    told = difference(old, new)
    assert told.added is not None and told.removed is not None
    before = set() if old is None else set(taglist.decode(old))
    assert (before - set(told.removed)) | set(told.added) == (set() if new is None else set(taglist.decode(new)))
    assert not set(told.added) & set(told.removed)


def test_a_difference_is_in_the_order_of_the_lists() -> None:
    told = difference(b"a\nz\nb\n", b"z\nd\nc\n")
    assert (told.type, told.added, told.removed, told.count) == (events.CHANGED, ("d", "c"), ("a", "b"), 3)
    assert told.revision == taglist.revision(b"z\nd\nc\n")
    assert told.previous == taglist.revision(b"a\nz\nb\n")


def test_lists_come_and_go() -> None:
    assert difference(None, b"a\n").type == events.CREATED
    gone = difference(b"a\n", None)
    assert (gone.type, gone.removed, gone.revision, gone.count) == (events.DELETED, ("a",), None, None)


def test_18000_tags_at_once_are_told() -> None:
    tags = [f"v1.2.{n}-alpine" for n in range(18_000)]
    told = difference(b"", taglist.encode(tags))
    assert told.added == tuple(tags)


def test_what_is_too_much_for_a_line_is_to_be_read() -> None:
    tags = [f"{n:0128}" for n in range(events.LINE_LIMIT // 128)]
    told = difference(None, taglist.encode(tags))
    assert (told.added, told.removed, told.count) == (None, None, len(tags))
    assert told.revision == taglist.revision(taglist.encode(tags))


def decoded(line: bytes) -> dict[str, Any]:
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    event: dict[str, Any] = json.loads(line)
    return event


def test_a_line_is_a_cloud_event() -> None:
    lines = Lines("/var/lib/my tags", now=lambda: 1_000_000_000.25)
    event = decoded(lines.of_list(KEY, difference(b"a\n", b"b\n")))
    # The four that CloudEvents 1.0 requires, and those that it defines.
    assert event["specversion"] == "1.0"
    assert event["source"] == "tagfs:/var/lib/my%20tags"
    assert event["type"] == "io.tagfs.list.changed"
    assert event["time"] == "2001-09-09T01:46:40.250000Z"
    assert event["subject"] == "team/app"
    assert event["data"]["added"] == ["b"] and event["data"]["removed"] == ["a"]
    assert decoded(lines.ready(3, 0))["id"] != event["id"]


def test_the_past_keeps_what_fits() -> None:
    past = Past(budget=40)
    past.keep(KEY, (1,), b"v1\n")
    other = RepositoryKey("team", "other")
    past.keep(other, (2,), taglist.encode(f"{n * 7919 % 10_000}" for n in range(400)))
    kept, known = past.get(KEY), past.get(other)
    assert kept is not None and kept.plain() == b"v1\n" and kept.revision == taglist.revision(b"v1\n")
    assert known is not None and known.plain() is None and known.revision is not None
    past.drop(KEY)
    assert past.size == 0 and list(past) == [other]


def test_the_past_forgets_what_cannot_be_read() -> None:
    past = Past()
    past.keep(KEY, (1,), b"v1\n")
    past.keep(KEY, (2,), None)
    known = past.get(KEY)
    assert known is not None and known.revision is None and known.plain() is None
    assert past.size == 0 and len(past) == 1
