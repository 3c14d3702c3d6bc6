"""The graph of a network of small fields: its evidence, and the least leads without one or two windows of cells.

`gateway.core.small_field` has what these prove. Inputs: pixels (N, C, H, W), windows (cells, Q) and kept (cells, P),
both from there. Outputs: logits (N, K) and, of the label that they give, `one` (N,), the least lead over one of the
`HARDEST` other classes without any window, `two` (N,), without any two, and `others` (N,), a bound from below for the
rest of the classes: what stays when a window's share of the evidence is lost twice, the least favourable one. `cells`
(N, K, h, w) is the evidence itself.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from gateway.core.manifest import InputSpec
from gateway.core.small_field import SMALL_FIELD
from training.errors import ExportError
from training.export.fold import folded
from training.export.onnx_file import EXAMPLE_BATCH, export_module
from training.export.proof import append_proof
from training.models.small_field import SmallField
from training.util.module_modes import seeded


class _Evidence(nn.Module):
    def __init__(self, network: SmallField) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network.cells(pixels)


def export_small_field(network: SmallField, folder: Path, spec: InputSpec) -> None:
    """Write the graph of `network` into `folder`, for images of that size; raises `ExportError`."""
    made = folded(network, side=spec.height)
    if not isinstance(made, SmallField):
        raise ExportError("not a network of small fields")
    path = folder / SMALL_FIELD
    pixels = torch.rand(EXAMPLE_BATCH, spec.channels, spec.height, spec.width, generator=seeded(0))
    model = export_module(_Evidence(made).eval(), path, inputs={"pixels": pixels}, outputs=["cells"])
    append_proof(model, made.head.out_channels)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
