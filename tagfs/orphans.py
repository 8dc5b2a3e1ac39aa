"""Orphans: what is told of those that a sweep by itself found.  Pure.

Owns: what is known of an orphan, and what became of it.
Does not know: how they are found, how they are shown.
"""

from dataclasses import dataclass, field

from tagfs.names import RepositoryKey


@dataclass(slots=True)
class Orphan:
    """One orphan; `tags` and `plain_bytes` are not known of a list that cannot be read, and all three 0 without one."""

    key: RepositoryKey
    tags: int | None = 0
    plain_bytes: int | None = 0
    stored_bytes: int = 0
    state: str = "orphan"
    """`orphan` in a dry run, else `deleted`, `left`, `held` or `failed`."""
    reason: str = ""


@dataclass(slots=True)
class SweepReport:
    """What a sweep found and did; `refusal` says why those that are held stay."""

    path: str
    inventory: str
    is_dry: bool
    lists: int = 0
    expected: int = 0
    orphans: list[Orphan] = field(default_factory=list)
    namespaces: list[str] = field(default_factory=list)
    refusal: str | None = None

    def count(self, state: str) -> int:
        return sum(1 for orphan in self.orphans if orphan.state == state)
