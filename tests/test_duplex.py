"""A read-write mount's requests answered without libfuse, over a socket in place of the device: what is answered, what
waits for what, and what goes first.  What programs see by a real kernel is in the tests of the semantics."""

import errno
import logging
import os
import socket
import stat
import struct
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from tagfs import duplex, wirewrite
from tagfs.commits import MOST_WAITING, Commits
from tagfs.duplex import Duplex
from tagfs.errors import ListMissing
from tagfs.handles import Step
from tagfs.inodes import ROOT_ID
from tagfs.memory import MemoryStore
from tagfs.names import BASE, RepositoryKey
from tagfs.replacing import WritableTree
from tagfs.store import Stage, Version
from tagfs.timings import Timings
from tests.support import wire as kernel
from tests.support.asked import KEY, Asked, require_turns, serving
from tests.support.stores import unready_at

OTHER = RepositoryKey("team", "web")
PLAIN = b"v1\nv2\n"
LIMIT = 1 << 20
TAGS = b"tags.txt"
_SNDBUFFORCE = 32
"""Of `include/uapi/asm-generic/socket.h`; a message is as long as what can wait to be sent."""

CREATED = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


class Gated(MemoryStore):
    """Publishing waits for its gate."""

    def __init__(self) -> None:
        super().__init__(LIMIT)
        self.gate = threading.Event()
        self.gate.set()

    def publish(self, stage: Stage, mtime_ns: int | None = None) -> Version:
        assert self.gate.wait(timeout=60)
        return super().publish(stage, mtime_ns)


class Writing(Asked[Duplex]):
    """The channel of a read-write mount of a store with two lists."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.store = Gated()
        for key in (KEY, OTHER):
            self.store.replace(key, PLAIN)
        self.commits = Commits(nursery)
        super().__init__(Duplex(7, 8, self.commits))
        self.channel.tree = WritableTree(self.store, LIMIT)
        self.channel.waiting = None

    async def later(self, request: bytes) -> kernel.Reply:
        """The answer to a request that may wait."""
        self.channel.answer(request)
        return await self.answer()

    def create(self, name: bytes, key: RepositoryKey = KEY) -> tuple[int, int]:
        """-> (node, handle)."""
        reply = self.ask(kernel.create(self.directory(key), name, CREATED))
        assert reply.number == 0
        return kernel.Entry.parse(reply.body).node, struct.unpack_from("<QI", reply.body, kernel.ENTRY.size)[0]

    def scratch(self, plain: bytes, key: RepositoryKey = KEY, name: bytes = b"tags.txt1") -> None:
        node, handle = self.create(name, key)
        assert self.ask(kernel.write(node, handle, 0, plain)).body == struct.pack("<II", len(plain), 0)
        assert self.ask(kernel.flush(node, handle)).number == 0
        assert self.ask(kernel.release(node, handle)).number == 0

    def content(self, key: RepositoryKey = KEY) -> bytes:
        node = self.lookup(BASE, key.namespace, key.name, "tags.txt").node
        handle = struct.unpack_from("<Q", self.ask(kernel.open_(node)).body)[0]
        content = self.ask(kernel.read(node, 0, LIMIT, handle)).body
        self.ask(kernel.flush(node, handle))
        self.ask(kernel.release(node, handle))
        return content


@pytest.fixture
async def asked(nursery: trio.Nursery) -> AsyncIterator[Writing]:
    """Tasks of its requests are the test's."""
    one = Writing(nursery)
    one.channel._nursery = nursery
    yield one
    one.store.gate.set()
    await one.commits.drain()
    one.close()


# -- answers


async def test_init_is_answered_as_libfuse_did(asked: Writing) -> None:
    """Big and whole writes, O_TRUNC with OPEN, listings with entries; no cache of writes, no locks, no export."""
    fields = struct.unpack_from("<IIIIHHIIHH", asked.ask(kernel.init()).body)
    assert fields[:2] == (7, 31)
    assert fields[3] == 1 << 0 | 1 << 3 | 1 << 5 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 18 | 1 << 22
    assert fields[4:6] == (512, 384)
    assert fields[6] == wirewrite.MAX_WRITE == fields[8] * 4096
    assert wirewrite.BUFFER_SIZE >= wirewrite.MAX_WRITE + 80


