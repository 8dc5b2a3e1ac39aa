"""Importing: tag lists from a directory tree or a tar archive, into a store that no mount holds.  Blocking.

Owns: which lists are taken, which are there already, which are refused and why.
Does not know: how it is shown.
Invariant: a list is counted as added or replaced when it is durable.  Cut short at any point, the next import passes
over what is there and goes on.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader

from tagfs import sentinel, sources, taglist, variants
from tagfs.bulk import Bulk, Outcome
from tagfs.codec import ZSTD, Undecodable, most_stored
from tagfs.directory import DirectoryStore
from tagfs.disk import DIRECTORY_MODE, Disk, closed_on_failure
from tagfs.errors import ListTooLarge, NameRefused, RepositoryMissing, SettingRefused, TagListInvalid
from tagfs.holder import open_store, require_outside, take
from tagfs.names import RepositoryKey
from tagfs.policy import Policy, codec_named
from tagfs.sources import PASSED_OVER, Entry, SourceCut
from tagfs.walk import naming, read_variant, sentence

KEPT = 100
"""How many refused and other files are named; all are counted."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that would be a list, and is not; `line` None where no line is the reason."""

    path: str
    line: int | None
    reason: str


@dataclass(slots=True)
class Imported:
    """What an import did, or would do; `other` are files that no layout has a list in."""

    path: str
    source: str
    is_dry: bool
    format: int = 0
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    refused_count: int = 0
    refused: list[Refused] = field(default_factory=list)
    other_count: int = 0
    other: list[str] = field(default_factory=list)


