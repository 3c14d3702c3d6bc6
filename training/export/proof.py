"""What a graph of evidence is given to prove labels with: `training.export.small_field` has what it computes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gateway.core.small_field import HARDEST

_NEVER = 1e9
"""A lead that no class has: that of the label over itself."""


def append_proof(model: onnx.ModelProto, classes: int) -> None:
    """Append the proof to a graph that makes `cells` (N, `classes`, h, w), of stated height and width, from pixels."""
    graph = model.graph
    hardest = min(HARDEST, classes - 1)
    constants: dict[str, np.ndarray] = {
        "grid": np.array([2, 3], np.int64),
        "last": np.array([2], np.int64),
        "within": np.array([1, 2], np.int64),
        "flat": np.array([0, 0, -1], np.int64),
        "classes": np.array([classes], np.int64),
        "no_yes": np.array([0, 1], np.float32),
        "first": np.array([1], np.int64),
        "twice": np.array(2, np.float32),
        "never": np.array(_NEVER, np.float32),
        "hardest": np.array([hardest], np.int64),
        "ranked": np.array([hardest + 1], np.int64),
        "begin": np.array([0], np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(value, f"proof_{name}") for name, value in constants.items())

    def add(kind: str, inputs: str, outputs: str, **attributes: int) -> None:
        names = [f"proof_{name[1:]}" if name.startswith("$") else name for name in inputs.split()]
        graph.node.append(helper.make_node(kind, names, outputs.split(), None, None, None, None, **attributes))

    add("ReduceSum", "cells $grid", "logits", keepdims=0)
    add("Reshape", "cells $flat", "proof_evidence")
    add("ArgMax", "logits", "proof_label", axis=1, keepdims=0)
    add("OneHot", "proof_label $classes $no_yes", "proof_own", axis=-1)
    add("Unsqueeze", "proof_own $first", "proof_own_row")
    add("MatMul", "proof_own_row proof_evidence", "proof_mine")
    add("Sub", "proof_mine proof_evidence", "proof_leads")
    add("ReduceSum", "proof_leads $last", "proof_lead", keepdims=0)
    add("Relu", "proof_leads", "proof_gains")
    add("MatMul", "proof_gains windows", "proof_lost")
    add("ReduceMax", "proof_lost $last", "proof_most", keepdims=0)
    add("Mul", "proof_most $twice", "proof_both")
    add("Sub", "proof_lead proof_both", "proof_bound")
    add("Mul", "proof_own $never", "proof_itself")
    add("Add", "proof_bound proof_itself", "proof_bounds")
    add("TopK", "proof_bounds $ranked", "proof_least proof_order", axis=1, largest=0, sorted=1)
    add("Slice", "proof_order $begin $hardest $first", "proof_hard")
    add("Slice", "proof_least $hardest $ranked $first", "proof_rest")
    add("ReduceMin", "proof_rest $first", "others", keepdims=0)
    add("Unsqueeze", "proof_hard $last", "proof_rows")
    add("GatherND", "proof_leads proof_rows", "proof_chosen", batch_dims=1)
    add("ReduceSum", "proof_chosen $last", "proof_whole", keepdims=1)
    add("MatMul", "proof_chosen windows", "proof_hidden")
    add("Sub", "proof_whole proof_hidden", "proof_left")
    add("ReduceMin", "proof_left $within", "one", keepdims=0)
    add("MatMul", "proof_chosen kept", "proof_kept_leads")
    add("ReduceMin", "proof_kept_leads $within", "two", keepdims=0)
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param

    def value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    cells = int(np.prod([axis.dim_value for axis in graph.output[0].type.tensor_type.shape.dim[2:]]))
    graph.input.extend([value("windows", [cells, "Q"]), value("kept", [cells, "P"])])
    graph.output.extend(
        [value("logits", [batch, classes]), *(value(name, [batch]) for name in ("one", "two", "others"))]
    )
