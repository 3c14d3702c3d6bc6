"""Curves over a network's layers as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 860, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 92


@dataclass(frozen=True)
class Series:
    """One curve: name, a value for each layer, its place in the palette, and an interval for each value."""

    name: str
    values: Sequence[float]
    colour: int
    intervals: Sequence[tuple[float, float]] | None = None


def curves(layers: Sequence[str], series: Sequence[Series], *, label: str, log: bool = False) -> Markup:
    """Points joined over `layers`, with whiskers where there are intervals; `label` says what the ordinate is."""
    values = [v for s in series for v in s.values] + [end for s in series for pair in s.intervals or () for end in pair]
    axis = _LogAxis(values) if log else _LinearAxis(values)
    step = (WIDTH - LEFT - RIGHT) / max(len(layers), 1)

    def across(i: int, shift: float = 0.0) -> float:
        return LEFT + step * (i + 0.5) + shift

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" class="chart">',
        *(_grid(axis.at(tick), axis.text(tick)) for tick in axis.ticks),
        *(_tick(across(i), name) for i, name in enumerate(layers)),
    ]
    for number, one in enumerate(series):
        shift = 5.0 * (number - (len(series) - 1) / 2) if any(s.intervals for s in series) else 0.0
        points = [(across(i, shift), axis.at(value)) for i, value in enumerate(one.values)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<g class="s{one.colour}"><polyline points="{path}"/>')
        for i, (x, y) in enumerate(points):
            told = f"{layers[i]}: {one.name} {one.values[i]:.3g}"
            if one.intervals:
                low, high = one.intervals[i]
                parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{axis.at(low):.1f}" y2="{axis.at(high):.1f}"/>')
                told += f" ({low:.3g} to {high:.3g})"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(told)}</title></circle>')
        parts.append("</g>")
    legend = "".join(f'<span class="key s{s.colour}">{escape(s.name)}</span>' for s in series)
    return Markup("\n".join([*parts, "</svg>"]) + f'<p class="legend">{legend}</p>')  # noqa: S704  # all text is escaped


class _LinearAxis:
    def __init__(self, values: Sequence[float]) -> None:
        top = max([*values, 1e-6])
        unit = 10 ** math.floor(math.log10(top))
        unit = next(u for u in (unit / 5, unit / 2, unit, unit * 2) if top / u <= 5)
        self.end = math.ceil(top / unit - 1e-9) * unit
        self.ticks = [i * unit for i in range(round(self.end / unit) + 1)]

    def at(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * min(max(value / self.end, 0.0), 1.0)

    def text(self, tick: float) -> str:
        return f"{tick:.3g}"


class _LogAxis(_LinearAxis):
    def __init__(self, values: Sequence[float]) -> None:
        positive = [v for v in values if v > 0] or [1.0]
        self.low = math.floor(math.log10(min(*positive, 1.0) if len(positive) > 1 else min(positive[0], 1.0)))
        self.high = max(math.ceil(math.log10(max(positive))), self.low + 1)
        self.ticks = [10.0**i for i in range(self.low, self.high + 1)]

    def at(self, value: float) -> float:
        share = (math.log10(max(value, 10.0**self.low)) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * min(share, 1.0)


def _grid(y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _tick(x: float, name: str) -> str:
    y = HEIGHT - BOTTOM + 14
    return (
        f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="end" '
        f'transform="rotate(-40 {x:.1f} {y})">{escape(name)}</text>'
    )
