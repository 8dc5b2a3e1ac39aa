"""Page: what a run found, as docs/benchmarks.md with its charts, and as a table on a terminal.

Owns: the text around the figures; which machine it was.
Does not know: how anything was measured.
"""

import os
import platform
import re
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from bench import charts
from bench.results import Results, Row, Table
from tagfs import __version__

Machine = list[tuple[str, str]]
"""Name, value."""

LOAD = "load when it began"

_WORDS = Path(__file__).with_name("words.md")
"""What the figures mean, written by hand."""


def write(results: Results, command: str, machine: Machine, document: Path, told: list[str]) -> None:
    """The page, and a chart for each of the results beside it in `charts/`."""
    directory = document.parent / "charts"
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*.svg"):
        old.unlink()
    for chart in results.charts:
        (directory / f"{_file_name(chart.name)}.svg").write_text(charts.draw(chart))
    parts = [
        "# Benchmarks",
        f"Written by `{command}`; do not edit. All of it is one run on one machine, sides in turn, medians. A ratio is "
        "tagfs over its peer, or over the goal, round by round: lower is better. Milliseconds belong to this machine, "
        "ratios travel better.",
        _markdown(Table("", ("", ""), tuple(machine))),
        _WORDS.read_text().strip(),
        "## Goals",
        _markdown(_goals(results.rows)),
    ]
    if told:
        parts.append("Worse than the recorded ratio by a wide margin:\n\n" + "\n".join(f"- {line}" for line in told))
    if results.missing:
        parts.append(
            "## What was not measured\n\n"
            + "\n".join(f"- {name}: {why}" for name, why in sorted(results.missing.items()))
        )
    parts.append("## Charts")
    parts += [f"![{chart.title}](charts/{_file_name(chart.name)}.svg)" for chart in results.charts]
    parts.append("## Everything measured")
    parts += [f"### {table.title}\n\n{_markdown(table)}" for table in results.tables]
    document.write_text("\n\n".join(part for part in parts if part) + "\n")


def show(results: Results, told: list[str]) -> None:
    """The goals, on standard output; with rich where it is installed."""
    table = _goals(results.rows)
    try:
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        print(_markdown(table))
    else:
        shown = RichTable(*table.head)
        for row in table.rows:
            shown.add_row(*row, style="red" if row[-1].startswith("miss") else None)
        console = Console()
        # In a pipe, as wide as it needs.
        Console(width=console.width if console.is_terminal else 200).print(shown)
    for name, why in sorted(results.missing.items()):
        print(f"not measured: {name}: {why}")
    for line in told:
        print(f"worse than recorded: {line}")
    asked = [row for row in results.rows if row.goal is not None]
    print(f"{sum(row.is_met for row in asked)} of {len(asked)} goals met")


def machine(work: Path) -> Machine:
    """What it is measured on."""
    return list(_machine(work))


def _machine(work: Path) -> Iterator[tuple[str, str]]:
    processors = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    yield "machine", f"{len(os.sched_getaffinity(0))} × {processors[0] if processors else platform.machine()}"
    yield "memory", f"{memory:.0f} GiB"
    yield LOAD, Path("/proc/loadavg").read_text().split()[0]
    yield "kernel", platform.release()
    yield "file system beneath", _said("stat", "-f", "-c", "%T", str(work)).replace("ext2/ext3", "ext4")
    yield "system", _system()
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("pyfuse3", "trio", "zstandard"))
    yield "tagfs", f"{__version__}, Python {platform.python_version()}, {packages}"
    for name, words in (
        ("Go", ("go", "env", "GOVERSION")),
        ("zstd", ("zstd", "--version")),
        ("grep", ("grep", "--version")),
        ("ripgrep", ("rg", "--version")),
        ("ugrep", ("ugrep", "--version")),
    ):
        yield name, re.sub(r"[*\x1b]", "", _said(*words)) or "not there"


def _goals(rows: list[Row]) -> Table:
    head = ("what", "tagfs", "beside", "ratio", "goal", "")
    return Table(
        "",
        head,
        tuple(
            (row.what, row.ours, row.peer, _ratio(row), "–" if row.goal is None else f"≤ {row.goal:.3g}", row.verdict)
            for row in rows
        ),
    )


def _ratio(row: Row) -> str:
    """With as many digits as tell it from the goal."""
    return f"{row.ratio:.4f}" if row.goal is not None and 0 < abs(row.ratio - row.goal) < 0.01 else f"{row.ratio:.2f}"


def _markdown(table: Table) -> str:
    lines = [_line(table.head), "|" + " --- |" * len(table.head), *map(_line, table.rows)]
    return "\n".join(lines) + (f"\n\n{table.note}" if table.note else "")


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _system() -> str:
    names = re.findall(r'^PRETTY_NAME="?([^"\n]*)', Path("/etc/os-release").read_text(), re.MULTILINE)
    return names[0] if names else platform.system()


def _said(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return ""
    lines = done.stdout.splitlines()
    return lines[0].strip() if lines else ""


def _file_name(name: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
