"""What a report shows that its card does not hold: ROC curves and pictures, taken over when a report is made anew."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import unescape

from markupsafe import Markup

_CHART = re.compile(r'<figure class="chart">.*?</figure>', re.DOTALL)
_LABEL = re.compile(r'aria-label="([^"]*)"')
_PICTURES = re.compile(r'<table class="maps">.*?</table>', re.DOTALL)


@dataclass(frozen=True)
class Kept:
    """Charts of an earlier report by their labels, and its table of pictures; as they stand there."""

    charts: dict[str, Markup]
    pictures: Markup | None


def kept_of(report: str) -> Kept:
    """The charts and pictures of a report that `report.html` wrote."""
    charts = {}
    for chart in _CHART.findall(report):
        if label := _LABEL.search(chart):
            charts[unescape(label.group(1))] = Markup(chart)  # noqa: S704  # our own report, whose hash was checked
    pictures = _PICTURES.search(report)
    return Kept(charts, Markup(pictures.group()) if pictures else None)  # noqa: S704  # likewise
