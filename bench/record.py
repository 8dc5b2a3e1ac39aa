"""Record: the ratios of an earlier run, and which of now are worse by a wide margin.

Owns: bench/record.json.
Does not know: what a ratio is of.
"""

import json
from pathlib import Path

from bench.results import Row

PATH = Path(__file__).with_name("record.json")

MARGIN = 1.5
"""How many times the recorded ratio a ratio may be: the same run twice on a busy machine differs by less."""


def load(path: Path = PATH) -> dict[str, float]:
    """Key -> ratio."""
    if not path.exists():
        return {}
    recorded: dict[str, float] = json.loads(path.read_text())
    return recorded


def save(rows: list[Row], path: Path = PATH) -> None:
    """Put the ratios of `rows` over those of the same keys; the other keys stay: a short run measures fewer."""
    recorded = load(path) | {row.key: round(row.ratio, 4) for row in rows}
    path.write_text(json.dumps(dict(sorted(recorded.items())), indent=2) + "\n")


def worse(rows: list[Row], recorded: dict[str, float]) -> list[str]:
    """A line for each row that is worse than the record allows."""
    return [
        f"{row.what} ({row.peer}): {row.ratio:.2f}, recorded {recorded[row.key]:.2f}"
        for row in rows
        if row.key in recorded and row.is_worse_than(recorded[row.key], MARGIN)
    ]
