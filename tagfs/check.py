"""Check: everything that is out of order in a store.  Blocking.

Owns: going through all of a store, and which states of it are findings.
Does not know: how a finding is mended, how it is printed.
Invariant: without a repair nothing is written and no lock is kept, so it runs beside a writer.
"""

import stat
import time
from collections.abc import Iterator
from contextlib import closing

from tagfs import sentinel, taglist, variants
from tagfs.codec import CODECS, Codec, Undecodable
from tagfs.disk import Disk, FileStatus
from tagfs.errors import ListTooLarge, StoreRefused, StoreWaiting, TagListInvalid
from tagfs.findings import FINDINGS_KEPT, Finding, Findings
from tagfs.holder import is_held, open_store, take
from tagfs.mending import Mending
from tagfs.names import (
    BASE,
    HIDDEN_PREFIX,
    LIST,
    LOST_AND_FOUND,
    QUARANTINE_DIRECTORY,
    STAGE_DIRECTORY,
    SWEEP_LEDGER,
    VERSION_SENTINEL,
    WIPE_SENTINEL,
    RepositoryKey,
    is_flux_temporary,
)
from tagfs.policy import codecs_of
from tagfs.survey import SETTLING_SECONDS
from tagfs.variants import Variant
from tagfs.walk import Visitor, read_variant, sentence, unsettled, walk

LINES_SHOWN = 5
"""How many bad lines of one list are told."""

ABANDONED_SECONDS = 3600
"""A temporary file this old is no longer being written."""

_OTHERS_WRITE = 0o022
_LAYOUT = (BASE, VERSION_SENTINEL, WIPE_SENTINEL, STAGE_DIRECTORY, SWEEP_LEDGER, QUARANTINE_DIRECTORY, LOST_AND_FOUND)
_LIST_NAMES = frozenset(prefix + LIST + codec.suffix for prefix in ("", HIDDEN_PREFIX) for codec in CODECS)
_TYPES = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a named pipe",
}


