"""Rewrites for the blocked layout: each rule on a graph made for it, and all of them on an exported input gradient."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from tests.training.exported import Exported, keep_blocked, open_session
from tests.training.toy import SIDE, random_network
from training.export.fold import folded
from training.export.onnx_file import EXAMPLE_BATCH, export_module
from training.util.module_modes import seeded

Constants = dict[str, np.ndarray]


def graph(nodes: list[onnx.NodeProto], shape: list[int], constants: Constants, *, made: list[Any]) -> onnx.ModelProto:
    """A graph from `x` (N, *shape) to `y` (`made`)."""
    body = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, made)],
        [numpy_helper.from_array(content, name) for name, content in constants.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    (y,) = open_session(model.SerializeToString()).run(None, {"x": x})
    return y


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def unchanged(model: onnx.ModelProto) -> bool:
    before = model.SerializeToString()
    return keep_blocked(model) == 0 and model.SerializeToString() == before


def masked(channels: int, level: float = 0.0) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Greater", ["h", "level"], ["above"]),
        helper.make_node("Cast", ["above"], ["y"], to=TensorProto.FLOAT),
    ]
    return graph(nodes, [channels, 4, 4], {"level": np.asarray(level, np.float32)}, made=["N", channels, 4, 4])


def test_masks_are_exactly_zero_or_one() -> None:
    x = noise(3, 32, 4, 4)
    x[0, 0] = [[0.0, -0.0, 1e-38, 1.2e-38], [1e-30, 1e-7, 1.0, 3e38], [-1e-38, -1.0, -3e38, 2e-38], [5, 6, 7, 8]]
    x[0, 0, 0, 2] = 0.0  # below the smallest normal float there is no promise
    model = masked(32)
    before = run(model, x)
    assert keep_blocked(model) == 1
    assert kinds(model) == {"Relu": 1, "Conv": 1, "Clip": 1}
    assert np.array_equal(run(model, x), before)


def test_masks_of_unblocked_channels_or_other_levels_stay() -> None:
    assert unchanged(masked(24))
    assert unchanged(masked(32, level=0.5))


def transposed(*kernels: int, side: int = 5, channels: int = 32) -> tuple[onnx.ModelProto, np.ndarray]:
    """The sum of gradients of stride-2 convolutions with these kernels, each padded to double its input."""
    nodes = [
        helper.make_node(
            "ConvTranspose",
            ["x", f"w{n}"],
            [f"t{n}"],
            strides=[2, 2],
            pads=[(k - 1) // 2] * 4,
            output_padding=[2 - k + 2 * ((k - 1) // 2)] * 2,
        )
        for n, k in enumerate(kernels)
    ]
    names = [f"t{n}" for n in range(len(kernels))]
    nodes.append(helper.make_node("Add" if len(names) > 1 else "Relu", names, ["y"]))
    weights = {f"w{n}": noise(channels, 16, k, k, seed=n) / k for n, k in enumerate(kernels)}
    made = ["N", 16, 2 * side, 2 * side + 2]
    return graph(nodes, [channels, side, side + 1], weights, made=made), noise(3, channels, side, side + 1, seed=9)


@pytest.mark.parametrize("kernels", [(3,), (2,), (5,), (1, 3), (3, 1), (3, 5)])
def test_transposed_convolutions_become_phases(kernels: tuple[int, ...]) -> None:
    model, x = transposed(*kernels)
    before = run(model, x)
    assert keep_blocked(model) > 0
    assert "ConvTranspose" not in kinds(model)
    np.testing.assert_allclose(run(model, x), before, atol=2e-5)
    assert run(model, x[:1]).shape[0] == 1


def test_transposed_convolutions_that_leave_gaps_or_are_not_blocked_stay() -> None:
    assert unchanged(transposed(1)[0])
    assert unchanged(transposed(3, channels=24)[0])


def test_a_term_that_others_read_keeps_its_own_phases() -> None:
    model, x = transposed(3, 1)
    model.graph.node[-1].output[0] = "sum"
    model.graph.node.append(helper.make_node("Mul", ["sum", "t0"], ["y"]))
    before = run(model, x)
    assert keep_blocked(model) == 1
    assert kinds(model)["ConvTranspose"] == 1
    np.testing.assert_allclose(run(model, x), before, atol=2e-4)


def clip_masked(channels: int, top: float = 6.0, bottom: float = 0.0) -> onnx.ModelProto:
    """What comes through `Clip(x, bottom, top)` backwards where the gradient is x + 1."""
    nodes = [
        helper.make_node("Clip", ["x", "bottom", "top"], ["h"]),
        helper.make_node("LessOrEqual", ["x", "bottom"], ["low"]),
        helper.make_node("GreaterOrEqual", ["x", "top"], ["high"]),
        helper.make_node("Or", ["low", "high"], ["outside"]),
        helper.make_node("Add", ["x", "one"], ["gradient"]),
        helper.make_node("Where", ["outside", "none", "gradient"], ["passed"]),
        helper.make_node("Add", ["passed", "h"], ["y"]),
    ]
    scalars = {"bottom": bottom, "top": top, "one": 1.0, "none": 0.0}
    constants = {name: np.asarray(value, np.float32) for name, value in scalars.items()}
    return graph(nodes, [channels, 4, 4], constants, made=["N", channels, 4, 4])


@pytest.mark.parametrize("top", [6.0, 1.0, 20.0, 0.3])
def test_masks_of_clipping_are_exact(top: float) -> None:
    x = noise(3, 32, 4, 4) * np.float32(top)
    edge = np.float32(top)
    x[0, 0, 0] = [edge, np.nextafter(edge, np.float32(0)), np.nextafter(edge, np.float32(np.inf)), edge * 2]
    x[0, 0, 1] = [0.0, -0.0, 1e-25, -1e-25]
    x[0, 0, 2] = [3e38, -3e38, edge / 2, -edge]
    model = clip_masked(32, top)
    before = run(model, x)
    assert keep_blocked(model) == 1
    assert not {"Where", "Or", "LessOrEqual", "GreaterOrEqual"} & set(kinds(model))
    assert np.array_equal(run(model, x), before)


def test_masks_of_other_clipping_stay() -> None:
    assert unchanged(clip_masked(24))
    assert unchanged(clip_masked(32, bottom=-1.0))


@pytest.mark.parametrize("kernel", [2, 3, 5])
@pytest.mark.parametrize("crop", [0, 1])
def test_transposed_convolutions_by_channel_become_phases(kernel: int, crop: int) -> None:
    """Also where padding of its own was before the convolution, whose gradient is a crop."""
    side, channels = 5, 32
    rest = kernel - 2  # rows more than twice as many
    first = rest // 2
    pads = [0] * 4 if crop else [first, first, rest - first, rest - first]
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["t"], strides=[2, 2], group=channels, pads=pads)]
    constants = {"w": noise(channels, 1, kernel, kernel)}
    if crop:
        nodes.append(helper.make_node("Pad", ["t", "widths"], ["c"]))
        constants["widths"] = np.array([0, 0, -first, -first, 0, 0, first - rest, first - rest])
    nodes.append(helper.make_node("Relu", ["c" if crop else "t"], ["y"]))
    model = graph(nodes, [channels, side, side], constants, made=["N", channels, 2 * side, 2 * side])
    x = noise(3, channels, side, side, seed=1)
    before = run(model, x)
    assert keep_blocked(model) == 1 + crop
    assert not {"ConvTranspose", "Pad"} & set(kinds(model))
    np.testing.assert_allclose(run(model, x), before, atol=2e-5)


@pytest.mark.parametrize(("pad", "crop", "changes"), [(2, 1, 1), (2, 0, 1), (0, 1, 0)])
def test_crops_of_a_convolution_become_its_pads(pad: int, crop: int, changes: int) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[pad] * 4, kernel_shape=[3, 3]),
        helper.make_node("Pad", ["c", "widths"], ["y"]),
    ]
    side = 6 + 2 * pad - 2 * crop
    constants = {"w": noise(16, 16, 3, 3), "widths": np.array([0, 0, -crop, -crop, 0, 0, -crop, -crop])}
    model = graph(nodes, [16, 8, 8], constants, made=["N", 16, side, side])
    x = noise(2, 16, 8, 8)
    before = run(model, x)
    assert keep_blocked(model) == changes
    assert kinds(model)["Pad"] == 1 - changes
    np.testing.assert_allclose(run(model, x), before, atol=1e-5)


@pytest.mark.parametrize(("made", "kernel", "width"), [(3, 3, 8), (3, 3, 9), (1, 5, 12), (8, 3, 6)])
def test_few_output_channels_are_packed(made: int, kernel: int, width: int) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[kernel // 2] * 4, kernel_shape=[kernel, kernel])]
    model = graph(nodes, [16, 7, width], {"w": noise(made, 16, kernel, kernel)}, made=["N", made, 7, width])
    x = noise(3, 16, 7, width, seed=1)
    before = run(model, x)
    assert keep_blocked(model) == 1
    np.testing.assert_allclose(run(model, x), before, atol=1e-4)
    assert keep_blocked(model) == 0


@pytest.mark.parametrize(("made", "kernel", "width"), [(16, 3, 8), (3, 1, 8), (3, 3, 7)])
def test_other_convolutions_stay(made: int, kernel: int, width: int) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[kernel // 2] * 4, kernel_shape=[kernel, kernel])]
    assert unchanged(graph(nodes, [16, 7, width], {"w": noise(made, 16, kernel, kernel)}, made=["N", made, 7, width]))


def blur(channels: int = 3, *, alike: bool = True) -> onnx.ModelProto:
    """Edge padding and a filter along rows, both along columns, then a box mean that stays inside."""
    taps = np.tile(np.array([0.2, 0.5, 0.3], np.float32), (channels, 1))
    if not alike:
        taps[0] *= 2
    constants: Constants = {
        "both": np.array([0, 0, 0, 1, 0, 0, 0, 1], np.int64),
        "rows": np.array([0, 0, 1, 0, 0, 0, 1, 0], np.int64),
        "w": taps[:, None, None, :],
        "v": taps[:, None, :, None],
    }
    nodes = [
        helper.make_node("Pad", ["x", "both"], ["a"], mode="edge"),
        helper.make_node("Conv", ["a", "w"], ["b"], group=channels, kernel_shape=[1, 3]),
        helper.make_node("Pad", ["b", "rows"], ["c"], mode="edge"),
        helper.make_node("Conv", ["c", "v"], ["d"], group=channels, kernel_shape=[3, 1]),
        helper.make_node("AveragePool", ["d"], ["y"], kernel_shape=[2, 4]),
    ]
    return graph(nodes, [channels, 7, 9], constants, made=["N", channels, 6, 6])


def test_filters_become_one_product_for_each_axis() -> None:
    model, x = blur(), noise(4, 3, 7, 9)
    before = run(model, x)
    assert keep_blocked(model) == 1
    assert kinds(model) == {"MatMul": 2}
    np.testing.assert_allclose(run(model, x), before, atol=1e-5)


def test_filters_that_differ_between_channels_or_are_blocked_stay() -> None:
    assert unchanged(blur(16))
    model = blur(alike=False)
    assert keep_blocked(model) == 1  # the pooling alone
    assert kinds(model)["Conv"] == 2


def test_a_filtered_image_that_others_read_is_still_made() -> None:
    model, x = blur(), noise(4, 3, 7, 9)
    model.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 3, 7, 9]))
    session = open_session(model.SerializeToString())
    assert keep_blocked(model) == 2
    onnx.checker.check_model(model, full_check=True)
    for found, expected in zip(
        open_session(model.SerializeToString()).run(None, {"x": x}), session.run(None, {"x": x}), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_is_uniform_needs_no_batch() -> None:
    """-(1 expanded to the batch) / x, and the same expanded over the image, as a gradient of a mean starts."""
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
        helper.make_node("Expand", ["one", "n"], ["ones"]),
        helper.make_node("Neg", ["ones"], ["minus"]),
        helper.make_node("Reshape", ["minus", "column"], ["minuses"]),
        helper.make_node("ReduceMax", ["x", "axes"], ["peak"], keepdims=0),
        helper.make_node("Reshape", ["peak", "column"], ["peaks"]),
        helper.make_node("Div", ["minuses", "peaks"], ["quotient"]),
        helper.make_node("Unsqueeze", ["quotient", "space"], ["pixel"]),
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Expand", ["pixel", "size"], ["spread"]),
        helper.make_node("Div", ["spread", "area"], ["share"]),
        helper.make_node("Mul", ["share", "x"], ["y"]),
    ]
    constants: Constants = {
        "one": np.asarray(1, np.float32),
        "column": np.array([-1, 1], np.int64),
        "axes": np.array([1, 2, 3], np.int64),
        "space": np.array([2, 3], np.int64),
        "area": np.asarray(16, np.float32),
    }
    model = graph(nodes, [3, 4, 4], constants, made=["N", 3, 4, 4])
    for name in ("minuses", "peaks", "quotient"):  # as an exporter writes them down
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]))
    x = np.abs(noise(5, 3, 4, 4)) + 0.1
    before = run(model, x)
    assert keep_blocked(model) > 0
    assert not {"Expand", "Reshape", "Shape", "Neg"} & set(kinds(model))
    np.testing.assert_allclose(run(model, x), before, rtol=1e-6)


class Explained(nn.Module):
    """Logits and the input gradient of the first, the pattern of the defence graph."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = pixels.detach().requires_grad_(True)
            logits = self.network(leaf)
            (gradient,) = torch.autograd.grad(logits[:, 0].sum(), leaf)
        return logits.detach(), gradient


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Explained, onnx.ModelProto]:
    module = Explained(folded(random_network(0, width=16)))
    example = {"pixels": torch.rand(EXAMPLE_BATCH, 3, SIDE, SIDE, generator=seeded(0))}
    path = tmp_path_factory.mktemp("explained") / "graph.onnx"
    model = export_module(module, path, inputs=example, outputs=["logits", "gradient"])
    keep_blocked(model)
    return module, model