class Import:
    """Imports while `run` is iterated, one step a file; `imported` tells what was done.

    Raises:
        StoreHeld: it needs to be the only writer.
        StoreRefused, StoreWaiting: it is no store, or not one that is ready.
        SettingRefused: there is no such source.
    """

    def __init__(
        self, path: str, source: str, codec: str, threshold: int, limit: int, is_dry: bool, disk: Disk | None = None
    ) -> None:
        if source != "-" and not os.path.exists(source):
            raise SettingRefused(f"{source} is not there")
        self._disk = disk or Disk()
        self._limit = limit
        self.imported = Imported(path, source, is_dry)
        # INVARIANT: each list that waits for its group, and whether it has a predecessor.
        self._waiting: dict[RepositoryKey, bool] = {}
        self._store = self._to_compare(path, codec, threshold) if is_dry else self._to_write(path, codec, threshold)

    def _to_write(self, path: str, codec: str, threshold: int) -> DirectoryStore:
        require_outside(path)
        with suppress(FileExistsError):
            os.makedirs(path, DIRECTORY_MODE)
        root = take(self._disk, path)
        with closed_on_failure(self._disk, root):
            if sentinel.examine(self._disk, root).condition is not sentinel.Condition.EMPTY:
                # No part in a wipe: whoever has begun it, or mounts the store, finishes it.
                sentinel.require_ready(self._disk, root, path)
            new = sentinel.FLUX_FORMAT if codec == "gzip" else sentinel.ZSTD_FORMAT
            format_, _ = sentinel.prepare(self._disk, root, path, new)
            if codec == ZSTD.name and format_ != sentinel.ZSTD_FORMAT:
                format_ = sentinel.ZSTD_FORMAT
                sentinel.write_version(self._disk, root, format_)
            return self._opened(root, format_, codec, threshold)

    def _to_compare(self, path: str, codec: str, threshold: int) -> DirectoryStore | None:
        """The store as it is, or None where there is none yet."""
        if not os.path.exists(path):
            return None
        root = open_store(self._disk, path)
        with closed_on_failure(self._disk, root):
            if sentinel.examine(self._disk, root).condition is sentinel.Condition.EMPTY:
                self._disk.close(root)
                return None
            return self._opened(root, sentinel.require_ready(self._disk, root, path), codec, threshold)

    def _opened(self, root: int, format_: int, codec: str, threshold: int) -> DirectoryStore:
        self.imported.format = format_
        return DirectoryStore(self._disk, root, format_, Policy(codec_named(codec, format_), threshold, self._limit))

    def close(self) -> None:
        """Let go of the store, and of its lock."""
        if self._store is not None:
            self._store.close()

    def total(self) -> int | None:
        """How many steps there will be, about; None where that is not known before."""
        return None if self.imported.source == "-" else sources.count(self.imported.source)

    def run(self, stdin: BufferedReader | None = None) -> Iterator[None]:
        """Raises SettingRefused where the source has no list, SourceCut where it is damaged; OSError: run it again."""
        store = None if self.imported.is_dry else self._store
        bulk = None
        if store is not None:
            with naming(self.imported.path):
                for name in store.stages.names():
                    store.stages.unlink(name)
            bulk = Bulk(store)
        try:
            try:
                for entry in sources.entries(self.imported.source, stdin, self._left):
                    found = self._judged(entry)
                    if found is not None:
                        with naming(self._path_of(found[0])):
                            self._take(bulk, *found, entry.mtime_ns)
                    yield
            except SourceCut:
                self._finish(bulk)
                raise
            self._finish(bulk)
        finally:
            if bulk is not None:
                bulk.discard()
        done = self.imported
        if not done.added + done.replaced + done.unchanged + done.refused_count:
            raise SettingRefused(f"{done.source} has no list: lists are {sources.LAYOUT}")

    def _finish(self, bulk: Bulk | None) -> None:
        if bulk is not None and self._store is not None:
            with naming(self.imported.path):
                self._note(bulk.flush())
            # What was there already may have been written by somebody who was cut off before it was durable.
            self._disk.sync_filesystem(self._store.root)

    def _judged(self, entry: Entry) -> tuple[RepositoryKey, bytes] | None:
        """The list that a file holds; None where it holds none, which is noted."""
        try:
            place = sources.place_of(entry.within)
            if place is None:
                self.imported.other_count += 1
                if len(self.imported.other) < KEPT:
                    self.imported.other.append(entry.path)
                return None
            if entry.read is None:
                self._refuse(entry.path, None, "no regular file, but a directory, a link or a device")
                return None
            key, codec = place
            if entry.size > most_stored(self._limit):
                raise ListTooLarge(f"{entry.size} bytes, --max-list-size allows {self._limit}")
            plain = codec.decode(entry.read(), self._limit)
            taglist.validate(plain)
            return key, plain
        except TagListInvalid as error:
            self._refuse(entry.path, error.line, error.reason)
        except (NameRefused, ListTooLarge, Undecodable) as error:
            self._refuse(entry.path, None, str(error))
        except PASSED_OVER as error:
            self._left(entry.path, error)
        return None

    def _left(self, path: str, error: OSError) -> None:
        self._refuse(path, None, sentence(error))

    def _refuse(self, path: str, line: int | None, reason: str) -> None:
        self.imported.refused_count += 1
        if len(self.imported.refused) < KEPT:
            self.imported.refused.append(Refused(path, line, reason))

    def _take(self, bulk: Bulk | None, key: RepositoryKey, plain: bytes, mtime_ns: int) -> None:
        if bulk is not None and key in self._waiting:
            self._note(bulk.flush())  # an archive may hold a list twice: the later one counts
        try:
            is_there, is_same = self._compare(key, plain)
        except PermissionError as error:
            self._left(self._path_of(key), error)
            return
        if is_same:
            self.imported.unchanged += 1
        elif bulk is None:
            self._count(is_there)
        else:
            self._waiting[key] = is_there
            self._note(bulk.replace(key, plain, mtime_ns))

    def _count(self, is_there: bool) -> None:
        if is_there:
            self.imported.replaced += 1
        else:
            self.imported.added += 1

    def _compare(self, key: RepositoryKey, plain: bytes) -> tuple[bool, bool]:
        """Whether a list is there; whether it is `plain`, stored as that would be now."""
        store = self._store
        if store is None:
            return False, False
        try:
            # A new list is the common case, and to be told why it is not there costs ten calls.
            self._disk.close(self._disk.open_below(store.root, key.directory))
        except FileNotFoundError:
            return False, False
        except OSError:
            pass
        try:
            with store.opened(key.namespace, key.name) as directory:
                found = variants.find(self._disk, directory, store.codecs)
                if len(found) != 1 or found[0].codec is not store.policy.codec_for(len(plain)):
                    return bool(found), False
                with suppress(Undecodable, ListTooLarge):
                    return True, read_variant(self._disk, directory, found[0], self._limit) == plain
                return True, False
        except RepositoryMissing:
            return False, False

    def _note(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            is_there = self._waiting.pop(outcome.key)
            if outcome.error is None:
                self._count(is_there)
            elif isinstance(outcome.error, (RepositoryMissing, NotADirectoryError)):
                self._refuse(str(outcome.key), None, str(outcome.error))  # something else has its place
            elif isinstance(outcome.error, PermissionError):
                self._left(self._path_of(outcome.key), outcome.error)
            else:
                with naming(self._path_of(outcome.key)):
                    raise outcome.error

    def _path_of(self, key: RepositoryKey) -> str:
        return f"{self.imported.path}/{key.directory}"
