"""Mending: what a repair does about a finding, each step durable before the next.  Blocking.

Owns: setting aside, removing what is replaced or was never a list, putting back, modes.
Does not know: how findings are found.
Invariant: deletes only what a later list that reads well has replaced, and what was never a list; all else that is in
the way goes to the quarantine.  Cut short at any step, another repair goes on from there.
"""

from collections.abc import Callable
from dataclasses import replace

from tagfs import taglist
from tagfs.disk import Disk, sync_file
from tagfs.findings import Finding, Findings
from tagfs.names import HIDDEN_PREFIX, RepositoryKey
from tagfs.quarantine import Quarantine
from tagfs.variants import Variant
from tagfs.walk import is_still, sentence

_CHANGED = "left alone: another program changed it meanwhile"


class Mending:
    """Adds findings to `findings`, each mended first where this is a repair and the disk allows it."""

    def __init__(self, disk: Disk, root: int, findings: Findings, is_repairing: bool) -> None:
        self._disk = disk
        self._findings = findings
        self._is_repairing = is_repairing
        self.quarantine = Quarantine(disk, root)

    def set_aside(self, finding: Finding, directory: int, place: tuple[str, ...]) -> None:
        """Move what stands where a list, or the directory of all, belongs."""
        self._settle(finding, lambda: self._move(directory, finding.name, place))

    def set_aside_variant(self, finding: Finding, directory: int, variant: Variant, key: RepositoryKey) -> None:
        """Move a variant that cannot be decoded."""
        place = key.namespace, key.name
        self._settle(
            finding,
            lambda: (
                self._move(directory, variant.name, place) if is_still(self._disk, directory, variant) else _CHANGED
            ),
        )

    def remove(self, finding: Finding, directory: int) -> None:
        """Delete what was never a list."""

        def mend() -> str:
            self._disk.unlink(directory, finding.name)
            self._disk.sync_dir(directory)
            return "removed"

        self._settle(finding, mend)

    def remove_replaced(
        self, finding: Finding, directory: int, lost: Variant, winner: Variant, plain: bytes, key: RepositoryKey
    ) -> None:
        """Delete a variant that `winner`, whose bytes are `plain`, has replaced.

        A plain list has no checksum: one that a power cut emptied or filled with NULs must not cost the older one, so
        that is set aside.
        """
        if not plain or next(taglist.faults(plain), None) is not None:
            self.set_aside_variant(finding, directory, lost, key)
            return

        def mend() -> str:
            sync_file(self._disk, directory, winner.name)
            if not is_still(self._disk, directory, lost):
                return _CHANGED
            self._disk.unlink(directory, lost.name)
            self._disk.sync_dir(directory)
            return "removed"

        self._settle(finding, mend)

    def put_back(self, finding: Finding, directory: int, hidden: Variant) -> None:
        """Show a list again that a program renamed away without a successor."""
        name = hidden.name.removeprefix(HIDDEN_PREFIX)

        def mend() -> str:
            self._disk.rename(directory, hidden.name, directory, name)
            self._disk.sync_dir(directory)
            return f"put back as {name}"

        self._settle(finding, mend)

    def set_mode(self, finding: Finding, descriptor: int, mode: int) -> None:
        def mend() -> str:
            self._disk.set_mode(descriptor, mode)
            self._disk.sync(descriptor)
            return f"made {mode:04o}"

        self._settle(finding, mend)

    def _settle(self, finding: Finding, mend: Callable[[], str]) -> None:
        if self._is_repairing:
            try:
                finding = replace(finding, mended=mend())
            except OSError as error:
                finding = replace(finding, reason=f"{finding.reason}; it could not be mended: {sentence(error)}")
        self._findings.add(finding)

    def _move(self, directory: int, name: str, place: tuple[str, ...]) -> str:
        return f"moved to {self.quarantine.move(directory, name, place)}"
