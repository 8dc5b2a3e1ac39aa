"""The nodes behind `.changes`."""

from collections.abc import Callable

import pytest

from tagfs import pipes
from tagfs.errors import RepositoryMissing, StoreWaiting, TooManyListeners
from tagfs.pipes import NAME, Pipes


def offered(asked: Callable[[int], None] = lambda id_: None) -> Pipes:
    table = Pipes(asked, 0)
    table.is_offered = True
    return table


def test_there_are_none_where_the_daemon_cannot_open_them() -> None:
    table = Pipes(lambda id_: None, 0)
    with pytest.raises(StoreWaiting):
        table.lookup(NAME)
    table.is_offered = False
    with pytest.raises(RepositoryMissing):
        table.lookup(NAME)


def test_each_lookup_is_another_pipe_with_a_name_of_its_own() -> None:
    asked: list[int] = []
    table = offered(asked.append)
    one, two = table.lookup(NAME), table.lookup(NAME)
    assert one != two and asked == [one, two]
    names = table.name(one), table.name(two)
    assert names[0] != names[1]
    for id_, name in zip((one, two), names, strict=True):
        assert name is not None and table.lookup(name) == id_
    assert asked == [one, two]


def test_a_name_leads_to_its_pipe_once() -> None:
    table = offered()
    id_ = table.lookup(NAME)
    used = table.name(id_)
    assert used is not None and table.name(id_) == used
    table.lookup(used)
    with pytest.raises(RepositoryMissing):
        table.lookup(used)
    assert table.name(id_) not in (None, used)


def test_a_pipe_is_there_until_its_last_reference_is_taken_back() -> None:
    table = offered()
    id_ = table.lookup(NAME)
    name = table.name(id_)
    assert name is not None
    table.lookup(name)
    table.forget(id_, 1)
    other = table.name(id_)
    assert other is not None
    table.forget(id_, 1)
    assert table.name(id_) is None and len(table) == 0
    for gone in (name, other):
        with pytest.raises(RepositoryMissing):
            table.lookup(gone)


def test_nobody_guesses_a_pipe() -> None:
    table = offered()
    table.lookup(NAME)
    for name in (NAME + b".", NAME + b".0", NAME + b"x"):
        with pytest.raises(RepositoryMissing):
            table.lookup(name)


def test_there_are_so_many_and_no_more() -> None:
    table = offered()
    ids = [table.lookup(NAME) for _ in range(pipes.MOST)]
    with pytest.raises(TooManyListeners):
        table.lookup(NAME)
    table.forget(ids[0], 1)
    table.lookup(NAME)
