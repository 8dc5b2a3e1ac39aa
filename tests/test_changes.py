"""What inotify tells of a directory beneath."""

import errno
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tagfs import changes
from tagfs.changes import Change, Changes
from tagfs.errors import RepositoryMissing
from tagfs.names import BASE, RepositoryKey
from tests.support.beneath import list_file, no_descriptor_left, put

KEY = RepositoryKey("team", "app")
HERE = ("team", "app")


class Watched:
    """A directory and its watches."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.changes = Changes(self.opened, self.root)
        self._mark = 0

    @contextmanager
    def opened(self, *path: str) -> Iterator[int]:
        try:
            directory = os.open(Path(self.path, BASE, *path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            raise RepositoryMissing("/".join(path)) from None
        try:
            yield directory
        finally:
            os.close(directory)

    async def told(self) -> list[Change]:
        """Everything that has happened so far: a last file of our own says that nothing is missing."""
        self._mark += 1
        name = f"mark{self._mark}"
        (self.path / name).touch()
        told: list[Change] = []
        while not any(change.name == name for change in told):
            told += await self.changes.happened()
        return [change for change in dict.fromkeys(told) if not change.name.startswith("mark")]

    def close(self) -> None:
        self.changes.close()
        os.close(self.root)


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    (tmp_path / "store").mkdir()
    put(tmp_path / "store", KEY, b"v1\n")
    one = Watched(tmp_path / "store")
    yield one
    one.close()


async def test_what_is_not_covered_is_not_told(watched: Watched) -> None:
    put(watched.path, KEY, b"v2\n")
    assert await watched.told() == []


async def test_a_replaced_list_is_told(watched: Watched) -> None:
    assert watched.changes.cover(HERE)
    assert watched.changes.cover(HERE)
    put(watched.path, KEY, b"v2\n")
    assert await watched.told() == [Change(HERE, "tags.txt")]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
async def test_every_variant_of_a_list_is_the_list(watched: Watched, suffix: str) -> None:
    watched.changes.cover(HERE)
    list_file(watched.path, KEY, suffix).write_bytes(b"any\n")
    assert await watched.told() == [Change(HERE, "tags.txt")]


async def test_what_is_no_list_is_not_told(watched: Watched) -> None:
    watched.changes.cover(HERE)
    directory = list_file(watched.path, KEY).parent
    (directory / "tags.txt123").write_bytes(b"v2\n")
    (directory / "tags.txt123").chmod(0o644)
    (directory / "tags.txt123").rename(directory / "other")
    (directory / "other").unlink()
    (directory / "sub").mkdir()
    (directory / "sub").rmdir()
    assert await watched.told() == []


async def test_every_kind_of_change_to_a_list_is_told(watched: Watched) -> None:
    watched.changes.cover(HERE)
    path = list_file(watched.path, KEY)
    path.write_bytes(b"in place\n")
    assert await watched.told() == [Change(HERE, "tags.txt")]
    os.utime(path, (1, 1))
    assert await watched.told() == [Change(HERE, "tags.txt")]
    path.rename(path.with_name("away"))
    assert await watched.told() == [Change(HERE, "tags.txt")]
    path.with_name("away").rename(path)
    assert await watched.told() == [Change(HERE, "tags.txt")]
    path.unlink()
    assert await watched.told() == [Change(HERE, "tags.txt")]
    os.link(watched.path / "mark1", path)
    assert await watched.told() == [Change(HERE, "tags.txt")]


async def test_what_happens_many_times_is_told_once_a_batch(watched: Watched) -> None:
    watched.changes.cover(HERE)
    for number in range(50):
        list_file(watched.path, KEY).write_bytes(b"v%d\n" % number)
    assert await watched.told() == [Change(HERE, "tags.txt")]


async def test_reading_is_not_told(watched: Watched) -> None:
    watched.changes.cover(HERE)
    list_file(watched.path, KEY).read_bytes()
    os.listdir(list_file(watched.path, KEY).parent)
    assert await watched.told() == []


async def test_directories_that_come_and_go_are_told(watched: Watched) -> None:
    assert watched.changes.cover(())
    assert watched.changes.cover(("team",))
    (watched.path / BASE / "new").mkdir()
    (watched.path / BASE / "team" / "web").mkdir()
    assert await watched.told() == [Change((), "new"), Change(("team",), "web")]
    (watched.path / BASE / "new").rmdir()
    (watched.path / BASE / "team" / "web").rename(watched.path / BASE / "team" / "web2")
    assert await watched.told() == [Change((), "new"), Change(("team",), "web"), Change(("team",), "web2")]
    (watched.path / BASE / "team").chmod(0o711)
    assert await watched.told() == []


async def test_what_is_not_there_cannot_be_covered_yet(watched: Watched) -> None:
    assert not watched.changes.cover(("team", "web"))
    assert not watched.changes.cover(("none",))
    put(watched.path, RepositoryKey("team", "web"), b"v1\n")
    assert watched.changes.cover(("team", "web"))


async def test_a_directory_removed_and_made_again_is_covered_again(watched: Watched) -> None:
    for path in ((), ("team",), HERE):
        watched.changes.cover(path)
    shutil.rmtree(list_file(watched.path, KEY).parent)
    told = await watched.told()
    assert Change(HERE, "tags.txt") in told and Change(("team",), "app") in told
    assert not watched.changes.cover(HERE)
    put(watched.path, KEY, b"v2\n")
    await watched.told()
    assert watched.changes.cover(HERE)
    put(watched.path, KEY, b"v3\n")
    assert Change(HERE, "tags.txt") in await watched.told()


async def test_a_directory_that_was_replaced_unseen_is_told_and_covered_again(watched: Watched) -> None:
    watched.changes.cover(("team",))
    watched.changes.cover(HERE)
    directory = list_file(watched.path, KEY).parent
    directory.rename(directory.with_name("old"))
    put(watched.path, KEY, b"v2\n")
    assert watched.changes.cover(HERE)  # nothing was read meanwhile: still the old one's
    assert Change(("team",), "app") in await watched.told()
    assert watched.changes.cover(HERE)
    put(watched.path, KEY, b"v3\n")
    assert Change(HERE, "tags.txt") in await watched.told()


async def test_a_moved_directory_that_was_covered_by_its_new_path_first_keeps_being_told(watched: Watched) -> None:
    watched.changes.cover(("team",))
    watched.changes.cover(HERE)
    (watched.path / BASE / "other").mkdir()
    new = RepositoryKey("other", "app")
    list_file(watched.path, KEY).parent.rename(list_file(watched.path, new).parent)
    assert watched.changes.cover(("other", "app"))  # the same directory, so the kernel has one watch for both
    await watched.told()
    assert watched.changes.cover(("other", "app"))
    put(watched.path, new, b"v2\n")
    assert Change(("other", "app"), "tags.txt") in await watched.told()


async def test_a_replaced_namespace_is_told_and_all_below_is_covered_again(watched: Watched) -> None:
    for path in ((), ("team",), HERE):
        watched.changes.cover(path)
    base = watched.path / BASE
    (base / "team").rename(watched.path / "elsewhere")
    put(watched.path, KEY, b"v2\n")
    assert Change((), "team") in await watched.told()
    for path in (("team",), HERE):
        assert watched.changes.cover(path)
    put(watched.path, KEY, b"v3\n")
    assert Change(HERE, "tags.txt") in await watched.told()


async def test_a_replaced_base_is_told_and_all_below_is_covered_again(watched: Watched) -> None:
    for path in ((), ("team",), HERE):
        watched.changes.cover(path)
    (watched.path / BASE).rename(watched.path / "elsewhere")
    put(watched.path, KEY, b"v2\n")
    assert Change(None, BASE) in await watched.told()
    assert not watched.changes.is_lost
    for path in ((), ("team",), HERE):
        assert watched.changes.cover(path)
    put(watched.path, KEY, b"v3\n")
    assert Change(HERE, "tags.txt") in await watched.told()


async def test_a_moved_directory_whose_parent_is_not_watched_is_told(watched: Watched) -> None:
    watched.changes.cover(HERE)
    directory = list_file(watched.path, KEY).parent
    directory.rename(directory.with_name("old"))
    assert await watched.told() == [Change(("team",), "app")]


async def test_files_of_the_store_itself_are_told(watched: Watched) -> None:
    (watched.path / ".storage-version").write_text("2\n")
    assert await watched.told() == [Change(None, ".storage-version")]


async def test_a_store_that_was_moved_is_lost(watched: Watched, tmp_path: Path) -> None:
    assert not watched.changes.is_lost
    watched.path.rename(tmp_path / "other")
    while not any(change.is_lost for change in await watched.changes.happened()):
        pass
    assert watched.changes.is_lost


async def test_a_store_that_was_removed_loses_its_files_first(watched: Watched) -> None:
    (watched.path / ".storage-version").write_text("2\n")
    await watched.told()
    shutil.rmtree(watched.path)  # itself it lives while we have it open, and no event says that it is gone
    assert Change(None, ".storage-version") in await watched.changes.happened()


async def test_an_overflow_is_told_and_all_is_covered_again(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    for path in (("team",), HERE):
        watched.changes.cover(path)
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    one, two = list_file(watched.path, KEY).with_name("one"), list_file(watched.path, KEY).with_name("two")
    one.touch()
    for _ in range(limit // 4 + 1):  # the same event twice in a row would be one
        one.rename(two)
        two.rename(one)
    # Lost: the directory was replaced.
    directory = list_file(watched.path, KEY).parent
    directory.rename(watched.path / "elsewhere")
    put(watched.path, KEY, b"v2\n")
    told: list[Change] = []
    while Change(None, "", is_lost=True) not in told:
        told += await watched.changes.happened()
    assert not watched.changes.is_lost
    assert "inotify lost events" in caplog.text
    assert watched.changes.cover(HERE)
    put(watched.path, KEY, b"v3\n")
    assert Change(HERE, "tags.txt") in await watched.told()


class Exhausted(Changes):
    """The user has only so many watches."""

    left = 2

    def _add(self, path: tuple[str, ...] | None, directory: int, name: str = "") -> None:
        if self.left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.left -= 1
        super()._add(path, directory, name)


async def test_a_directory_is_covered_by_its_name_in_one_that_is_open(watched: Watched) -> None:
    with watched.opened("team") as above:
        assert watched.changes.cover(HERE, above)
        assert not watched.changes.cover(("team", "none"), above)
        os.symlink(watched.path / BASE / "team" / "app", watched.path / BASE / "team" / "link")
        (watched.path / BASE / "team" / "file").touch()
        assert not watched.changes.cover(("team", "link"), above)
        assert not watched.changes.cover(("team", "file"), above)
    put(watched.path, KEY, b"v2\n")
    assert Change(HERE, "tags.txt") in await watched.told()


async def test_what_has_happened_is_news_until_it_is_told(watched: Watched) -> None:
    watched.changes.cover(HERE)
    assert not watched.changes.has_news()
    put(watched.path, KEY, b"v2\n")
    assert watched.changes.has_news()
    await watched.told()
    assert not watched.changes.has_news()


async def test_without_watches_left_it_says_so_once_and_goes_on(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    exhausted = Exhausted(watched.opened, watched.root)
    assert exhausted.cover(("team",))
    assert not exhausted.cover(HERE)
    assert not exhausted.cover(())
    assert exhausted.cover(("team",))
    (record,) = caplog.records
    assert "max_user_watches" in record.getMessage()
    exhausted.close()


async def test_a_directory_that_may_not_be_opened_is_not_covered(watched: Watched) -> None:
    class Refusing(Changes):
        def _add(self, path: tuple[str, ...] | None, directory: int, name: str = "") -> None:
            if path:
                raise PermissionError(errno.EACCES, "Permission denied")
            super()._add(path, directory, name)

    refusing = Refusing(watched.opened, watched.root)
    assert not refusing.cover(HERE)
    assert not refusing.cover(HERE)
    refusing.close()


async def test_watches_that_cannot_begin_leave_nothing_open(watched: Watched) -> None:
    class Never(Changes):
        def _add(self, path: tuple[str, ...] | None, directory: int, name: str = "") -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with no_descriptor_left(), pytest.raises(OSError):
        Never(watched.opened, watched.root)


async def test_closing_wakes_who_listens(tmp_path: Path) -> None:
    async def listen(one: Watched) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await one.changes.happened()

    with no_descriptor_left():
        one = Watched(tmp_path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, one)
            await trio.testing.wait_all_tasks_blocked()
            one.close()


async def test_names_of_any_bytes_are_told(watched: Watched) -> None:
    watched.changes.cover(("team",))
    os.mkdir(os.fsencode(watched.path / BASE / "team") + b"/\xff\n")
    assert await watched.told() == [Change(("team",), "\udcff\n")]


def test_the_constants_are_those_of_the_kernel() -> None:
    assert changes._EVENT.size == 16
