"""Rewrites of graphs made here, where it can be seen which branch ran, and of the exported defence graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.training.exported import Exported, open_session
from tests.training.toy import SIDE
from training.export.rewrite import pool_globally, skip_inpainting
from training.imaging.inpaint import inpaint
from training.util.module_modes import seeded

SHAPE = ["N", 2, 4, 4]


def graph(nodes: list[onnx.NodeProto], outputs: dict[str, list[Any]], constants: dict[str, Any]) -> onnx.ModelProto:
    def value(name: str, shape: list[Any]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    made = helper.make_graph(
        nodes,
        "made",
        [value("pixels", SHAPE), value("mask", ["N", 4, 4])],
        [value(name, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(content), name) for name, content in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def rewritten(model: onnx.ModelProto, rule: Callable[[ir.Model], int]) -> int:
    """Apply `rule` to `model` in place; returns how many places it changed."""
    made = ir.from_proto(model)
    count = rule(made)
    model.CopyFrom(ir.to_proto(made))
    return count


def run(model: onnx.ModelProto, pixels: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    return open_session(model.SerializeToString()).run(None, {"pixels": pixels, "mask": mask})


@pytest.fixture
def shifted() -> onnx.ModelProto:
    """`neutral_pixels` is pixels + 1 + mask whatever the mask says, so that a branch that was skipped shows."""
    nodes = [
        helper.make_node("Add", ["pixels", "one"], ["brighter"]),
        helper.make_node("Unsqueeze", ["mask", "axis"], ["wide"]),
        helper.make_node("Add", ["brighter", "wide"], ["neutral_pixels"]),
        helper.make_node("Mul", ["neutral_pixels", "one"], ["scaled"]),
        helper.make_node("Add", ["scaled", "pixels"], ["logits"]),
    ]
    constants = {"one": np.float32(1.0), "axis": np.array([1], np.int64)}
    return graph(nodes, {"neutral_pixels": SHAPE, "logits": SHAPE}, constants)


@pytest.mark.parametrize("level", [0.0, 0.5])
def test_without_a_marked_pixel_the_branch_does_not_run(shifted: onnx.ModelProto, level: float) -> None:
    pixels = np.random.default_rng(0).random((3, 2, 4, 4), np.float32)
    mask = np.full((3, 4, 4), level, np.float32)
    assert np.array_equal(run(shifted, pixels, mask)[0], pixels + 1 + mask[:, None])
    assert rewritten(shifted, skip_inpainting) == 1
    neutral, logits = run(shifted, pixels, mask)
    assert np.array_equal(neutral, pixels)
    assert np.array_equal(logits, pixels + pixels)


def test_one_marked_pixel_runs_it_for_the_batch(shifted: onnx.ModelProto) -> None:
    pixels = np.random.default_rng(0).random((3, 2, 4, 4), np.float32)
    mask = np.zeros((3, 4, 4), np.float32)
    mask[1, 2, 3] = 1.0
    before = run(shifted, pixels, mask)
    rewritten(shifted, skip_inpainting)
    for found, expected in zip(run(shifted, pixels, mask), before, strict=True):
        assert np.array_equal(found, expected)


def test_what_only_the_branch_reads_moves_into_it(shifted: onnx.ModelProto) -> None:
    """`axis` is read nowhere else, `one` is."""
    rewritten(shifted, skip_inpainting)
    (branching,) = [node for node in shifted.graph.node if node.op_type == "If"]
    branches = {attribute.name: attribute.g for attribute in branching.attribute}
    assert {tensor.name for tensor in branches["then_branch"].initializer} == {"axis"}
    assert {tensor.name for tensor in shifted.graph.initializer} == {"one", "mask_level"}
    assert [node.op_type for node in branches["else_branch"].node] == ["Identity"]
    assert {node.domain for node in [*shifted.graph.node, *branches["then_branch"].node]} <= {"", "ai.onnx"}


def test_a_graph_without_inpainting_is_left_alone() -> None:
    model = graph([helper.make_node("Relu", ["pixels"], ["logits"])], {"logits": SHAPE}, {})
    before = model.SerializeToString()
    assert rewritten(model, skip_inpainting) == 0
    assert model.SerializeToString() == before


def test_the_defence_graph_has_both_branches_right(exported: Exported) -> None:
    """Inpainting is inside one If alone; what comes out is torch's, and what is skipped comes out bit for bit."""
    assert [node.op_type for node in exported.model.graph.node].count("If") == 1
    pixels = torch.rand(3, 3, SIDE, SIDE, generator=seeded(1))
    mask = torch.zeros(3, SIDE, SIDE)
    assert torch.equal(exported.run(pixels, mask)["neutral_pixels"], pixels)
    mask[1, 3:9, 5:12] = 1
    neutral = exported.run(pixels, mask)["neutral_pixels"]
    torch.testing.assert_close(neutral, inpaint(pixels, mask), atol=1e-5, rtol=0)
    outside = (mask[:, None] < 0.5).expand_as(pixels)
    assert torch.equal(neutral[outside], pixels[outside])
    assert not torch.equal(neutral[1], pixels[1])


@pytest.mark.parametrize("axes", [[2, 3], [3, 2], [-1, -2]])
def test_means_over_the_image_become_global_pooling(axes: list[int]) -> None:
    nodes = [helper.make_node("ReduceMean", ["pixels", "axes"], ["logits"], keepdims=0)]
    model = graph(nodes, {"logits": ["N", 2]}, {"axes": np.array(axes, np.int64)})
    pixels, mask = np.random.default_rng(0).random((3, 2, 4, 4), np.float32), np.zeros((3, 4, 4), np.float32)
    (before,) = run(model, pixels, mask)
    assert rewritten(model, pool_globally) == 1
    assert [node.op_type for node in model.graph.node] == ["GlobalAveragePool", "Flatten"]
    np.testing.assert_allclose(run(model, pixels, mask)[0], before, atol=1e-6)


@pytest.mark.parametrize(("axes", "keep", "shape"), [([1], 0, ["N", 4, 4]), ([2, 3], 1, ["N", 2, 1, 1])])
def test_other_means_stay(axes: list[int], keep: int, shape: list[Any]) -> None:
    nodes = [helper.make_node("ReduceMean", ["pixels", "axes"], ["logits"], keepdims=keep)]
    model = graph(nodes, {"logits": shape}, {"axes": np.array(axes, np.int64)})
    assert rewritten(model, pool_globally) == 0
    assert [node.op_type for node in model.graph.node] == ["ReduceMean"]