async def test_a_list_is_written_in_place_and_read(asked: Writing) -> None:
    node = asked.lookup(BASE, "team", "app", "tags.txt").node
    reply = asked.ask(kernel.open_(node, os.O_WRONLY | os.O_TRUNC))
    handle, flags = struct.unpack_from("<QI", reply.body)
    assert flags == 1, "direct I/O"
    asked.ask(kernel.write(node, handle, 0, b"v3\n"))
    assert asked.content() == PLAIN
    assert asked.ask(kernel.flush(node, handle)).number == 0
    assert asked.ask(kernel.release(node, handle)).number == 0
    await asked.commits.drain()
    assert asked.content() == b"v3\n"


async def test_a_rename_is_answered_when_it_is_committed(asked: Writing) -> None:
    asked.scratch(b"v3\n")
    directory = asked.directory()
    asked.store.gate.clear()
    asked.channel.answer(kernel.rename(directory, b"tags.txt1", directory, TAGS))
    await trio.testing.wait_all_tasks_blocked()
    assert not asked.has_said_more()
    asked.store.gate.set()
    assert (await asked.answer()).number == 0
    assert asked.content() == b"v3\n"


async def test_a_rename_with_flags(asked: Writing) -> None:
    asked.scratch(b"v3\n")
    directory = asked.directory()
    assert asked.ask(kernel.rename2(directory, b"tags.txt1", directory, TAGS, 1)).number == errno.EEXIST
    assert asked.ask(kernel.rename2(directory, b"tags.txt1", directory, TAGS, 2)).number == errno.EINVAL
    assert asked.ask(kernel.rename2(directory, b"tags.txt1", ROOT_ID, TAGS, 0)).number == errno.EXDEV
    assert (await asked.later(kernel.rename2(directory, b"tags.txt1", directory, TAGS, 0))).number == 0


async def test_what_waits_for_a_key_goes_on_when_it_is_quiet_and_others_do_not_wait(asked: Writing) -> None:
    asked.scratch(b"v3\n")
    directory, other = asked.directory(), asked.directory(OTHER)
    asked.store.gate.clear()
    asked.channel.answer(kernel.rename(directory, b"tags.txt1", directory, TAGS, unique=4))
    asked.channel.answer(kernel.lookup(directory, TAGS))
    assert not asked.has_said_more()
    assert asked.ask(kernel.lookup(other, TAGS)).number == 0
    asked.store.gate.set()
    assert (await asked.answer()).unique == 4
    assert kernel.Entry.parse((await asked.answer()).body).size == 3


async def test_fsync_is_answered_when_it_is_durable(asked: Writing) -> None:
    node, handle = asked.create(TAGS)
    asked.ask(kernel.write(node, handle, 0, b"v3\n"))
    asked.store.gate.clear()
    asked.channel.answer(kernel.fsync(node, handle))
    await trio.testing.wait_all_tasks_blocked()
    assert not asked.has_said_more()
    asked.store.gate.set()
    assert (await asked.answer()).number == 0
    assert asked.store.read(KEY) == b"v3\n"
    assert (await asked.later(kernel.fsyncdir(asked.directory(), 1))).number == 0
    asked.ask(kernel.release(node, handle))


async def test_a_close_waits_while_too_many_commits_do(asked: Writing) -> None:
    node, handle = asked.create(TAGS)
    asked.ask(kernel.write(node, handle, 0, b"v3\n"))
    gate = threading.Event()
    for number in range(MOST_WAITING):
        step = Step(RepositoryKey("busy", f"k{number}"), lambda: gate.wait(60), lambda _: None)
        asked.commits.submit(step)
    asked.channel.answer(kernel.flush(node, handle))
    await trio.testing.wait_all_tasks_blocked()
    assert not asked.has_said_more()
    gate.set()
    assert (await asked.answer()).number == 0
    asked.ask(kernel.release(node, handle))


async def test_sizes_and_times_are_set(asked: Writing) -> None:
    def node() -> int:
        return asked.lookup(BASE, "team", "app", "tags.txt").node

    assert (await asked.later(kernel.setattr_(node(), size=3))).number == 0
    assert asked.store.read(KEY) == b"v1\n"
    for mtime_ns in (5_000_000_007, -1):
        assert (await asked.later(kernel.setattr_(node(), mtime_ns=mtime_ns))).number == 0
        assert asked.store.examine(KEY).mtime_ns == mtime_ns
    assert asked.ask(kernel.setattr_(ROOT_ID)).number == 0  # chmod, chown
    assert asked.ask(kernel.setattr_(node(), size=100)).number == errno.EINVAL


