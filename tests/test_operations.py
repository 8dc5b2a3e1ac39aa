"""The adapter by direct calls: errnos, who waits for what, and what is answered meanwhile."""

import errno
import inspect
import logging
import os
import re
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio
from pyfuse3 import EntryAttributes, FUSEError
from trio.testing import wait_all_tasks_blocked

from tagfs import errors
from tagfs.commits import MOST_WAITING, Commits
from tagfs.errnos import ERRNOS, PASSED_ON, REPEAT_AFTER, Complaints, errno_of
from tagfs.handles import HEAVY
from tagfs.inodes import ROOT_ID
from tagfs.memory import MemoryStore
from tagfs.names import BASE, RepositoryKey
from tagfs.operations import Operations, answered
from tagfs.replacing import WritableTree
from tagfs.store import Stage, Version
from tagfs.tree import Tree
from tagfs.view import FOREVER, View
from tests.support.stores import unready_at

KEY = RepositoryKey("team", "app")
OTHER = RepositoryKey("team", "web")
LIMIT = 8 << 20
CTX: Any = SimpleNamespace(pid=100, uid=0, gid=0, umask=0o22)
TAGS = b"tags.txt"
CREATE = os.O_WRONLY | os.O_CREAT
APPEND = os.O_WRONLY | os.O_APPEND
REPLACE = os.O_WRONLY | os.O_TRUNC


class Gated(MemoryStore):
    """Publishing and staging wait for their gates, and say what they did."""

    def __init__(self) -> None:
        super().__init__(LIMIT)
        self.publishing, self.staging = threading.Event(), threading.Event()
        self.publishing.set()
        self.staging.set()
        self.told: list[str] = []
        self.error: Exception | None = None

    def stage(self, key: RepositoryKey, plain: bytes) -> Stage:
        self.told.append(f"stage {len(plain)}")
        assert self.staging.wait(timeout=60)
        return super().stage(key, plain)

    def publish(self, stage: Stage, mtime_ns: int | None = None) -> Version:
        self.told.append(f"publish {stage.size}")
        assert self.publishing.wait(timeout=60)
        if self.error is not None:
            error, self.error = self.error, None
            self.discard(stage)
            raise error
        return super().publish(stage, mtime_ns)


class Asked:
    """Operations on a store, asked by names."""

    def __init__(self, nursery: trio.Nursery, is_writable: bool = True, view: View | None = None) -> None:
        self.store = Gated()
        self.store.make_namespace("team")
        self.store.make_repository(KEY)
        self.store.make_repository(OTHER)
        self.commits = Commits(nursery)
        self.operations = Operations(7, 8, self.commits, is_writable)
        self.tree: Tree = WritableTree(self.store, LIMIT, view) if is_writable else Tree(self.store, view)

    def show(self) -> None:
        self.operations.tree = self.tree
        self.operations.waiting = None

    async def directory(self, key: RepositoryKey = KEY) -> int:
        node = ROOT_ID
        for name in (BASE, key.namespace, key.name):
            node = (await self.operations.lookup(node, name.encode(), CTX)).st_ino
        return node

    async def lookup(self, name: bytes = TAGS, key: RepositoryKey = KEY) -> EntryAttributes:
        return await self.operations.lookup(await self.directory(key), name, CTX)

    async def create(self, name: bytes = TAGS, key: RepositoryKey = KEY, flags: int = CREATE) -> int:
        opened, _ = await self.operations.create(await self.directory(key), name, 0o644, flags, CTX)
        return opened.fh

    async def open(self, flags: int, name: bytes = TAGS, key: RepositoryKey = KEY) -> int:
        return (await self.operations.open((await self.lookup(name, key)).st_ino, flags, CTX)).fh

    async def put(self, plain: bytes, name: bytes = TAGS, key: RepositoryKey = KEY) -> None:
        handle = await self.create(name, key, CREATE | os.O_TRUNC)
        await self.operations.write(handle, 0, plain)
        await self.operations.flush(handle)
        await self.operations.release(handle)

    async def content(self, key: RepositoryKey = KEY) -> bytes:
        handle = await self.open(os.O_RDONLY, key=key)
        content = await self.operations.read(handle, 0, LIMIT)
        await self.operations.release(handle)
        return content


