"""A defence graph in both its forms, and sessions that run it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor

from training.defence.graph import DefenceGraph
from training.export import blocked


@dataclass(frozen=True)
class Exported:
    """A defence graph as a torch module and as the ONNX file written of it."""

    graph: DefenceGraph
    path: Path
    model: onnx.ModelProto
    session: ort.InferenceSession

    def run(self, pixels: Tensor, mask: Tensor) -> dict[str, Tensor]:
        values = self.session.run(None, {"pixels": pixels.numpy(), "mask": mask.numpy()})
        return {o.name: torch.from_numpy(v) for o, v in zip(self.session.get_outputs(), values, strict=True)}


def open_session(content: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def keep_blocked(model: onnx.ModelProto) -> int:
    """`training.export.blocked.keep_blocked` of a file's model, in place."""
    graph = ir.from_proto(model)
    changes = blocked.keep_blocked(graph)
    if changes:
        model.CopyFrom(ir.to_proto(graph))
    return changes
