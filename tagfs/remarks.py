"""Remarks: what `tagfs doctor` says of one thing, and how to mend it.  Pure.

Owns: what a remark is, which of them is a failure.
Does not know: what is looked at, how it is printed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum


class Level(Enum):
    """OK: as it should be.  WARN: works, and may not be what is wanted.  FAIL: does not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Remark:
    """What was seen of `subject`, and, where that is not well, what to do."""

    level: Level
    subject: str
    told: str
    cure: str = ""


def ok(subject: str, told: str) -> Remark:
    return Remark(Level.OK, subject, told)


def warn(subject: str, told: str, cure: str) -> Remark:
    return Remark(Level.WARN, subject, told, cure)


def fail(subject: str, told: str, cure: str) -> Remark:
    return Remark(Level.FAIL, subject, told, cure)


def harmless(remarks: Iterable[Remark], because: str) -> list[Remark]:
    """The same remarks where no failure matters."""
    return [
        replace(one, level=Level.WARN, told=f"{one.told} ({because})") if one.level is Level.FAIL else one
        for one in remarks
    ]


def count(remarks: Iterable[Remark], level: Level) -> int:
    return sum(one.level is level for one in remarks)