@pytest.mark.parametrize("batch", [1, 7])
def test_the_gradient_stays_torchs(explained: tuple[Explained, onnx.ModelProto], batch: int) -> None:
    module, model = explained
    pixels = torch.rand(batch, 3, SIDE, SIDE, generator=seeded(1))
    logits, gradient = open_session(model.SerializeToString()).run(None, {"pixels": pixels.numpy()})
    expected_logits, expected = module(pixels)
    torch.testing.assert_close(torch.from_numpy(logits), expected_logits, atol=1e-5, rtol=1e-5)
    scale = float(expected.abs().max())
    torch.testing.assert_close(torch.from_numpy(gradient) / scale, expected / scale, atol=1e-5, rtol=0)


def test_no_slow_operator_is_left(explained: tuple[Explained, onnx.ModelProto]) -> None:
    _, model = explained
    assert not {"ConvTranspose", "Greater"} & set(kinds(model))
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert keep_blocked(model) == 0


def test_the_gradient_runs_blocked(explained: tuple[Explained, onnx.ModelProto], tmp_path: Path) -> None:
    """Where this processor has the layout: masks are one node each, and only what has to leaves it.

    That is the pooled features, two rows of each of the two strided blocks, and the gradient itself.
    """
    _, model = explained
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(options.optimized_model_filepath)
    if not any(node.domain == "com.microsoft.nchwc" for node in optimized.graph.node):
        pytest.skip("no blocked layout on this processor")
    left = kinds(optimized)
    assert left["ReorderOutput"] <= 1 + 4 + 1 + 1
    assert not {"Greater", "Cast", "Sign", "Clip", "Relu"} & set(left)


def test_the_defence_graph_answers_as_before(exported: Exported) -> None:
    model = onnx.ModelProto.FromString(exported.model.SerializeToString())
    keep_blocked(model)
    onnx.checker.check_model(model, full_check=True)
    pixels = torch.rand(5, 3, SIDE, SIDE, generator=seeded(2))
    mask = torch.zeros(5, SIDE, SIDE)
    mask[1, 2:6, 3:9] = 1
    session = open_session(model.SerializeToString())
    found = session.run(None, {"pixels": pixels.numpy(), "mask": mask.numpy()})
    for value, output in zip(found, session.get_outputs(), strict=True):
        np.testing.assert_allclose(value, exported.run(pixels, mask)[output.name], atol=2e-4, rtol=1e-4)
