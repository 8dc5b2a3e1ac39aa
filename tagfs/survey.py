"""Survey: how many lists there are, how large, and what is wrong with them, in a store or through a mount.  Blocking.

Owns: what `tagfs status` counts, of either kind.
Does not know: how it is printed, how anything is mended.
Invariant: takes no lock and writes nothing, so it runs beside a writer; what vanishes meanwhile is no problem.
"""

import errno
import heapq
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

from tagfs import sentinel, taglist, variants
from tagfs.codec import GZIP, ZSTD, Undecodable
from tagfs.disk import Disk, closed_on_failure
from tagfs.errors import ListTooLarge, MountRefused, StoreWaiting
from tagfs.holder import open_store
from tagfs.mountpoint import Mounted, require_answer, showing
from tagfs.names import BASE, LIST, RepositoryKey
from tagfs.policy import codecs_of
from tagfs.variants import Variant
from tagfs.walk import Visitor, read_variant, sentence, unsettled, walk

LARGEST_SHOWN = 10
PROBLEMS_SHOWN = 1000
"""How many problems are kept in memory; all are counted."""

SETTLING_SECONDS = 0.5
"""A second variant that is still there after so long was not just between a writer's two steps."""

_BLOCK = 512
"""Bytes: the unit of `st_blocks`."""
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Problem:
    path: str
    reason: str


@dataclass(slots=True)
class Survey:
    """What was counted; of a mount, `stored_bytes` is not known, and `store` is what it shows."""

    path: str
    kind: str
    store: str | None = None
    read_only: bool | None = None
    format: int | None = None
    codec: str | None = None
    repositories: int = 0
    repositories_without_list: int = 0
    tags: int = 0
    plain_bytes: int = 0
    stored_bytes: int | None = None
    disk_bytes: int = 0
    problem_count: int = 0
    problems: list[Problem] = field(default_factory=list)
    _largest: list[tuple[int, int, str]] = field(default_factory=list)

    @property
    def largest(self) -> list[tuple[str, int, int]]:
        """(key, tags, plain bytes) of the lists with the most tags, in descending order."""
        return [(key, tags, size) for tags, size, key in sorted(self._largest, key=lambda one: (-one[0], one[2]))]

    @property
    def ratio(self) -> float | None:
        """Plain bytes to stored bytes."""
        return round(self.plain_bytes / self.stored_bytes, 2) if self.stored_bytes else None

    @property
    def disk_ratio(self) -> float | None:
        """Plain bytes to bytes on disk, where a file takes whole blocks."""
        return round(self.plain_bytes / self.disk_bytes, 2) if self.disk_bytes else None

    def count(self, key: str, tags: int, size: int, blocks: int) -> None:
        self.repositories += 1
        self.tags += tags
        self.plain_bytes += size
        self.disk_bytes += blocks * _BLOCK
        heapq.heappush(self._largest, (tags, size, key))
        if len(self._largest) > LARGEST_SHOWN:
            heapq.heappop(self._largest)

    def add_problem(self, path: str, reason: str) -> None:
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_SHOWN:
            self.problems.append(Problem(path, reason))


class Surveyor(ABC):
    """Fills in `survey` while `run` is iterated, one step a repository."""

    survey: Survey

    @abstractmethod
    def run(self) -> Iterator[None]: ...

    @abstractmethod
    def total(self) -> int:
        """How many steps there will be, about."""


def surveyor(path: str, limit: int, settling_seconds: float = SETTLING_SECONDS, disk: Disk | None = None) -> Surveyor:
    """The surveyor for a store, or for the mount that `path` is or is in."""
    mounted = showing(path)
    if mounted is not None:
        return MountSurveyor(mounted)
    return StoreSurveyor(path, limit, settling_seconds, disk or Disk())


