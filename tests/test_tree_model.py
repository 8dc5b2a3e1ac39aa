"""The tree of a read-write mount and the model of what programs see, side by side.

Steps are performed when the machine says so, in the order of their key; what names a list waits for all of its key
before, as the adapter does, and so do a second flush and the release of a handle that is being staged.
"""

import logging
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tagfs import tidy
from tagfs.directory import DirectoryStore
from tagfs.disk import Disk
from tagfs.errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    EmptyingRefused,
    HandlePoisoned,
    ListMissing,
    RepositoryMissing,
    TagfsError,
    TagListInvalid,
)
from tagfs.handles import Step
from tagfs.names import BASE, STAGE_DIRECTORY, RepositoryKey
from tagfs.policy import Policy
from tagfs.publishing import run
from tagfs.replacing import RENAME_NOREPLACE, WritableTree
from tagfs.sentinel import ZSTD_FORMAT, prepare
from tagfs.store import Stage, Version
from tagfs.writing import SCRATCH_COST
from tests.support import model as told
from tests.support.beneath import LIST_LIMIT, THRESHOLD, list_file, no_descriptor_left, put
from tests.support.driver import APPEND, BOTH, CREATE, READ, REPLACE, TAGS, WRITE, Driver, File
from tests.support.places import SHARED_MEMORY

NAMES = ["app", "web"]
SCRATCH = [b"tags.txt1", b"x"]
EXPECTED = (
    AlreadyExists,
    DirectoryNotEmpty,
    EmptyingRefused,
    HandlePoisoned,
    ListMissing,
    RepositoryMissing,
    TagListInvalid,
)

SUFFIXES = ["", ".gz", ".zst"]

names = st.sampled_from(["app", "app", "app", "web"])
scratch_names = st.sampled_from(SCRATCH)
texts = st.one_of(
    st.sampled_from([b"v1\n", b"v1\nv2\n", b"xy\n", b"v123rc1\n" * 7]),
    st.sampled_from([b"v3\n", b"a", b"bc\nd", b"\0"]),
)
lists = st.sampled_from([b"", b"v1\n", b"v1\nv2\n", b"v987\n" * 10])
flags_of_lists = st.sampled_from([CREATE, REPLACE, APPEND, WRITE, BOTH, BOTH | os.O_APPEND, BOTH | os.O_TRUNC])
which = st.integers(0, 20)
offsets = st.integers(0, 12)


def key_of(name: str) -> RepositoryKey:
    return RepositoryKey("team", name)


class Failing(DirectoryStore):
    """Publishing fails when it is told to."""

    fails = False

    def publish(self, stage: Stage, mtime_ns: int | None = None) -> Version:
        if self.fails:
            self.discard(stage)
            raise OSError(28, "No space left on device")
        return super().publish(stage, mtime_ns)


@dataclass(eq=False)
class Opened:
    """An open file beside what it is in the model: bytes for a reader, a writer, a scratch file."""

    file: File
    name: str
    is_what: bytes | told.Writer | told.Scratch
    is_staging: bool = False


@dataclass(eq=False)
class Waiting:
    step: Step
    done: told.Effect
    failed: told.Effect


def nothing() -> None:
    pass


