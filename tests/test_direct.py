"""A mount's requests answered without libfuse: over a socket in place of the device, then by a real kernel."""

import errno
import logging
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from tagfs import mountpoint, wire
from tagfs.changes import Changes
from tagfs.direct import REST_AFTER, Direct
from tagfs.directory import DirectoryStore
from tagfs.errors import ListMissing, StoreWaiting
from tagfs.inodes import ROOT_ID
from tagfs.memory import MemoryStore
from tagfs.names import BASE, RepositoryKey
from tagfs.notifier import Notifier
from tagfs.settings import MountSettings
from tagfs.stateless import StatelessTree
from tagfs.timings import Timings
from tagfs.view import View
from tests.support import wire as kernel
from tests.support.asked import KEY, Asked, require_turns, serving
from tests.support.beneath import directory_store, no_descriptor_left, put
from tests.support.places import fast_directory
from tests.support.stores import unready_at

PLAIN = b"v1\nv2\n"
PINS = 16


class Reading(Asked[Direct]):
    """The channel of a read-only mount of a store with one list."""

    def __init__(self, is_ready: bool = True) -> None:
        super().__init__(Direct(7, 8))
        self.store = MemoryStore()
        self.store.replace(KEY, PLAIN)
        self.tree = StatelessTree(self.store, View(None, lambda path, above=None: True), PINS)
        if is_ready:
            self.show()

    def show(self) -> None:
        self.channel.tree = self.tree
        self.channel.waiting = None


@pytest.fixture
def asked() -> Iterator[Reading]:
    one = Reading()
    yield one
    one.close()


# -- answers


def test_a_list_is_looked_up_and_read(asked: Reading) -> None:
    entry = asked.lookup(BASE, "team", "app", "tags.txt")
    assert (entry.mode, entry.size, entry.kept) == (stat.S_IFREG | 0o444, len(PLAIN), 1_000_000_000)
    assert asked.ask(kernel.read(entry.node, 0, 4096)).body == PLAIN
    assert asked.ask(kernel.read(entry.node, 3, 2)).body == PLAIN[3:5]
    assert asked.ask(kernel.read(entry.node, 100, 2)).body == b""


def test_a_missing_name_may_be_kept_as_missing(asked: Reading) -> None:
    reply = asked.ask(kernel.lookup(asked.directory(), b"other"))
    assert (reply.number, struct.unpack_from("<QQQ", reply.body)) == (0, (0, 0, 1_000_000_000))


def test_a_listing_has_entries_and_ends(asked: Reading) -> None:
    found = kernel.records(asked.ask(kernel.readdirplus(ROOT_ID)).body)
    assert [(name, kind) for name, _, kind, _ in found] == [(b".storage-version", 8), (BASE.encode(), 4)]
    assert asked.ask(kernel.readdirplus(ROOT_ID, found[-1][1])).body == b""
    node = found[-1][3]
    assert node is not None
    ((name, _, kind, _),) = kernel.records(asked.ask(kernel.readdir(node.node)).body, False)
    assert (name, kind) == (b"team", 4)


def test_a_listing_goes_on_where_the_room_ended(asked: Reading) -> None:
    for number in range(50):
        asked.store.replace(RepositoryKey("team", f"app-{number:02}"), PLAIN)
    node = asked.lookup(BASE, "team").node
    names, position = [], 0
    while found := kernel.records(asked.ask(kernel.readdirplus(node, position, 1000)).body):
        assert len(found) <= 6
        names += [name for name, *_ in found]
        position = found[-1][1]
    assert names == [b"app", *(b"app-%02d" % number for number in range(50))]


