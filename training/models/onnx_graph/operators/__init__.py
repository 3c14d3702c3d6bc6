"""The table of operators: one function of torch tensors for each operator of ONNX that is read."""

from __future__ import annotations

from training.models.onnx_graph.operators.arithmetic import ARITHMETIC
from training.models.onnx_graph.operators.images import IMAGES, MODULES
from training.models.onnx_graph.operators.operator import Operator
from training.models.onnx_graph.operators.shapes import SHAPES

TABLE: dict[str, Operator] = {**ARITHMETIC, **SHAPES, **IMAGES}

__all__ = ["MODULES", "TABLE"]
