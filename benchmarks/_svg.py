"""Line charts as SVG, made by hand: no library, and a file that a person can read. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TITLE, LEGEND, BOTTOM = 64, 16, 28, 16, 48
COLOURS = ("#c2410c", "#1d4ed8", "#0f766e", "#7c3aed", "#a16207")
DASHES = ("", "6 4", "2 3", "8 3 2 3", "12 4")


@dataclass(frozen=True)
class Line:
    """A named line through points (x, y), from left to right."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """One chart. A logarithmic axis needs values above 0."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Axis:
    """Where the values of an axis lie between two pixels."""

    low: float
    high: float
    first_pixel: float
    last_pixel: float
    log: bool

    @classmethod
    def over(cls, values: Sequence[float], first_pixel: float, last_pixel: float, *, log: bool) -> Axis:
        """An axis that holds all values; a linear one begins at 0."""
        low, high = (min(values), max(values)) if log else (0.0, max(*values, 0.0))
        if high <= low:
            high = low * 2 if log else low + 1
        return cls(low, high, first_pixel, last_pixel, log)

    def pixel(self, value: float) -> float:
        """Where a value is drawn."""
        low, high, at = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.first_pixel + (at - low) / (high - low) * (self.last_pixel - self.first_pixel)

    def ticks(self) -> list[float]:
        """Round values on the axis: powers of two or of ten, or five steps of a linear one."""
        if self.log:
            base = 10.0 if self.high / self.low > 300 else 2.0
            first, last = math.ceil(math.log(self.low, base) - 1e-9), math.floor(math.log(self.high, base) + 1e-9)
            return [base**power for power in range(first, last + 1)]
        raw = (self.high - self.low) / 5
        unit = 10 ** math.floor(math.log10(raw))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * (1 - 1e-9))
        return [step * number for number in range(math.floor(self.high / step + 1e-9) + 1)]


def grid(charts: Sequence[Chart], *, columns: int = 2) -> str:
    """Charts beside and below each other, as one SVG."""
    rows = -(-len(charts) // columns)
    wide, high = WIDTH * min(columns, len(charts)), HEIGHT * rows
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}" '
    parts = [head + 'font-family="sans-serif" font-size="12">', f'<rect width="{wide}" height="{high}" fill="white"/>']
    for number, chart in enumerate(charts):
        place = f"translate({number % columns * WIDTH} {number // columns * HEIGHT})"
        parts += [f'<g transform="{place}">', *_chart(chart), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _chart(chart: Chart) -> list[str]:
    points = [point for line in chart.lines for point in line.points]
    if not points:
        return [_text(WIDTH / 2, HEIGHT / 2, f"{chart.title}: nothing measured", "middle")]
    x = Axis.over([px for px, _ in points], LEFT, WIDTH - RIGHT, log=chart.log_x)
    top = TITLE + LEGEND * len(chart.lines) + 8
    y = Axis.over([py for _, py in points], HEIGHT - BOTTOM, top, log=chart.log_y)
    parts = [_text(LEFT, 20, chart.title, "start", weight="bold")]
    for tick in y.ticks():
        at = y.pixel(tick)
        parts += [_rule(LEFT, at, WIDTH - RIGHT, at, "#ddd"), _text(LEFT - 6, at + 4, _short(tick), "end")]
    for tick in x.ticks():
        at = x.pixel(tick)
        bottom = HEIGHT - BOTTOM
        parts += [_rule(at, bottom, at, bottom + 4, "#555"), _text(at, bottom + 17, _short(tick), "middle")]
    parts.append(_rule(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "#555"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, chart.x_label, "middle"))
    middle = (top + HEIGHT - BOTTOM) / 2
    parts.append(f'<g transform="translate(16 {middle}) rotate(-90)">{_text(0, 0, chart.y_label, "middle")}</g>')
    for number, line in enumerate(chart.lines):
        parts += _line(line, number, x, y)
    return parts


def _line(line: Line, number: int, x: Axis, y: Axis) -> list[str]:
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    places = [(x.pixel(px), y.pixel(py)) for px, py in line.points]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
    stroke = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
    level = TITLE + LEGEND * number + 8
    return [
        f'<polyline points="{path}" fill="none" {stroke}/>',
        *(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in places),
        f'<line x1="{LEFT + 8}" y1="{level}" x2="{LEFT + 34}" y2="{level}" {stroke}/>',
        _text(LEFT + 40, level + 4, line.name, "start"),
    ]


def _rule(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str, *, weight: str = "normal") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {place}>{escape(text)}</text>"


def _short(value: float) -> str:
    """A number as it stands at an axis: 0.5, 64, 2k, 131k, 1.5M."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= 10 * unit or (value >= unit and value % unit == 0):
            return f"{value / unit:.3g}{letter}"
    return f"{value:.4g}"