def test_a_listing_that_fails_gives_what_it_has_counted(asked: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    asked.store.replace(RepositoryKey("team", "web"), PLAIN)
    team = asked.lookup(BASE, "team").node
    monkeypatch.setattr(asked.store, "directory_mtime_ns", unready_at("web"))
    ((name, position, _, entry),) = kernel.records(asked.ask(kernel.readdirplus(team)).body)
    assert name == b"app" and entry is not None
    assert asked.ask(kernel.readdirplus(team, position)).number == errno.EAGAIN
    asked.channel.answer(kernel.forget(entry.node, 1))
    assert asked.ask(kernel.getattr_(entry.node)).number == errno.ESTALE


@pytest.mark.parametrize("ask", [kernel.readdir, kernel.readdirplus])
def test_a_listing_goes_on_behind_any_number_of_names_that_went(asked: Reading, ask: Any) -> None:
    keys = [RepositoryKey("team", f"app-{number:02}") for number in range(50)]
    for key in keys:
        asked.store.replace(key, PLAIN)
    node = asked.lookup(BASE, "team").node
    position = kernel.records(asked.ask(ask(node, 0, 600)).body, ask is kernel.readdirplus)[-1][1]
    for key in keys[:-1]:
        asked.store.remove(key)
        asked.store.remove_repository(key)
    found = kernel.records(asked.ask(ask(node, position, 600)).body, ask is kernel.readdirplus)
    assert [name for name, *_ in found] == [b"app-49"]


def test_each_entry_is_one_reference_and_each_plain_name_none(asked: Reading) -> None:
    node = asked.lookup(BASE, "team").node
    before = len(asked.tree.inodes)
    asked.ask(kernel.readdir(node))
    assert len(asked.tree.inodes) == before
    ((_, _, _, entry),) = kernel.records(asked.ask(kernel.readdirplus(node)).body)
    assert entry is not None and len(asked.tree.inodes) == before + 1
    asked.channel.answer(kernel.forget(entry.node, 1))
    assert len(asked.tree.inodes) == before
    assert not asked.has_said_more()


def test_references_are_taken_back_without_an_answer(asked: Reading) -> None:
    ids = [asked.lookup(BASE).node, asked.lookup(BASE, "team").node]
    asked.channel.answer(kernel.batch_forget((ids[0], 2), (ids[1], 1)))
    assert not asked.has_said_more()
    assert asked.ask(kernel.getattr_(ids[1])).number == errno.ESTALE


@pytest.mark.parametrize("opcode", [14, 27, 25, 34, 22, 23, 36, 46, 39, 40, 52, 9999, 0xFFFFFFFF])
def test_what_the_kernel_can_do_without_it_is_told_so_once(asked: Reading, opcode: int) -> None:
    assert asked.ask(kernel.request(opcode)).number == errno.ENOSYS


@pytest.mark.parametrize("opcode", sorted(wire.CHANGING))
def test_every_change_is_refused(asked: Reading, opcode: int) -> None:
    assert asked.ask(kernel.request(opcode, 1, bytes(64))).number == errno.EROFS


def test_a_kernel_that_opens_all_the_same_is_answered(asked: Reading) -> None:
    assert asked.ask(kernel.init(flags=0)).number == 0
    for opcode in (14, 27):
        reply = asked.ask(kernel.request(opcode, 1, bytes(8)))
        assert (reply.number, struct.unpack("<QII", reply.body)) == (0, (0, 1 << 1 | 1 << 3, 0))
    for opcode in (18, 29):
        assert asked.ask(kernel.request(opcode, 1, bytes(24))).number == 0


def test_attributes_of_the_root_are_there_before_the_store(asked: Reading) -> None:
    waiting = Reading(is_ready=False)
    for one in (asked, waiting):
        reply = one.ask(kernel.getattr_(ROOT_ID))
        assert struct.unpack_from("<I", reply.body, 16 + 60) == (stat.S_IFDIR | 0o555,)
    waiting.close()


def test_while_the_store_is_not_ready_names_wait_and_what_is_open_is_read(asked: Reading) -> None:
    entry, directory = asked.lookup(BASE, "team", "app", "tags.txt"), asked.directory()
    asked.channel.waiting = "it is being wiped"
    for request in (
        kernel.lookup(ROOT_ID, BASE.encode()),
        kernel.readdirplus(ROOT_ID),
        kernel.getattr_(directory),
    ):
        assert asked.ask(request).number == errno.EAGAIN
    assert asked.ask(kernel.read(entry.node, 0, 4096)).body == PLAIN
    assert asked.ask(kernel.getattr_(entry.node)).number == 0
    assert asked.ask(kernel.request(17)).number == 0  # df


def test_nothing_is_there_before_the_store() -> None:
    one = Reading(is_ready=False)
    assert one.ask(kernel.lookup(ROOT_ID, BASE.encode())).number == errno.EAGAIN
    assert one.ask(kernel.read(5, 0, 10)).number == errno.ESTALE
    one.channel.answer(kernel.forget(5, 1))
    assert not one.has_said_more()
    one.close()


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (StoreWaiting("wiped"), errno.EAGAIN),
        (ListMissing("no list"), errno.ENOENT),
        (OSError(errno.EIO, "another disk of this test"), errno.EIO),
        (OSError(errno.EMFILE, "Too many open files"), errno.EMFILE),
        (ZeroDivisionError("a defect"), errno.EIO),
        (RecursionError("a defect"), errno.EIO),
    ],
)
def test_every_error_is_an_answer(
    asked: Reading, error: Exception, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(asked.tree, "read_node", fail)
    with caplog.at_level(logging.CRITICAL):
        assert asked.ask(kernel.read(1, 0, 10)).number == number


def test_requests_are_counted_by_name(asked: Reading) -> None:
    asked.lookup(BASE, "team")
    asked.ask(kernel.request(39))
    asked.ask(kernel.request(9999))
    asked.channel.answer(kernel.forget(99, 1))
    assert asked.channel.requests == {"lookup": 2, "forget": 1, "other": 2}


def test_requests_are_timed_where_that_is_asked_for(asked: Reading) -> None:
    timings = Timings()
    asked.channel.measure(timings)
    asked.lookup(BASE)
    asked.ask(kernel.read(99, 0, 10))
    assert {name: timing.results for name, timing in timings.seen().items()} == {
        "lookup": {0: 1},
        "read": {0: 0, errno.ESTALE: 1},
    }


# -- whatever comes


@given(st.binary(max_size=200))
def test_any_bytes_leave_it_answering(raw: bytes) -> None:
    one = Reading()
    logging.disable(logging.CRITICAL)
    try:
        one.channel.answer(raw)
        one.has_said_more()
        assert one.lookup(BASE).mode == stat.S_IFDIR | 0o555
    finally:
        logging.disable(logging.NOTSET)
        one.close()


@given(st.integers(0, 60), st.integers(0, 70), st.binary(max_size=100))
@example(42, 0, b"\0\0\0\1\0\0\0\0")
@example(2, 1, b"")
def test_any_body_of_any_request_has_one_answer_but_of_a_forget(opcode: int, node: int, body: bytes) -> None:
    one = Reading()
    logging.disable(logging.CRITICAL)
    try:
        if opcode in (2, 42):
            one.channel.answer(kernel.request(opcode, node, body))
            assert not one.has_said_more()
        else:
            one.ask(kernel.request(opcode, node, body))
        assert one.lookup(BASE).mode == stat.S_IFDIR | 0o555
    finally:
        logging.disable(logging.NOTSET)
        one.close()


# -- the loop


async def test_requests_are_answered_in_their_order(asked: Reading) -> None:
    async with serving(asked):
        for unique in range(2, 200, 2):
            asked.kernel.send(kernel.request(17, unique=unique))
            if unique % 3 == 0:
                await trio.lowlevel.checkpoint()
        for unique in range(2, 200, 2):
            assert (await asked.answer()).unique == unique


async def test_other_tasks_have_their_turn_beside_any_number_of_requests(asked: Reading) -> None:
    await require_turns(asked)


async def test_what_is_attended_has_its_turn_beside_any_number_of_requests(asked: Reading) -> None:
    """Without a turn of any other task: what would wake them is not looked at before."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.setblocking(False)
    seen: list[bytes] = []

    def look() -> bool:
        try:
            seen.append(here.recv(100))
        except BlockingIOError:
            seen.append(b"")
        return seen[-1] != b"the last"

    async with serving(asked):
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(asked.channel.attend, here.fileno(), look)
                await trio.testing.wait_all_tasks_blocked()
                assert seen == [b""]  # at once: what was there before is no news to the descriptor
                there.send(b"one")
                asked.kernel.send(kernel.request(17))
                await asked.answer()
                there.send(b"the last")
            there.send(b"after it")
            asked.kernel.send(kernel.request(17))
            await asked.answer()
    assert seen == [b"", b"one", b"the last"]
    here.close()
    there.close()


async def test_what_nobody_attends_any_more_is_left_alone(asked: Reading) -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    async with serving(asked):
        with trio.move_on_after(0.01) as scope:
            await asked.channel.attend(here.fileno(), lambda: True)
        assert scope.cancelled_caught
        there.send(b"one")
        asked.kernel.send(kernel.request(17))
        await asked.answer()
        await asked.channel.attend(here.fileno(), lambda: False)  # and it may be attended again
    assert here.recv(100) == b"one"
    here.close()
    there.close()


async def test_what_is_kept_for_the_next_request_goes_where_none_comes(
    asked: Reading, mock_clock: trio.testing.MockClock
) -> None:
    node = asked.lookup(BASE, "team", "app", "tags.txt").node
    async with serving(asked):
        for _ in range(2):
            asked.kernel.send(kernel.read(node, 0, 2))
            await asked.answer()
            for is_kept in (True, False):
                assert (asked.tree._parts.get(node) is not None) == is_kept
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(REST_AFTER)
                await trio.testing.wait_all_tasks_blocked()


async def test_it_ends_with_the_device(asked: Reading) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asked.channel.serve)
            await trio.testing.wait_all_tasks_blocked()
            asked.kernel.close()


async def test_it_ends_with_a_device_that_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    channel = Direct(0, 0)
    channel.take(socket.socket().detach())
    with trio.fail_after(10):
        await channel.serve()
    channel.close()
    assert [record.getMessage() for record in caplog.records] == [
        "reading a request: [Errno 107] Transport endpoint is not connected"
    ]


def test_a_listing_is_answered_in_pieces_however_much_room_there_is(asked: Reading) -> None:
    for number in range(1000):
        asked.store.replace(RepositoryKey("team", f"app-{number:03}"), PLAIN)
    found = kernel.records(asked.ask(kernel.readdirplus(asked.lookup(BASE, "team").node, size=1 << 20)).body)
    assert 200 < len(found) < 500


# -- by a real kernel


class Mounted:
    """A read-only mount within this process, whose requests are counted; the kernel is told of changes."""

    def __init__(self, path: Path) -> None:
        self.point = path / "mount"
        self.beneath = path / "store"
        self.point.mkdir()
        self.beneath.mkdir()
        self.store: DirectoryStore = directory_store(self.beneath)
        self.channel = Direct(0, 0)
        self.changes = Changes(self.store.opened, self.store.root)
        self.notifier = Notifier(self.channel.forget_entry, self.channel.forget_node)
        self.tree = StatelessTree(self.store, View(None), PINS)
        self.tree.watch(self.changes.cover, self.changes.has_news)

    def list_path(self, name: str) -> Path:
        return self.point / BASE / "team" / name / "tags.txt"

    async def program(self, *command: str) -> str:
        done = await trio.run_process([*command, str(self.point)], capture_stdout=True, check=False)
        return done.stdout.decode()

    async def watch(self) -> None:
        def look() -> bool:
            for change in self.changes.read():
                if change.path is not None:
                    self.notifier.send(self.tree.changed(change.path, change.name))
            return True

        await self.channel.attend(self.changes.descriptor, look)


@pytest.fixture
def mounted() -> Iterator[Mounted]:
    if os.geteuid() != 0:
        pytest.skip("to mount takes root")
    with fast_directory() as path, no_descriptor_left():
        one = Mounted(path)
        yield one
        one.store.close()


@asynccontextmanager
async def shown(one: Mounted) -> AsyncIterator[None]:
    one.channel.mount(MountSettings(str(one.beneath), str(one.point), read_only=True))
    one.channel.tree, one.channel.waiting = one.tree, None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.channel.serve)
            nursery.start_soon(one.watch)
            try:
                yield
            finally:
                await one.notifier.close()
                await trio.to_thread.run_sync(mountpoint.unmount, str(one.point), True)
            nursery.cancel_scope.cancel()
    finally:
        one.changes.close()
        one.channel.close()


PROGRAMS = [
    ("grep", "-rc", "v1"),
    ("find",),
    ("ls", "-lR"),
    ("du", "-a"),
    ("sh", "-c", 'cat "$0"/*/*/*/tags.txt'),
    ("tar", "cf", "-"),
]


@pytest.mark.mount
@pytest.mark.parametrize("command", PROGRAMS, ids=[command[0] for command in PROGRAMS])
async def test_what_programs_repeat_reaches_nobody(mounted: Mounted, command: tuple[str, ...]) -> None:
    for number in range(40):
        mounted.store.replace(RepositoryKey("team", f"app-{number}"), b"v%d\n" % number * (1 + 50 * (number % 3)))
    async with shown(mounted):
        first = await mounted.program(*command)
        counted = mounted.channel.requests
        second = await mounted.program(*command)
        assert mounted.channel.requests == counted
    assert first == second != ""
    assert "lookup" not in counted or command[0] in ("sh", "tar", "du"), "each name came with its listing"
    assert {counted.get(name, 0) for name in ("open", "opendir")} <= {0, 1}


@pytest.mark.mount
async def test_a_search_asks_three_times_for_each_list(mounted: Mounted) -> None:
    for number in range(100):
        mounted.store.replace(RepositoryKey("team", f"app-{number}"), b"v1\n")
    async with shown(mounted):
        await mounted.program("grep", "-rc", "v1")
        requests = mounted.channel.requests
    assert requests["read"] <= 101
    assert requests["readdirplus"] <= 200 + 20
    assert sum(requests.values()) <= 330


@pytest.mark.mount
async def test_a_change_is_asked_for_and_nothing_else(mounted: Mounted) -> None:
    for number in range(20):
        mounted.store.replace(RepositoryKey("team", f"app-{number}"), b"v1\n")
    changed = mounted.list_path("app-7")
    async with shown(mounted):
        await mounted.program("grep", "-rc", "v1")
        before = sum(mounted.channel.requests.values())
        put(mounted.beneath, RepositoryKey("team", "app-7"), b"v1\nv1\n")
        with trio.fail_after(30):
            while await trio.to_thread.run_sync(changed.read_bytes) != b"v1\nv1\n":
                await trio.lowlevel.checkpoint()
        assert f"{changed}:2" in (await mounted.program("grep", "-rc", "v1")).splitlines()
        after = mounted.channel.requests
    assert sum(after.values()) - before < 20


@pytest.mark.mount
async def test_a_reader_that_holds_a_list_open_reads_it_to_its_end(mounted: Mounted) -> None:
    """The kernel drops what it keeps half-way, and the list is replaced and removed meanwhile."""
    whole = b"".join(b"v%d\n" % number for number in range(400))
    mounted.store.replace(KEY, whole)

    def read() -> bytes:
        with mounted.list_path("app").open("rb", buffering=0) as file:
            begun = file.read(100)
            put(mounted.beneath, KEY, b"new\n")
            mounted.store.remove(KEY)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while part := file.read(100):
                begun += part
            return begun

    async with shown(mounted):
        assert await trio.to_thread.run_sync(read) == whole


@pytest.mark.mount
async def test_a_forgotten_list_is_closed(mounted: Mounted) -> None:
    for number in range(PINS):
        mounted.store.replace(RepositoryKey("team", f"app-{number}"), b"v1\n")
    async with shown(mounted):
        await mounted.program("grep", "-rc", "v1")
        assert len(mounted.tree._pins) == PINS
        for number in range(PINS):
            mounted.store.remove(RepositoryKey("team", f"app-{number}"))
        with trio.fail_after(30):
            while len(mounted.tree._pins):
                await trio.lowlevel.checkpoint()