@pytest.fixture
async def asked(nursery: trio.Nursery) -> AsyncIterator[Asked]:
    one = Asked(nursery)
    one.show()
    yield one
    one.store.publishing.set()
    one.store.staging.set()
    await one.commits.drain()


@pytest.fixture
async def reading(nursery: trio.Nursery) -> Asked:
    one = Asked(nursery, is_writable=False, view=View(None, lambda path, above=None: True))
    one.store.replace(KEY, b"v1\nv2\n")
    one.show()
    return one


async def refused(answer: Awaitable[object]) -> int:
    with pytest.raises(FUSEError) as refusal:
        await answer
    return refusal.value.errno


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.to_thread.run_sync(lambda: None)


# -- the table of errnos

# The modules whose errors a request can meet.
BELOW = ["codec", "taglist", "names", "disk", "sentinel", "store", "memory", "variants", "staging", "directory"]
BELOW += ["inodes", "handles", "tree", "writing"]


def kinds(above: type[errors.TagfsError]) -> set[type[errors.TagfsError]]:
    return {above}.union(*(kinds(kind) for kind in above.__subclasses__()))


def test_every_error_that_a_request_can_meet_has_an_errno() -> None:
    texts = [Path(errors.__file__).with_name(f"{module}.py").read_text() for module in BELOW]
    met = {kind for kind in kinds(errors.TagfsError) if any(re.search(rf"\b{kind.__name__}\(", text) for text in texts)}
    assert len(met) > 10
    assert met - set(ERRNOS) == set()


def make(kind: type[Exception]) -> Exception:
    count = len(inspect.signature(kind).parameters) if kind.__init__ is not Exception.__init__ else 1
    arguments: list[Any] = ["x"] * count
    if kind is errors.TagListInvalid:
        arguments = [1, "x"]
    return kind(*arguments)


@pytest.mark.parametrize("kind", list(ERRNOS))
async def test_an_error_is_answered_by_the_table(kind: type[errors.TagfsError]) -> None:
    @answered
    async def handler() -> None:
        raise make(kind)

    assert await refused(handler()) == ERRNOS[kind]


