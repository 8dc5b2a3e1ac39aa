"""Convert: every list of a store in another codec, in place, and the store's format with it.  Blocking.

Owns: the order of steps that makes it safe at every crash; groups, because one syncfs makes 64 lists durable as fast
as one fsync does one.
Does not know: how progress is printed.
Invariant: a reader finds every list whole at each step; the format says 3 whenever a zstd variant is there.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field

from tagfs import sentinel, variants
from tagfs.bulk import GROUP
from tagfs.codec import CODECS, ZSTD, Undecodable, named
from tagfs.directory import DirectoryStore
from tagfs.disk import Disk, closed_on_failure
from tagfs.errors import ListCorrupt, ListTooLarge
from tagfs.holder import take
from tagfs.names import LIST, RepositoryKey
from tagfs.policy import Policy
from tagfs.variants import Variant
from tagfs.walk import Visitor, is_still, naming, opened_key, read_variant, sentence, walk

UNREADABLE_KEPT = 100
"""How many of what was left are named; all are counted."""

_NEWER_NS = (1, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000)
"""How much newer than the old variant the new one is made: the first that the file system's time stamps can tell."""


@dataclass(slots=True)
class Conversion:
    """What a conversion did; `unreadable` are (path, reason) of lists and directories that were left as they are."""

    path: str
    codec: str
    format: int
    converted: int = 0
    unchanged: int = 0
    unreadable_count: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Staged:
    """One list on its way from `old`, its variants with the winner first, to the file `name`.

    `stage` is None where the new variant is in place already.  `made` is (inode, mtime) of the new variant.
    """

    key: RepositoryKey
    name: str
    stage: str | None
    old: tuple[Variant, ...]
    made: tuple[int, int]
    mtime_ns: int

    @property
    def stale(self) -> list[Variant]:
        return [variant for variant in self.old if variant.name != self.name]


class _Left(Visitor):
    """What may hold zstd; the first of it is named."""

    def __init__(self) -> None:
        self.count = 0
        self.first = ("", "")

    def add(self, path: str, reason: str) -> None:
        self.count += 1
        self.first = self.first if self.first[0] else (path, reason)

    def fault(self, path: str, error: OSError) -> None:
        self.add(path, sentence(error))


