"""The layer analysis as a self-contained page: curves, a table, and pictures of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from torch import Tensor, nn

from training.analysis.cam import TITLES, Maps, heat_maps
from training.analysis.contrast import KINDS, Triples, predictions
from training.analysis.layers import UNDETERMINED
from training.analysis.pictures import data_uri, overlaid, plain
from training.util.charts import Series, layer_chart

EXAMPLES = 3
ATTENTION = (
    "Median deviation D = 1 - cos between the Grad-CAM map of the clean image and that of the other one, each for the "
    "label that the network gives."
)
VULNERABILITY = (
    "V = median deviation under attack / under noise of equal mean and norm, with 95 % bootstrap intervals. At 1 the "
    "layer reacts to the attack as it does to noise. Where maps are mostly empty V says nothing; it is "
    "drawn at 10,000 at most."
)
TURNING = (
    "Share of images on which a linear probe of the layer prefers the wrong answer that the attack brings about to the "
    "right one."
)
KIND_TITLES = {"clean": "clean", "adversarial": "attacked", "gaussian": "Gaussian noise"}


def layer_page(
    title: str, analysed: Mapping[str, tuple[dict[str, Any], Triples, nn.Module]], *, classes: list[str], facts: str
) -> str:
    """HTML of the reports, images and networks in `analysed`, by the network's name."""
    sections = [
        {
            "name": name,
            "report": report,
            "charts": _charts(report),
            "pictures": _pictures(network, found, classes),
        }
        for name, (report, found, network) in analysed.items()
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("layers.html.jinja").render(
        title=title, facts=facts, sections=sections, methods=TITLES, kinds=KIND_TITLES
    )


def _charts(report: dict[str, Any]) -> list[tuple[str, str, Markup]]:
    rows = report["layers"]
    names = [row["layer"] for row in rows]

    def column(*keys: str) -> list[Any]:
        values = rows
        for key in keys:
            values = [value[key] for value in values]
        return values

    moved = [
        Series(KIND_TITLES[kind], column("own_label", "grad_cam", kind), colour)
        for colour, kind in enumerate(KINDS[1:], 1)
    ]
    vulnerable = [
        Series(
            name,
            [min(v, UNDETERMINED) for v in column(*keys, "vulnerability")],
            colour,
            [(min(low, UNDETERMINED), min(high, UNDETERMINED)) for low, high in column(*keys, "interval")],
        )
        for colour, (name, keys) in enumerate(
            {
                "Grad-CAM, label given": ("own_label", "grad_cam"),
                "Grad-CAM, right label": ("right_label", "grad_cam"),
                "responses": ("response",),
            }.items(),
            1,
        )
    ]
    turned = [Series(KIND_TITLES[kind], column("turned", kind), colour) for colour, kind in enumerate(KINDS[1:], 1)]
    return [
        ("How far attention moves", ATTENTION, layer_chart(names, moved, label="median deviation of Grad-CAM")),
        ("Vulnerability", VULNERABILITY, layer_chart(names, vulnerable, label="vulnerability", log=True)),
        ("Where the decision turns", TURNING, layer_chart(names, turned, label="share of images turned")),
    ]


def _pictures(network: nn.Module, found: Triples, classes: list[str]) -> dict[str, Any]:
    """{layers, rows}: a row for each example and kind, with the image and its maps by method."""
    chosen = _examples(found)
    rows: list[dict[str, Any]] = []
    layers: list[str] = []
    for kind in KINDS:
        x = found.images[kind][chosen]
        label = predictions(network, x)
        _, maps, _ = heat_maps(network, x, label)
        layers = list(maps)
        rows += [_row(i, kind, x[i], classes[int(label[i])], maps) for i in range(len(chosen))]
    return {"layers": layers, "rows": sorted(rows, key=lambda row: row["example"])}


def _row(i: int, kind: str, image: Tensor, label: str, maps: Maps) -> dict[str, Any]:
    drawn = {method: [data_uri(overlaid(image, of[method][i])) for of in maps.values()] for method in TITLES}
    return {"example": i, "kind": kind, "label": label, "image": data_uri(plain(image)), "maps": drawn}


def _examples(found: Triples) -> list[int]:
    """The first images of as many classes."""
    _, first = np.unique(found.right.cpu().numpy(), return_index=True)
    return [int(i) for i in np.sort(first)[:EXAMPLES]]
