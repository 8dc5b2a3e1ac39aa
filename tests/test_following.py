"""Every change of a store is told, each with what it did."""

import errno
import os
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tagfs import changes, events, following, taglist
from tagfs.changes import Change, Unwatched
from tagfs.disk import Disk
from tagfs.errors import StoreWaiting
from tagfs.events import Difference
from tagfs.following import Following, Told
from tagfs.names import BASE, RepositoryKey
from tagfs.past import Past
from tests.support.beneath import directory_store, list_file, no_descriptor_left, put
from tests.support.daemon import PATIENCE

APP, WEB = RepositoryKey("team", "app"), RepositoryKey("other", "web")


class Follower:
    """Follows the store at a path; `next` is what it is told next."""

    def __init__(
        self,
        path: Path,
        past: Past | None = None,
        namespaces: frozenset[str] | None = None,
        disk: Disk | None = None,
    ) -> None:
        self.path = path
        self.store = directory_store(path, disk)
        self.past = Past() if past is None else past
        self._send, self._receive = trio.open_memory_channel[tuple[RepositoryKey, Difference]](1000)
        self.ready = trio.Event()
        self.unwatched = -1
        self.following = Following(
            self.store, self.past, self._told, self._became_ready, past is not None, namespaces=namespaces
        )

    def _told(self, told: Told) -> None:
        for one in told:
            self._send.send_nowait(one)

    def _became_ready(self, unwatched: int) -> None:
        assert not self.ready.is_set()
        self.unwatched = unwatched
        self.ready.set()

    async def next(self) -> tuple[RepositoryKey, Difference]:
        with trio.fail_after(PATIENCE):
            return await self._receive.receive()

    async def expect(self, key: RepositoryKey, type_: str) -> Difference:
        told = await self.next()
        assert (told[0], told[1].type) == (key, type_), told
        return told[1]

    async def nothing_else(self) -> None:
        """Nothing was told until now: what is done last is told next."""
        last = RepositoryKey("team", "last")
        put(self.path, last, b"x\n")
        await self.expect(last, events.CREATED)
        shutil.rmtree(list_file(self.path, last).parent)
        await self.expect(last, events.DELETED)


@asynccontextmanager
async def followed(
    path: Path, past: Past | None = None, namespaces: frozenset[str] | None = None, disk: Disk | None = None
) -> AsyncIterator[Follower]:
    path.mkdir(exist_ok=True)
    follower = Follower(path, past, namespaces, disk)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follower.following.run)
            with trio.fail_after(PATIENCE):
                await follower.ready.wait()
            yield follower
            nursery.cancel_scope.cancel()
    finally:
        follower.store.close()


async def test_lists_come_change_and_go(tmp_path: Path) -> None:
    with no_descriptor_left():
        async with followed(tmp_path / "s") as follower:
            assert follower.unwatched == 0
            put(follower.path, APP, b"v1\nv2\n")
            assert (await follower.expect(APP, events.CREATED)).added == ("v1", "v2")
            put(follower.path, APP, b"v2\nv3\n")
            changed = await follower.expect(APP, events.CHANGED)
            assert (changed.added, changed.removed) == (("v3",), ("v1",))
            list_file(follower.path, APP).unlink()
            assert (await follower.expect(APP, events.DELETED)).removed == ("v2", "v3")
            await follower.nothing_else()


async def test_what_was_there_before_is_known_and_not_told(tmp_path: Path) -> None:
    put(tmp_path / "s", APP, b"v1\n")
    put(tmp_path / "s", WEB, b"w1\n")
    (tmp_path / "s" / ".storage-version").write_text("3\n")
    async with followed(tmp_path / "s") as follower:
        assert len(follower.past) == 2
        put(follower.path, WEB, b"w1\nw2\n")
        assert (await follower.expect(WEB, events.CHANGED)).added == ("w2",)
        await follower.nothing_else()


async def test_the_same_tags_again_are_no_change(tmp_path: Path) -> None:
    async with followed(tmp_path / "s") as follower:
        put(follower.path, APP, b"v1\n")
        await follower.expect(APP, events.CREATED)
        put(follower.path, APP, b"v1\n")
        await follower.nothing_else()


