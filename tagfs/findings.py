"""Findings: what a check tells, and which of it is a problem.  Pure.

Owns: one finding, and the counts of all.
Does not know: how anything is found, mended or printed.
"""

from dataclasses import dataclass, field

FINDINGS_KEPT = 10_000
"""How many findings are kept in memory; all are counted, and mended."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something out of order at `path`, relative to the store.

    `kind` is corrupt, invalid, too-large, unreadable, foreign, stale, left-over, mode, sentinel or quarantine.  What
    is no problem is a note: it changes nothing that is shown.  `mended` says what a repair did about it.  `lines` are
    the (number, reason) of the first bad lines of an invalid list.
    """

    kind: str
    path: str
    reason: str
    is_problem: bool = True
    mended: str | None = None
    lines: tuple[tuple[int | None, str], ...] = ()

    @property
    def name(self) -> str:
        """The entry itself, in its directory."""
        return self.path.rpartition("/")[2]


@dataclass(slots=True)
class Findings:
    """What a check found; `problems` and `notes` count, the findings beyond FINDINGS_KEPT too."""

    path: str
    format: int | None = None
    lists: int = 0
    problems: int = 0
    notes: int = 0
    mended: int = 0
    kept: list[Finding] = field(default_factory=list)

    @property
    def remaining(self) -> int:
        return self.problems - self.mended

    def add(self, finding: Finding) -> None:
        self.problems += finding.is_problem
        self.notes += not finding.is_problem
        self.mended += finding.is_problem and finding.mended is not None
        if len(self.kept) < FINDINGS_KEPT:
            self.kept.append(finding)