class Convert(Visitor):
    """Converts while `run` is iterated, one step a repository; `conversion` tells what was done.

    Raises:
        StoreHeld: it needs to be the only writer.
        StoreRefused: the directory is no store.
        StoreWaiting: it is not ready; a writer's mount makes it so.
    """

    def __init__(self, path: str, codec: str, threshold: int, limit: int, disk: Disk | None = None) -> None:
        self._disk = disk or Disk()
        root = take(self._disk, path)
        with closed_on_failure(self._disk, root):
            format_ = sentinel.require_ready(self._disk, root, path)
        self._target = sentinel.ZSTD_FORMAT if codec == ZSTD.name else sentinel.FLUX_FORMAT
        policy = Policy(named(codec), threshold, limit)
        self._store = DirectoryStore(self._disk, root, max(format_, self._target), policy)
        self.conversion = Conversion(path, codec, format_)

    def close(self) -> None:
        """Let go of the store, and of its lock."""
        self._store.close()

    def total(self) -> int:
        """How many steps there will be, about."""
        return sum(1 for _ in walk(self._disk, self._store.root, Visitor()))

    def run(self) -> Iterator[None]:
        """Raises ListCorrupt where unreadable lists keep the store at its format; OSError: begin again."""
        root = self._store.root
        if self.conversion.format < self._target:
            sentinel.write_version(self._disk, root, self._target)
            self.conversion.format = self._target
        with naming(self.conversion.path):
            yield from self._convert(root)
        if self.conversion.format > self._target:
            self._require_no_zstd()
            sentinel.write_version(self._disk, root, self._target)
            self.conversion.format = self._target

    def _convert(self, root: int) -> Iterator[None]:
        for name in self._store.stages.names():
            self._store.stages.unlink(name)
        group: list[_Staged] = []
        try:
            with closing(walk(self._disk, root, self)) as keys:
                for key, directory in keys:
                    with naming(self._path_of(key.directory)):
                        staged = self._stage(key, directory)
                    if staged is not None:
                        group.append(staged)
                    if len(group) == GROUP:
                        self._publish(group)
                        group = []
                    yield
            self._publish(group)
            group = []
            # The times of the last group; those of each other one became durable with the next.
            self._disk.sync_filesystem(root)
        finally:
            self._discard(group)

    def fault(self, path: str, error: OSError) -> None:
        if not isinstance(error, PermissionError):
            with naming(self._path_of(path)):
                raise error
        self._leave(path, sentence(error))

    def _path_of(self, within: str) -> str:
        return f"{self.conversion.path}/{within}"

    # -- one list

    def _stage(self, key: RepositoryKey, directory: int) -> _Staged | None:
        """Write the new variant beside, not yet durable; None where nothing has to change."""
        try:
            found = variants.find(self._disk, directory, self._store.codecs)
            if not found and self._store.recover(key):
                found = variants.find(self._disk, directory, self._store.codecs)
        except PermissionError as error:
            self._leave(key.directory, sentence(error))
            return None
        if not found:
            return None
        winner = found[0]
        try:
            plain = read_variant(self._disk, directory, winner, self._store.policy.list_limit)
        except (Undecodable, ListTooLarge, OSError) as error:
            self._leave(f"{key.directory}/{winner.name}", sentence(error))
            return None
        codec = self._store.policy.codec_for(len(plain))
        name = LIST + codec.suffix
        if winner.codec is codec:
            self.conversion.unchanged += 1
            made = winner.status.st_ino, winner.status.st_mtime_ns
            former = self._former_mtime(directory, winner, found, plain)
            return _Staged(key, name, None, tuple(found), made, former) if found[1:] else None
        stage, file = self._store.stages.create()
        try:
            self._disk.write(file, codec.encode(plain))
            made = self._make_newer(file, max(variant.status.st_mtime_ns for variant in found))
        except OSError:
            with suppress(OSError):
                self._store.stages.unlink(stage)
            raise
        finally:
            self._disk.close(file)
        return _Staged(key, name, stage, tuple(found), made, winner.status.st_mtime_ns)

    def _former_mtime(self, directory: int, winner: Variant, found: list[Variant], plain: bytes) -> int:
        """The time of the list before a conversion that was cut short; else its own."""
        for other in found[1:]:
            if winner.status.st_mtime_ns - other.status.st_mtime_ns in _NEWER_NS:
                with suppress(Undecodable, ListTooLarge):
                    if read_variant(self._disk, directory, other, self._store.policy.list_limit) == plain:
                        return other.status.st_mtime_ns
        return winner.status.st_mtime_ns

    def _make_newer(self, file: int, than_ns: int) -> tuple[int, int]:
        for step in _NEWER_NS:
            self._disk.set_mtime(file, than_ns + step)
            if self._disk.stat_open(file).st_mtime_ns > than_ns:
                break
        status = self._disk.stat_open(file)
        return status.st_ino, status.st_mtime_ns

    def _leave(self, path: str, reason: str) -> None:
        self.conversion.unreadable_count += 1
        if len(self.conversion.unreadable) < UNREADABLE_KEPT:
            self.conversion.unreadable.append((path, reason))

    # -- a group

    def _publish(self, group: list[_Staged]) -> None:
        """Each step is durable for the whole group before the next one begins; the last one with the next group."""
        for act in (self._rename, self._drop_stale, self._restore_time) if group else ():
            self._disk.sync_filesystem(self._store.root)
            group = [staged for staged in group if self._is_allowed(act, staged)]

    def _is_allowed(self, act: Callable[[int, _Staged], None], staged: _Staged) -> bool:
        """Take a step; -> whether it may be taken.  Else the list is left, and whole: so are its old variants."""
        try:
            with opened_key(self._disk, self._store.root, staged.key) as directory:
                act(directory, staged)
        except PermissionError as error:
            self._discard([staged])
            self._leave(staged.key.directory, sentence(error))
            return False
        return True

    def _rename(self, directory: int, staged: _Staged) -> None:
        if staged.stage is None:
            return
        stages = self._store.stages
        # Flux takes no lock: what it has written meanwhile is newer than what is staged.
        if all(is_still(self._disk, directory, variant) for variant in staged.old):
            self._disk.rename(stages.descriptor, staged.stage, directory, staged.name)
            self.conversion.converted += 1
        else:
            stages.unlink(staged.stage)

    def _drop_stale(self, directory: int, staged: _Staged) -> None:
        if self._is_made(directory, staged):
            for variant in staged.stale:
                if is_still(self._disk, directory, variant):
                    self._disk.unlink(directory, variant.name)

    def _is_made(self, directory: int, staged: _Staged) -> bool:
        try:
            status = self._disk.stat(directory, staged.name)
        except FileNotFoundError:
            return False
        return (status.st_ino, status.st_mtime_ns) == staged.made

    def _restore_time(self, directory: int, staged: _Staged) -> None:
        if not self._is_made(directory, staged):
            return
        file = self._disk.open_file(directory, staged.name)
        try:
            self._disk.set_mtime(file, staged.mtime_ns)
        finally:
            self._disk.close(file)

    def _discard(self, group: list[_Staged]) -> None:
        """Remove what a failure left of a group; what was renamed is no stage any more."""
        for staged in group:
            if staged.stage is not None:
                with suppress(OSError):
                    self._store.stages.unlink(staged.stage)

    # -- the format

    def _require_no_zstd(self) -> None:
        """Raise ListCorrupt while a zstd variant is left, or may be: format 2 would not show it."""
        left = _Left()
        reasons = dict(self.conversion.unreadable)
        with closing(walk(self._disk, self._store.root, left)) as keys:
            for key, directory in keys:
                try:
                    for variant in variants.find(self._disk, directory, CODECS):
                        if variant.codec is ZSTD:
                            path = f"{key.directory}/{variant.name}"
                            left.add(path, reasons.get(path) or reasons.get(key.directory) or "still zstd")
                except PermissionError as error:
                    left.fault(key.directory, error)
        if left.count:
            path, reason = left.first
            others = f" ({left.count - 1} more are left)" if left.count > 1 else ""
            cure = f"`tagfs check {self.conversion.path}` says what to do, then convert again"
            raise ListCorrupt(path, f"{reason}{others}: the store stays at format 3; {cure}")
