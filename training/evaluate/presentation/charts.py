"""Charts as inline SVG, coloured by the page's style sheet so that they read in light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Point = tuple[float, float]
WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 22, 10, 40
SERIES = 6  # colours in the style sheet: .s0 ... .s5, told apart by dashes as well


def line_chart(
    series: Mapping[str, Sequence[Point]],
    *,
    label: str,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float],
    x_log: bool = False,
    x_names: Sequence[str] | None = None,
    marks: bool = True,
) -> str:
    """Lines over a common x axis (logarithmic with `x_log`), y from 0 to 1 as per cent; with a legend."""
    low, high = (_scaled(end, log=x_log) for end in (min(x_ticks), max(x_ticks)))

    def at(x: float, y: float) -> Point:
        across = (_scaled(max(x, min(x_ticks)), log=x_log) - low) / ((high - low) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), TOP + (1 - y) * (HEIGHT - TOP - BOTTOM)

    parts = [*_y_axis(y_label)]
    for tick, name in zip(x_ticks, x_names or [f"{tick:g}" for tick in x_ticks], strict=True):
        x, base = at(tick, 0)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{base:.1f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 14:.1f}" text-anchor="middle">{escape(name)}</text>')
    parts.append(_x_title(x_label))
    for number, points in enumerate(series.values()):
        placed = [at(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        style = f"s{number % SERIES}"
        parts.append(f'<polyline class="line {style}" points="{path}"/>')
        if marks:
            parts += [f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in placed]
    return _figure(label, parts, list(series))


def bar_chart(
    groups: Mapping[str, Mapping[str, tuple[float, float]]], *, label: str, y_label: str, top: float = 1.0
) -> str:
    """Bars {group: {series: (value, spread)}} with a whisker of +- spread, y from 0 to `top` as per cent."""
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    parts = [*_y_axis(y_label, top)]
    span = (WIDTH - LEFT - RIGHT) / max(len(groups), 1)
    wide = span * 0.8 / max(len(names), 1)
    base = HEIGHT - BOTTOM
    for place, (group, bars) in enumerate(groups.items()):
        left = LEFT + place * span + span * 0.1
        for number, name in enumerate(names):
            if name not in bars:
                continue
            value, spread = bars[name]
            high = _height(value, top)
            x = left + number * wide
            parts.append(
                f'<rect class="bar s{number % SERIES}" x="{x:.1f}" y="{base - high:.1f}" width="{wide * 0.9:.1f}" '
                f'height="{high:.1f}"><title>{escape(f"{group}, {name}: {100 * value:.1f} %")}</title></rect>'
            )
            if spread > 0:
                middle, (a, b) = x + wide * 0.45, (_height(value + end, top) for end in (-spread, spread))
                ends = f'x1="{middle:.1f}" y1="{base - a:.1f}" x2="{middle:.1f}" y2="{base - b:.1f}"'
                parts.append(f'<line class="whisker" {ends}/>')
        parts.append(f'<text x="{left + span * 0.4:.1f}" y="{base + 14}" text-anchor="middle">{escape(group)}</text>')
    return _figure(label, parts, names)


def _height(value: float, top: float) -> float:
    return min(max(value / top, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)


def _scaled(x: float, *, log: bool) -> float:
    return math.log10(x) if log else math.log2(1 + x)


def _y_axis(title: str, top: float = 1.0) -> list[str]:
    parts = []
    for step in range(5):
        share = step / 4
        y = TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{100 * share * top:.4g} %</text>')
    middle = TOP + (HEIGHT - TOP - BOTTOM) / 2
    parts.append(
        f'<text class="title" transform="translate(11 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(title)}</text>"
    )
    return parts


def _x_title(title: str) -> str:
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    return f'<text class="title" x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(title)}</text>'


def _figure(label: str, parts: Sequence[str], names: Sequence[str]) -> str:
    legend = "".join(
        f'<li><svg viewBox="0 0 22 8" aria-hidden="true"><line class="line s{number % SERIES}" x1="1" y1="4" x2="21" '
        f'y2="4"/></svg>{escape(name)}</li>'
        for number, name in enumerate(names)
    )
    return (
        f'<figure class="chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label, quote=True)}">{"".join(parts)}</svg>'
        f'<figcaption>{escape(label)}<ul class="legend">{legend}</ul></figcaption></figure>'
    )
