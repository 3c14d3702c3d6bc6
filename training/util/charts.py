"""Charts as inline SVG, coloured by the page's style sheet so that they read in light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Point = tuple[float, float]
SERIES = 6  # colours in the report's style sheet: .s0 ... .s5, distinguished by dashes as well


@dataclass(frozen=True)
class Frame:
    """Size of a chart and of the margins around what is plotted, in the units of its view box."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    @property
    def across(self) -> int:
        return self.width - self.left - self.right

    @property
    def base(self) -> int:
        """Ordinate of the lower end."""
        return self.height - self.bottom

    def tall(self, share: float) -> float:
        """Height of a share of the plotted range, which is cut to [0, 1]."""
        return min(max(share, 0.0), 1.0) * (self.base - self.top)

    def rule(self, share: float, text: str) -> str:
        """A horizontal line of the grid, at a share of the plotted range, and what stands at its left."""
        y = self.base - self.tall(share)
        return (
            f'<line class="grid" x1="{self.left}" y1="{y:.1f}" x2="{self.width - self.right}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{self.left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{escape(text)}</text>'
        )

    def svg(self, label: str, parts: Sequence[str], style: str = "") -> str:
        box = f'viewBox="0 0 {self.width} {self.height}"'
        return f'<svg {box} role="img" aria-label="{escape(label)}"{style}>{"".join(parts)}</svg>'


FIGURE = Frame(460, 270, left=46, right=22, top=10, bottom=40)
LAYERS = Frame(860, 300, left=52, right=16, top=14, bottom=92)


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
        return FIGURE.left + across * FIGURE.across, FIGURE.base - FIGURE.tall(y)

    parts = [*_y_axis(y_label)]
    for tick, name in zip(x_ticks, x_names or [f"{tick:g}" for tick in x_ticks], strict=True):
        x, base = at(tick, 0)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{FIGURE.top}" x2="{x:.1f}" y2="{base:.1f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 14:.1f}" text-anchor="middle">{escape(name)}</text>')
    parts.append(_x_title(x_label))
    for number, points in enumerate(series.values()):
        placed = [at(x, y) for x, y in points]
        style = f"s{number % SERIES}"
        parts.append(f'<polyline class="line {style}" points="{_path(placed)}"/>')
        if marks:
            parts += [f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in placed]
    return _figure(label, parts, list(series))


def bar_chart(
    groups: Mapping[str, Mapping[str, tuple[float, float]]], *, label: str, y_label: str, top: float = 1.0
) -> str:
    """Bars {group: {series: (value, spread)}} with a whisker of +- spread, y from 0 to `top` as per cent."""
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    parts = [*_y_axis(y_label, top)]
    span = FIGURE.across / max(len(groups), 1)
    wide = span * 0.8 / max(len(names), 1)
    base = FIGURE.base
    for place, (group, bars) in enumerate(groups.items()):
        left = FIGURE.left + place * span + span * 0.1
        for number, name in enumerate(names):
            if name not in bars:
                continue
            value, spread = bars[name]
            high = FIGURE.tall(value / top)
            x = left + number * wide
            parts.append(
                f'<rect class="bar s{number % SERIES}" x="{x:.1f}" y="{base - high:.1f}" width="{wide * 0.9:.1f}" '
                f'height="{high:.1f}"><title>{escape(f"{group}, {name}: {100 * value:.1f} %")}</title></rect>'
            )
            if spread > 0:
                middle, (a, b) = x + wide * 0.45, (FIGURE.tall((value + end) / top) for end in (-spread, spread))
                ends = f'x1="{middle:.1f}" y1="{base - a:.1f}" x2="{middle:.1f}" y2="{base - b:.1f}"'
                parts.append(f'<line class="whisker" {ends}/>')
        parts.append(f'<text x="{left + span * 0.4:.1f}" y="{base + 14}" text-anchor="middle">{escape(group)}</text>')
    return _figure(label, parts, names)


@dataclass(frozen=True)
class Series:
    """One curve: name, a value for each layer, its place in the palette, and an interval for each value."""

    name: str
    values: Sequence[float]
    colour: int
    intervals: Sequence[tuple[float, float]] | None = None


