"""Counting a store in the background, and keeping count."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tagfs import taglist
from tagfs.changes import Changes
from tagfs.counting import AGAIN, AT_ONCE, Counting, Held
from tagfs.directory import DirectoryStore
from tagfs.memory import MemoryStore
from tagfs.names import RepositoryKey
from tests.support.beneath import LIST_LIMIT, directory_store, list_file, no_descriptor_left, put
from tests.support.clusters import keys_of

ONE, TWO = RepositoryKey("team", "one"), RepositoryKey("team", "two")
OTHER = RepositoryKey("other", "one")
SHORT = b"v1\nv2\n"
LONG = b"".join(b"v%d\n" % number for number in range(100))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@asynccontextmanager
async def running(counting: Counting) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(counting.run)
        yield
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(250):
        while not condition():  # noqa: ASYNC110 - what is counted tells nobody
            await trio.sleep(0.005)


def truth(store: DirectoryStore) -> Held:
    """What the store holds, looked at by itself."""
    held = Held()
    for key in store.scan():
        plain = store.read(key)
        held.add(Held(1, len(taglist.decode(plain)), len(plain), store.examine(key).stored_size))
    return held


async def test_there_are_no_figures_before_all_is_counted() -> None:
    store = MemoryStore()
    for key in keys_of("team", 3 * AT_ONCE):
        store.replace(key, SHORT)
    counting = Counting(store)
    seen: list[Held | None] = [counting.figures]
    async with running(counting):
        while counting.figures is None:
            seen.append(counting.figures)
            await trio.sleep(0.001)
    assert set(seen) == {None} and len(seen) > 1
    assert counting.figures == Held(3 * AT_ONCE, 6 * AT_ONCE, len(SHORT) * 3 * AT_ONCE, len(SHORT) * 3 * AT_ONCE, 0)


async def test_an_empty_store_is_counted_as_empty() -> None:
    counting = Counting(MemoryStore())
    async with running(counting):
        await until(lambda: counting.figures == Held())
        assert counting.counted_at is not None


async def test_figures_are_those_of_the_store(path: Path) -> None:
    with no_descriptor_left():
        store = directory_store(path)
        for key, plain in ((ONE, SHORT), (TWO, LONG), (OTHER, b"")):
            store.replace(key, plain)
        counting = Counting(store)
        async with running(counting):
            await until(lambda: counting.figures)
            assert counting.figures == truth(store)
            assert counting.figures.stored_bytes < counting.figures.plain_bytes
        store.close()


async def test_what_changes_through_the_mount_is_counted_anew(path: Path) -> None:
    store = directory_store(path)
    store.replace(ONE, LONG)
    counting = Counting(store)
    async with running(counting):
        await until(lambda: counting.figures)
        store.replace(ONE, SHORT)
        store.replace(TWO, LONG)
        for key in (ONE, TWO):
            counting.changed_key(key)
        await until(lambda: counting.figures == truth(store))
        store.remove(TWO)
        store.remove_repository(TWO)
        counting.changed_key(TWO)
        await until(lambda: counting.figures == truth(store) == Held(1, 2, 6, 6))
        store.hide(ONE)
        counting.changed_key(ONE)
        await until(lambda: counting.figures == Held())
    store.close()


async def test_what_changes_beneath_is_counted_anew(path: Path) -> None:
    store = directory_store(path)
    put(path, ONE, SHORT)
    changes = Changes(store.opened, store.root)
    counting = Counting(store, changes.cover)

    async def follow() -> None:
        while True:
            for change in await changes.happened():
                if change.path is not None:
                    counting.changed(change.path, change.name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        nursery.start_soon(counting.run)
        await until(lambda: counting.figures == Held(1, 2, 6, 6))
        put(path, TWO, SHORT)
        put(path, OTHER, LONG)
        await until(lambda: counting.figures == truth(store))
        put(path, OTHER, b"v1\n")
        await until(lambda: counting.figures == Held(3, 5, 15, 15))
        (path / OTHER.directory).rename(path / "imagerepository" / "team" / "three")
        await until(lambda: counting.figures == Held(3, 5, 15, 15) == truth(store))
        (path / "imagerepository" / "team").rename(path / "away")
        await until(lambda: counting.figures == Held())
        (path / "away").rename(path / "imagerepository" / "team")
        await until(lambda: counting.figures == Held(3, 5, 15, 15))
        nursery.cancel_scope.cancel()
    changes.close()
    store.close()


async def test_where_changes_are_not_told_all_is_counted_again_and_again(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    store.replace(ONE, SHORT)
    counting = Counting(store, cover=lambda path: False)
    async with running(counting):
        await until(lambda: counting.figures == Held(1, 2, 6, 6))
        store.replace(TWO, SHORT)
        began = trio.current_time()
        with trio.fail_after(100 * AGAIN):  # the clock jumps on while threads read
            while counting.figures == Held(1, 2, 6, 6):  # noqa: ASYNC110
                await trio.sleep(1)
        assert trio.current_time() - began > AGAIN - 10


async def test_lost_events_count_all_anew(path: Path) -> None:
    store = directory_store(path)
    counting = Counting(store)
    async with running(counting):
        await until(lambda: counting.figures == Held())
        store.replace(ONE, SHORT)
        counting.changed(())
        await until(lambda: counting.figures == Held(1, 2, 6, 6))
    store.close()


async def test_a_list_that_cannot_be_read_is_counted_and_told_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = directory_store(path)
    store.replace(ONE, LONG)
    store.replace(TWO, SHORT)
    whole = list_file(path, ONE, ".zst").read_bytes()
    list_file(path, ONE, ".zst").write_bytes(whole[:-5])
    counting = Counting(store)
    async with running(counting):
        await until(lambda: counting.figures)
        assert counting.figures == Held(2, 2, 6, 6 + len(whole) - 5, 1)
        list_file(path, TWO).write_bytes(b"a" * (LIST_LIMIT + 1))
        counting.changed_key(TWO)
        await until(lambda: counting.figures is not None and counting.figures.corrupt_lists == 2)
        for key in (ONE, TWO):
            store.replace(key, SHORT)
            counting.changed_key(key)
        await until(lambda: "every list can be read again" in caplog.messages)
    assert [message for message in caplog.messages if "read" in message] == [
        "lists that cannot be read: 1; `tagfs check` names them",
        "every list can be read again",
    ]
    store.close()


async def test_only_the_namespaces_that_are_shown_count(path: Path) -> None:
    store = directory_store(path)
    for key in (ONE, OTHER):
        store.replace(key, SHORT)
    counting = Counting(store, namespaces=frozenset({"team"}))
    async with running(counting):
        await until(lambda: counting.figures == Held(1, 2, 6, 6))
        store.replace(TWO, SHORT)
        for key in (OTHER, TWO):
            counting.changed_key(key)
        await until(lambda: counting.figures == Held(2, 4, 12, 12))
    store.close()


async def test_names_that_no_list_has_are_no_work(path: Path) -> None:
    store = directory_store(path)
    counting = Counting(store)
    async with running(counting):
        await until(lambda: counting.figures)
        counting.changed(("Not", "one"), "tags.txt")
        counting.changed((), "Not one")
        store.replace(ONE, SHORT)
        counting.changed_key(ONE)
        await until(lambda: counting.figures == Held(1, 2, 6, 6))
    store.close()


async def test_a_store_that_is_taken_away_ends_it_quietly(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = directory_store(path)
    store.replace(ONE, SHORT)
    counting = Counting(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(counting.run)
        await until(lambda: counting.figures)
        for file in (path / ".storage-version", list_file(path, ONE)):
            file.unlink()
        list_file(path, ONE).parent.rmdir()
        path.rename(path.with_name("elsewhere"))
        counting.changed_key(ONE)
        counting.changed(())
        await until(lambda: not nursery.child_tasks or counting.figures == Held())
        nursery.cancel_scope.cancel()
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    store.close()
