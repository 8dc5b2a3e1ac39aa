"""Results: what a run of the benchmark found, before it is shown.

Owns: goals and whether they are met, tables, the data of charts, missing peers.
Does not know: how anything is measured or drawn.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was asked of tagfs.

    `ratio` is tagfs over the peer, or over the goal where the goal is a number; lower is better.  `key` names it in
    the record.  Below `noise` a ratio is as good as any: what it divides is too small to differ.  Without a `goal` it
    is told and recorded, never missed.  `floor` is the ratio of the least that a daemon, or a store of
    files, could take, where it is known.
    """

    key: str
    what: str
    ours: str
    peer: str
    ratio: float
    goal: float | None
    noise: float = 0.0
    floor: float | None = None

    @property
    def is_met(self) -> bool:
        return self.goal is None or self.ratio <= self.goal

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        if self.is_met:
            return "pass"
        return "miss (the floor too)" if self.floor is not None and self.floor > self.goal else "miss"

    def is_worse_than(self, recorded: float, margin: float) -> bool:
        return self.ratio > max(recorded, self.noise) * margin


@dataclass(frozen=True, slots=True)
class Table:
    """Everything that was measured of one group, one side a row."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves (`points` by name), drawn with logarithmic axes; or bars, where each name has one point."""

    name: str
    title: str
    x: str
    y: str
    points: Mapping[str, tuple[tuple[float, float], ...]]

    @property
    def is_bars(self) -> bool:
        return all(len(points) == 1 for points in self.points.values())


@dataclass(slots=True)
class Results:
    rows: list[Row] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Peer, or part of the benchmark, that could not be had -> why."""
