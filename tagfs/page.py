"""Page: what a command puts out, as tables on a terminal, as lines in a pipe; progress.  Blocking.

Owns: how a value looks to a person and to a script; when rich is used.
Does not know: what is shown.
Formats: in a pipe `key: value` and tab-separated rows, sizes in bytes.
"""

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

QUIET_SECONDS = 0.5
"""What takes no longer needs no progress bar."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes: a person reads them in units, a script as a number."""

    bytes: int


Cell = str | int | float | Size | bool | None


def progress(steps: Iterator[None], total: Callable[[], int | None], label: str, stream: TextIO | None) -> None:
    """Run `steps` to the end, with a bar on a terminal once that takes long."""
    began = time.monotonic()
    done = 0
    for _ in steps:
        done += 1
        if time.monotonic() - began > QUIET_SECONDS:
            break
    else:
        return
    if not _is_rich(stream):
        for _ in steps:
            pass
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task(label, total=total(), completed=done)
        for _ in steps:
            bar.advance(task)


class Page:
    """Output to one stream: blocks of pairs and tables."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self.is_terminal = self._stream is not None and self._stream.isatty()

    def line(self, text: str) -> None:
        print(text, file=self._stream)

    def pairs(self, pairs: Sequence[tuple[str, Cell]]) -> None:
        """`key: value`, without those that are None."""
        rows = [(name, self._text(value)) for name, value in pairs if value is not None]
        width = max(map(len, (name for name, _ in rows)), default=0) + 2 if self.is_terminal else 0
        for name, text in rows:
            self.line(f"{name + ':':<{width}}{text}" if width else f"{name}: {text}")

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Rows under a header; in a pipe each row is the title's first word and its cells, tab-separated."""
        texts = [[self._text(cell) for cell in row] for row in rows]
        if not self.is_terminal:
            for row in texts:
                self.line("\t".join((title.split()[0].lower(), *row)))
            return
        self.line("")
        if not _is_rich(self._stream):
            self.line(title)
            for row in (list(header), *texts):
                self.line("  " + "  ".join(row))
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for position, name in enumerate(header):
            is_number = bool(rows) and isinstance(rows[0][position], int | float | Size)
            table.add_column(name, justify="right" if is_number else "left", overflow="fold")
        for row in texts:
            # `Text`, because a name is no markup.
            table.add_row(*(Text(cell) for cell in row))
        Console(file=self._stream, highlight=False).print(table)

    def _text(self, cell: Cell) -> str:
        if isinstance(cell, Size):
            return human(cell.bytes) if self.is_terminal else str(cell.bytes)
        if isinstance(cell, bool):
            return "yes" if cell else "no"
        if isinstance(cell, int):
            return f"{cell:,}" if self.is_terminal else str(cell)
        return printable(str(cell))


def human(size: int) -> str:
    """1536 -> `1.5 KiB`."""
    if size < 1024:
        return f"{size} B"
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}"


def printable(text: str) -> str:
    """`text` on one line that no file name can break or colour."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _is_rich(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty() and importlib.util.find_spec("rich") is not None
