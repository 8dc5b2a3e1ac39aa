"""Which versions stay open, and which bytes stay in memory."""

import pytest

from tagfs.codec import PLAIN
from tagfs.pins import LOADED, Parts, Pins
from tagfs.store import Snapshot, Version


class Held(Snapshot):
    def __init__(self) -> None:
        self.version = Version(PLAIN, 0, 0, 0, 0, 0, (0,))
        self.is_open = True
        self.is_loaded = True

    def content(self) -> bytes:
        return b""

    def decode(self) -> bytes:
        return b""

    def unload(self) -> None:
        self.is_loaded = False

    def close(self) -> None:
        assert self.is_open, "closed twice"
        self.is_open = False


def filled(limit: int, count: int) -> tuple[Pins, list[Held]]:
    pins, held = Pins(limit), [Held() for _ in range(count)]
    for id_, one in enumerate(held):
        pins.add(id_, one)
    return pins, held


def still_open(held: list[Held]) -> list[int]:
    return [id_ for id_, one in enumerate(held) if one.is_open]


def test_the_limit_is_kept_and_the_oldest_goes() -> None:
    pins, held = filled(3, 5)
    assert still_open(held) == [2, 3, 4]
    assert len(pins) == 3 and pins.get(1) is None and pins.get(2) is held[2]


def test_a_node_has_one_snapshot() -> None:
    pins, held = filled(3, 1)
    second = Held()
    pins.add(0, second)
    assert pins.get(0) is held[0] and not second.is_open and len(pins) == 1


def test_what_was_served_to_its_end_goes_first() -> None:
    pins, held = filled(3, 3)
    pins.end(2)
    pins.add(3, Held())
    assert still_open(held) == [0, 1]


def test_what_was_begun_outlives_what_was_only_looked_up() -> None:
    pins, held = filled(3, 3)
    pins.begin(0)
    for id_ in range(3, 10):
        pins.add(id_, Held())
    assert still_open(held) == [0]


def test_of_what_was_begun_the_one_that_rests_longest_goes() -> None:
    pins, held = filled(3, 3)
    for id_ in (0, 1, 2, 0):
        pins.begin(id_)
    last = Held()
    pins.add(3, last)
    assert still_open(held) == [0, 2] and last.is_open


@pytest.mark.parametrize("limit", [1, 2])
def test_the_newest_is_always_there(limit: int) -> None:
    pins, _ = filled(limit, 0)
    for id_ in range(4):
        one = Held()
        pins.add(id_, one)
        pins.begin(id_)
        assert pins.get(id_) is one and one.is_open and len(pins) <= limit


def test_dropping_closes() -> None:
    pins, held = filled(3, 3)
    pins.begin(1)
    for id_ in (1, 2, 99):
        pins.drop(id_)
    assert still_open(held) == [0]
    pins.clear()
    assert still_open(held) == [] and len(pins) == 0


def test_bytes_that_were_read_ahead_are_kept_of_the_last_few() -> None:
    pins, held = filled(1000, LOADED + 5)
    assert [one.is_loaded for one in held] == [False] * 5 + [True] * LOADED
    pins.unload()
    assert not any(one.is_loaded for one in held) and all(one.is_open for one in held)


def test_parts_are_bounded_and_the_one_that_rests_longest_goes() -> None:
    parts = Parts(100)
    for id_ in (1, 2):
        parts.keep(id_, bytes(50))
    parts.keep(1, bytes(50))
    parts.keep(3, bytes(50))
    assert [parts.get(id_) is not None for id_ in (1, 2, 3)] == [True, False, True]
    parts.drop(1)
    parts.keep(4, bytes(50))
    assert parts.get(3) is not None


def test_one_list_over_the_bound_is_kept_alone() -> None:
    parts = Parts(100)
    parts.keep(1, bytes(10))
    parts.keep(2, bytes(1000))
    assert parts.get(1) is None and parts.get(2) == bytes(1000)
    parts.keep(3, bytes(10))
    assert parts.get(2) is None and parts.get(3) == bytes(10)
    parts.clear()
    assert parts.get(3) is None
