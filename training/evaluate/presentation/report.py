"""The card as one HTML file with curves and pictures, that is self-contained."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from training.evaluate.harness.shown import Table
from training.evaluate.harness.unit import Place
from training.evaluate.presentation.content import FIGURES, STATUS, Card, chapters, headline, introduction
from training.evaluate.presentation.kept import Kept
from training.evaluate.presentation.plain import TITLE, plain
from training.recipes.evaluation import RATES
from training.util.charts import bar_chart, line_chart

ROC_TICKS = (0.001, 0.01, 0.1, 1.0)
ABLATED = {
    "clean": "clean",
    "pgd_4": "PGD 4",
    "pgd_8": "PGD 8",
    "autoattack_4": "AA 4",
    "autoattack_8": "AA 8",
    "transfer_8": "MI 8",
    "transfer_16": "MI 16",
}
READINGS = {"system": "the system", "max_softmax": "max softmax", "class_distance": "Mahalanobis"}


@dataclass(frozen=True)
class Drawn:
    """What only the report has: ROC curves by attack and reading, rows of pictures, and the ablation's table.

    `kept` is what an earlier report showed where nothing of it is measured again.
    """

    roc: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]] = field(default_factory=dict)
    pictures: Sequence[Mapping[str, Any]] = ()
    ablation: Mapping[str, Any] | None = None
    kept: Kept = field(default_factory=lambda: Kept({}, None))


def html(card: Card, bounds: Sequence[Card], places: Sequence[Place[Any]], drawn: Drawn = Drawn()) -> str:
    """The page of `card`; `bounds` are the rows of `card.check`, `places` its sections in order."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["marked"] = marked
    environment.tests["table"] = lambda part: isinstance(part, Table)
    return environment.get_template("report.html.jinja").render(
        card=card,
        status=STATUS[card["status"]],
        plain_title=TITLE,
        plain=plain(card, bounds),
        figures_title=FIGURES,
        introduction=introduction(card),
        headline=headline(bounds),
        chapters=chapters(card, places),
        charts=_all_charts(card, drawn),
        pictures=drawn.pictures,
        kept_pictures=drawn.kept.pictures,
    )


def marked(text: str) -> Markup:
    """Text with `code` and **emphasis** as HTML, figures not broken over lines; everything else is escaped."""
    text = re.sub(r"\((-?[\d.]+) to (-?[\d.]+)\)", "(\\1\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}\\2)", text)
    text = re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", text)
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", safe))  # noqa: S704  # escaped above


def _all_charts(card: Card, drawn: Drawn) -> list[Markup]:
    """Those drawn now, then those of an earlier report with other labels."""
    charts = _charts(card, drawn) | _ablation(drawn.ablation)
    now = {label: Markup(chart) for label, chart in charts.items()}  # noqa: S704  # text is escaped
    return list((now | {label: chart for label, chart in drawn.kept.charts.items() if label not in now}).values())


def _charts(card: Card, drawn: Drawn) -> dict[str, str]:
    """Charts by label."""
    charts, titles = dict[str, str](), card.get("titles", {})
    if curve := card.get("curve"):
        names = {"answering": "answering network", "companion": "companion"}
        series = {
            name: [(float(eps), y) for eps, y in curve[role].items()] for role, name in names.items() if role in curve
        }
        label = f"Security curve: accuracy under PGD-{curve['steps']}, n = {curve['n']:,}"
        charts[label] = line_chart(
            series,
            label=label,
            x_label="radius of the attack, of 255",
            y_label="accuracy",
            x_ticks=[float(eps) for eps in curve["answering"] if float(eps) in _TICKS],
        )
    for eps, part in card.get("systems", {}).items():
        series = {
            title: [(rate, part[system][f"fpr_{rate:g}"]) for rate in RATES]
            for system, title in titles.get("systems", {}).items()
            if system in part and system != "max_softmax"
        }
        label = f"Wrong and not flagged, adaptive attack at {eps[4:]}/255"
        charts[label] = line_chart(
            series,
            label=label,
            x_label="benign images flagged",
            y_label="wrong and not flagged",
            x_ticks=RATES,
            x_log=True,
            x_names=[f"{100 * rate:g} %" for rate in RATES],
        )
    for attack, curves in drawn.roc.items():
        read = {READINGS[reading]: points for reading, points in curves.items() if points}
        if read:
            label = f"ROC: {titles.get('attacks', {}).get(attack, attack)}"
            charts[label] = line_chart(
                read,
                label=label,
                x_label="benign images flagged",
                y_label="attacks flagged",
                x_ticks=ROC_TICKS,
                x_log=True,
                marks=False,
                x_names=[f"{100 * tick:g} %" for tick in ROC_TICKS],
            )
    return charts


_TICKS = {0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 255.0}


def _ablation(table: Mapping[str, Any] | None) -> dict[str, str]:
    """Bars of `studies.ablation`'s table: {summary: {arm: {figure: {mean, sd}}}}."""
    groups: dict[str, dict[str, tuple[float, float]]] = {}
    for arm, figures in (table or {}).get("summary", {}).items():
        for figure, title in ABLATED.items():
            if found := figures.get(figure):
                spread = float(found.get("sd") or 0.0)
                groups.setdefault(title, {})[arm] = (float(found["mean"]), 0.0 if math.isnan(spread) else spread)
    if not groups:
        return {}
    label = "Ablation at equal budget: mean and standard deviation over training seeds"
    return {label: bar_chart(groups, label=label, y_label="accuracy")}