class StoreSurveyor(Surveyor):
    """Raises StoreRefused, StoreWaiting where there is no store to count: nothing was found wrong with one."""

    def __init__(self, path: str, limit: int, settling_seconds: float, disk: Disk) -> None:
        self._disk = disk
        self._limit = limit
        self._settling_seconds = settling_seconds
        self._root = open_store(disk, path)
        with closed_on_failure(disk, self._root):
            format_ = sentinel.require_ready(disk, self._root, path)
        codec = GZIP if format_ == sentinel.FLUX_FORMAT else ZSTD
        self.survey = Survey(path, "store", format=format_, codec=codec.name, stored_bytes=0)
        self._codecs = codecs_of(format_)
        # INVARIANT: key -> its variants when it had more than one.
        self._unsettled: dict[RepositoryKey, list[Variant]] = {}

    def total(self) -> int:
        return sum(1 for _ in walk(self._disk, self._root, Visitor()))

    def run(self) -> Iterator[None]:
        faults = _Faults(self.survey)
        began = time.monotonic()
        with closing(walk(self._disk, self._root, faults)) as keys:
            for key, directory in keys:
                self._examine(key, directory)
                yield
        if self._unsettled:
            time.sleep(max(0.0, self._settling_seconds - (time.monotonic() - began)))
            self._look_again()

    def _examine(self, key: RepositoryKey, directory: int) -> None:
        survey, path = self.survey, key.directory
        try:
            found = variants.find(self._disk, directory, self._codecs)
            if not found:
                survey.repositories_without_list += 1
                return
            if len(found) > 1 and len(self._unsettled) < PROBLEMS_SHOWN:
                self._unsettled[key] = found
            path = f"{key.directory}/{found[0].name}"
            plain = read_variant(self._disk, directory, found[0], self._limit)
        except FileNotFoundError:
            return
        except (Undecodable, ListTooLarge, OSError) as error:
            survey.repositories += 1
            survey.add_problem(path, sentence(error))
            return
        status = found[0].status
        assert survey.stored_bytes is not None
        survey.stored_bytes += status.st_size
        survey.count(str(key), taglist.count(plain), len(plain), status.st_blocks)

    def _look_again(self) -> None:
        for key, before in unsettled(self._disk, self._root, self._codecs, self._unsettled):
            names = ", ".join(variant.name for variant in before[1:])
            self.survey.add_problem(key.directory, f"{before[0].name} wins, and the stale {names} is still there")


class MountSurveyor(Surveyor):
    def __init__(self, mounted: Mounted) -> None:
        require_answer(mounted)
        self._base = os.path.join(mounted.point, BASE)
        self.survey = Survey(mounted.point, "mount", mounted.source, mounted.is_read_only)

    def total(self) -> int:
        return sum(1 for _ in self._directories())

    def run(self) -> Iterator[None]:
        for namespace, name in self._directories():
            self._examine(f"{namespace}/{name}", os.path.join(self._base, namespace, name, LIST))
            yield

    def _directories(self) -> Iterator[tuple[str, str]]:
        for namespace in self._names(self._base):
            for name in self._names(os.path.join(self._base, namespace)):
                yield namespace, name

    def _names(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []
        except OSError as error:
            mountpoint = self.survey.path
            if error.errno == errno.ENOTCONN:
                raise MountRefused(
                    f"{mountpoint} is dead, its process was killed: `tagfs unmount {mountpoint}`"
                ) from None
            if error.errno == errno.EAGAIN:
                raise StoreWaiting(
                    f"{mountpoint} is up and waits for its store {self.survey.store}: see its log"
                ) from None
            raise

    def _examine(self, key: str, path: str) -> None:
        try:
            with open(path, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                tags = size = 0
                while piece := file.read(_PIECE):
                    tags += taglist.count(piece)
                    size += len(piece)
        except FileNotFoundError:
            self.survey.repositories_without_list += 1
        except OSError as error:
            self.survey.repositories += 1
            self.survey.add_problem(path, f"{sentence(error)}; `tagfs check {self.survey.store}` says why")
        else:
            self.survey.count(key, tags, size, status.st_blocks)


class _Faults(Visitor):
    def __init__(self, survey: Survey) -> None:
        self._survey = survey

    def fault(self, path: str, error: OSError) -> None:
        self._survey.add_problem(path, sentence(error))