async def test_whole_directories_that_come_and_go(tmp_path: Path) -> None:
    async with followed(tmp_path / "s") as follower:
        put(tmp_path / "beside", APP, b"v1\n")
        (follower.path / BASE).mkdir()
        (tmp_path / "beside" / BASE / "team").rename(follower.path / BASE / "team")
        await follower.expect(APP, events.CREATED)
        (follower.path / BASE / "team" / "app").rename(follower.path / BASE / "team" / "app2")
        told = dict([await follower.next(), await follower.next()])
        assert {key.name: one.type for key, one in told.items()} == {"app": events.DELETED, "app2": events.CREATED}
        shutil.rmtree(follower.path / BASE / "team")
        await follower.expect(RepositoryKey("team", "app2"), events.DELETED)
        await follower.nothing_else()


async def test_only_the_namespaces_that_are_shown(tmp_path: Path) -> None:
    async with followed(tmp_path / "s", namespaces=frozenset({"team"})) as follower:
        put(follower.path, WEB, b"w1\n")
        put(follower.path, APP, b"v1\n")
        await follower.expect(APP, events.CREATED)
        await follower.nothing_else()


async def test_a_list_that_cannot_be_read_is_told_with_the_reason(tmp_path: Path) -> None:
    async with followed(tmp_path / "s") as follower:
        put(follower.path, APP, b"v1\n")
        created = await follower.expect(APP, events.CREATED)
        broken = list_file(follower.path, APP, ".zst")
        broken.with_name("tags.txt.zst1").write_bytes(b"\x28\xb5\x2f\xfdno zstd")
        broken.with_name("tags.txt.zst1").rename(broken)
        told = await follower.expect(APP, events.CHANGED)
        assert told.revision is None and told.added is None and told.previous == created.revision
        assert told.error is not None and "tags.txt.zst" in told.error
        put(follower.path, APP, b"v2\n")
        told = await follower.expect(APP, events.CHANGED)
        assert (told.added, told.removed, told.count, told.error) == (None, None, 1, None)
        await follower.nothing_else()


async def test_a_list_whose_past_did_not_fit_is_to_be_read(tmp_path: Path) -> None:
    async with followed(tmp_path / "s") as follower:
        follower.past._budget = 0
        put(follower.path, APP, b"v1\n")
        first = await follower.expect(APP, events.CREATED)
        put(follower.path, APP, b"v2\n")
        told = await follower.expect(APP, events.CHANGED)
        assert told.added is None and told.previous == first.revision and told.count == 1
        list_file(follower.path, APP).unlink()
        told = await follower.expect(APP, events.DELETED)
        assert told.removed is None and told.previous is not None


async def test_what_inotify_lost_is_found_by_looking_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with followed(tmp_path / "s") as follower:
        put(follower.path, APP, b"v1\n")
        await follower.expect(APP, events.CREATED)
        with monkeypatch.context() as patch:
            patch.setattr(changes.Changes, "_decode", lambda self, raw: [])
            put(follower.path, APP, b"v2\n")
            put(follower.path, WEB, b"w1\n")
            await trio.testing.wait_all_tasks_blocked()
        follower.following._note(Change(None, "", is_lost=True))
        told = dict([await follower.next(), await follower.next()])
        assert {key: one.type for key, one in told.items()} == {APP: events.CHANGED, WEB: events.CREATED}


async def test_a_namespace_that_cannot_be_listed_is_looked_at_again_and_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(following, "LOOK_AGAIN", 0.02)
    put(tmp_path, APP, b"v1\n")
    put(tmp_path, WEB, b"w1\n")
    (tmp_path / ".storage-version").write_text("3\n")
    is_closed = True

    class Closed(Disk):
        def names(self, directory: int) -> list[tuple[str, bool]]:
            if is_closed and os.readlink(f"/proc/self/fd/{directory}").endswith(f"/{WEB.namespace}"):
                raise PermissionError(errno.EACCES, "Permission denied")
            return super().names(directory)

    async with followed(tmp_path, disk=Closed()) as follower:
        put(tmp_path, APP, b"v2\n")
        await follower.expect(APP, events.CHANGED)
        is_closed = False
        await follower.expect(WEB, events.CREATED)
    assert caplog.text.count("other cannot be listed") == 1