async def test_size_and_time_of_what_is_open_are_set_together(asked: Writing) -> None:
    node, handle = asked.create(TAGS)
    asked.ask(kernel.write(node, handle, 0, b"v1\nv2\nv3\n"))
    assert asked.ask(kernel.setattr_(node, size=6, mtime_ns=5_000_000_007, handle=handle)).number == 0
    asked.ask(kernel.flush(node, handle))
    asked.ask(kernel.release(node, handle))
    await asked.commits.drain()
    assert (asked.store.read(KEY), asked.store.examine(KEY).mtime_ns) == (PLAIN, 5_000_000_007)


async def test_directories(asked: Writing) -> None:
    team = asked.lookup(BASE, "team").node
    assert kernel.Entry.parse(asked.ask(kernel.mkdir(team, b"new")).body).mode == stat.S_IFDIR | 0o755
    handle = struct.unpack_from("<Q", asked.ask(kernel.request(27, team, bytes(8))).body)[0]
    found = kernel.records(asked.ask(kernel.readdirplus(team, handle=handle)).body)
    assert [name for name, *_ in found] == [b"app", b"new", b"web"]
    assert asked.ask(kernel.readdirplus(team, found[-1][1], handle=handle)).body == b""
    assert asked.ask(kernel.request(29, team, struct.pack("<QII8x", handle, 0, 0))).number == 0
    assert asked.ask(kernel.rmdir(team, b"new")).number == 0
    assert asked.ask(kernel.rmdir(team, b"app")).number == errno.ENOTEMPTY
    assert asked.ask(kernel.mkdir(team, b"No")).number == errno.EINVAL
    assert asked.ask(kernel.unlink(ROOT_ID, b".storage-version")).number == errno.EPERM


async def test_a_listing_that_fails_gives_what_it_has_counted(asked: Writing, monkeypatch: pytest.MonkeyPatch) -> None:
    team = asked.lookup(BASE, "team").node
    handle = struct.unpack_from("<Q", asked.ask(kernel.request(27, team, bytes(8))).body)[0]
    monkeypatch.setattr(asked.store, "directory_mtime_ns", unready_at("web"))
    ((name, position, _, entry),) = kernel.records(asked.ask(kernel.readdirplus(team, handle=handle)).body)
    assert name == b"app" and entry is not None
    assert asked.ask(kernel.readdirplus(team, position, handle=handle)).number == errno.EAGAIN
    asked.channel.answer(kernel.forget(entry.node, 1))
    assert asked.ask(kernel.getattr_(entry.node)).number == errno.ESTALE


async def test_a_removed_list_is_gone(asked: Writing) -> None:
    directory = asked.directory()
    assert (await asked.later(kernel.unlink(directory, TAGS))).number == 0
    with pytest.raises(ListMissing):
        asked.store.read(KEY)
    assert struct.unpack_from("<Q", asked.ask(kernel.lookup(directory, TAGS)).body) == (0,)
    assert asked.ask(kernel.unlink(directory, TAGS)).number == errno.ENOENT


async def test_extended_attributes(asked: Writing) -> None:
    node = asked.lookup(BASE, "team", "app", "tags.txt").node
    assert asked.ask(kernel.getxattr(node, b"user.tagfs.count", 100)).body == b"2"
    assert asked.ask(kernel.getxattr(node, b"user.tagfs.count", 0)).body == struct.pack("<II", 1, 0)
    assert asked.ask(kernel.getxattr(node, b"user.tagfs.revision", 3)).number == errno.ERANGE
    assert asked.ask(kernel.getxattr(node, b"user.tagfs.none", 100)).number == errno.ENODATA
    assert asked.ask(kernel.getxattr(node, b"security.capability", 100)).number == errno.ENODATA
    names = asked.ask(kernel.request(23, node, struct.pack("<II", 1000, 0))).body
    assert b"user.tagfs.codec" in names.split(b"\0") and names.endswith(b"\0")
    for opcode in (21, 24):
        assert asked.ask(kernel.request(opcode, node, bytes(40))).number == errno.EOPNOTSUPP