class Programs(RuleBasedStateMachine):
    """Random programs, one daemon after another, and somebody beneath."""

    def __init__(self) -> None:
        super().__init__()
        above = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
        self.place = Path(tempfile.mkdtemp(prefix="tagfs-test-", dir=above))
        self.leak = no_descriptor_left()
        self.leak.__enter__()
        self.model = told.Model()
        self.opened: list[Opened] = []
        self.waiting: dict[str, deque[Waiting]] = {name: deque() for name in NAMES}
        self.pid = 100
        self.steps = 0
        self.mount()
        self.driver.make(key_of("app"))
        self.model.make("app")

    # -- the daemon

    def mount(self) -> None:
        disk = Disk()
        root = disk.open_root(str(self.place))
        format_, _ = prepare(disk, root, str(self.place), ZSTD_FORMAT, False)
        self.store = Failing(disk, root, format_, Policy(threshold=THRESHOLD, list_limit=LIST_LIMIT))
        self.left = self.store.stages.names()
        # Room for any number of scratch files that are open: that there is none left is tested elsewhere.
        self.tree = WritableTree(self.store, 64 * LIST_LIMIT)
        self.driver = Driver(self.tree, self.never)

    def never(self, step: Step | None) -> None:
        assert step is None, "steps go through `later` here"

    def unmount(self) -> None:
        """As if it were killed; but what this process has open is closed."""
        for line in self.waiting.values():
            for one in line:
                one.step.fail(OSError(5, "killed"))
            line.clear()
        for opened in self.opened:
            self.tree.release(opened.file.handle)
        self.opened.clear()
        self.store.close()

    def later(self, name: str, step: Step | None, done: told.Effect | None, failed: told.Effect = nothing) -> None:
        assert (step is None) == (done is None)
        if step is not None and done is not None:
            self.waiting[name].append(Waiting(step, done, failed))

    def perform(self, name: str, fails: bool = False) -> None:
        """Perform the first step of a key that waits."""
        one = self.waiting[name].popleft()
        self.store.fails = fails
        try:
            run(one.step)
        except OSError:
            assert fails
            one.failed()
        else:
            one.done()
        self.store.fails = False

    def quiet(self, name: str) -> None:
        while self.waiting[name]:
            self.perform(name)

    def same(self, real: Callable[[], object], expected: Callable[[], object]) -> tuple[object, object] | None:
        """Do both; both answer, or both refuse for the same reason."""
        try:
            wanted = expected()
        except EXPECTED as refusal:
            with pytest.raises(type(refusal)):
                real()
            return None
        return real(), wanted

    # -- names

    @precondition(lambda self: len(self.model.directories) < len(NAMES))
    @rule(name=st.sampled_from(NAMES))
    def mkdir(self, name: str) -> None:
        def make() -> None:
            with self.driver.directory(BASE, "team") as above:
                self.tree.forget([(self.tree.make_directory(above, name.encode()).id, 1)])

        self.same(make, lambda: self.model.make(name))

    @rule(name=names)
    def rmdir(self, name: str) -> None:
        self.quiet(name)
        self.same(lambda: self.driver.rmdir(BASE, "team", name), lambda: self.model.remove(name))

    @rule(name=names, source=st.sampled_from([TAGS, *SCRATCH]), new=st.sampled_from([TAGS, *SCRATCH]))
    def rename(self, name: str, source: bytes, new: bytes) -> None:
        self.quiet(name)
        if source == new:
            return

        def expected() -> tuple[told.Effect | None, told.Effect]:
            directory = self.model.at(name)
            directory.look()
            if source == TAGS:
                return directory.rename_away(new), nothing
            if new == TAGS:
                return directory.rename_over(source)
            return directory.rename_scratch(source, new), nothing

        def real() -> Step | None:
            with self.driver.inside(key_of(name)) as node:
                return self.tree.rename(node, source, node, new, 0)

        self._submit(name, real, expected)

    @rule(name=names, source=scratch_names)
    def rename_without_replacing(self, name: str, source: bytes) -> None:
        self.quiet(name)

        def expected() -> tuple[told.Effect | None, told.Effect]:
            if self.model.at(name).look() is not None:
                raise AlreadyExists
            return self.model.at(name).rename_over(source)

        def real() -> Step | None:
            with self.driver.inside(key_of(name)) as node:
                return self.tree.rename(node, source, node, TAGS, RENAME_NOREPLACE)

        self._submit(name, real, expected)

    @rule(name=names, file=st.sampled_from([TAGS, *SCRATCH]))
    def unlink(self, name: str, file: bytes) -> None:
        self.quiet(name)

        def expected() -> tuple[told.Effect | None, told.Effect]:
            directory = self.model.at(name)
            if file != TAGS:
                return directory.unlink_scratch(file), nothing
            directory.require()
            return directory.unlink(), nothing

        def real() -> Step | None:
            with self.driver.inside(key_of(name)) as node:
                self.tree.forget([(self.tree.lookup(node, file, 1).id, 1)])
                return self.tree.unlink(node, file)

        self._submit(name, real, expected)

    def drafts(self) -> list[Opened]:
        return [
            one
            for one in self.opened
            if isinstance(one.is_what, told.Writer) and one.is_what.began_with is None and not one.is_what.is_deleted
        ]

    @precondition(lambda self: self.drafts())
    @rule(which=which)
    def unlink_a_draft(self, which: int) -> None:
        drafts = self.drafts()
        one = drafts[which % len(drafts)]
        self.quiet(one.name)
        if self.model.directories[one.name].look() is not None:
            return

        def real() -> Step | None:
            with self.driver.inside(key_of(one.name)) as node:
                return self.tree.unlink(node, TAGS)

        assert real() is None
        assert self.model.at(one.name).unlink() is None

    @rule(name=names, size=st.integers(0, 14))
    def truncate(self, name: str, size: int) -> None:
        self.quiet(name)

        def real() -> Step | None:
            with self.driver.inside(key_of(name)) as node:
                id_ = self.tree.lookup(node, TAGS, 1).id
                try:
                    return self.tree.truncate(id_, size, None)
                finally:
                    self.tree.forget([(id_, 1)])

        self._submit(name, real, lambda: (self.model.at(name).truncate(size), nothing))

    @rule(name=names, file=st.sampled_from([TAGS, *SCRATCH]), mtime=st.integers(1, 5))
    def set_mtime(self, name: str, file: bytes, mtime: int) -> None:
        self.quiet(name)
        directory = self.model.directories.get(name)
        if directory is None or directory.writers:
            return
        mtime_ns = mtime * 10**9

        def expected() -> tuple[told.Effect | None, told.Effect]:
            if file == TAGS:
                directory.require()
                return lambda: setattr(directory, "mtime", mtime_ns), nothing
            if file not in directory.scratch:
                raise ListMissing
            directory.scratch[file].mtime = mtime_ns
            return None, nothing

        def real() -> Step | None:
            with self.driver.inside(key_of(name)) as node:
                id_ = self.tree.lookup(node, file, 1).id
                try:
                    return self.tree.set_mtime(id_, mtime_ns)
                finally:
                    self.tree.forget([(id_, 1)])

        self._submit(name, real, expected)

    def _submit(
        self,
        name: str,
        real: Callable[[], Step | None],
        expected: Callable[[], tuple[told.Effect | None, told.Effect]],
    ) -> None:
        try:
            done, failed = expected()
        except EXPECTED as refusal:
            with pytest.raises(type(refusal)):
                real()
            return
        self.later(name, real(), done, failed)

    # -- open files

    @rule(name=names, flags=flags_of_lists)
    def open_to_write(self, name: str, flags: int) -> None:
        self.quiet(name)
        self.pid += 1

        def expected() -> told.Writer:
            directory = self.model.at(name)
            plain = directory.look()
            if plain is None and not flags & os.O_CREAT:
                raise ListMissing
            writer = told.Writer(plain, bool(flags & os.O_APPEND), bool(flags & os.O_TRUNC))
            directory.writers.append(writer)
            return writer

        both = self.same(lambda: self.driver.open(TAGS, flags, key_of(name), self.pid), expected)
        if both is not None:
            file, writer = both
            assert isinstance(file, File) and isinstance(writer, told.Writer)
            self.opened.append(Opened(file, name, writer))

    @rule(name=names)
    def open_to_read(self, name: str) -> None:
        self.quiet(name)
        both = self.same(lambda: self.driver.open(TAGS, READ, key_of(name), 1), lambda: self.model.at(name).require())
        if both is not None:
            file, plain = both
            assert isinstance(file, File) and isinstance(plain, bytes)
            self.opened.append(Opened(file, name, plain))

    @rule(name=names, file=scratch_names, flags=st.sampled_from([CREATE, REPLACE, CREATE | os.O_EXCL, BOTH]))
    def open_scratch(self, name: str, file: bytes, flags: int) -> None:
        self.quiet(name)

        def expected() -> told.Scratch:
            scratch = self.model.at(name).scratch
            if file in scratch and flags & os.O_CREAT and flags & os.O_EXCL:
                raise AlreadyExists
            if file not in scratch:
                if not flags & os.O_CREAT:
                    raise ListMissing
                scratch[file] = told.Scratch()
            elif flags & os.O_TRUNC:
                scratch[file].change(b"")
            return scratch[file]

        both = self.same(lambda: self.driver.open(file, flags, key_of(name), 1), expected)
        if both is not None:
            opened, scratch = both
            assert isinstance(opened, File) and isinstance(scratch, told.Scratch)
            scratch.open_count += 1
            self.opened.append(Opened(opened, name, scratch))

    def pick(self, which: int) -> Opened:
        """One of those that are written through."""
        writing = self.writing()
        return writing[which % len(writing)]

    def writing(self) -> list[Opened]:
        return [one for one in self.opened if not isinstance(one.is_what, bytes)]

    @precondition(lambda self: self.writing())
    @rule(which=which, offset=st.one_of(st.none(), st.none(), offsets), data=texts)
    def write(self, which: int, offset: int | None, data: bytes) -> None:
        """In sequence, or anywhere."""
        one = self.pick(which)
        assert not isinstance(one.is_what, bytes)
        content = one.is_what.content() if isinstance(one.is_what, told.Writer) else one.is_what.content
        at = len(content) if offset is None else min(offset, len(content))

        def expected() -> None:
            if isinstance(one.is_what, told.Writer):
                one.is_what.write(at, data)
            elif isinstance(one.is_what, told.Scratch):
                one.is_what.change(content[:at] + data + content[at + len(data) :])

        self.same(lambda: one.file.write(data, at), expected)

    @precondition(lambda self: self.writing())
    @rule(which=which, size=st.sampled_from([0, 0, 2, 3, 6, 9, 100]))
    def truncate_open(self, which: int, size: int) -> None:
        one = self.pick(which)

        def expected() -> None:
            if isinstance(one.is_what, told.Writer):
                one.is_what.truncate(size)
            elif isinstance(one.is_what, told.Scratch):
                one.is_what.change(one.is_what.content[:size].ljust(size, b"\0"))

        if not isinstance(one.is_what, bytes):
            self.same(lambda: self.tree.truncate(one.file.id, size, one.file.handle), expected)

    @precondition(lambda self: self.writing())
    @rule(which=which, is_heavy=st.booleans())
    def flush(self, which: int, is_heavy: bool) -> None:
        one = self.pick(which)
        with suppress(*EXPECTED):
            self._flush(one, is_heavy)

    def _flush(self, one: Opened, is_heavy: bool = False) -> None:
        """As the adapter does: a stage runs at once, or in the line of its key; raises what both raise."""
        try:
            staged = self._expect_flush(one)
        except EXPECTED as refusal:
            with pytest.raises(type(refusal)):
                self.tree.flush(one.file.handle)
            raise
        step = self.tree.flush(one.file.handle)
        assert (step is None) == (staged is None)
        if step is None or staged is None:
            return
        writer = one.is_what
        assert isinstance(writer, told.Writer)
        at_once = not is_heavy and not self.waiting[one.name]

        def done() -> None:
            writer.staged = staged
            one.is_staging = False

        one.is_staging = True
        self.later(one.name, step, done)
        if at_once:
            self.perform(one.name)

    def _expect_flush(self, one: Opened) -> told.Staged | None:
        if isinstance(one.is_what, told.Writer):
            return one.is_what.flush()
        if isinstance(one.is_what, told.Scratch):
            scratch = one.is_what
            if scratch.is_meant and scratch.is_changed and not told.is_list(scratch.content):
                raise TagListInvalid(None, "")
        return None

    def _commit(self, one: Opened) -> None:
        effects: tuple[told.Effect, told.Effect] | None = None
        # Of a directory that was removed only what was deleted is still open.
        directory = self.model.directories.get(one.name) or told.Directory()
        if isinstance(one.is_what, told.Writer):
            effects = directory.commit(one.is_what)
        elif isinstance(one.is_what, told.Scratch):
            effects = directory.commit_meant(one.is_what)
        done, failed = effects or (None, nothing)
        self.later(one.name, self.tree.commit(one.file.handle), done, failed)

    @precondition(lambda self: self.writing())
    @rule(which=which, fails=st.booleans())
    def fsync(self, which: int, fails: bool) -> None:
        one = self.pick(which)
        self.quiet(one.name)
        try:
            self._flush(one)
        except EXPECTED:
            return
        self.quiet(one.name)
        self._commit(one)
        if self.waiting[one.name]:
            self.perform(one.name, fails)

    @precondition(lambda self: self.opened)
    @rule(which=which, is_heavy=st.booleans())
    def close(self, which: int, is_heavy: bool) -> None:
        """The last close, and the release after it; its commit waits."""
        one = self.opened[which % len(self.opened)]
        with suppress(*EXPECTED):
            self._flush(one, is_heavy)
        if one.is_staging:
            self.quiet(one.name)
        self._commit(one)
        self.tree.release(one.file.handle)
        self.tree.forget([(one.file.id, 1)])
        self.opened.remove(one)
        if isinstance(one.is_what, told.Writer):
            one.is_what.is_closed = True
            for directory in self.model.directories.values():
                if one.is_what in directory.writers:
                    directory.writers.remove(one.is_what)
        elif isinstance(one.is_what, told.Scratch):
            one.is_what.open_count -= 1

    @precondition(lambda self: any(self.waiting.values()))
    @rule(which=which, fails=st.sampled_from([False, False, True]))
    def perform_one(self, which: int, fails: bool) -> None:
        busy = [name for name in NAMES if self.waiting[name]]
        self.perform(busy[which % len(busy)], fails)

    # -- beneath

    @rule(name=names, plain=lists)
    def replaced_beneath(self, name: str, plain: bytes) -> None:
        self.quiet(name)
        directory = self.model.directories.get(name)
        if directory is not None:
            put(self.place, key_of(name), plain)
            directory.plain, directory.mtime, directory.is_foreign = plain, None, len(plain) >= THRESHOLD

    @rule(name=names, plain=lists, flags=st.sampled_from([REPLACE, APPEND]))
    def a_program_writes(self, name: str, plain: bytes, flags: int) -> None:
        """From open to release, as `>` and `>>` do."""
        before = len(self.opened)
        self.open_to_write(name, flags)
        if len(self.opened) > before:
            one = self.opened[-1]
            assert isinstance(one.is_what, told.Writer)
            if plain:
                one.file.write(plain, 0)
                one.is_what.write(0, plain)
            self.close(before, False)

    @rule(name=names, file=scratch_names, plain=lists)
    def a_program_replaces(self, name: str, file: bytes, plain: bytes) -> None:
        """As most editors do."""
        before = len(self.opened)
        self.open_scratch(name, file, REPLACE)
        if len(self.opened) > before:
            one = self.opened[-1]
            assert isinstance(one.is_what, told.Scratch)
            one.file.write(plain, 0)
            one.is_what.change(plain)
            self.close(before, False)
            self.rename(name, file, TAGS)

    @rule(name=names)
    def deleted_beneath(self, name: str) -> None:
        self.quiet(name)
        directory = self.model.directories.get(name)
        if directory is not None:
            for suffix in SUFFIXES:
                list_file(self.place, key_of(name), suffix).unlink(missing_ok=True)
            directory.plain, directory.is_foreign = None, False

    @rule(name=names, litter=st.sampled_from(["notes", "tags.txt.tmp", "tags.txt~", ".tags.txt.swp"]))
    def littered(self, name: str, litter: str) -> None:
        self.quiet(name)
        if name in self.model.directories:
            (list_file(self.place, key_of(name)).parent / litter).write_bytes(b"\0")

    # -- the daemon's own

    @rule(name=names)
    def recover(self, name: str) -> None:
        """As the tidying of a new daemon does."""
        self.quiet(name)
        step = self.tree.recovery(key_of(name))
        directory = self.model.directories.get(name)
        if directory is None or any(one.hides for one in directory.scratch.values()):
            if directory is not None:
                assert step is None
            return
        directory.look()
        directory.hidden = None
        run(step)

    @precondition(lambda self: self.steps > 12)
    @rule()
    def mount_again(self) -> None:
        self.steps = 0
        self.unmount()
        self.model.mount_again()
        self.mount()

    @precondition(lambda self: self.left)
    @rule()
    def tidy(self) -> None:
        tidy.remove_stages(self.store, self.left)

    # -- what must be so

    @invariant()
    def a_step_is_counted(self) -> None:
        self.steps += 1

    @invariant()
    def what_names_show_is_what_the_model_shows(self) -> None:
        there = sorted(name.encode() for name in self.model.directories)
        assert self.driver.listing(BASE, "team") == there
        for name, directory in self.model.directories.items():
            if self.waiting[name]:
                continue
            key = key_of(name)
            plain = directory.look()
            assert self.driver.files(key) == directory.listing()
            if plain is None:
                assert not self.driver.is_there(TAGS, key, 1)
            else:
                attributes = self.driver.stat(TAGS, key, 1)
                assert attributes.size == len(plain)
                assert directory.mtime is None or attributes.mtime_ns == directory.mtime
                with self.driver.open(TAGS, READ, key, 1) as file:
                    assert file.read() == plain
            for scratch, one in directory.scratch.items():
                assert self.driver.stat(scratch, key, 1).size == len(one.content)
                assert one.mtime is None or self.driver.stat(scratch, key, 1).mtime_ns == one.mtime

    @invariant()
    def what_is_open_shows_what_the_model_shows(self) -> None:
        for one in self.opened:
            what = one.is_what
            expected = (
                what if isinstance(what, bytes) else what.content() if isinstance(what, told.Writer) else what.content
            )
            assert one.file.read() == expected
            assert one.file.read(3, 2) == expected[2:5]

    @invariant()
    def what_is_held_is_accounted_for(self) -> None:
        texts = [one.is_what.text or b"" for one in self.opened if isinstance(one.is_what, told.Writer)]
        scratch = {id(one.is_what): one.is_what for one in self.opened if isinstance(one.is_what, told.Scratch)}
        for directory in self.model.directories.values():
            scratch |= {id(one): one for one in directory.scratch.values()}
        held = sum(map(len, texts)) + sum(len(one.content) + SCRATCH_COST for one in scratch.values())
        if not any(self.waiting.values()):
            assert self.tree._budget.used == held
        readers = [one for one in self.opened if isinstance(one.is_what, bytes)]
        assert sum(count for _, count in self.tree._pinned.values()) >= len(readers)

    def teardown(self) -> None:
        try:
            for name in NAMES:
                self.quiet(name)
            while self.opened:
                self.close(0, False)
            for name in NAMES:
                self.quiet(name)
            self.what_names_show_is_what_the_model_shows()
            self.what_is_held_is_accounted_for()
            assert self.tree._pinned == {} and self.tree._handles == {} and self.tree._writers == {}
            self.tidy()
            assert os.listdir(self.place / STAGE_DIRECTORY) == []
            for name in self.model.directories:
                assert sum(list_file(self.place, key_of(name), suffix).exists() for suffix in SUFFIXES) <= 1
            self.unmount()
            self.leak.__exit__(None, None, None)
        finally:
            with suppress(OSError, TagfsError):
                self.unmount()
            shutil.rmtree(self.place)


def test_programs_see_what_the_model_says(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "tagfs")
    run_state_machine_as_test(
        Programs,
        settings=settings(
            max_examples=int(os.environ.get("TAGFS_EXAMPLES", "150")),
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