def layer_chart(layers: Sequence[str], series: Sequence[Series], *, label: str, log: bool = False) -> Markup:
    """Points joined over `layers`, with whiskers where there are intervals; `label` names the ordinate."""
    values = [v for s in series for v in s.values] + [end for s in series for pair in s.intervals or () for end in pair]
    axis = _LogAxis(values) if log else _LinearAxis(values)
    step = LAYERS.across / max(len(layers), 1)

    def across(i: int, shift: float = 0.0) -> float:
        return LAYERS.left + step * (i + 0.5) + shift

    def at(value: float) -> float:
        return LAYERS.base - LAYERS.tall(axis.share(value))

    parts = [LAYERS.rule(axis.share(tick), f"{tick:.3g}") for tick in axis.ticks]
    parts += [_slanted(across(i), name) for i, name in enumerate(layers)]
    for number, one in enumerate(series):
        shift = 5.0 * (number - (len(series) - 1) / 2) if any(s.intervals for s in series) else 0.0
        points = [(across(i, shift), at(value)) for i, value in enumerate(one.values)]
        parts.append(f'<g class="s{one.colour}"><polyline points="{_path(points)}"/>')
        for i, (x, y) in enumerate(points):
            shown = f"{layers[i]}: {one.name} {one.values[i]:.3g}"
            if one.intervals:
                low, high = one.intervals[i]
                parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{at(low):.1f}" y2="{at(high):.1f}"/>')
                shown += f" ({low:.3g} to {high:.3g})"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(shown)}</title></circle>')
        parts.append("</g>")
    legend = "".join(f'<span class="key s{s.colour}">{escape(s.name)}</span>' for s in series)
    chart = LAYERS.svg(label, parts, ' class="chart"')
    return Markup(f'{chart}<p class="legend">{legend}</p>')  # noqa: S704  # all text is escaped


class _LinearAxis:
    """From 0 to a round number above the largest value."""

    def __init__(self, values: Sequence[float]) -> None:
        top = max([*values, 1e-6])
        unit = 10 ** math.floor(math.log10(top))
        unit = next(u for u in (unit / 5, unit / 2, unit, unit * 2) if top / u <= 5)
        self.end = math.ceil(top / unit - 1e-9) * unit
        self.ticks = [i * unit for i in range(round(self.end / unit) + 1)]

    def share(self, value: float) -> float:
        return value / self.end


class _LogAxis(_LinearAxis):
    """Over the powers of ten that hold every positive value."""

    def __init__(self, values: Sequence[float]) -> None:
        positive = [v for v in values if v > 0] or [1.0]
        self.low = math.floor(math.log10(min(*positive, 1.0) if len(positive) > 1 else min(positive[0], 1.0)))
        self.high = max(math.ceil(math.log10(max(positive))), self.low + 1)
        self.ticks = [10.0**i for i in range(self.low, self.high + 1)]

    def share(self, value: float) -> float:
        return (math.log10(max(value, 10.0**self.low)) - self.low) / (self.high - self.low)


def _slanted(x: float, name: str) -> str:
    y = LAYERS.base + 14
    return (
        f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="end" '
        f'transform="rotate(-40 {x:.1f} {y})">{escape(name)}</text>'
    )


def _path(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _scaled(x: float, *, log: bool) -> float:
    return math.log10(x) if log else math.log2(1 + x)


def _y_axis(title: str, top: float = 1.0) -> list[str]:
    middle = (FIGURE.top + FIGURE.base) / 2
    place = f'transform="translate(11 {middle:.0f}) rotate(-90)" text-anchor="middle"'
    ticks = [FIGURE.rule(step / 4, f"{25 * step * top:.4g} %") for step in range(5)]
    return [*ticks, f'<text class="title" {place}>{escape(title)}</text>']


def _x_title(title: str) -> str:
    middle = FIGURE.left + FIGURE.across / 2
    return f'<text class="title" x="{middle:.0f}" y="{FIGURE.height - 8}" text-anchor="middle">{escape(title)}</text>'


def _figure(label: str, parts: Sequence[str], names: Sequence[str]) -> str:
    legend = "".join(
        f'<li><svg viewBox="0 0 22 8" aria-hidden="true"><line class="line s{number % SERIES}" x1="1" y1="4" x2="21" '
        f'y2="4"/></svg>{escape(name)}</li>'
        for number, name in enumerate(names)
    )
    return (
        f'<figure class="chart">{FIGURE.svg(label, parts)}'
        f'<figcaption>{escape(label)}<ul class="legend">{legend}</ul></figcaption></figure>'
    )