async def test_an_error_below_another_is_answered_as_that() -> None:
    class Nearer(errors.ListMissing):
        pass

    assert errno_of(Nearer("x")) == errno.ENOENT
    assert errno_of(errors.TagfsError("x")) == errno.EIO


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.EIO, errno.EACCES])
async def test_what_the_disk_says_is_passed_on_where_it_means_the_same(number: int) -> None:
    expected = number if number in PASSED_ON else errno.EIO
    assert errno_of(OSError(number, os.strerror(number))) == expected


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR, errno.EAGAIN, errno.ENOSYS, errno.EINVAL])
async def test_an_errno_of_the_disk_that_would_mislead_is_eio(number: int) -> None:
    assert errno_of(OSError(number, os.strerror(number))) == errno.EIO


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), OSError("without a number"), AssertionError(), KeyError(3)])
async def test_an_unknown_exception_is_eio_and_logged_once(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    @answered
    async def handler() -> None:
        raise error

    assert await refused(handler()) == errno.EIO
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None and record.exc_info[1] is error


async def test_an_answer_that_is_an_errno_already_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    @answered
    async def handler() -> None:
        raise FUSEError(errno.EOPNOTSUPP)

    assert await refused(handler()) == errno.EOPNOTSUPP
    assert caplog.records == []


def test_the_same_complaint_is_logged_once_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now = 1000.0
    complaints = Complaints(lambda: now)
    complaints.say("one")
    complaints.say("one")
    complaints.say("two")
    now += REPEAT_AFTER - 0.1
    complaints.say("one")
    now += 0.2
    complaints.say("one")
    assert [record.getMessage() for record in caplog.records] == ["one", "two", "one"]


def test_complaints_do_not_pile_up() -> None:
    complaints = Complaints(lambda: 0.0)
    for number in range(3 * Complaints._KEPT):
        complaints.say(str(number))
    assert len(complaints._said) <= Complaints._KEPT


async def test_a_corrupt_list_and_a_failing_disk_are_complained_of(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        errno_of(errors.ListCorrupt("team/corrupt", "is torn"))
        errno_of(OSError(errno.EIO, "a disk of this test"))
        errno_of(errors.ListMissing("not worth a word"))
    assert [record.getMessage() for record in caplog.records] == [
        "team/corrupt: is torn",
        "the disk failed: [Errno 5] a disk of this test",
    ]


# -- a store that is not ready


async def test_before_the_store_is_ready_the_mount_point_is_there_and_all_else_waits(nursery: trio.Nursery) -> None:
    operations = Asked(nursery).operations
    attributes = await operations.getattr(ROOT_ID, CTX)
    assert (attributes.st_mode, attributes.st_uid, attributes.st_gid) == (stat.S_IFDIR | 0o755, 7, 8)
    assert await refused(operations.lookup(ROOT_ID, BASE.encode(), CTX)) == errno.EAGAIN
    assert await refused(operations.opendir(ROOT_ID, CTX)) == errno.EAGAIN
    assert await refused(operations.mkdir(ROOT_ID, b"x", 0o755, CTX)) == errno.EAGAIN
    assert await refused(operations.getattr(5, CTX)) == errno.ESTALE
    assert (await operations.statfs(CTX)).f_bsize == 4096
    await operations.forget([(5, 1)])


@pytest.mark.parametrize("is_writable", [False, True])
async def test_what_is_open_is_served_while_the_store_is_not_ready(nursery: trio.Nursery, is_writable: bool) -> None:
    asked = Asked(nursery, is_writable)
    asked.store.replace(KEY, b"v1\n")
    asked.show()
    operations = asked.operations
    handle = await asked.open(os.O_RDONLY)
    node = (await asked.lookup()).st_ino
    directory = await asked.directory()
    operations.waiting = "it was wiped"
    assert await operations.read(handle, 0, 100) == b"v1\n"
    assert (await operations.getattr(node, CTX)).st_size == 3
    await operations.release(handle)
    for answer in (
        operations.lookup(directory, TAGS, CTX),
        operations.open(node, os.O_RDONLY, CTX),
        operations.opendir(directory, CTX),
        operations.unlink(directory, TAGS, CTX),
        operations.rename(directory, TAGS, directory, b"x", 0, CTX),
        operations.create(directory, b"x", 0o644, CREATE, CTX),
        operations.rmdir(directory, b"x", CTX),
    ):
        assert await refused(answer) == errno.EAGAIN


# -- a read-only mount


async def test_a_read_only_mount_answers_and_caches(reading: Asked) -> None:
    entry = await reading.lookup()
    assert (entry.st_mode, entry.st_size, entry.st_uid, entry.st_gid) == (stat.S_IFREG | 0o444, 6, 7, 8)
    assert (entry.entry_timeout, entry.attr_timeout) == (FOREVER, FOREVER)
    opened = await reading.operations.open(entry.st_ino, os.O_RDONLY, CTX)
    assert (opened.direct_io, opened.keep_cache) == (False, True)
    assert await reading.operations.read(opened.fh, 3, 2) == b"v2"
    await reading.operations.fsync(opened.fh, False)
    await reading.operations.release(opened.fh)
    absent = await reading.lookup(b"x")
    assert (absent.st_ino, absent.entry_timeout) == (0, FOREVER)


async def test_a_read_only_mount_changes_nothing(reading: Asked) -> None:
    operations, directory = reading.operations, await reading.directory()
    node = (await reading.lookup()).st_ino
    fields: Any = SimpleNamespace(update_size=True, update_mtime=False)
    for answer in (
        operations.create(directory, b"x", 0o644, CREATE, CTX),
        operations.mkdir(directory, b"x", 0o755, CTX),
        operations.rmdir(directory, b"x", CTX),
        operations.unlink(directory, TAGS, CTX),
        operations.rename(directory, TAGS, directory, b"x", 0, CTX),
        operations.setattr(node, EntryAttributes(), fields, None, CTX),
    ):
        assert await refused(answer) == errno.EROFS


async def test_a_read_only_mount_lets_the_kernel_stop_asking(reading: Asked) -> None:
    operations, node = reading.operations, (await reading.lookup()).st_ino
    handle = await reading.open(os.O_RDONLY)
    assert await refused(operations.flush(handle)) == errno.ENOSYS
    assert await refused(operations.getxattr(node, b"user.tagfs.count", CTX)) == errno.ENOSYS
    assert await refused(operations.listxattr(node, CTX)) == errno.ENOSYS


class Coming(Gated):
    """A list comes into being right after it was looked for."""

    def examine(self, key: RepositoryKey, known: Version | None = None) -> Version:
        try:
            return super().examine(key, known)
        except errors.ListMissing:
            self.replace(key, b"v1\n")
            raise


async def test_that_a_list_is_not_there_is_watched_before_it_is_looked_for(nursery: trio.Nursery) -> None:
    watched: set[tuple[str, ...]] = set()
    asked = Asked(nursery, is_writable=False)
    store = Coming()
    asked.store = store
    asked.tree = Tree(store, View(None, lambda path, above=None: _watch(store, watched, path)))
    store.make_namespace("team")
    store.make_repository(KEY)
    asked.show()
    entry = await asked.lookup()
    assert entry.st_ino == 0
    assert entry.entry_timeout == FOREVER
    assert ("team", "app") in watched


def _watch(store: MemoryStore, watched: set[tuple[str, ...]], path: tuple[str, ...]) -> bool:
    """Only what is not there yet is told of later."""
    if len(path) == 2 and path not in watched:
        with pytest.raises(errors.ListMissing):
            store._current(RepositoryKey(*path))
    watched.add(path)
    return True


# -- a read-write mount


async def test_a_list_is_written_and_read_back(asked: Asked) -> None:
    await asked.put(b"v1\nv2\n")
    entry = await asked.lookup()
    assert (entry.st_mode, entry.st_size, entry.entry_timeout) == (stat.S_IFREG | 0o644, 6, 0)
    opened = await asked.operations.open(entry.st_ino, os.O_RDONLY, CTX)
    assert (opened.direct_io, opened.keep_cache) == (True, False)
    assert await asked.content() == b"v1\nv2\n"


async def test_release_is_answered_before_its_commit_and_a_lookup_waits_for_it(asked: Asked) -> None:
    await asked.put(b"v1\n")
    await asked.commits.drain()
    asked.store.publishing.clear()
    await asked.put(b"v2\nv3\n")  # answered
    assert asked.commits.depth == 1
    await asked.operations.lookup(await asked.directory(OTHER), b"x", CTX)  # others go on
    sizes: list[int] = []

    async def look() -> None:
        sizes.append((await asked.lookup()).st_size)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await until(lambda: "publish 6" in asked.store.told)
        await wait_all_tasks_blocked()
        assert sizes == []
        asked.store.publishing.set()
    assert sizes == [6]


@pytest.mark.parametrize("what", ["open", "getattr", "rename", "unlink", "rmdir", "setattr", "getxattr", "create"])
async def test_whatever_names_a_list_waits_for_its_commit(asked: Asked, what: str) -> None:
    await asked.put(b"v1\n")
    node, directory = (await asked.lookup()).st_ino, await asked.directory()
    above = (await asked.operations.lookup(ROOT_ID, BASE.encode(), CTX)).st_ino
    above = (await asked.operations.lookup(above, b"team", CTX)).st_ino
    asked.store.publishing.clear()
    await asked.put(b"v2\nv3\n")
    operations = asked.operations
    fields: Any = SimpleNamespace(update_size=False, update_mtime=False)
    answers: dict[str, Callable[[], Awaitable[object]]] = {
        "open": lambda: operations.open(node, os.O_RDONLY, CTX),
        "getattr": lambda: operations.getattr(node, CTX),
        "rename": lambda: operations.rename(directory, TAGS, directory, b"away", 0, CTX),
        "unlink": lambda: operations.unlink(directory, TAGS, CTX),
        "rmdir": lambda: operations.rmdir(above, b"app", CTX),
        "setattr": lambda: operations.setattr(node, EntryAttributes(), fields, None, CTX),
        "getxattr": lambda: operations.getxattr(node, b"user.tagfs.count", CTX),
        "create": lambda: operations.create(directory, b"x", 0o644, CREATE, CTX),
    }
    # Of the version that was looked up before there is nothing left to open: the kernel looks it up again.
    refusals = {"rmdir": errno.ENOTEMPTY, "open": errno.ESTALE, "getxattr": errno.ESTALE}
    answered_now: list[str] = []

    async def ask() -> None:
        if what in refusals:
            assert await refused(answers[what]()) == refusals[what]
        else:
            await answers[what]()
        answered_now.append(what)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert answered_now == []
        asked.store.publishing.set()
    assert answered_now == [what]


async def test_two_releases_are_committed_in_their_order(asked: Asked) -> None:
    handles = [await asked.create(), await asked.create()]
    for number, handle in enumerate(handles):
        await asked.operations.write(handle, 0, b"v%d\n" % number)
        await asked.operations.flush(handle)
    asked.store.publishing.clear()
    for handle in handles:
        await asked.operations.release(handle)
    assert asked.commits.depth == 2
    asked.store.publishing.set()
    assert await asked.content() == b"v1\n"


async def test_a_commit_that_fails_after_its_release_is_logged(asked: Asked, caplog: pytest.LogCaptureFixture) -> None:
    await asked.put(b"v1\n")
    await asked.commits.drain()
    asked.store.error = OSError(errno.ENOSPC, "No space left on device")
    await asked.put(b"v2\n")
    assert await asked.content() == b"v1\n"
    (record,) = caplog.records
    assert "not committed after it was closed" in record.getMessage()


async def test_a_close_waits_while_too_many_commits_do(asked: Asked) -> None:
    asked.store.publishing.clear()
    for number in range(MOST_WAITING):
        key = RepositoryKey("team", f"a{number}")
        asked.store.make_repository(key)
        await asked.put(b"v1\n", key=key)
    assert asked.commits.depth == MOST_WAITING
    closed: list[bool] = []

    async def close() -> None:
        await asked.put(b"v1\n")
        closed.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        await wait_all_tasks_blocked()
        assert closed == []
        asked.store.publishing.set()
    assert closed == [True]
    assert await asked.content() == b"v1\n"


async def test_fsync_answers_when_it_is_durable_and_raises_what_failed(asked: Asked) -> None:
    handle = await asked.create()
    await asked.operations.write(handle, 0, b"v1\n")
    asked.store.error = OSError(errno.ENOSPC, "No space left on device")
    assert await refused(asked.operations.fsync(handle, False)) == errno.ENOSPC
    await asked.operations.fsync(handle, False)
    assert asked.store.read(KEY) == b"v1\n"
    await asked.operations.release(handle)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_second_fsync_of_a_handle_waits_for_the_first(asked: Asked, fails: bool) -> None:
    handle = await asked.create()
    await asked.operations.write(handle, 0, b"v1\n")
    asked.store.publishing.clear()
    if fails:
        asked.store.error = OSError(errno.ENOSPC, "No space left on device")
    told: list[str] = []

    async def synchronise(name: str) -> None:
        try:
            await asked.operations.fsync(handle, False)
        except FUSEError as error:
            told.append(f"{name} {errno.errorcode[error.errno]}")
        else:
            assert asked.store.read(KEY) == b"v1\n"
            told.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(synchronise, "first")
        await until(lambda: "publish 3" in asked.store.told)
        nursery.start_soon(synchronise, "second")
        await wait_all_tasks_blocked()
        assert told == []
        asked.store.publishing.set()
    assert sorted(told) == (["first ENOSPC", "second"] if fails else ["first", "second"])
    await asked.operations.release(handle)


async def test_many_fsyncs_of_a_handle_are_answered_when_its_list_is_durable(asked: Asked) -> None:
    """The list is staged beside the loop: whoever goes on first commits it, and the others wait for that."""
    told: list[int] = []

    async def synchronise(handle: int) -> None:
        await asked.operations.fsync(handle, False)
        told.append(handle)

    for number in range(20):
        heavy = b"v%d\n" % number * (HEAVY // 3 + 1)
        handle = await asked.create()
        await asked.operations.write(handle, 0, heavy)
        asked.store.staging.clear()
        asked.store.publishing.clear()
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(synchronise, handle)
            await wait_all_tasks_blocked()
            asked.store.staging.set()
            await until(lambda: any(told.startswith("publish") for told in asked.store.told))
            await wait_all_tasks_blocked()
            assert told == []
            asked.store.publishing.set()
        assert told == [handle] * 6
        assert asked.store.read(KEY) == heavy
        told.clear()
        asked.store.told.clear()
        await asked.operations.release(handle)


async def test_heavy_lists_are_staged_beside_the_loop_and_in_order(asked: Asked) -> None:
    """Two flushes of one open file, as two processes close their copies of it."""
    heavy = b"v1.2.3\n" * (HEAVY // 7 + 1)
    handle = await asked.create()
    await asked.operations.write(handle, 0, heavy)
    asked.store.staging.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asked.operations.flush, handle)
        await until(lambda: len(asked.store.told) == 1)
        assert await asked.operations.write(handle, len(heavy), b"v9\n") == 3  # goes on meanwhile
        nursery.start_soon(asked.operations.flush, handle)
        await wait_all_tasks_blocked()
        assert asked.store.told == [f"stage {len(heavy)}"]
        asked.store.staging.set()
    await asked.operations.release(handle)
    assert await asked.content() == heavy + b"v9\n"


async def test_a_heavy_list_is_judged_beside_the_loop(asked: Asked, caplog: pytest.LogCaptureFixture) -> None:
    await asked.put(b"old\n")
    heavy = b"v1.2.3\n" * (HEAVY // 7 + 1)
    handle = await asked.open(os.O_WRONLY | os.O_TRUNC)
    await asked.operations.write(handle, 0, heavy)
    await asked.operations.write(handle, len(heavy), b"unfinished")
    assert await refused(asked.operations.flush(handle)) == errno.EINVAL
    await asked.operations.write(handle, len(heavy) + len(b"unfinished"), b"\n")
    await asked.operations.flush(handle)
    await asked.operations.release(handle)
    assert await asked.content() == heavy + b"unfinished\n"
    assert caplog.text == ""

    scratch = await asked.create(b"new")
    await asked.operations.write(scratch, 0, heavy + b"not a tag\n")
    directory = await asked.directory()
    assert await refused(asked.operations.rename(directory, b"new", directory, TAGS, 0, CTX)) == errno.EINVAL
    assert f"rename to tags.txt refused: line {len(heavy) // 7 + 1}: " in caplog.text
    assert await asked.content() == heavy + b"unfinished\n"
    await asked.operations.write(scratch, len(heavy), b"not-a-tag\n")
    await asked.operations.rename(directory, b"new", directory, TAGS, 0, CTX)
    await asked.operations.release(scratch)
    assert await asked.content() == heavy + b"not-a-tag\n"
    caplog.clear()


async def test_a_light_flush_comes_after_a_heavy_one_that_is_under_way(asked: Asked) -> None:
    heavy = b"v1.2.3\n" * (HEAVY // 7 + 1)
    handle = await asked.create()
    await asked.operations.write(handle, 0, heavy)
    asked.store.staging.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asked.operations.flush, handle)
        await until(lambda: len(asked.store.told) == 1)
        assert isinstance(asked.tree, WritableTree)
        assert asked.tree.truncate(1, 7, handle) is None
        nursery.start_soon(asked.operations.flush, handle)
        await wait_all_tasks_blocked()
        asked.store.staging.set()
    await asked.operations.release(handle)
    assert await asked.content() == b"v1.2.3\n"


async def test_what_cannot_be_a_list_is_einval_at_the_write_and_at_the_close(asked: Asked) -> None:
    handle = await asked.create()
    assert await refused(asked.operations.write(handle, 0, b"\0")) == errno.EINVAL
    assert await refused(asked.operations.flush(handle)) == errno.EINVAL
    await asked.operations.release(handle)
    entry = await asked.lookup()
    assert entry.st_ino == 0 and entry.entry_timeout == 0


async def test_a_stage_that_fails_is_the_error_of_the_close(asked: Asked) -> None:
    handle = await asked.create()
    await asked.operations.write(handle, 0, b"v1\n")

    def full(key: RepositoryKey, plain: bytes) -> Stage:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    asked.store.stage = full  # type: ignore[method-assign]
    assert await refused(asked.operations.flush(handle)) == errno.EDQUOT
    await asked.operations.release(handle)
    assert (await asked.lookup()).st_ino == 0


async def test_the_size_and_the_time_of_a_list_are_set(asked: Asked) -> None:
    await asked.put(b"v1\nv2\n")
    node = (await asked.lookup()).st_ino
    wanted = EntryAttributes()
    wanted.st_size, wanted.st_mtime_ns = 3, 5_000_000_000
    size: Any = SimpleNamespace(update_size=True, update_mtime=False)
    mtime: Any = SimpleNamespace(update_size=False, update_mtime=True)
    await asked.operations.setattr(node, wanted, size, None, CTX)
    assert await asked.content() == b"v1\n"
    node = (await asked.lookup()).st_ino
    assert (await asked.operations.setattr(node, wanted, mtime, None, CTX)).st_mtime_ns == 5_000_000_000
    assert (await asked.lookup()).st_mtime_ns == 5_000_000_000
    nothing: Any = SimpleNamespace(update_size=False, update_mtime=False)
    assert stat.S_ISDIR((await asked.operations.setattr(ROOT_ID, wanted, nothing, None, CTX)).st_mode)


async def test_extended_attributes_are_those_of_lists(asked: Asked) -> None:
    await asked.put(b"v1\nv2\n")
    node, operations = (await asked.lookup()).st_ino, asked.operations
    assert await operations.getxattr(node, b"user.tagfs.count", CTX) == b"2"
    assert b"user.tagfs.revision" in await operations.listxattr(node, CTX)
    for name in (b"user.tagfs.other", b"user.other", b"security.capability"):
        assert await refused(operations.getxattr(node, name, CTX)) == pyfuse3.ENOATTR
    assert await refused(operations.getxattr(ROOT_ID, b"user.tagfs.count", CTX)) == pyfuse3.ENOATTR
    assert await operations.listxattr(ROOT_ID, CTX) == []
    assert await refused(operations.setxattr(node, b"user.x", b"", CTX)) == errno.EOPNOTSUPP
    assert await refused(operations.removexattr(node, b"user.x", CTX)) == errno.EOPNOTSUPP


async def test_links_and_devices_are_not_permitted(asked: Asked) -> None:
    operations, directory = asked.operations, await asked.directory()
    assert await refused(operations.symlink(directory, b"x", b"y", CTX)) == errno.EPERM
    assert await refused(operations.link(directory, directory, b"x", CTX)) == errno.EPERM
    assert await refused(operations.mknod(directory, b"x", stat.S_IFIFO, 0, CTX)) == errno.EPERM


async def test_directories_are_made_and_removed(asked: Asked) -> None:
    operations = asked.operations
    base = (await operations.lookup(ROOT_ID, BASE.encode(), CTX)).st_ino
    made = await operations.mkdir(base, b"other", 0o700, CTX)
    assert made.st_mode == stat.S_IFDIR | 0o755
    assert await refused(operations.mkdir(base, b"other", 0o700, CTX)) == errno.EEXIST
    assert await refused(operations.mkdir(base, b"Other", 0o700, CTX)) == errno.EINVAL
    handle = await operations.opendir(base, CTX)
    await operations.fsyncdir(handle, False)
    await operations.releasedir(handle)
    await operations.rmdir(base, b"other", CTX)
    assert await refused(operations.rmdir(base, b"other", CTX)) == errno.ENOENT


async def test_a_listing_that_fails_gives_what_it_has_counted(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[bytes, tuple[int, int]] = {}

    def give(token: object, name: bytes, entry: EntryAttributes, following: int) -> bool:
        given[name] = entry.st_ino, following
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", give)  # the real one needs a request of libfuse's
    base = (await asked.operations.lookup(ROOT_ID, BASE.encode(), CTX)).st_ino
    team = (await asked.operations.lookup(base, b"team", CTX)).st_ino
    handle = await asked.operations.opendir(team, CTX)
    monkeypatch.setattr(asked.store, "directory_mtime_ns", unready_at("web"))
    token: Any = object()
    await asked.operations.readdir(handle, 0, token)
    ((node, following),) = given.values()
    with pytest.raises(FUSEError) as refused:
        await asked.operations.readdir(handle, following, token)
    assert refused.value.errno == errno.EAGAIN
    await asked.operations.forget([(node, 1)])
    with pytest.raises(errors.VersionGone):
        asked.tree.inodes.get(node)


async def test_a_deletion_waits_until_it_is_durable(asked: Asked) -> None:
    await asked.put(b"v1\n")
    await asked.operations.unlink(await asked.directory(), TAGS, CTX)
    assert (await asked.lookup()).st_ino == 0
    assert await refused(asked.operations.unlink(await asked.directory(), TAGS, CTX)) == errno.ENOENT


async def test_a_rename_answers_when_it_is_durable(asked: Asked) -> None:
    await asked.put(b"v1\n", b"new")
    asked.store.error = OSError(errno.EIO, "Input/output error")
    directory = await asked.directory()
    assert await refused(asked.operations.rename(directory, b"new", directory, TAGS, 0, CTX)) == errno.EIO
    await asked.operations.rename(directory, b"new", directory, TAGS, 0, CTX)
    assert await asked.content() == b"v1\n"


async def test_appends_that_meet_lose_nothing(asked: Asked) -> None:
    await asked.put(b"v0\n")

    async def append(number: int) -> None:
        handle = await asked.open(APPEND)
        await asked.operations.write(handle, 0, b"a%d\n" % number)
        await asked.operations.flush(handle)
        await asked.operations.release(handle)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(append, number)
    lines = (await asked.content()).splitlines()
    assert lines[0] == b"v0"
    assert sorted(lines[1:]) == sorted(b"a%d" % number for number in range(20))


async def test_replacements_that_meet_end_in_one_of_them_and_readers_see_only_whole_ones(asked: Asked) -> None:
    lists = [b"v%d\n" % number * 50 for number in range(10)]
    await asked.put(lists[0])

    async def replace(plain: bytes) -> None:
        await asked.put(plain)

    async def replace_by_rename(plain: bytes, name: bytes) -> None:
        await asked.put(plain, name)
        directory = await asked.directory()
        await asked.operations.rename(directory, name, directory, TAGS, 0, CTX)

    async def read() -> None:
        for _ in range(10):
            handle = await asked.open(os.O_RDONLY)
            parts = []
            for offset in range(0, 200, 50):
                parts.append(await asked.operations.read(handle, offset, 50))
                await trio.lowlevel.checkpoint()
            await asked.operations.release(handle)
            assert b"".join(parts) in lists

    async with trio.open_nursery() as nursery:
        for number, plain in enumerate(lists):
            nursery.start_soon(replace, plain)
            nursery.start_soon(replace_by_rename, plain, b"new%d" % number)
            nursery.start_soon(read)
    assert await asked.content() in lists


async def test_statfs_tells_of_the_store(asked: Asked) -> None:
    told = await asked.operations.statfs(CTX)
    assert (told.f_bsize, told.f_frsize, told.f_namemax) == (4096, 4096, 255)


async def test_the_stack_of_the_daemon_is_nobodys_business(asked: Asked) -> None:
    asked.operations.stacktrace()


async def test_a_handle_that_is_not_known_is_eio(asked: Asked, caplog: pytest.LogCaptureFixture) -> None:
    assert await refused(asked.operations.read(99, 0, 1)) == errno.EIO
    assert caplog.records[0].exc_info is not None


def test_every_handler_answers_every_error() -> None:
    """All that pyfuse3 can call is wrapped, but for what answers nothing."""
    for name, handler in vars(Operations).items():
        if inspect.iscoroutinefunction(handler) and not name.startswith("_") and name != "forget":
            assert hasattr(handler, "__wrapped__"), name