@pytest.mark.parametrize("opcode", [6, 8, 13])
async def test_links_and_devices_are_not_permitted(asked: Writing, opcode: int) -> None:
    assert asked.ask(kernel.request(opcode, asked.directory(), bytes(64))).number == errno.EPERM


@pytest.mark.parametrize("opcode", [5, 28, 31, 34, 36, 39, 43, 46, 47, 51, 52, 9999, 0xFFFFFFFF])
async def test_what_the_kernel_can_do_without_it_is_told_so_once(asked: Writing, opcode: int) -> None:
    assert asked.ask(kernel.request(opcode)).number == errno.ENOSYS


async def test_while_the_store_is_not_ready_names_wait_and_what_is_open_is_read(asked: Writing) -> None:
    node = asked.lookup(BASE, "team", "app", "tags.txt").node
    handle = struct.unpack_from("<Q", asked.ask(kernel.open_(node)).body)[0]
    directory = asked.directory()
    asked.channel.waiting = "it is being wiped"
    for request in (
        kernel.lookup(ROOT_ID, BASE.encode()),
        kernel.getattr_(directory),
        kernel.open_(node),
        kernel.create(directory, TAGS, CREATED),
        kernel.rename(directory, b"x", directory, TAGS),
        kernel.unlink(directory, TAGS),
        kernel.mkdir(directory, b"x"),
        kernel.rmdir(directory, b"x"),
        kernel.setattr_(node, size=0),
        kernel.request(27, directory, bytes(8)),
    ):
        assert asked.ask(request).number == errno.EAGAIN
    assert asked.ask(kernel.getattr_(ROOT_ID)).number == 0
    assert asked.ask(kernel.getattr_(node)).number == 0
    assert asked.ask(kernel.read(node, 0, 100, handle)).body == PLAIN
    assert asked.ask(kernel.request(17)).number == 0
    assert asked.ask(kernel.release(node, handle)).number == 0


async def test_requests_are_timed_also_those_that_wait(asked: Writing) -> None:
    timings = Timings()
    asked.channel.measure(timings)
    asked.scratch(b"v3\n")
    directory = asked.directory()
    await asked.later(kernel.rename(directory, b"tags.txt1", directory, TAGS))
    asked.ask(kernel.unlink(directory, b"none"))
    assert timings.of("rename").results == {0: 1}
    assert timings.of("unlink").results == {0: 0, errno.ENOENT: 1}
    assert asked.channel.requests["write"] == 1


# -- whatever comes


@given(st.integers(0, 60), st.integers(0, 70), st.binary(max_size=120))
@example(42, 0, b"\0\0\0\1\0\0\0\0")
@example(2, 1, b"")
@example(12, 3, b"\3\0\0\0\0\0\0\0x\0\0")
def test_any_body_of_any_request_has_one_answer_but_of_a_forget(opcode: int, node: int, body: bytes) -> None:
    async def ask() -> None:
        async with trio.open_nursery() as nursery:
            one = Writing(nursery)
            one.channel._nursery = nursery
            try:
                one.directory()
                one.channel.answer(kernel.request(opcode, node, body))
                if opcode not in (2, 42):
                    await one.answer()
                assert not one.has_said_more()
                assert one.lookup(BASE).mode == stat.S_IFDIR | 0o755
            finally:
                await one.commits.drain()
                one.close()

    logging.disable(logging.CRITICAL)
    try:
        trio.run(ask)
    finally:
        logging.disable(logging.NOTSET)


# -- the loop


async def test_what_readers_ask_goes_before_what_writers_do(asked: Writing) -> None:
    node, handle = asked.create(b"tags.txt1")
    for unique in range(2, 12, 2):
        asked.kernel.send(kernel.write(node, handle, 0, b"v3\n", unique=unique))
    for unique in range(102, 112, 2):
        asked.kernel.send(kernel.request(17, unique=unique))
    async with serving(asked):
        got = [(await asked.answer()).unique for _ in range(10)]
    assert got == [*range(102, 112, 2), *range(2, 12, 2)]


async def test_writers_have_their_turn_beside_any_number_of_readers(asked: Writing) -> None:
    node, handle = asked.create(b"tags.txt1")
    asked.kernel.send(kernel.write(node, handle, 0, b"v3\n", unique=2))
    for unique in range(102, 202, 2):
        asked.kernel.send(kernel.request(17, unique=unique))
    async with serving(asked):
        got = [(await asked.answer()).unique for _ in range(51)]
    assert got.index(2) == duplex.AHEAD


