"""Events: what happened to a list, as one line of JSON.  Pure.

Owns: the fields of a line, what differs between two versions of a list.
Does not know: who is told, how a change was noticed.
Format: CloudEvents 1.0, JSON event format; docs/changes.md is the reference for those who read it.
"""

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from tagfs import taglist
from tagfs.names import RepositoryKey

LINE_LIMIT = 1 << 20
"""Bytes of tags in an event, at most; beyond, a reader is told to read the list instead."""

PREFIX = "io.tagfs."
READY = PREFIX + "ready"
WAITING = PREFIX + "waiting"
OVERFLOW = PREFIX + "overflow"
CREATED = PREFIX + "list.created"
CHANGED = PREFIX + "list.changed"
DELETED = PREFIX + "list.deleted"


@dataclass(frozen=True, slots=True)
class Difference:
    """What a change did to a list; None for what is not known: then the list is to be read."""

    type: str
    revision: str | None
    previous: str | None
    count: int | None
    added: tuple[str, ...] | None
    removed: tuple[str, ...] | None
    error: str | None = None

    def data(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "revision": self.revision,
            "previous": self.previous,
            "count": self.count,
            "added": self.added,
            "removed": self.removed,
        }
        return told if self.error is None else told | {"error": self.error}


def difference(old: bytes | None, new: bytes | None) -> Difference:
    """What differs between two lists; None where there was, or is, none.

    The tags that came are in the order of the new list, those that went in the order of the old one.
    """
    type_ = CREATED if old is None else DELETED if new is None else CHANGED
    before, after = _tags(old), _tags(new)
    in_before, in_after = set(before), set(after)
    added = [tag for tag in after if tag not in in_before]
    removed = [tag for tag in before if tag not in in_after]
    told = _fits(added) and _fits(removed)
    return Difference(
        type_,
        None if new is None else taglist.revision(new),
        None if old is None else taglist.revision(old),
        None if new is None else len(after),
        tuple(dict.fromkeys(added)) if told else None,
        tuple(dict.fromkeys(removed)) if told else None,
    )


def unknown_before(new: bytes, previous: str | None) -> Difference:
    """A change of a list whose old tags were not kept."""
    return Difference(CHANGED, taglist.revision(new), previous, taglist.count(new), None, None)


def unreadable(previous: str | None, error: str) -> Difference:
    """A change to a list that cannot be read."""
    return Difference(CHANGED, None, previous, None, None, None, error)


def gone(previous: str | None) -> Difference:
    """The end of a list whose tags were not kept."""
    return Difference(DELETED, None, previous, None, None, None)


class Lines:
    """Makes the lines of one source.

    Args:
        store: the store's path; its URI is the source of every event.
        now: seconds since 1970.
    """

    def __init__(self, store: str, now: Callable[[], float] = time.time) -> None:
        self._source = f"tagfs:{quote(store)}"
        self._now = now
        self._run = f"{int(now() * 1000):x}"
        self._numbers = itertools.count(1)

    def of_list(self, key: RepositoryKey, what: Difference) -> bytes:
        return self._line(what.type, what.data(), str(key))

    def ready(self, lists: int, unwatched: int) -> bytes:
        """From here on every change is told."""
        return self._line(READY, {"lists": lists, "unwatched": unwatched})

    def waiting(self, reason: str) -> bytes:
        """There is nothing to tell of until the next `ready`."""
        return self._line(WAITING, {"reason": reason})

    def overflow(self, lost: int | None) -> bytes:
        """So many lines, or nobody knows how many, were not told: read again what matters."""
        return self._line(OVERFLOW, {"lost": lost})

    def _line(self, type_: str, data: dict[str, Any], subject: str | None = None) -> bytes:
        event: dict[str, Any] = {
            "specversion": "1.0",
            "id": f"{self._run}-{next(self._numbers)}",
            "source": self._source,
            "type": type_,
            "time": datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        }
        if subject is not None:
            event["subject"] = subject
        event["data"] = data
        return json.dumps(event, separators=(",", ":")).encode() + b"\n"


def _tags(plain: bytes | None) -> list[str]:
    return [] if plain is None else taglist.decode(plain)


def _fits(tags: list[str]) -> bool:
    return sum(len(tag) + 3 for tag in tags) <= LINE_LIMIT
