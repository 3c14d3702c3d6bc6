from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.core.engine import Engine
from gateway.core.graph_cut import cut_to
from gateway.core.loading import load_bundle

SHIPPED = sorted(path.parent for path in Path("models").resolve().glob("*/verdict.onnx"))


def _branching() -> onnx.ModelProto:
    """`chosen` by an `If` whose branches read `a` and `c` of the graph around them; `other` reads `unused`."""

    def branch(name: str, source: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [2])
        return helper.make_graph([helper.make_node("Neg", [source], [f"{name}_out"])], name, [], [out])

    nodes = [
        helper.make_node("Add", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["x", "w"], ["c"]),
        helper.make_node("Add", ["x", "unused"], ["b"]),
        helper.make_node("If", ["up"], ["chosen"], then_branch=branch("then", "a"), else_branch=branch("else", "c")),
        helper.make_node("Relu", ["b"], ["other"]),
    ]
    graph = helper.make_graph(
        nodes,
        "branching",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("up", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("chosen", "other")],
        [
            numpy_helper.from_array(np.ones(2, np.float32), "w"),
            numpy_helper.from_array(np.zeros(300, np.float32), "unused"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_what_a_branch_reads_of_the_graph_around_it_stays() -> None:
    made = onnx.ModelProto.FromString(cut_to(_branching().SerializeToString(), "chosen"))
    onnx.checker.check_model(made)
    assert [node.op_type for node in made.graph.node] == ["Add", "Mul", "If"]
    assert [tensor.name for tensor in made.graph.initializer] == ["w"]
    assert [output.name for output in made.graph.output] == ["chosen"]
    assert [value.name for value in made.graph.input] == ["x", "up"]


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_graphs_answer_alike_without_their_verdict(folder: Path) -> None:
    data = (folder / "verdict.onnx").read_bytes()
    made, whole = onnx.ModelProto.FromString(cut_to(data, "logits")), onnx.ModelProto.FromString(data)
    assert len(made.graph.node) < 0.3 * len(whole.graph.node)
    engine = Engine.open(load_bundle(folder), device="cpu", threads=1)
    spec = engine.spec
    pixels = np.random.default_rng(0).random((2, spec.channels, spec.height, spec.width), np.float32)
    masks = np.zeros((2, spec.height, spec.width), np.float32)
    masks[1, 3 : spec.height // 2, 5 : spec.width // 2] = 1.0
    logits = engine.answer(pixels, masks)
    np.testing.assert_allclose(logits, engine.run(pixels, masks, part="verdict").logits, rtol=1e-4, atol=1e-4)
    pixels[1, :, 3 : spec.height // 2, 5 : spec.width // 2] = 1.0
    assert np.array_equal(logits, engine.answer(pixels, masks)), "the fill reads what the mask hides"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it has no graph"),
        (b"\x3a\x05ab", "ends early"),
        (b"\xff", "ends early"),
        (b"\x3b", "wire type"),
        (b"\x38\x01", "it has no graph"),
        (_branching().SerializeToString(), "no output 'logits'"),
    ],
)
def test_what_cannot_be_cut_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        cut_to(data, "logits")
