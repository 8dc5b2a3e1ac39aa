"""What programs do to lists and scratch files, over each store; steps are performed at once or when a test says so."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tagfs import taglist
from tagfs.durability import Work
from tagfs.errors import (
    AlreadyExists,
    CommitUncertain,
    DirectoryNotEmpty,
    EmptyingRefused,
    HandlePoisoned,
    ListMissing,
    ListTooLarge,
    NameRefused,
    NotPermitted,
    OtherDirectory,
    RepositoryMissing,
    StagingFull,
    TagListInvalid,
    VersionGone,
)
from tagfs.handles import Step
from tagfs.inodes import ROOT_ID
from tagfs.memory import MemoryStore
from tagfs.names import BASE, RepositoryKey
from tagfs.publishing import run
from tagfs.replacing import RENAME_NOREPLACE, WritableTree
from tagfs.store import Stage, Store, Version
from tagfs.view import UNWATCHED, View
from tagfs.writing import BUDGET_LISTS, LIST_KEPT, SCRATCH_COST, SCRATCH_KEPT
from tests.support.beneath import LIST_LIMIT, directory_store, list_file, no_descriptor_left, put
from tests.support.driver import APPEND, BOTH, CREATE, KEY, PID, READ, REPLACE, TAGS, WRITE, Driver, File
from tests.support.places import fast_directory

OTHER = RepositoryKey("team", "web")
LONG = b"".join(b"v1.0.%d\n" % number for number in range(100))
"""Long enough to be stored compressed."""


@pytest.fixture(params=["memory", "directory"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with fast_directory() as path, no_descriptor_left():
        one: Store = MemoryStore(LIST_LIMIT) if request.param == "memory" else directory_store(path)
        yield one
        one.close()


@pytest.fixture
def driver(store: Store) -> Iterator[Driver]:
    """A tree whose repository KEY is there, without a list.  Afterwards it holds nothing any more."""
    one = Driver(WritableTree(store, LIST_LIMIT))
    one.make()
    yield one
    require_nothing_held(one)


@pytest.fixture
def app(driver: Driver) -> Driver:
    """The same, with a list."""
    driver.write(b"v1\nv2\n")
    return driver


def require_nothing_held(driver: Driver) -> None:
    """All that is open was closed: only scratch files that still have a name hold memory."""
    tree = driver.writable
    assert tree._handles == {}
    assert tree._pinned == {}
    assert tree._writers == {}
    named = [scratch for files in tree._scratch.values() for scratch in files.values()]
    assert sorted(tree._scratch_by_node) == sorted(scratch.node.id for scratch in named)
    assert tree._budget.used == sum(len(scratch.buffer) + SCRATCH_COST for scratch in named)
    nodes = list(tree.inodes._nodes.values())
    assert [node for node in nodes if node.lookups] == []
    expected = [*tree.inodes.directories(), tree.inodes.sentinel(), *tree.inodes.current_lists()]
    left = [node for node in nodes if node not in expected and node not in [scratch.node for scratch in named]]
    assert left == []
    if not isinstance(tree.store, MemoryStore):
        assert tree.store.stages.names() == []  # type: ignore[attr-defined]


class Line:
    """Performs the steps of a key in order, when told to."""

    def __init__(self) -> None:
        self.waiting: list[Step] = []

    def __call__(self, step: Step | None) -> None:
        if step is not None:
            self.waiting.append(step)

    def finish(self) -> list[Exception]:
        """Run all that wait; -> what failed."""
        failed: list[Exception] = []
        while self.waiting:
            try:
                run(self.waiting.pop(0))
            except Exception as error:
                failed.append(error)
        return failed


def delayed(driver: Driver) -> tuple[Driver, Line]:
    """Another program on the same tree, whose steps wait."""
    line = Line()
    return Driver(driver.tree, line), line


# -- a list is created


def test_a_new_list_is_there_for_others_when_it_is_committed(driver: Driver) -> None:
    file = driver.open(flags=CREATE)
    file.write(b"v1\n")
    assert driver.is_there(pid=PID)
    assert driver.stat(pid=PID).size == 3
    assert not driver.is_there(pid=PID + 1)
    assert driver.files() == [TAGS] or driver.files() == []
    with pytest.raises(ListMissing):
        driver.read(pid=PID + 1)
    file.close()
    assert driver.read(pid=PID + 1) == b"v1\n"


def test_a_draft_is_not_listed(driver: Driver) -> None:
    with driver.open(flags=CREATE):
        assert driver.files() == []
    assert driver.files() == [TAGS]


def test_its_creator_reads_a_draft(driver: Driver) -> None:
    with driver.open(flags=CREATE) as file:
        file.write(b"v1\n")
        assert driver.read(pid=PID) == b"v1\n"
        assert file.size == 3


def test_a_draft_keeps_its_node_when_it_is_committed(driver: Driver) -> None:
    file = driver.open(flags=CREATE)
    file.write(b"v1\n")
    file.fsync()
    assert driver.stat(pid=PID + 1).id == file.id
    file.close()


def test_touch_makes_an_empty_list(driver: Driver) -> None:
    driver.open(flags=CREATE).close()
    assert driver.read() == b""
    assert driver.stat().size == 0


def test_redirecting_nothing_to_a_new_list_makes_an_empty_one(driver: Driver) -> None:
    driver.open(flags=REPLACE).close()
    assert driver.read() == b""


def test_of_two_creators_the_last_close_wins_whole(driver: Driver) -> None:
    one, two = driver.open(flags=REPLACE, pid=1), driver.open(flags=REPLACE, pid=2)
    one.write(b"v1\n")
    two.write(b"v2\nv3\n")
    two.close()
    assert driver.read() == b"v2\nv3\n"
    one.close()
    assert driver.read() == b"v1\n"


@pytest.mark.parametrize("flags", [CREATE, REPLACE, APPEND])
def test_a_creator_that_wrote_nothing_does_not_empty_what_another_committed(driver: Driver, flags: int) -> None:
    late = driver.open(flags=flags, pid=1)
    other = driver.open(flags=REPLACE, pid=2)
    other.write(b"v1\n")
    other.close()
    late.close()
    assert driver.read() == b"v1\n"


def test_o_excl_refuses_a_list_and_a_scratch_file_that_are_there(app: Driver) -> None:
    with pytest.raises(AlreadyExists):
        app.open(flags=CREATE | os.O_EXCL)
    app.write(b"x", b"new")
    with app.inside() as directory, pytest.raises(AlreadyExists):
        app.writable.create(directory, b"new", WRITE | os.O_EXCL, PID)
    app.unlink(b"new")


def test_create_opens_what_is_there_meanwhile(app: Driver) -> None:
    with app.inside() as directory:
        handle, attributes = app.writable.create(directory, TAGS, WRITE | os.O_TRUNC, PID)
        app.writable.write(handle, 0, b"v3\n")
        File(app, attributes.id, handle).close()
    assert app.read() == b"v3\n"


@pytest.mark.parametrize("path", [(), (BASE,), (BASE, "team")])
def test_files_are_made_in_repositories_alone(driver: Driver, path: tuple[str, ...]) -> None:
    with driver.directory(*path) as directory, pytest.raises(NotPermitted):
        driver.writable.create(directory, TAGS, WRITE, PID)


@pytest.mark.parametrize("name", [b"tags.txt.gz", b"tags.txt.zst"])
def test_compressed_names_are_refused_with_a_word_about_flux(
    app: Driver, name: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NotPermitted):
        app.open(name, CREATE)
    app.write(b"x", b"new")
    with pytest.raises(NotPermitted):
        app.rename(b"new", name)
    with pytest.raises(NotPermitted):
        app.rename(TAGS, name)
    assert caplog.text.count("--storage-compression-threshold") == 3
    with pytest.raises(ListMissing):
        app.unlink(name)  # as Flux does after each write
    app.unlink(b"new")


def test_a_file_in_a_directory_that_is_gone_is_missing(driver: Driver, store: Store) -> None:
    with driver.inside() as directory:
        store.remove_repository(KEY)
        with pytest.raises(RepositoryMissing):
            driver.writable.create(directory, TAGS, WRITE, PID)


# -- a list is written in place


@pytest.mark.parametrize("plain", [b"v3\n", LONG, b"v1\n"])
def test_a_redirection_replaces_a_list_at_its_close(app: Driver, plain: bytes) -> None:
    with app.open(flags=REPLACE) as file:
        file.write(plain[:2])
        assert app.read(pid=PID + 1) == b"v1\nv2\n"
        file.write(plain[2:])
        file.flush()
        assert app.read(pid=PID + 1) == b"v1\nv2\n"
    assert app.read() == plain
    assert app.stat().size == len(plain)


def test_a_write_in_the_middle_keeps_the_rest(app: Driver) -> None:
    with app.open(flags=BOTH) as file:
        assert file.read() == b"v1\nv2\n"
        file.write(b"v9\n", 3)
        assert file.read() == b"v1\nv9\n"
        assert file.size == 6
    assert app.read() == b"v1\nv9\n"


def test_a_reader_keeps_its_version_beside_a_writer(app: Driver) -> None:
    reader = app.open()
    app.write(b"v3\n")
    app.write(b"v4\n")
    assert reader.read() == b"v1\nv2\n"
    assert app.read() == b"v4\n"
    reader.close()


def test_the_last_close_wins_whole(app: Driver) -> None:
    one, two = app.open(flags=REPLACE, pid=1), app.open(flags=REPLACE, pid=2)
    one.write(b"v3\nv4\nv5\n")
    two.write(b"v6\n")
    one.close()
    assert app.read() == b"v3\nv4\nv5\n"
    two.close()
    assert app.read() == b"v6\n"


@pytest.mark.parametrize("later", ["rename", "fsync", "close", "truncate", "same"])
def test_a_close_that_is_released_late_does_not_undo_what_came_after_it(app: Driver, later: str) -> None:
    file = app.open(flags=REPLACE, pid=1)
    file.write(b"v3\n")
    file.flush()
    expected = b"v4\n"
    if later == "rename":
        app.write(b"v4\n", b"new")
        app.rename(b"new", TAGS)
    elif later == "truncate":
        app.truncate(3)
        expected = b"v1\n"
    elif later == "same":
        app.write(b"v1\nv2\n")
        expected = b"v1\nv2\n"
    else:
        with app.open(flags=REPLACE, pid=2) as other:
            other.write(b"v4\n")
            if later == "fsync":
                other.fsync()
    assert app.read() == expected
    file.release()
    assert app.read() == expected


def test_a_descriptor_that_is_closed_after_others_wins_also_without_another_byte(app: Driver) -> None:
    file = app.open(flags=REPLACE, pid=1)
    file.write(b"v3\n")
    file.flush()
    app.write(b"v4\n")
    file.close()
    assert app.read() == b"v3\n"


def test_a_rename_that_fails_undoes_no_earlier_close(app: Driver) -> None:
    later, line = delayed(app)
    file = app.open(flags=REPLACE, pid=1)
    file.write(b"v3\n")
    file.flush()
    app.write(b"v4\n", b"new")
    later.rename(b"new", TAGS)
    line.waiting.pop().fail(OSError(5, "failed"))
    file.release()
    assert app.read() == b"v3\n"


def test_o_trunc_alone_publishes_nothing_over_a_list(app: Driver, caplog: pytest.LogCaptureFixture) -> None:
    file = app.open(flags=REPLACE)
    with pytest.raises(EmptyingRefused):
        file.close()
    assert app.read() == b"v1\nv2\n"
    assert "closed and not committed: opened with O_TRUNC" in caplog.text


def test_a_shell_that_closes_before_the_first_byte_can_still_write(app: Driver) -> None:
    file = app.open(flags=REPLACE)
    with pytest.raises(EmptyingRefused):
        file.flush()
    file.write(b"v3\n")
    file.close()
    assert app.read() == b"v3\n"


def test_truncating_an_open_file_to_nothing_is_meant(app: Driver) -> None:
    with app.open(flags=WRITE) as file:
        file.truncate(0)
    assert app.read() == b""


@pytest.mark.parametrize("plain", [b"v3", b"v3\nv4"])
def test_a_list_that_ends_without_a_newline_is_refused_at_each_close(
    app: Driver, plain: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = app.open(flags=REPLACE)
    file.write(plain)
    with pytest.raises(TagListInvalid, match="no newline"):
        file.flush()
    with pytest.raises(TagListInvalid, match="no newline"):
        file.close()
    assert app.read() == b"v1\nv2\n"
    assert caplog.text.count("closed and not committed") == 1


def test_a_poisoned_handle_commits_nothing(app: Driver, caplog: pytest.LogCaptureFixture) -> None:
    file = app.open(flags=REPLACE)
    file.write(b"v3\n")
    file.flush()
    with pytest.raises(TagListInvalid):
        file.write(b"\0")
    with pytest.raises(HandlePoisoned):
        file.close()
    assert app.read() == b"v1\nv2\n"
    assert [record.getMessage() for record in caplog.records] == [
        f"{KEY.path}: write refused: line 2: a NUL cannot be part of a tag; closing this handle commits nothing"
    ]


def test_a_rejected_flush_discards_what_was_staged(app: Driver) -> None:
    file = app.open(flags=REPLACE)
    file.write(b"v3\n")
    file.flush()
    file.write(b"v4")
    with pytest.raises(TagListInvalid):
        file.flush()
    with pytest.raises(TagListInvalid):
        file.close()
    assert app.read() == b"v1\nv2\n"


def test_only_what_changed_since_the_last_flush_is_staged_again(app: Driver) -> None:
    line = Line()
    file = Driver(app.tree, line).open(flags=REPLACE)
    file.write(b"v3\n")
    for expected in (1, 0, 0):
        file.flush()
        assert len(line.waiting) == expected
        assert line.finish() == []
    file.release()
    line.finish()
    assert app.read() == b"v3\n"


def test_a_list_over_the_limit_is_refused(app: Driver, caplog: pytest.LogCaptureFixture) -> None:
    file = app.open(flags=REPLACE)
    file.write(b"v3\n")
    with pytest.raises(ListTooLarge):
        file.write(b"v\n" * LIST_LIMIT)
    with pytest.raises(HandlePoisoned):
        file.close()
    assert app.read() == b"v1\nv2\n"
    assert "write refused" in caplog.text


def test_an_append_that_makes_a_list_too_large_is_refused_at_its_close(
    app: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    app.write(b"v1\n" * (LIST_LIMIT // 3))
    before = app.read()
    with pytest.raises(ListTooLarge):
        app.write(b"v2\n", flags=APPEND)
    assert app.read() == before
    assert caplog.text.count("closed and not committed") == 1


def test_writers_share_what_they_may_hold(app: Driver) -> None:
    full = [app.open(b"f%d" % number, CREATE) for number in range(BUDGET_LISTS)]
    for file in full:
        file.write(b"x" * (LIST_LIMIT - SCRATCH_COST))
    writer = app.open(flags=REPLACE)
    with pytest.raises(StagingFull):
        writer.write(b"v3\n")
    with pytest.raises(StagingFull):
        app.open(b"more", CREATE)
    with pytest.raises(StagingFull):
        app.rename(TAGS, b"away")
    assert app.read() == b"v1\nv2\n"
    full[0].truncate(0)
    writer.truncate(0)
    writer.write(b"v3\n", 0)
    writer.close()
    assert app.read() == b"v3\n"
    for number, file in enumerate(full):
        app.unlink(b"f%d" % number)
        file.close()


# -- appending


def test_parallel_appends_lose_nothing(app: Driver) -> None:
    one, two, three = (app.open(flags=APPEND, pid=pid) for pid in (1, 2, 3))
    one.write(b"a\n")
    two.write(b"b\n")
    three.write(b"c\n")
    two.write(b"bb\n")
    two.close()
    one.close()
    three.close()
    assert app.read() == b"v1\nv2\nb\nbb\na\nc\n"


def test_appends_to_a_new_list_by_two_lose_nothing(driver: Driver) -> None:
    one, two = driver.open(flags=APPEND, pid=1), driver.open(flags=APPEND, pid=2)
    one.write(b"a\n")
    two.write(b"b\n")
    one.close()
    two.close()
    assert driver.read() == b"a\nb\n"


def test_an_appender_that_synchronises_goes_on_and_repeats_nothing(app: Driver) -> None:
    file, other = app.open(flags=APPEND | BOTH, pid=1), app.open(flags=APPEND, pid=2)
    file.write(b"a\n")
    file.fsync()
    file.fsync()
    assert app.read() == b"v1\nv2\na\n"
    other.write(b"b\n")
    other.close()
    assert file.read() == b"v1\nv2\na\n"  # what it saw last, and its own
    file.write(b"c\n")
    assert file.read() == b"v1\nv2\na\nc\n"
    file.close()
    assert app.read() == b"v1\nv2\na\nb\nc\n"


def test_an_appender_that_is_cut_after_it_synchronised_keeps_what_it_committed(app: Driver) -> None:
    file = app.open(flags=APPEND)
    file.write(b"a\n")
    file.fsync()
    file.write(b"b\nc\n")
    file.truncate(10)
    file.write(b"d\n")
    file.close()
    assert app.read() == b"v1\nv2\na\nb\nd\n"


def test_what_is_appended_while_it_commits_is_committed_once(app: Driver) -> None:
    later, line = delayed(app)
    file = later.open(flags=APPEND)
    file.write(b"a\n")
    file.flush()
    assert line.finish() == []
    file.commit()
    file.write(b"b\n")
    assert line.finish() == []
    file.flush()
    assert line.finish() == []
    file.release()
    assert line.finish() == []
    assert app.read() == b"v1\nv2\na\nb\n"


def test_an_append_goes_behind_a_list_that_was_committed_after_its_flush(app: Driver) -> None:
    file = app.open(flags=APPEND)
    file.write(b"a\n")
    file.flush()
    app.write(b"v9\n")
    file.release()
    assert app.read() == b"v9\na\n"


def test_an_append_to_a_list_that_was_deleted_commits_nothing(app: Driver) -> None:
    file = app.open(flags=APPEND)
    file.write(b"a\n")
    app.unlink()
    file.close()
    assert not app.is_there()


# -- unchanged lists


@pytest.mark.parametrize("plain", [b"", b"v1\nv2\n", LONG])
def test_an_unchanged_list_is_not_written_again(driver: Driver, plain: bytes) -> None:
    driver.write(plain) if plain else driver.open(flags=CREATE).close()
    before = driver.tree.store.examine(KEY)
    file = driver.open(flags=WRITE)
    file.truncate(0)
    file.write(plain)
    file.fsync()
    file.close()
    driver.write(plain, b"new")
    driver.rename(b"new", TAGS)
    driver.truncate(len(plain))
    assert driver.tree.store.examine(KEY) == before
    assert driver.read() == plain


def test_a_requested_time_of_an_unchanged_list_is_honoured(app: Driver) -> None:
    with app.open(flags=REPLACE) as file:
        file.write(b"v1\nv2\n")
        app.set_mtime(5_000_000_000)
    assert app.stat().mtime_ns == 5_000_000_000


# -- times


@pytest.mark.parametrize("plain", [b"v3\n", LONG])
@pytest.mark.parametrize("when", ["before the close", "after the close"])
def test_a_requested_time_is_that_of_the_commit(app: Driver, plain: bytes, when: str) -> None:
    with app.open(flags=REPLACE) as file:
        file.write(plain)
        if when == "before the close":
            app.set_mtime(1_000_000_007)
            assert app.stat().mtime_ns == 1_000_000_007
    if when == "after the close":
        app.set_mtime(1_000_000_007)
    assert app.stat().mtime_ns == 1_000_000_007
    assert app.read() == plain


def test_a_write_after_it_forgets_a_requested_time(app: Driver) -> None:
    with app.open(flags=REPLACE) as file:
        file.write(b"v3\n")
        app.set_mtime(5)
        file.write(b"v4\n")
    assert app.stat().mtime_ns > 5


def test_setting_the_time_of_a_list_keeps_its_node_and_its_readers(app: Driver) -> None:
    with app.open() as reader:
        app.set_mtime(5_000_000_000)
        assert app.tree.attributes(reader.id).mtime_ns == 5_000_000_000
        assert app.stat().id == reader.id
        assert app.read() == reader.read() == b"v1\nv2\n"


def test_setting_the_time_of_a_version_that_was_replaced_is_refused(app: Driver) -> None:
    with app.open() as reader:
        app.write(b"v3\n")
        with pytest.raises(VersionGone):
            app.writable.set_mtime(reader.id, 5)


def test_setting_the_time_of_a_draft_waits_for_its_commit(driver: Driver) -> None:
    with driver.open(flags=CREATE):
        driver.set_mtime(5_000_000_000)
        assert driver.stat().mtime_ns == 5_000_000_000
    assert driver.stat().mtime_ns == 5_000_000_000


def test_setting_the_time_of_a_directory_or_the_sentinel_changes_nothing(driver: Driver) -> None:
    assert driver.writable.set_mtime(ROOT_ID, 5) is None
    assert driver.writable.set_mtime(driver.tree.inodes.sentinel().id, 5) is None


def test_the_time_of_a_scratch_file_goes_over_with_it(app: Driver) -> None:
    app.write(b"v3\n", b"new")
    app.set_mtime(5_000_000_000, b"new")
    assert app.stat(b"new").mtime_ns == 5_000_000_000
    app.rename(b"new", TAGS)
    assert app.stat().mtime_ns == 5_000_000_000


# -- truncating by path


def test_truncating_by_path_commits_at_once(app: Driver) -> None:
    app.truncate(3)
    assert app.read() == b"v1\n"
    app.truncate(0)
    assert app.read() == b""
    assert app.stat().size == 0


@pytest.mark.parametrize("size", [1, 2, 4, 7, 100])
def test_truncating_by_path_to_what_is_no_list_is_refused(app: Driver, size: int) -> None:
    with pytest.raises(TagListInvalid):
        app.truncate(size)
    assert app.read() == b"v1\nv2\n"


def test_truncating_a_draft_by_path_truncates_its_writer(driver: Driver) -> None:
    with driver.open(flags=CREATE) as file:
        file.write(b"v1\nv2\n")
        driver.truncate(3)
        assert file.read() == b"v1\n"
    assert driver.read() == b"v1\n"


def test_only_files_have_a_size_to_set(driver: Driver) -> None:
    with pytest.raises(NotPermitted):
        driver.writable.truncate(ROOT_ID, 0, None)


# -- scratch files


def test_scratch_is_a_file_like_any_other(driver: Driver) -> None:
    with driver.open(b".tags.txt.swp", CREATE) as file:
        file.write(b"\0\xff")
        assert driver.files() == [b".tags.txt.swp"]
        attributes = driver.stat(b".tags.txt.swp", pid=PID + 1)
        assert (attributes.mode, attributes.size, attributes.blocks) == (stat.S_IFREG | 0o644, 2, 1)
    assert driver.read(b".tags.txt.swp") == b"\0\xff"
    driver.write(b"x", b".tags.txt.swp", APPEND)
    with driver.open(b".tags.txt.swp", BOTH) as file:
        file.write(b"abc", 5)
        file.truncate(7)
        assert file.read() == b"x\xff\0\0\0ab"
    driver.truncate(1, b".tags.txt.swp")
    assert driver.read(b".tags.txt.swp") == b"x"
    driver.open(b".tags.txt.swp", WRITE | os.O_TRUNC).close()
    assert driver.read(b".tags.txt.swp") == b""
    driver.unlink(b".tags.txt.swp")
    assert driver.files() == []


def test_an_unlinked_scratch_file_lives_until_it_is_closed(driver: Driver) -> None:
    file = driver.open(b"x", CREATE)
    file.write(b"abc")
    driver.unlink(b"x")
    assert not driver.is_there(b"x")
    assert file.read() == b"abc"
    driver.write(b"other", b"x")
    assert (file.read(), driver.read(b"x")) == (b"abc", b"other")
    file.close()
    driver.unlink(b"x")
    with pytest.raises(ListMissing):
        driver.unlink(b"x")


def test_scratch_is_known_again_after_the_kernel_forgot_it(driver: Driver) -> None:
    driver.write(b"abc", b"x")
    with driver.inside() as directory:
        handle, attributes = driver.writable.create(directory, b"x", READ, PID)  # no lookup before
        file = File(driver, attributes.id, handle)
        assert file.read() == b"abc"
        file.close()
    driver.unlink(b"x")


def test_scratch_is_renamed_over_scratch(driver: Driver) -> None:
    driver.write(b"a", b"one")
    driver.write(b"b", b"two")
    reader = driver.open(b"two")
    driver.rename(b"one", b"two")
    assert driver.files() == [b"two"]
    assert (driver.read(b"two"), reader.read()) == (b"a", b"b")
    reader.close()
    driver.rename(b"two", b"two")
    driver.unlink(b"two")


# -- a scratch file is renamed over the list


@pytest.mark.parametrize("plain", [b"", b"v3\n", LONG])
def test_a_rename_over_the_list_replaces_it(app: Driver, plain: bytes) -> None:
    reader = app.open()
    app.write(plain, b"tags.txt123")
    assert app.files() == [TAGS, b"tags.txt123"]
    app.rename(b"tags.txt123", TAGS)
    assert app.files() == [TAGS]
    assert (app.read(), reader.read()) == (plain, b"v1\nv2\n")
    reader.close()


def test_a_rename_makes_a_list_where_there_is_none(driver: Driver) -> None:
    driver.write(b"v1\n", b"new")
    driver.rename(b"new", TAGS)
    assert driver.read() == b"v1\n"


def test_what_is_no_list_cannot_be_renamed_over_one(app: Driver, caplog: pytest.LogCaptureFixture) -> None:
    app.write(b"v3\n.bad\n", b"new")
    with pytest.raises(TagListInvalid, match="line 2"):
        app.rename(b"new", TAGS)
    assert app.read() == b"v1\nv2\n"
    assert app.files() == [TAGS, b"new"]
    assert "rename to tags.txt refused" in caplog.text
    app.unlink(b"new")


def test_a_rename_commits_what_was_written_also_before_the_file_is_released(app: Driver) -> None:
    file = app.open(b"new", CREATE)
    file.write(b"v3\n")
    app.rename(b"new", TAGS)
    assert app.read() == b"v3\n"
    file.close()
    assert app.read() == b"v3\n"


def test_the_node_of_a_renamed_scratch_file_is_that_of_the_list(app: Driver) -> None:
    app.write(b"new\n", b"new")
    with app.inside() as directory:
        known = app.tree.lookup(directory, b"new").id
        app.rename(b"new", TAGS)
        assert app.stat().id == app.tree.lookup(directory, TAGS).id == known
    assert app.tree.attributes(known).size == 4 and app.read() == b"new\n"
    app.write(b"newer\n")
    assert app.stat().id != known
    app.tree.forget([(known, 2)])
    with pytest.raises(VersionGone):
        app.tree.attributes(known)


def test_a_scratch_file_that_is_open_or_unknown_keeps_its_node(app: Driver) -> None:
    app.write(b"unknown\n", b"new")
    app.rename(b"new", TAGS)
    app.write(b"new\n", b"new")
    with app.open(b"new") as file:
        app.rename(b"new", TAGS)
        assert app.stat().id != file.id
        assert app.tree.attributes(file.id).size == 4


def test_a_list_of_another_size_is_not_compared_with_what_is_there(
    app: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.write(b"same\n")
    compared: list[bytes] = []
    confirmation = app.tree.store.confirmation

    def told(key: RepositoryKey, plain: bytes) -> Work[bool]:
        compared.append(plain)
        return confirmation(key, plain)

    monkeypatch.setattr(app.tree.store, "confirmation", told)
    for plain, expected in ((b"longer\n", []), (b"equals\n", [b"equals\n"])):
        app.write(plain, b"new")
        compared.clear()
        with app.open():  # so that it is known
            app.rename(b"new", TAGS)
        assert compared == expected
        assert app.read() == plain


def test_a_list_that_was_not_changed_by_a_rename_keeps_its_node(app: Driver) -> None:
    app.write(b"same\n")
    with app.inside() as directory:
        list_id = app.tree.lookup(directory, TAGS).id
        app.write(b"same\n", b"new")
        scratch_id = app.tree.lookup(directory, b"new").id
        app.rename(b"new", TAGS)
        assert app.stat().id == list_id != scratch_id
    app.tree.forget([(list_id, 1), (scratch_id, 1)])


def test_what_is_written_after_its_rename_is_written_to_the_list(app: Driver) -> None:
    file = app.open(b"new", CREATE)
    file.write(b"v3\n")
    app.rename(b"new", TAGS)
    file.write(b"v4\n")
    file.close()
    assert app.read() == b"v3\nv4\n"


def test_what_is_written_after_its_rename_and_is_no_list_is_refused(
    app: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    file = app.open(b"new", CREATE)
    file.write(b"v3\n")
    app.rename(b"new", TAGS)
    file.write(b"v4")
    with pytest.raises(TagListInvalid):
        file.close()
    assert app.read() == b"v3\n"
    assert "after its rename is refused" in caplog.text


def test_what_is_written_while_it_is_renamed_is_not_lost_by_a_release_meanwhile(app: Driver) -> None:
    later, line = delayed(app)
    file = later.open(b"new", CREATE)
    file.write(b"v3\n")
    later.rename(b"new", TAGS)
    file.write(b"v4\n")
    file.close()
    assert line.finish() == []
    assert app.read() == b"v3\nv4\n"


def test_a_rename_that_fails_leaves_both_as_they_were(app: Driver) -> None:
    later, line = delayed(app)
    file = later.open(b"new", CREATE)
    file.write(b"v3\n")
    later.rename(b"new", TAGS)
    file.write(b"v4\n")
    file.release()
    first, *rest = line.waiting
    first.fail(OSError(28, "No space left on device"))
    line.waiting = rest
    assert line.finish() == []
    assert app.read() == b"v1\nv2\n"
    assert app.read(b"new") == b"v3\nv4\n"
    app.rename(b"new", TAGS)
    assert app.read() == b"v3\nv4\n"


def test_noreplace_refuses_a_name_that_is_taken(app: Driver) -> None:
    app.write(b"v3\n", b"new")
    app.write(b"x", b"other")
    for name, new in ((b"new", TAGS), (TAGS, b"new"), (b"new", b"other")):
        with pytest.raises(AlreadyExists):
            app.rename(name, new, flags=RENAME_NOREPLACE)
    assert app.read() == b"v1\nv2\n"
    app.rename(b"new", b"newer", flags=RENAME_NOREPLACE)
    app.unlink()
    app.rename(b"newer", TAGS, flags=RENAME_NOREPLACE)
    assert app.read() == b"v3\n"
    app.unlink(b"other")


def test_renames_that_cannot_be(app: Driver) -> None:
    app.make(OTHER)
    tree = app.writable
    with app.inside() as directory, app.inside(OTHER) as other, app.directory(BASE, "team") as namespace:
        with pytest.raises(NameRefused):
            tree.rename(directory, TAGS, directory, b"x", 2)
        with pytest.raises(OtherDirectory):
            tree.rename(directory, TAGS, other, TAGS, 0)
        with pytest.raises(OtherDirectory):
            tree.rename(namespace, b"app", namespace, b"app2", 0)
    with pytest.raises(ListMissing):
        app.rename(b"none", TAGS)
    with pytest.raises(ListMissing):
        app.rename(TAGS, b"away", key=OTHER)


# -- the list is renamed away


@pytest.mark.parametrize("plain", [b"v1\nv2\n", LONG])
def test_a_list_that_is_renamed_away_and_back_is_the_same(driver: Driver, plain: bytes) -> None:
    driver.write(plain)
    driver.set_mtime(5_000_000_000)
    driver.rename(TAGS, b"tags.txt.bak")
    assert driver.files() == [b"tags.txt.bak"]
    assert not driver.is_there()
    assert driver.read(b"tags.txt.bak") == plain
    assert driver.stat(b"tags.txt.bak").mtime_ns == 5_000_000_000
    driver.rename(b"tags.txt.bak", TAGS)
    assert driver.read() == plain
    assert driver.stat().mtime_ns == 5_000_000_000


def test_a_list_that_was_renamed_away_is_put_back_by_the_next_mount(app: Driver, store: Store) -> None:
    app.rename(TAGS, b"away")
    again = Driver(WritableTree(store, LIST_LIMIT))
    assert again.read() == b"v1\nv2\n"
    app.unlink(b"away")


def test_a_successor_takes_the_place_of_what_was_renamed_away(app: Driver, store: Store) -> None:
    app.rename(TAGS, b"away")
    app.write(b"v3\n")
    app.unlink(b"away")
    assert app.read() == b"v3\n"
    app.unlink()
    assert not Driver(WritableTree(store, LIST_LIMIT)).is_there()


def test_a_draft_does_not_end_the_hiding(app: Driver, store: Store) -> None:
    app.rename(TAGS, b"away")
    draft = app.open(flags=CREATE)
    draft.write(b"v")
    with pytest.raises(TagListInvalid):
        draft.close()
    assert Driver(WritableTree(store, LIST_LIMIT)).read() == b"v1\nv2\n"
    app.unlink(b"away")


def test_unlinking_what_was_renamed_away_deletes_the_list(app: Driver, store: Store) -> None:
    app.rename(TAGS, b"away")
    app.rename(b"away", b"further")
    app.unlink(b"further")
    assert not Driver(WritableTree(store, LIST_LIMIT)).is_there()
    app.rmdir(BASE, "team", "app")


def test_replacing_what_was_renamed_away_by_scratch_deletes_the_list(app: Driver, store: Store) -> None:
    app.rename(TAGS, b"away")
    app.write(b"x", b"x")
    app.rename(b"x", b"away")
    assert not Driver(WritableTree(store, LIST_LIMIT)).is_there()
    app.unlink(b"away")


def test_renaming_a_second_list_away_keeps_the_second(app: Driver, store: Store) -> None:
    app.rename(TAGS, b"away")
    app.write(b"v3\n")
    app.rename(TAGS, b"away")
    assert app.read(b"away") == b"v3\n"
    app.write(b"v4\n")
    app.rename(TAGS, b"away2")
    app.unlink(b"away")
    assert Driver(WritableTree(store, LIST_LIMIT)).read() == b"v4\n"
    app.unlink(b"away2")


def test_what_was_renamed_away_is_not_put_back_while_it_has_a_name(app: Driver) -> None:
    app.rename(TAGS, b"away")
    assert app.writable.recovery(KEY) is None
    assert not app.is_there()
    app.unlink(b"away")


def test_recovery_puts_back_what_an_earlier_daemon_hid(app: Driver, store: Store) -> None:
    store.hide(KEY)
    again = WritableTree(store, LIST_LIMIT)
    run(again.recovery(KEY))
    assert Driver(again).read() == b"v1\nv2\n"
    run(again.recovery(KEY))
    run(again.recovery(OTHER))
    assert Driver(again).read() == b"v1\nv2\n"


def test_a_list_that_cannot_be_hidden_stays(app: Driver) -> None:
    later, line = delayed(app)
    later.rename(TAGS, b"away")
    (step,) = line.waiting
    step.fail(OSError(5, "Input/output error"))
    assert app.files() == [TAGS]
    assert app.read() == b"v1\nv2\n"


# -- deleting


def test_a_deleted_list_is_gone_and_its_readers_keep_it(app: Driver) -> None:
    with app.open() as reader:
        app.unlink()
        assert not app.is_there()
        assert app.files() == []
        assert reader.read() == b"v1\nv2\n"
    with pytest.raises(ListMissing):
        app.unlink()
    app.write(b"v1\nv2\n")
    assert app.read() == b"v1\nv2\n"


@pytest.mark.parametrize("flags", [REPLACE, APPEND, WRITE])
@pytest.mark.parametrize("is_flushed", [False, True])
def test_open_writers_of_a_deleted_list_commit_nothing(app: Driver, flags: int, is_flushed: bool) -> None:
    file = app.open(flags=flags)
    file.write(b"v3\nv4\n")
    if is_flushed:
        file.flush()
    app.unlink()
    file.write(b"v5\n")
    file.fsync()
    assert not app.is_there()
    file.close()
    assert not app.is_there()


def test_a_new_list_beside_a_deleted_one_that_is_open_is_its_own(app: Driver) -> None:
    old = app.open(flags=REPLACE)
    old.write(b"v3\n")
    app.unlink()
    app.write(b"v4\n")
    old.close()
    assert app.read() == b"v4\n"


def test_a_draft_can_be_deleted(driver: Driver) -> None:
    file = driver.open(flags=CREATE)
    file.write(b"v1\n")
    driver.unlink()
    assert not driver.is_there()
    file.close()
    assert not driver.is_there()


def test_a_close_during_the_deletion_does_not_bring_the_list_back(app: Driver) -> None:
    later, line = delayed(app)
    file = app.open(flags=REPLACE)
    file.write(b"v3\n")
    file.flush()
    later.unlink()
    file._driver = later
    file.release()
    assert line.finish() == []
    assert not app.is_there()


def test_a_commit_that_waits_before_the_deletion_is_deleted(app: Driver) -> None:
    later, line = delayed(app)
    file = later.open(flags=REPLACE)
    file.write(b"v3\n")
    file.flush()
    line.finish()
    file.release()
    later.unlink()
    assert line.finish() == []
    assert not app.is_there()


def test_the_sentinel_and_directories_stay(app: Driver) -> None:
    with pytest.raises(NotPermitted):
        app.writable.unlink(ROOT_ID, b".storage-version")
    with app.directory(BASE, "team") as namespace, pytest.raises(NotPermitted):
        app.writable.unlink(namespace, b"app")


# -- directories


def test_directories_are_made_and_removed(driver: Driver) -> None:
    driver.make(OTHER)
    assert driver.listing(BASE, "team") == [b"app", b"web"]
    with driver.directory(BASE, "team", "web") as old:
        driver.rmdir(BASE, "team", "web")
        assert driver.listing(BASE, "team") == [b"app"]
        driver.make(OTHER)
        with driver.directory(BASE, "team", "web") as new:
            assert new != old
    driver.rmdir(BASE, "team", "web")
    driver.rmdir(BASE, "team", "app")
    driver.rmdir(BASE, "team")
    assert driver.listing(BASE) == []
    driver.make()


def test_directories_that_are_there_or_have_no_place_are_not_made(driver: Driver) -> None:
    tree = driver.writable
    with driver.directory(BASE) as base, driver.directory(BASE, "team") as namespace, driver.inside() as directory:
        with pytest.raises(AlreadyExists):
            tree.make_directory(base, b"team")
        with pytest.raises(AlreadyExists):
            tree.make_directory(namespace, b"app")
        for parent, name in ((ROOT_ID, b"x"), (base, b"A"), (base, b"\xff"), (namespace, b"A"), (directory, b"x")):
            with pytest.raises(NameRefused):
                tree.make_directory(parent, name)


def test_directories_that_hold_something_are_not_removed(app: Driver) -> None:
    with pytest.raises(DirectoryNotEmpty):
        app.rmdir(BASE, "team")
    with pytest.raises(DirectoryNotEmpty):
        app.rmdir(BASE, "team", "app")
    app.unlink()
    app.write(b"x", b"scratch")
    with pytest.raises(DirectoryNotEmpty):
        app.rmdir(BASE, "team", "app")
    app.unlink(b"scratch")
    with app.open(flags=CREATE), pytest.raises(DirectoryNotEmpty):
        app.rmdir(BASE, "team", "app")
    app.unlink()
    file = app.open(flags=CREATE)
    app.unlink()
    app.rmdir(BASE, "team", "app")
    file.close()
    assert app.listing(BASE, "team") == []
    app.make()


def test_directories_that_cannot_be_removed(app: Driver) -> None:
    refused: list[tuple[str, ...]] = [(BASE,), ("x",), (BASE, "team", "app", "x")]
    for path in refused:
        with pytest.raises(NotPermitted):
            app.rmdir(*path)
    missing: list[tuple[str, ...]] = [(BASE, "none"), (BASE, "UPPER"), (BASE, "team", "none")]
    for path in missing:
        with pytest.raises(RepositoryMissing):
            app.rmdir(*path)
    assert app.read() == b"v1\nv2\n"


def test_the_key_of_a_directory_below(driver: Driver) -> None:
    tree = driver.writable
    with driver.directory(BASE) as base, driver.directory(BASE, "team") as namespace, driver.inside() as directory:
        assert tree.key_below(namespace, b"app") == KEY
        assert tree.key_below(base, b"team") is None
        assert tree.key_below(directory, b"x") is None
        with pytest.raises(RepositoryMissing):
            tree.key_below(namespace, b"A")


def test_only_the_namespaces_of_the_view_can_be_made(store: Store) -> None:
    driver = Driver(WritableTree(store, LIST_LIMIT, View(frozenset({"mine"}))))
    driver.make(RepositoryKey("mine", "app"))
    with driver.directory(BASE) as base, pytest.raises(NotPermitted):
        driver.writable.make_directory(base, b"team")
    with driver.directory(BASE) as base, pytest.raises(RepositoryMissing):
        driver.writable.remove_directory(base, b"team")
    assert driver.listing(BASE) == [b"mine"]


# -- opening while others replace


def test_opening_a_version_that_was_replaced_to_write_opens_the_current_one_at_the_second_try(app: Driver) -> None:
    tree = app.writable
    with app.inside() as directory:
        for flags in (BOTH, WRITE | os.O_APPEND, REPLACE & ~os.O_CREAT):
            old_id = tree.lookup(directory, TAGS, PID).id
            app.write(b"v%d\n" % (flags + 5))
            with pytest.raises(VersionGone):
                tree.open(old_id, flags, PID)
            id_ = tree.lookup(directory, TAGS, PID).id
            assert id_ != old_id
            handle = tree.open(id_, flags, PID)
            assert tree.read(handle, 0, 100) == (b"" if flags & os.O_TRUNC else b"v%d\n" % (flags + 5))
            tree.release(handle)
            tree.forget([(old_id, 1), (id_, 1)])


def test_a_second_replacement_keeps_nobody_from_opening_to_append_or_to_replace(app: Driver) -> None:
    tree, other = app.writable, PID + 1  # the driver itself is PID
    with app.inside() as directory:
        for flags in (WRITE | os.O_APPEND, REPLACE & ~os.O_CREAT):
            ids = [tree.lookup(directory, TAGS, other).id]
            app.write(b"once%d\n" % flags)
            with pytest.raises(VersionGone):
                tree.open(ids[0], flags, other)
            ids.append(tree.lookup(directory, TAGS, other).id)
            app.write(b"twice%d\n" % flags)
            with File(app, ids[1], tree.open(ids[1], flags, other)) as file:
                file.write(b"mine\n")
            assert app.read() == (b"twice%d\n" % flags if flags & os.O_APPEND else b"") + b"mine\n"
            tree.forget([(ids[0], 1)])


def test_lines_of_a_version_that_only_readers_still_have_are_not_changed(app: Driver) -> None:
    tree = app.writable
    with app.open() as reader:
        app.write(b"v3\n")
        with pytest.raises(VersionGone):
            tree.open(reader.id, BOTH, PID)
        app.unlink()
        with pytest.raises(ListMissing):
            tree.open(reader.id, BOTH, PID)
        app.write(b"v4\n")
        File(app, reader.id, tree.open(reader.id, APPEND & ~os.O_CREAT, PID)).commit()
        for handle in [handle for handle in tree._handles if handle != reader.handle]:
            tree.release(handle)


def test_no_directory_nor_the_sentinel_is_written(app: Driver) -> None:
    with pytest.raises(NotPermitted):
        app.writable.open(app.tree.inodes.sentinel().id, WRITE)
    with pytest.raises(NotPermitted):
        app.writable.open(ROOT_ID, READ)
    with pytest.raises(NotPermitted):
        app.writable.open(ROOT_ID, WRITE)


def test_no_name_of_a_file_that_is_written_here_is_kept_by_the_kernel(app: Driver) -> None:
    app.write(b"x", b"new")
    for name, kept in ((TAGS, LIST_KEPT), (b"new", SCRATCH_KEPT)):
        attributes = app.stat(name)
        assert (attributes.entry_timeout, attributes.attr_timeout) == (0.0, kept)
        assert attributes.mode == stat.S_IFREG | 0o644
    with app.inside() as directory:
        assert app.tree.attributes(directory).mode == stat.S_IFDIR | 0o755
        assert app.tree.attributes(directory).entry_timeout == UNWATCHED
    app.unlink(b"new")


def test_the_kernel_keeps_no_attributes_of_a_list_that_is_written(app: Driver) -> None:
    with app.open() as reader:
        assert app.tree.attributes(reader.id).attr_timeout == LIST_KEPT
        with app.open(flags=BOTH) as writer:
            assert writer.id == reader.id
            for pid in (0, PID, PID + 1):
                assert app.tree.attributes(reader.id, pid).attr_timeout == app.stat(pid=pid).attr_timeout == 0.0
        assert app.tree.attributes(reader.id).attr_timeout == LIST_KEPT
    with app.open(b"other", CREATE):
        assert app.stat().attr_timeout == LIST_KEPT
    app.unlink(b"other")


# -- commits that fail


class Failing(MemoryStore):
    """Refuses to publish, or fails after it."""

    def __init__(self) -> None:
        super().__init__(LIST_LIMIT)
        self.error: Exception | None = None

    def publish(self, stage: Stage, mtime_ns: int | None = None) -> Version:
        error, self.error = self.error, None
        if error is None or isinstance(error, CommitUncertain):
            version = super().publish(stage, mtime_ns)
            if error is None:
                return version
        self.discard(stage)
        raise error


@pytest.fixture
def failing() -> Iterator[tuple[Driver, Failing]]:
    store = Failing()
    driver = Driver(WritableTree(store, LIST_LIMIT))
    driver.make()
    driver.write(b"v1\n")
    yield driver, store
    require_nothing_held(driver)


@pytest.mark.parametrize("flags", [REPLACE, APPEND, WRITE])
def test_a_failed_fsync_that_is_repeated_commits(failing: tuple[Driver, Failing], flags: int) -> None:
    driver, store = failing
    file = driver.open(flags=flags)
    file.write(b"v2\n")
    for _ in range(2):
        store.error = OSError(28, "No space left on device")
        with pytest.raises(OSError, match="No space"):
            file.fsync()
        assert driver.read() == b"v1\n"
    file.fsync()
    expected = b"v1\nv2\n" if flags == APPEND else b"v2\n"
    assert driver.read() == expected
    file.close()
    assert driver.read() == expected


def test_a_failed_fsync_is_made_good_by_the_close(failing: tuple[Driver, Failing]) -> None:
    driver, store = failing
    file = driver.open(flags=APPEND)
    file.write(b"v2\n")
    store.error = OSError(5, "Input/output error")
    with pytest.raises(OSError, match="Input/output"):
        file.fsync()
    file.close()
    assert driver.read() == b"v1\nv2\n"


def test_a_failed_commit_of_a_draft_leaves_no_list(failing: tuple[Driver, Failing]) -> None:
    driver, store = failing
    driver.unlink()
    file = driver.open(flags=CREATE)
    file.write(b"v2\n")
    file.flush()
    store.error = OSError(5, "Input/output error")
    with pytest.raises(OSError, match="Input/output"):
        file.commit()
    file.release()
    assert not driver.is_there()


@pytest.mark.parametrize("flags", [REPLACE, WRITE])
def test_after_an_uncertain_commit_the_same_list_is_written_again(failing: tuple[Driver, Failing], flags: int) -> None:
    driver, store = failing
    file = driver.open(flags=flags)
    file.write(b"v2\n")
    store.error = CommitUncertain("fsync failed after the rename")
    with pytest.raises(CommitUncertain):
        file.fsync()
    assert driver.read() == b"v2\n"
    uncertain = store.examine(KEY)
    file.fsync()
    assert store.examine(KEY) != uncertain
    certain = store.examine(KEY)
    file.fsync()
    file.close()
    assert store.examine(KEY) == certain


def test_an_uncertain_append_is_not_appended_twice(failing: tuple[Driver, Failing]) -> None:
    driver, store = failing
    file = driver.open(flags=APPEND)
    file.write(b"v2\n")
    store.error = CommitUncertain("fsync failed after the rename")
    with pytest.raises(CommitUncertain):
        file.fsync()
    file.write(b"v3\n")
    file.close()
    assert driver.read() == b"v1\nv2\nv3\n"


def test_a_rename_whose_commit_is_uncertain_can_be_repeated(failing: tuple[Driver, Failing]) -> None:
    driver, store = failing
    driver.write(b"v2\n", b"new")
    store.error = CommitUncertain("fsync failed after the rename")
    with pytest.raises(CommitUncertain):
        driver.rename(b"new", TAGS)
    uncertain = store.examine(KEY)
    driver.rename(b"new", TAGS)
    assert store.examine(KEY) != uncertain
    assert driver.files() == [TAGS]


# -- steps that wait


def test_two_releases_commit_in_their_order(app: Driver) -> None:
    later, line = delayed(app)
    one, two = later.open(flags=REPLACE), later.open(flags=REPLACE)
    one.write(b"one\n")
    two.write(b"two\n")
    for file in (one, two):
        file.flush()
        line.finish()
    one.release()
    two.release()
    assert app.read() == b"v1\nv2\n"
    assert line.finish() == []
    assert app.read() == b"two\n"


def test_a_handle_that_is_unlinked_while_it_is_staged_leaves_nothing(app: Driver) -> None:
    later, line = delayed(app)
    file = later.open(flags=REPLACE)
    file.write(LONG)
    file.flush()
    app.unlink()
    assert line.finish() == []
    file.release()
    assert line.finish() == []
    assert not app.is_there()


def test_a_flush_that_is_refused_behind_one_that_is_staged_drops_that_too(app: Driver) -> None:
    later, line = delayed(app)
    file = later.open(flags=REPLACE)
    file.write(b"v3\n")
    file.flush()
    assert line.finish() == []
    file.write(b"v4")
    with pytest.raises(TagListInvalid):
        file.flush()
    file.release()
    assert line.finish() == []
    assert app.read() == b"v1\nv2\n"


# -- extended attributes


@pytest.mark.parametrize("plain", [b"", b"v1\nv2\n", LONG])
def test_a_list_tells_its_revision_count_codec_and_stored_size(driver: Driver, plain: bytes) -> None:
    driver.write(plain) if plain else driver.open(flags=CREATE).close()
    version = driver.tree.store.examine(KEY)
    with driver.inside() as directory:
        id_ = driver.tree.lookup(directory, TAGS).id
        assert driver.writable.extended(id_) == {
            b"user.tagfs.revision": taglist.revision(plain).encode(),
            b"user.tagfs.count": b"%d" % plain.count(b"\n"),
            b"user.tagfs.codec": version.codec.name.encode(),
            b"user.tagfs.stored-size": b"%d" % version.stored_size,
        }
        assert driver.writable.extended_names(id_) == list(driver.writable.extended(id_))
        driver.tree.forget([(id_, 1)])


def test_nothing_else_has_extended_attributes(driver: Driver) -> None:
    tree = driver.writable
    with driver.open(flags=CREATE) as draft, driver.open(b"x", CREATE) as scratch:
        for id_ in (ROOT_ID, tree.inodes.sentinel().id, draft.id, scratch.id):
            assert tree.extended(id_) == {}
            assert tree.extended_names(id_) == []
    driver.unlink(b"x")


def test_a_foreign_writer_beneath_is_seen(tmp_path: Path) -> None:
    store = directory_store(tmp_path)
    driver = Driver(WritableTree(store, LIST_LIMIT))
    driver.make()
    driver.write(b"v1\n")
    with driver.open() as reader:
        list_file(tmp_path, KEY).unlink()
        assert not driver.is_there()
        list_file(tmp_path, KEY).write_bytes(b"v9\n")
        assert driver.read() == b"v9\n"
        assert reader.read() == b"v1\n"
    require_nothing_held(driver)
    store.close()


# -- found by thinking of, or by running, many programs at once


def test_a_file_that_was_renamed_over_a_list_since_deleted_writes_nothing(app: Driver) -> None:
    file = app.open(b"new", CREATE)
    file.write(b"v3\n")
    app.rename(b"new", TAGS)
    with pytest.raises(DirectoryNotEmpty):
        app.rmdir(BASE, "team", "app")
    app.unlink()
    app.rmdir(BASE, "team", "app")
    file.write(b"v4\n")
    file.close()
    assert app.listing(BASE, "team") == []
    app.make()


def test_a_file_that_was_renamed_over_a_list_and_is_closed_during_its_deletion_writes_nothing(app: Driver) -> None:
    later, line = delayed(app)
    file = app.open(b"new", CREATE)
    file.write(b"v3\n")
    app.rename(b"new", TAGS)
    later.unlink()
    file.write(b"v4\n")
    file._driver = later
    file.close()
    assert line.finish() == []
    assert not app.is_there()


def test_deleting_a_list_deletes_what_a_killed_daemon_had_hidden_of_it(app: Driver, store: Store) -> None:
    app.rename(TAGS, b"away")
    again = Driver(WritableTree(store, LIST_LIMIT))
    if isinstance(store, MemoryStore):
        store._namespaces["team"]["app"].current = store._namespaces["team"]["app"].hidden
    else:
        put(Path(os.readlink(f"/proc/self/fd/{store.root}")), KEY, b"v9\n")  # type: ignore[attr-defined]
    again.unlink()
    assert not again.is_there()
    app.unlink(b"away")


def test_deleting_the_copy_of_an_older_list_keeps_the_one_that_is_hidden_now(tmp_path: Path) -> None:
    store = directory_store(tmp_path)
    driver = Driver(WritableTree(store, LIST_LIMIT))
    driver.make()
    driver.write(b"v1\n")
    driver.rename(TAGS, b"one")
    put(tmp_path, KEY, b"v2\n")  # by another program, so that nobody here has committed it
    driver.rename(TAGS, b"two")
    driver.unlink(b"one")
    assert Driver(WritableTree(store, LIST_LIMIT)).read() == b"v2\n"
    store.close()


def test_a_list_whose_time_was_set_can_be_written_while_it_is_read(app: Driver) -> None:
    with app.open() as reader:
        app.set_mtime(5_000_000_000)
        with app.open(flags=BOTH) as file:
            file.write(b"v9\n", 3)
        assert app.read() == b"v1\nv9\n"
        assert reader.read() == b"v1\nv2\n"


def test_what_was_staged_in_a_store_that_is_gone_is_not_committed_to_its_successor(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with no_descriptor_left():
        first, second = directory_store(tmp_path / "one"), directory_store(tmp_path / "two")
        driver = Driver(WritableTree(first, LIST_LIMIT))
        driver.make()
        driver.write(b"v1\n")
        second.replace(KEY, b"v2\n")
        file, appender = driver.open(flags=REPLACE), driver.open(flags=APPEND)
        file.write(b"v3\n")
        file.flush()
        appender.write(b"v4\n")
        driver.tree.everything()
        driver.tree.store = second
        first.close()
        with pytest.raises(FileNotFoundError):
            file.commit()
        assert driver.read() == b"v2\n"
        appender.close()
        assert driver.read() == b"v2\nv4\n"
        file.release()
        require_nothing_held(driver)
        second.close()
