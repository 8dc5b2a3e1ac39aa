"""Charts: curves and bars as SVG, which is light or dark as its reader is.

Owns: how a chart looks.
Does not know: what it shows.
"""

import math
import statistics
from html import escape

from bench.results import Chart

_WIDTH, _HEIGHT = 760, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 40, 56, 50
_BAR, _BAR_LEFT, _BAR_TOP = 26, 330, 44
_CUT = 8
"""Times the median: a longer bar is cut."""
_KEY = 20
"""Height of one line of the key below a chart of curves."""

_STYLE = """
  svg { font: 13px system-ui, sans-serif }
  .paper { fill: #ffffff } text { fill: #1f2328 } .title { font-size: 15px; font-weight: 600 } .faint { fill: #59636e }
  .axis { stroke: #59636e } .grid { stroke: #d1d9e0 } .bar { fill: #8c959f } .own { fill: #0969da }
  path { fill: none; stroke-width: 2.5 }
  .c0 { stroke: #0969da } .c1 { stroke: #bc4c00 } .c2 { stroke: #1a7f37 }
  .c3 { stroke: #8250df } .c4 { stroke: #bf3989 } .c5 { stroke: #59636e }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117 } text { fill: #f0f6fc } .faint { fill: #9198a1 }
    .axis { stroke: #9198a1 } .grid { stroke: #3d444d } .bar { fill: #656c76 } .own { fill: #4493f8 }
    .c0 { stroke: #4493f8 } .c1 { stroke: #db6d28 } .c2 { stroke: #3fb950 }
    .c3 { stroke: #ab7df8 } .c4 { stroke: #db61a2 } .c5 { stroke: #9198a1 }
  }
"""
_COLOURS = 6
_DASHES = ("", "7 3", "2 3")


def draw(chart: Chart) -> str:
    return _bars(chart) if chart.is_bars else _curves(chart)


def _bars(chart: Chart) -> str:
    """One bar a side, the quickest first, tagfs's own in colour; one that is far longer is cut, and says so."""
    values = sorted(((points[0][1], name) for name, points in chart.points.items()), key=lambda one: one[0])
    longest = _CUT * statistics.median(value for value, _ in values)
    most = max((value for value, _ in values if value <= longest), default=0.0) or 1.0
    room = _WIDTH - _BAR_LEFT - 90
    parts = []
    for number, (value, name) in enumerate(values):
        y = _BAR_TOP + number * _BAR
        kind = "own" if name.startswith("tagfs") else "bar"
        width = min(max(1.0, 0.9 * room * value / most), room)
        told = f"{'… ' if value > most else ''}{value:,.0f}" if value >= 100 else f"{value:.3g}"
        parts += [
            f'<text x="{_BAR_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(_short(name))}</text>',
            f'<rect class="{kind}" x="{_BAR_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR - 8}" rx="2"/>',
            f'<text x="{_BAR_LEFT + width + 6:.1f}" y="{y + 13}">{told} {escape(chart.y)}</text>',
        ]
    return _svg(chart.title, _BAR_TOP + 12 + len(values) * _BAR, parts)


def _curves(chart: Chart) -> str:
    """Both axes logarithmic."""
    every = [point for points in chart.points.values() for point in points if point[0] > 0 and point[1] > 0]
    low_x, high_x = min(x for x, _ in every), max(x for x, _ in every)
    low_y = 10.0 ** math.floor(math.log10(min(y for _, y in every)))
    high_y = 10.0 ** math.ceil(math.log10(max(y for _, y in every)) + 1e-9)
    high_y = high_y if high_y > low_y else low_y * 10

    def across(x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * _share(x, low_x, high_x)

    def up(y: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * _share(y, low_y, high_y)

    parts = []
    tick = low_y
    while tick <= high_y * 1.001:
        parts += [
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>',
            f'<text class="faint" x="{_LEFT - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:,g}</text>',
        ]
        tick *= 10
    for x in sorted({x for x, _ in every}):
        parts.append(
            f'<text class="faint" x="{across(x):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{x:,g}</text>'
        )
    bottom = _HEIGHT - _BOTTOM
    parts += [
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>',
        f'<text class="faint" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 12}" text-anchor="end">{escape(chart.x)}</text>',
        f'<text class="faint" x="{_LEFT}" y="{_TOP - 12}">{escape(chart.y)}</text>',
    ]
    for number, (name, points) in enumerate(chart.points.items()):
        line = " L ".join(f"{across(x):.1f} {up(y):.1f}" for x, y in points if x > 0 and y > 0)
        look = f'class="c{number % _COLOURS}" stroke-dasharray="{_DASHES[number // _COLOURS % len(_DASHES)]}"'
        y = _HEIGHT + 6 + number * _KEY
        parts += [
            f'<path {look} d="M {line}"/>',
            f'<path {look} d="M {_LEFT} {y} h 26"/>',
            f'<text x="{_LEFT + 34}" y="{y + 4}">{escape(name)}</text>',
        ]
    return _svg(chart.title, _HEIGHT + 12 + len(chart.points) * _KEY, parts)


def _svg(title: str, height: int, parts: list[str]) -> str:
    body = "\n  ".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">\n<style>{_STYLE}</style>\n'
        f'  <rect class="paper" width="100%" height="100%"/>\n'
        f'  <text class="title" x="16" y="22">{escape(title)}</text>\n'
        f"  {body}\n</svg>\n"
    )


def _share(value: float, low: float, high: float) -> float:
    return math.log(value / low) / math.log(high / low) if high > low else 0.5


def _short(name: str) -> str:
    return name if len(name) <= 46 else name[:45] + "…"