async def test_without_watches_it_looks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "watched", lambda opened, root: Unwatched())
    monkeypatch.setattr(following, "LOOK_AGAIN", 0.01)
    put(tmp_path / "s", APP, b"v1\n")
    (tmp_path / "s" / ".storage-version").write_text("3\n")
    async with followed(tmp_path / "s") as follower:
        assert follower.unwatched == 3  # the directory of all namespaces, the namespace, the repository
        put(follower.path, APP, b"v2\n")
        assert (await follower.expect(APP, events.CHANGED)).added == ("v2",)
        put(follower.path, WEB, b"w1\n")
        await follower.expect(WEB, events.CREATED)
        shutil.rmtree(follower.path / BASE / "team")
        await follower.expect(APP, events.DELETED)


async def test_who_goes_on_is_told_what_happened_meanwhile(tmp_path: Path) -> None:
    async with followed(tmp_path / "s") as follower:
        put(follower.path, APP, b"v1\n")
        await follower.expect(APP, events.CREATED)
    put(tmp_path / "s", APP, b"v2\n")
    put(tmp_path / "s", WEB, b"w1\n")
    async with followed(tmp_path / "s", follower.past) as again:
        told = dict([await again.next(), await again.next()])
        assert (told[APP].added, told[APP].removed) == (("v2",), ("v1",))
        assert told[WEB].type == events.CREATED


@pytest.mark.parametrize("seed", range(8))
async def test_who_applies_all_that_is_told_has_the_store(tmp_path: Path, seed: int) -> None:
    """Whatever other programs do beneath, however fast: the tags that came and went add up."""
    chance = random.Random(seed)
    keys = [RepositoryKey(namespace, name) for namespace in ("a", "b", "c") for name in ("x", "y", "z")]
    known: dict[RepositoryKey, set[str]] = {}

    async def apply(follower: Follower) -> RepositoryKey:
        key, told = await follower.next()
        assert told.added is not None and told.removed is not None
        assert (told.type == events.CREATED) == (key not in known)
        tags = known.pop(key, set())
        assert tags.issuperset(told.removed) and tags.isdisjoint(told.added)
        if told.type != events.DELETED:
            known[key] = tags.difference(told.removed).union(told.added)
            assert told.count == len(known[key])
        else:
            assert tags == set(told.removed)
        return key

    async with followed(tmp_path / "s") as follower:
        for _ in range(150):
            key = chance.choice(keys)
            path = list_file(follower.path, key)
            match chance.randrange(8):
                case 0:
                    path.unlink(missing_ok=True)
                case 1:
                    shutil.rmtree(path.parent, ignore_errors=True)
                case 2:
                    shutil.rmtree(path.parent.parent, ignore_errors=True)
                case 3 if path.parent.parent.exists():
                    other = path.parent.parent.with_name(chance.choice("abc"))
                    if not other.exists():
                        path.parent.parent.rename(other)
                case _:
                    put(follower.path, key, taglist.encode(f"v{n}" for n in sorted(chance.sample(range(30), 6))))
            if chance.random() < 0.3:
                # Not to wait for anything: so that it is met at work, at every stage.
                await trio.sleep(chance.random() / 200)
        last = RepositoryKey("last", "list")
        put(follower.path, last, b"x\n")
        while await apply(follower) != last:
            pass
        there = {
            RepositoryKey(path.parent.parent.name, path.parent.name): set(path.read_text().split())
            for path in follower.path.glob("imagerepository/*/*/tags.txt")
        }
        # What was told of the last list may have overtaken a batch that was noted before it.
        while known != there:
            await apply(follower)


async def test_a_store_that_is_wiped_ends_it(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    follower = Follower(tmp_path / "s")
    try:
        with trio.fail_after(PATIENCE), pytest.RaisesGroup(StoreWaiting):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follower.following.run)
                await follower.ready.wait()
                (tmp_path / "s" / ".storage-version").unlink()
                put(tmp_path / "s", APP, b"v1\n")
                list_file(tmp_path / "s", APP).unlink()
                shutil.rmtree(tmp_path / "s" / BASE)
    finally:
        follower.store.close()
