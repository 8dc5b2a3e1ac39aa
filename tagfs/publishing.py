"""Publishing: what closing, syncing and renaming a file commits.  Blocking.

Owns: stages; the step that publishes; what a handle that is let go of still owes.
Does not know: errnos, trio, variants; what opening and writing mean (`writing` says that).
Invariant: nothing reaches a list but by a `Step` that publishes, removes or hides it; steps of one key run one after
another, in the order in which they were made.
"""

import logging
import time
from collections.abc import Callable

from tagfs import taglist
from tagfs.buffers import Scratch
from tagfs.durability import Work, done
from tagfs.errors import (
    CommitUncertain,
    EmptyingRefused,
    HandlePoisoned,
    ListMissing,
    RepositoryMissing,
    TagfsError,
    TagListInvalid,
)
from tagfs.handles import HEAVY, ScratchHandle, Step, WriteHandle
from tagfs.inodes import ListNode
from tagfs.names import RepositoryKey
from tagfs.store import Snapshot, Stage, Store, Version
from tagfs.writer import Staged, Writer
from tagfs.writing import Writing

log = logging.getLogger(__name__)


class Publishing(Writing):
    """A tree whose files, once written, become lists.

    A method that returns a Step has only begun: the caller runs it, after all earlier ones of the same key.
    """

    # -- what programs close

    def key_of_handle(self, handle: int) -> RepositoryKey | None:
        """The key that what is written to a handle is for; None for one that is not written to."""
        opened = self._handles[handle]
        if isinstance(opened, ScratchHandle):
            return opened.scratch.list_key
        return opened.node.key if isinstance(opened, WriteHandle) else None

    def is_written_to(self, handle: int) -> bool:
        """Whether closing a handle may have something to stage."""
        return isinstance(self._handles.get(handle), WriteHandle)

    def flush(self, handle: int) -> Step | None:
        """Validate and stage what closing now would commit.

        Raises:
            TagListInvalid, EmptyingRefused, HandlePoisoned: it would commit nothing; what was staged is dropped.
        """
        opened = self._handles[handle]
        if isinstance(opened, ScratchHandle):
            self._overtaken(opened.scratch)
            return None
        if not isinstance(opened, WriteHandle) or opened.writer.is_detached:
            return None
        key, writer = opened.node.key, opened.writer
        writer.closed_at = next(self._closes)
        is_judged = writer.size < HEAVY
        try:
            plain = writer.take(is_judged)
        except (TagListInvalid, EmptyingRefused, HandlePoisoned):
            self._drop_stage(writer)
            raise
        if plain is None:
            return None

        # A new list that saw no write must not empty one that another writer has committed meanwhile.
        appends = writer.is_appending or not writer.was_written

        def run() -> Stage | None:
            if not is_judged:
                taglist.validate(plain)
            whole = _appended(self.store, key, plain) if appends else plain
            return None if self.store.holds(key, whole) else self.store.stage(key, whole)

        def settle(stage: Stage | None) -> None:
            self._drop_stage(writer)
            writer.staged, writer.unstaged = Staged(plain, stage, appends), None

        def fail(error: BaseException) -> None:
            self._drop_stage(writer)
            writer.is_changed, writer.unstaged = True, error

        return Step(key, run, settle, fail, len(plain))

    def commit(self, handle: int) -> Step | None:
        """Publish what the last flush staged."""
        opened = self._handles[handle]
        if isinstance(opened, ScratchHandle):
            return self._commit_overtaken(opened.scratch)
        if not isinstance(opened, WriteHandle):
            return None
        key, writer = opened.node.key, opened.writer
        if writer.is_detached or (staged := writer.begin()) is None:
            return None

        def is_wanted() -> bool:
            # The kernel may tell of a release after others have closed, synchronised or renamed later than this one.
            is_overtaken = writer.overtaken_at > writer.closed_at and not staged.appends
            return not writer.is_detached and not is_overtaken

        step = self._publication(key, staged, writer.requested_mtime_ns, opened.node, is_wanted, at=writer.closed_at)

        def settle(result: tuple[Version, bool] | None) -> None:
            if result is not None:
                step.settle(result)
                writer.committed(self._reopened(key, writer))

        def fail(error: BaseException) -> None:
            step.fail(error)
            if isinstance(error, CommitUncertain) and writer.is_appending:
                writer.committed(self._reopened(key, writer))  # once more would be twice
            else:
                writer.failed()

        return step.ending(settle, fail)

    def release(self, handle: int) -> None:
        """Let go of a handle; what it would still commit was taken by `flush` and `commit` before."""
        opened = self._handles.get(handle)
        if isinstance(opened, WriteHandle):
            self._tell_refusal(opened)
            self._drop_stage(opened.writer)
        super().release(handle)

    def closed_unseen(self) -> list[Step]:
        """What the handles that are left would commit: once the mount is gone all of them were closed, although the
        kernel told so of none."""
        return [step for step in map(self.commit, list(self._handles)) if step is not None]

    def _tell_refusal(self, opened: WriteHandle) -> None:
        """Say in the log why closing commits nothing: the program may have ignored what close(2) answered."""
        if opened.writer.is_detached:
            return
        reason = opened.writer.unstaged
        try:
            opened.writer.take()
        except HandlePoisoned:
            return  # said when it was poisoned
        except (TagListInvalid, EmptyingRefused) as error:
            reason = error
        if reason is not None:
            log.warning("%s: closed and not committed: %s", opened.node.key.path, reason)

    def _reopened(self, key: RepositoryKey, writer: Writer) -> Snapshot | None:
        """The list that an appender goes on behind; None where it does not, or cannot be opened now."""
        if not writer.is_appending or writer.is_closed:
            return None
        try:
            return self.store.open(key)
        except (TagfsError, OSError):
            return None

    # -- steps

    def recovery(self, key: RepositoryKey) -> Step | None:
        """Put back or drop what an earlier daemon left hidden of a key."""
        if self._is_hidden(key):
            return None

        def settle(is_put_back: bool) -> None:
            if is_put_back:
                self._tell_put_back(key)

        return Step(key, lambda: self.store.recover(key), settle)

    def _publication(
        self,
        key: RepositoryKey,
        staged: Staged,
        mtime_ns: int | None = None,
        node: ListNode | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
        is_judged: bool = True,
        at: int | None = None,
    ) -> Step:
        """The step that makes what is staged (for an appender: the current list and it) the list of `key`, where it is
        not judged yet unless that finds a fault.  `at` is which of all closes it is of, None for one of now.

        Its result is the version and whether that is new; None where it was no longer wanted in its turn.
        """
        plain, stage = staged.plain, staged.stage
        at = next(self._closes) if at is None else at
        rivals = [handle.writer for handle in self._writers.get(key, ())]

        def work() -> Work[tuple[Version, bool] | None]:
            if not is_wanted():
                self._discard(stage)
                return None
            if not is_judged:
                taglist.validate(plain)
            whole = _appended(self.store, key, plain) if staged.appends else plain
            may_hold = key not in self._uncertain and self._may_hold(key, whole)
            if may_hold and (yield from self.store.confirmation(key, whole)):
                self._discard(stage)
                if mtime_ns is not None:
                    self.store.set_mtime(key, mtime_ns)
                return self.store.examine(key), False
            if stage is not None and not staged.appends:
                return (yield from self.store.publication(stage, mtime_ns)), True
            self._discard(stage)
            return (yield from self.store.replacement(key, whole, mtime_ns)), True

        def settle(result: tuple[Version, bool] | None) -> None:
            if result is None:
                return
            self.written.touch(key, time.monotonic())
            for rival in rivals:
                rival.overtaken_at = max(rival.overtaken_at, at)
            version, is_new = result
            if is_new:
                self._uncertain.discard(key)
                for scratch in self._scratch.get(key, {}).values():
                    scratch.hides = False
                self.inodes.supersede(key)
            if node is not None and node.version is None:
                self.inodes.promote(node, version)

        def fail(error: BaseException) -> None:
            self.written.touch(key, time.monotonic())
            if isinstance(error, CommitUncertain):
                self._uncertain.add(key)
            self.inodes.supersede(key)
            self._discard(stage)

        return Step(key, lambda: done(work()), settle, fail, len(plain), work)

    def _may_hold(self, key: RepositoryKey, plain: bytes) -> bool:
        """Whether the list may be `plain` already, going by what was looked up last; a heavy one always may, because
        who asks may be in a thread."""
        known = self.inodes.current(key) if len(plain) < HEAVY else None
        return known is None or known.size == len(plain)

    def _discard(self, stage: Stage | None) -> None:
        if stage is not None:
            self.store.discard(stage)

    def _drop_stage(self, writer: Writer) -> None:
        if writer.staged is not None:
            self._discard(writer.staged.stage)
            writer.staged = None

    def _detach_writers(self, key: RepositoryKey) -> bool:
        """Let open writers of a deleted list commit nothing; -> whether there were any."""
        handles = self._writers.get(key, [])
        for handle in handles:
            self._drop_stage(handle.writer)
            handle.writer.is_detached = True
        return bool(handles)

    # -- scratch files that were renamed over a list

    def _overtaken(self, scratch: Scratch) -> bytes | None:
        """What was written to a scratch file since it was renamed over the list; TagListInvalid."""
        if scratch.list_key is None or not scratch.is_changed:
            return None
        try:
            plain = scratch.list_content()
        except TagListInvalid as error:
            log.warning("%s: what was written after its rename is refused: %s", scratch.list_key.path, error)
            raise
        return plain

    def _commit_overtaken(self, scratch: Scratch) -> Step | None:
        try:
            plain = self._overtaken(scratch)
        except TagListInvalid:
            return None
        if plain is None:
            return None
        assert scratch.list_key is not None
        scratch.is_changed = False
        # A rename that failed meanwhile has left the list to others.
        return self._publication(
            scratch.list_key, Staged(plain), scratch.requested_mtime_ns, is_wanted=lambda: scratch.list_key is not None
        )


def run(step: Step | None) -> None:
    """Run a step here and now: what a mount does in the order of its keys, for whoever has no mount."""
    if step is None:
        return
    try:
        result = step.run()
    except (TagfsError, OSError) as error:
        step.fail(error)
        raise
    step.settle(result)


def _appended(store: Store, key: RepositoryKey, tail: bytes) -> bytes:
    """The current list and `tail` behind it; TagListInvalid where that one lacks its last newline."""
    try:
        head = store.read(key)
    except (ListMissing, RepositoryMissing):
        return tail
    if tail and head and not head.endswith(b"\n"):
        raise TagListInvalid(None, "the list has no newline at its end: an append would change its last tag")
    return head + tail