class Check(Visitor):
    """Fills in `findings` while `run` is iterated, one step a repository; with `is_repairing` each is mended at once.

    Raises:
        StoreHeld: a repair needs to be the only writer.
        StoreRefused: there is no such directory.
    """

    def __init__(
        self,
        path: str,
        limit: int,
        is_repairing: bool,
        settling_seconds: float = SETTLING_SECONDS,
        disk: Disk | None = None,
    ) -> None:
        self._disk = disk or Disk()
        self._limit = limit
        self._is_repairing = is_repairing
        self._settling_seconds = settling_seconds
        self._root = (take if is_repairing else open_store)(self._disk, path)
        # A writer's stages and hidden lists are its own business.
        self._is_held = not is_repairing and is_held(self._disk, path)
        self._codecs: tuple[Codec, ...] = CODECS
        self._unusual_modes = 0
        self._first_unusual_mode = ""
        # INVARIANT: key -> its variants when it had more than one, which may be a writer's between two steps.
        self._unsettled: dict[RepositoryKey, list[Variant]] = {}
        self.findings = Findings(path)
        self._mending = Mending(self._disk, self._root, self.findings, is_repairing)

    def close(self) -> None:
        """Let go of the store, and of its lock."""
        self._disk.close(self._root)

    def total(self) -> int:
        """How many steps there will be, about."""
        return sum(1 for _ in walk(self._disk, self._root, Visitor()))

    def run(self) -> Iterator[None]:
        try:
            self.findings.format = sentinel.require_ready(self._disk, self._root, self.findings.path)
        except (StoreRefused, StoreWaiting) as error:
            self.findings.add(Finding("sentinel", VERSION_SENTINEL, str(error)))
            return
        self._codecs = codecs_of(self.findings.format)
        self._check_root()
        if not self._is_held:
            self._check_stages()
        began = time.monotonic()
        with closing(walk(self._disk, self._root, self)) as keys:
            for key, directory in keys:
                try:
                    self._check_entries(key, directory)
                    self._check_list(key, directory)
                except FileNotFoundError:
                    pass  # It vanished meanwhile.
                except OSError as error:
                    self.fault(key.directory, error)
                yield
        if self._unsettled:
            time.sleep(max(0.0, self._settling_seconds - (time.monotonic() - began)))
            self._look_again()
        self._add_summaries()

    # -- above the keys

    def directory(self, path: str, descriptor: int) -> None:
        self._check_mode(path, self._disk.stat_open(descriptor), 0o700, descriptor)

    def foreign(self, path: str, directory: int, is_dir: bool) -> None:
        mode = self._mode(directory, path)
        if mode is not None:
            reason = f"{_type(mode)} that is no part of a store: never shown, and left alone"
            self.findings.add(Finding("foreign", path, reason, is_problem=False))

    def fault(self, path: str, error: OSError) -> None:
        if path == BASE and isinstance(error, NotADirectoryError):
            return  # Told by the root.
        self.findings.add(Finding("unreadable", path, sentence(error)))

    def _check_root(self) -> None:
        for name, is_dir in sorted(self._disk.names(self._root)):
            if name == BASE and not is_dir:
                finding = Finding("foreign", name, "it stands where the directory of all namespaces belongs")
                self._mending.set_aside(finding, self._root, ())
            elif name.startswith(f"{VERSION_SENTINEL}-"):
                self._check_temporary(self._root, name, "an unfinished version sentinel")
            elif name not in _LAYOUT:
                self.foreign(name, self._root, is_dir)

    def _check_stages(self) -> None:
        try:
            directory = self._disk.open_dir(self._root, STAGE_DIRECTORY)
        except OSError:
            return  # There is none.
        try:
            for name, is_dir in sorted(self._disk.names(directory)):
                path = f"{STAGE_DIRECTORY}/{name}"
                if is_dir:
                    self.foreign(path, directory, is_dir)
                else:
                    finding = Finding("left-over", path, "a list that a writer began and never published")
                    self._mending.remove(finding, directory)
        finally:
            self._disk.close(directory)

    # -- one key

    def _check_entries(self, key: RepositoryKey, directory: int) -> None:
        shown = {LIST + codec.suffix for codec in self._codecs}
        known = shown | {HIDDEN_PREFIX + name for name in shown}
        for name, is_dir in sorted(self._disk.names(directory)):
            path = f"{key.directory}/{name}"
            if is_flux_temporary(name):
                self._check_temporary(directory, path, "a temporary file of Flux's")
            elif name not in _LIST_NAMES:
                self.foreign(path, directory, is_dir)
            elif name not in known:
                reason = "format 2 has no zstd, so this is not shown: `tagfs convert --codec zstd` makes it format 3"
                self.findings.add(Finding("foreign", path, reason))
            elif (mode := self._mode(directory, path)) is not None and not stat.S_ISREG(mode):
                finding = Finding("foreign", path, f"{_type(mode)} stands where a list belongs")
                self._mending.set_aside(finding, directory, (key.namespace, key.name))

    def _check_list(self, key: RepositoryKey, directory: int) -> None:
        found = variants.find(self._disk, directory, self._codecs)
        winner, plain = self._first_readable(key, directory, found)
        hidden = [] if self._is_held else variants.find_hidden(self._disk, directory, self._codecs)
        for lost in hidden:
            path = f"{key.directory}/{lost.name}"
            if winner is not None:
                finding = Finding("left-over", path, f"a program renamed this list away, and {winner.name} replaced it")
                self._mending.remove_replaced(finding, directory, lost, winner, plain, key)
                continue
            finding = Finding(
                "left-over", path, "a program renamed this list away, and no readable one is in its place"
            )
            if variants.find(self._disk, directory, self._codecs):
                self.findings.add(finding)
            else:
                self._mending.put_back(finding, directory, lost)
                found = variants.find(self._disk, directory, self._codecs)
                winner, plain = self._first_readable(key, directory, found)
        if winner is not None:
            self.findings.lists += 1
            self._check_tags(f"{key.directory}/{winner.name}", plain)

    def _first_readable(self, key: RepositoryKey, directory: int, found: list[Variant]) -> tuple[Variant | None, bytes]:
        """The variant that is shown, at the latest after a repair, and its bytes; None where none can be judged."""
        for position, variant in enumerate(found):
            path = f"{key.directory}/{variant.name}"
            others = found[position + 1 :]
            try:
                self._check_variant_mode(path, directory, variant)
                plain = read_variant(self._disk, directory, variant, self._limit)
            except FileNotFoundError:
                continue
            except Undecodable as error:
                older = f"; {others[0].name}, older, is shown once it is out of the way" if others else ""
                self._mending.set_aside_variant(Finding("corrupt", path, f"{error}{older}"), directory, variant, key)
                continue
            except ListTooLarge as error:
                self.findings.add(Finding("too-large", path, str(error)))
                return None, b""
            except OSError as error:
                self.fault(path, error)
                return None, b""
            if others and not self._is_repairing and len(self._unsettled) < FINDINGS_KEPT:
                self._unsettled[key] = found[position:]
                return variant, plain
            for stale in others:
                self._mending.remove_replaced(_stale(key, stale, variant), directory, stale, variant, plain, key)
            return variant, plain
        return None, b""

    def _check_tags(self, path: str, plain: bytes) -> None:
        try:
            taglist.validate(plain)
            return
        except TagListInvalid:
            lines: list[tuple[int | None, str]] = []
            count = 0
        for fault in taglist.faults(plain):
            count += 1
            if count <= LINES_SHOWN:
                lines.append((fault.line, fault.reason))
        told = "; ".join(f"line {number}: {reason}" for number, reason in lines)
        more = f"; and {count - LINES_SHOWN} more lines" if count > LINES_SHOWN else ""
        self.findings.add(Finding("invalid", path, told + more, lines=tuple(lines)))

    def _look_again(self) -> None:
        for key, before in unsettled(self._disk, self._root, self._codecs, self._unsettled):
            for stale in before[1:]:
                self.findings.add(_stale(key, stale, before[0]))

    def _check_temporary(self, directory: int, path: str, called: str) -> None:
        try:
            status = self._disk.stat(directory, path.rpartition("/")[2])
        except FileNotFoundError:
            return
        if not stat.S_ISREG(status.st_mode):
            self.foreign(path, directory, stat.S_ISDIR(status.st_mode))
        elif time.time() - status.st_mtime_ns / 1e9 > ABANDONED_SECONDS:
            self._mending.remove(Finding("left-over", path, f"{called}, abandoned"), directory)
        else:
            reason = f"{called}, perhaps being written now"
            self.findings.add(Finding("left-over", path, reason, is_problem=False))

    # -- modes

    def _check_variant_mode(self, path: str, directory: int, variant: Variant) -> None:
        if stat.S_IMODE(variant.status.st_mode) == 0o600:
            return
        file = self._disk.open_file(directory, variant.name)
        try:
            self._check_mode(path, variant.status, 0o600, file)
        finally:
            self._disk.close(file)

    def _check_mode(self, path: str, status: FileStatus, usual: int, descriptor: int) -> None:
        mode = stat.S_IMODE(status.st_mode)
        if mode & _OTHERS_WRITE:
            finding = Finding("mode", path, f"{mode:04o}: others than its owner may write it")
            self._mending.set_mode(finding, descriptor, mode & ~_OTHERS_WRITE)
        elif mode != usual:
            self._unusual_modes += 1
            self._first_unusual_mode = self._first_unusual_mode or f"{path} has {mode:04o}"

    def _add_summaries(self) -> None:
        if self._unusual_modes:
            reason = f"{self._unusual_modes} are not 0600 (files) or 0700 (directories): {self._first_unusual_mode}"
            self.findings.add(Finding("mode", BASE, reason, is_problem=False))
        kept = self._mending.quarantine.count()
        if kept:
            reason = f"{kept} kept here by a repair: look at what they are, then remove them"
            self.findings.add(Finding("quarantine", QUARANTINE_DIRECTORY, reason, is_problem=False))

    def _mode(self, directory: int, path: str) -> int | None:
        try:
            return self._disk.stat(directory, path.rpartition("/")[2]).st_mode
        except FileNotFoundError:
            return None


def _stale(key: RepositoryKey, stale: Variant, winner: Variant) -> Finding:
    return Finding("stale", f"{key.directory}/{stale.name}", f"{winner.name} is newer and reads well")


def _type(mode: int) -> str:
    return _TYPES.get(stat.S_IFMT(mode), "a device")