async def test_a_look_up_finds_the_commit_of_a_close_before_it(asked: Writing) -> None:
    node, handle = asked.create(TAGS)
    asked.ask(kernel.write(node, handle, 0, b"v3\n"))
    asked.ask(kernel.flush(node, handle))
    directory = asked.directory()
    asked.kernel.send(kernel.release(node, handle, unique=4))
    asked.kernel.send(kernel.lookup(directory, TAGS))
    async with serving(asked):
        assert (await asked.answer()).unique == 4
        assert kernel.Entry.parse((await asked.answer()).body).size == 3


async def test_more_requests_wait_at_once_than_pyfuse3_had_tasks(asked: Writing) -> None:
    asked.scratch(b"v3\n")
    directory = asked.directory()
    asked.store.gate.clear()
    async with serving(asked):
        asked.kernel.send(kernel.rename(directory, b"tags.txt1", directory, TAGS, unique=2))
        await trio.testing.wait_all_tasks_blocked()
        for number in range(200):
            asked.kernel.send(kernel.lookup(directory, TAGS, unique=1000 + number))
            await trio.testing.wait_all_tasks_blocked()
        asked.kernel.send(kernel.request(17, unique=4))
        assert (await asked.answer()).unique == 4
        asked.store.gate.set()
        assert sorted([(await asked.answer()).unique for _ in range(201)]) == [2, *range(1000, 1200)]


async def test_beyond_a_bound_the_kernel_keeps_them(asked: Writing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplex, "MOST_HELD", 3)
    asked.scratch(b"v3\n")
    directory = asked.directory()
    asked.store.gate.clear()
    async with serving(asked):
        asked.kernel.send(kernel.rename(directory, b"tags.txt1", directory, TAGS, unique=2))
        for unique in (4, 6, 8):
            await trio.testing.wait_all_tasks_blocked()
            asked.kernel.send(kernel.lookup(directory, TAGS, unique=unique))
        await trio.testing.wait_all_tasks_blocked()
        assert asked.channel.requests["lookup"] == 3 + 3 + 2, "two, besides those for the directories"
        asked.store.gate.set()
        assert sorted([(await asked.answer()).unique for _ in range(4)]) == [2, 4, 6, 8]


async def test_what_waits_is_answered_also_where_the_mount_ends(asked: Writing) -> None:
    asked.scratch(b"v3\n")
    directory = asked.directory()
    asked.store.gate.clear()
    async with serving(asked):
        asked.kernel.send(kernel.rename(directory, b"tags.txt1", directory, TAGS, unique=2))
        await trio.testing.wait_all_tasks_blocked()
        asked.kernel.send(kernel.lookup(directory, TAGS, unique=4))
        await trio.testing.wait_all_tasks_blocked()
        asked.channel.terminate()
        await trio.testing.wait_all_tasks_blocked()
        asked.store.gate.set()
        assert [(await asked.answer()).unique for _ in range(2)] == [2, 4]


async def test_other_tasks_have_their_turn_beside_any_number_of_requests(asked: Writing) -> None:
    await require_turns(asked)


async def test_it_ends_with_the_device(asked: Writing) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asked.channel.serve)
            await trio.testing.wait_all_tasks_blocked()
            asked.kernel.close()


async def test_it_ends_with_a_device_that_cannot_be_read(asked: Writing, caplog: pytest.LogCaptureFixture) -> None:
    channel = Duplex(0, 0, asked.commits)
    channel.take(socket.socket().detach())
    with trio.fail_after(10):
        await channel.serve()
    channel.close()
    assert [record.getMessage() for record in caplog.records] == [
        "reading a request: [Errno 107] Transport endpoint is not connected"
    ]


async def test_a_write_may_be_as_long_as_was_said(asked: Writing) -> None:
    asked.channel.tree = WritableTree(asked.store, 4 * wirewrite.MAX_WRITE)
    node, handle = asked.create(b"tags.txt1")
    data: Any = b"v" * wirewrite.MAX_WRITE
    asked.kernel.setsockopt(socket.SOL_SOCKET, _SNDBUFFORCE, 4 * wirewrite.MAX_WRITE)
    asked.kernel.send(kernel.write(node, handle, 0, data))
    async with serving(asked):
        assert (await asked.answer()).body == struct.pack("<II", wirewrite.MAX_WRITE, 0)
