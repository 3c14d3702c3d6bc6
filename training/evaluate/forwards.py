"""What an answer of a bundle costs in forward passes of its answering network: counted in the graphs, not timed."""

from __future__ import annotations

from typing import Any

import onnx

from gateway.core.loading import Bundle
from training.export.macs import macs
from training.export.parts import OUTPUTS, cut

_FREE = ("neutral_pixels", "screen_scores")  # results that no convolution or product of matrices is behind


def forwards_of(bundle: Bundle) -> dict[str, Any]:
    """Multiply-accumulates of each part over those of the answering network alone, for one image.

    {part: forwards, "macs": those of one forward}; an input gradient counts as what it runs. Empty for a bundle without
    a graph (the network is another server's) and for one whose shapes cannot be inferred.
    """
    graphs = bundle.manifest.graphs
    if "full" not in graphs:
        return {}
    model = onnx.load(str(bundle.path / graphs["full"].file), load_external_data=False)
    names = [output.name for output in model.graph.output]

    def count(outputs: list[str]) -> int:
        return macs(cut(model, outputs), 1, products=True)

    try:
        one = count(["logits"])
        parts = {part: [name for name in names if name in OUTPUTS[part] and name not in _FREE] for part in graphs}
        return {part: round(count(outputs) / one, 2) for part, outputs in parts.items()} | {"macs": one}
    except ValueError:
        return {}
