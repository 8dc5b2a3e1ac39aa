"""Which directory a watch is of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagfs.watches import Path, Watches

PATHS: list[Path] = [None, (), ("team",), ("web",), ("team", "app"), ("team", "api"), ("web", "app")]
ACTS = st.lists(st.tuples(st.booleans(), st.sampled_from(PATHS), st.integers(1, 600)), max_size=40)


@given(ACTS)
def test_it_is_what_two_dictionaries_would_be(acts: list[tuple[bool, Path, int]]) -> None:
    watches = Watches()
    watch_of: dict[Path, int] = {}
    path_of: dict[int, Path] = {}
    for is_put, path, watch in acts:
        if is_put:
            if path_of.get(watch_of.get(path, 0), path) == path:
                path_of.pop(watch_of.get(path, 0), None)  # a directory's next watch comes when the first is removed
                watches.remove(path)
            watches.put(path, watch)
            watch_of[path], path_of[watch] = watch, path
        else:
            expected = watch_of.pop(path, None)
            if expected not in path_of or path_of[expected] != path:
                expected = None
            else:
                del path_of[expected]
            assert watches.remove(path) == expected
        assert len(watches) == len(watch_of)
        for one in PATHS:
            assert (one in watches) == (one in watch_of)
        for number in range(1, 601):
            if number in path_of:
                assert watches.path_of(number) == path_of[number]
            else:
                with pytest.raises(KeyError):
                    watches.path_of(number)
        for below in PATHS:
            if below is not None:
                found = list(watches.below(below))
                assert len(found) == len(set(found))
                assert set(found) == {one for one in watch_of if one is not None and one[: len(below)] == below}


def test_nothing_is_left_of_what_was_removed() -> None:
    watches = Watches()
    for number in range(2000):
        watches.put(("team", f"app{number}"), number)
        assert watches.remove(("team", f"app{number}")) == number
    assert len(watches) == 0
    assert not watches._blocks and not watches._below
