"""Which versions stay open, and which bytes stay in memory."""

import os
import random
import select
from collections.abc import Iterator

import pytest

from tagfs.codec import PLAIN
from tagfs.pins import BEGUN, LOADED, Descriptors, Parts, Pins
from tagfs.store import Snapshot, Version
from tests.support.beneath import no_descriptor_left


class Held(Snapshot):
    """A snapshot that nothing but itself pins."""

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


class Opened(Held):
    """A snapshot that a descriptor pins: the reading end of a pipe, so that the other end tells when it is closed."""

    def __init__(self, descriptor: int, was_read: bool = False) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.was_read = was_read

    def decode(self) -> bytes:
        self.was_read = True
        return b""

    def surrender(self) -> tuple[int, bool] | None:
        return self.descriptor, self.was_read

    def close(self) -> None:
        super().close()
        os.close(self.descriptor)


class Files:
    """What is looked up, by node id: which of it is open still."""

    def __init__(self) -> None:
        self._watched: dict[int, int] = {}

    def open(self, id_: int) -> Opened:
        reading, self._watched[id_] = os.pipe()
        return Opened(reading)

    def still_open(self) -> list[int]:
        poller = select.poll()
        for writing in self._watched.values():
            poller.register(writing, 0)
        closed = {writing for writing, event in poller.poll(0) if event & select.POLLERR}
        return [id_ for id_, writing in self._watched.items() if writing not in closed]

    def close(self) -> None:
        for writing in self._watched.values():
            os.close(writing)


@pytest.fixture
def files() -> Iterator[Files]:
    with no_descriptor_left():
        one = Files()
        yield one
        one.close()


def never(id_: int, descriptor: int, was_read: bool) -> Snapshot:
    raise AssertionError(f"a descriptor of node {id_}, which gave none away")


def revived(id_: int, descriptor: int, was_read: bool) -> Snapshot:
    return Opened(descriptor, was_read)


def filled(limit: int, count: int) -> tuple[Pins, list[Held]]:
    pins, held = Pins(limit, never), [Held() for _ in range(count)]
    for id_, one in enumerate(held):
        pins.add(id_, one)
    return pins, held


def opened(files: Files, limit: int, count: int) -> Pins:
    pins = Pins(limit, revived)
    for id_ in range(count):
        pins.add(id_, files.open(id_))
    return pins


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
    pins = Pins(limit, never)
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


def test_all_but_the_last_few_are_descriptors_and_become_snapshots_again(files: Files) -> None:
    pins = opened(files, 1000, 100)
    assert len(pins) == 100 and files.still_open() == list(range(100))
    again = pins.get(5)
    assert isinstance(again, Opened) and not again.was_read and pins.get(5) is again
    assert len(pins) == 100
    pins.clear()
    assert files.still_open() == [] and len(pins) == 0


def test_whether_it_was_read_is_known_of_a_descriptor(files: Files) -> None:
    pins = opened(files, 1000, 3)
    first = pins.get(1)
    assert first is not None
    first.decode()
    pins.end(1)
    again = pins.get(1)
    assert isinstance(again, Opened) and again is not first and again.was_read
    pins.clear()


def test_a_descriptor_is_closed_with_its_node(files: Files) -> None:
    pins = opened(files, 1000, 100)
    for id_ in range(0, 100, 2):
        pins.drop(id_)
    pins.drop(0)
    assert files.still_open() == list(range(1, 100, 2)) and len(pins) == 50
    pins.clear()


def test_a_node_has_one_descriptor(files: Files) -> None:
    pins = opened(files, 1000, 100)
    second = Held()
    pins.add(3, second)
    assert not second.is_open and len(pins) == 100 and 3 in pins
    pins.clear()


def test_over_the_limit_what_was_read_goes_then_the_oldest_then_what_was_begun(files: Files) -> None:
    pins = opened(files, 50, 50)
    for id_ in (7, 20):
        one = pins.get(id_)
        assert one is not None
        one.decode()
        pins.end(id_)
    assert pins.get(2) is not None
    pins.begin(2)
    for id_ in range(50, 54):
        pins.add(id_, files.open(id_))
    assert sorted(set(range(54)) - set(files.still_open())) == [0, 1, 7, 20]
    for id_ in range(54, 300):
        pins.add(id_, files.open(id_))
    assert len(pins) == 50 and 2 in files.still_open()
    assert [id_ for id_ in files.still_open() if id_ > 2] == list(range(251, 300))
    pins.clear()


def test_what_was_begun_is_bounded_and_stays_open() -> None:
    pins = Pins(1 << 20, revived)
    null = os.open(os.devnull, os.O_RDONLY)
    for id_ in range(BEGUN + 10):
        pins.add(id_, Opened(os.dup(null)))
        pins.begin(id_)
    assert len(pins) == BEGUN + 10 and len(pins._begun) == BEGUN
    pins.clear()
    os.close(null)


def test_where_descriptors_run_out_one_of_eight_goes_and_no_more_are_kept(files: Files) -> None:
    pins = opened(files, 1000, 80)
    assert pins.spare()
    assert files.still_open() == list(range(10, 80))
    pins.add(80, files.open(80))
    assert len(pins) == 70 == len(files.still_open())
    while len(pins) > 1:
        assert pins.spare()
    assert pins.spare() and not pins.spare() and files.still_open() == []


ROW = 1 << 24
"""Node ids that are so far apart are of one row."""


def test_superseded_versions_of_a_row_are_kept_beside_the_current_one() -> None:
    descriptors = Descriptors()
    for serial in range(1, 5):
        descriptors.put(serial * ROW + 9, serial, serial % 2 == 0)
    assert len(descriptors) == 4 and all(serial * ROW + 9 in descriptors for serial in range(1, 5))
    assert 5 * ROW + 9 not in descriptors and descriptors.take(5 * ROW + 9) is None
    assert descriptors.take(2 * ROW + 9) == (2, True)
    assert descriptors.take(2 * ROW + 9) is None
    assert [descriptors.pop() for _ in range(3)] == [4, 1, 3], "the current one can be opened again by its name"
    assert len(descriptors) == 0


def test_descriptors_are_what_a_dictionary_would_hold() -> None:
    """Anything at all, many times: nothing is lost, mixed up or given out twice."""
    dice = random.Random(7)
    descriptors, model = Descriptors(), dict[int, tuple[int, bool]]()
    unused = iter(range(1 << 20))
    for _ in range(20_000):
        id_ = dice.randrange(1, 4) * ROW + dice.randrange(2, 60)
        match dice.randrange(4):
            case 0 | 1 if id_ not in model:
                model[id_] = next(unused), dice.random() < 0.3
                descriptors.put(id_, *model[id_])
            case 2:
                assert descriptors.take(id_) == model.pop(id_, None)
            case 3 if model:
                gone = descriptors.pop()
                (key,) = [key for key, (descriptor, _) in model.items() if descriptor == gone]
                del model[key]
        assert (id_ in descriptors) == (id_ in model) and len(descriptors) == len(model)
    assert sorted(descriptors.clear()) == sorted(descriptor for descriptor, _ in model.values())
    assert len(descriptors) == 0 and not any(id_ in descriptors for id_ in model)


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
