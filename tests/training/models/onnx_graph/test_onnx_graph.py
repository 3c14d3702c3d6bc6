"""ONNX files as torch modules: preprocessing inside, other layouts, a fixed batch, and what is said of the rest."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from tests.training.models.test_adapted import Tokens
from training.errors import TrainingError
from training.models.layers import tapped_layers
from training.models.onnx_graph import onnx_body
from training.models.onnx_graph.batch import expanded, rebatched
from training.models.onnx_graph.read import read_onnx

SIDE = 16
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(5, 3, 3, 3)).astype(np.float32) / 5


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    *,
    shape: Sequence[int | str] = ("N", 3, SIDE, SIDE),
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
    constants: dict[str, np.ndarray] | None = None,
) -> Path:
    """A graph from `x` to `y`, with the weight `w` of a convolution."""
    given = {"w": WEIGHT} | (constants or {})
    graph = helper.make_graph(
        list(nodes),
        "toy",
        [helper.make_tensor_value_info("x", kind, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in given.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, str(path))
    return path


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def body_of(path: Path) -> nn.Module:
    return onnx_body(path, read_onnx(path), SIDE)


HEAD = [
    node("Conv", "h w", "c", pads=[1, 1, 1, 1]),
    node("Relu", "c", "r"),
    node("GlobalAveragePool", "r", "p"),
    node("Flatten", "p", "y"),
]


def test_bytes_with_channels_last_are_prepared_inside(tmp_path: Path) -> None:
    nodes = [
        node("Cast", "x", "f", to=TensorProto.FLOAT),
        node("Sub", "f mean", "s"),
        node("Div", "s std", "d"),
        node("Transpose", "d", "h", perm=[0, 3, 1, 2]),
        *HEAD,
    ]
    constants = {"mean": np.array([120.0, 110, 100], np.float32), "std": np.full(3, 60, np.float32)}
    path = write(tmp_path / "m.onnx", nodes, shape=("N", SIDE, SIDE, 3), kind=TensorProto.UINT8, constants=constants)
    file, body = read_onnx(path), body_of(path)
    assert (file.layout, file.integer, file.side, file.batch) == ("NHWC", True, SIDE, None)
    images = RNG.integers(0, 256, (3, 3, SIDE, SIDE)).astype(np.uint8)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": np.ascontiguousarray(images.transpose(0, 2, 3, 1))})[0]
    x = torch.from_numpy(images.astype(np.float32)).requires_grad_()
    torch.testing.assert_close(body(x).detach(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    assert torch.autograd.grad(body(x).sum(), x)[0].any()


LOGITS = [node("Identity", "x", "h"), *HEAD[:-1], node("Flatten", "p", "l")]
ENDS = {
    "softmax": [*LOGITS, node("Softmax", "l", "y", axis=1)],
    "other precision": [
        *LOGITS,
        node("Cast", "l", "l16", to=TensorProto.FLOAT16),
        node("Softmax", "l16", "s", axis=1),
        node("Cast", "s", "y", to=TensorProto.FLOAT),
    ],
    "reshape": [*LOGITS[:-1], node("Softmax", "p", "s", axis=1), node("Reshape", "s rows", "y")],
    "squeeze": [*LOGITS[:-1], node("Softmax", "p", "s", axis=1), node("Squeeze", "s axes", "y")],
    "four axes": [*LOGITS[:-1], node("Softmax", "p", "y", axis=1)],
}


@pytest.mark.parametrize("end", ENDS)
def test_a_softmax_at_the_end_is_left_out(tmp_path: Path, end: str) -> None:
    constants = {"rows": np.array([-1, 5]), "axes": np.array([2, 3])}
    path = write(tmp_path / "m.onnx", ENDS[end], constants=constants)
    file, x = read_onnx(path), torch.rand(2, 3, SIDE, SIDE)
    body, plain = body_of(path), body_of(write(tmp_path / "l.onnx", [*LOGITS, node("Identity", "l", "y")]))
    assert file.softmax
    torch.testing.assert_close(body(x), plain(x), rtol=1e-4, atol=1e-5)


def test_of_two_softmaxes_the_last_is_left_out(tmp_path: Path) -> None:
    body = body_of(write(tmp_path / "m.onnx", [*LOGITS, node("Softmax", "l", "s"), node("Softmax", "s", "y")]))
    torch.testing.assert_close(body(torch.rand(2, 3, SIDE, SIDE)).sum(1), torch.ones(2))


def test_half_precision_is_computed_in_float32(tmp_path: Path) -> None:
    nodes = [node("Cast", "x", "h", to=TensorProto.FLOAT16), *HEAD[:-1], node("Flatten", "p", "l")]
    nodes.append(node("Cast", "l", "y", to=TensorProto.FLOAT))
    body = body_of(write(tmp_path / "m.onnx", nodes, constants={"w": WEIGHT.astype(np.float16)}))
    assert body(torch.rand(2, 3, SIDE, SIDE)).dtype == torch.float32
    assert {parameter.dtype for parameter in body.parameters()} == {torch.float32}


@pytest.mark.parametrize("padding", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_padding_that_differs_by_side(tmp_path: Path, padding: str) -> None:
    nodes = [
        node("Conv", "x w", "c", auto_pad=padding, strides=[2, 2]),
        node("ReduceMean", "c", "y", axes=[2, 3], keepdims=0),
    ]
    body_of(write(tmp_path / "m.onnx", nodes))  # compared with ONNX Runtime as it is opened


@pytest.mark.parametrize("kind", ["Mul", "Add", "Max"])
def test_an_operator_may_take_a_tensor_twice(tmp_path: Path, kind: str) -> None:
    nodes = [node(kind, "x x", "h"), HEAD[0], node(kind, "c c", "r"), *HEAD[2:]]
    body_of(write(tmp_path / "m.onnx", nodes))  # compared with ONNX Runtime as it is opened


@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.INT64, TensorProto.DOUBLE])
def test_images_may_be_wider_numbers(tmp_path: Path, kind: int) -> None:
    path = write(tmp_path / "m.onnx", [node("Cast", "x", "h", to=TensorProto.FLOAT), *HEAD], kind=kind)
    assert read_onnx(path).integer == (kind != TensorProto.DOUBLE)
    body_of(path)  # compared with ONNX Runtime as it is opened


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.UINT16, TensorProto.BFLOAT16])
def test_images_of_other_types_are_refused(tmp_path: Path, kind: int) -> None:
    path = write(tmp_path / "m.onnx", [node("Cast", "x", "h", to=TensorProto.FLOAT), *HEAD], kind=kind)
    with pytest.raises(TrainingError, match=r"the input x is [A-Z0-9]+; images are floats, or integers of 0 to 255"):
        body_of(path)


def test_constants_of_types_that_torch_has_not(tmp_path: Path) -> None:
    """Names of classes lie in some files, beside the logits; what leads to the logits may not be of such a type."""
    model = onnx.load(str(write(tmp_path / "m.onnx", [node("Identity", "x", "h"), *HEAD])))
    model.graph.initializer.append(numpy_helper.from_array(np.array(["cat", "dog"], object), "names"))
    onnx.save(model, str(tmp_path / "m.onnx"))
    body_of(tmp_path / "m.onnx")
    model.graph.initializer.append(helper.make_tensor("b", TensorProto.INT4, [5], [1, 2, 3, 4, 5]))
    model.graph.node[1].input.append("b")
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(TrainingError, match="the constant b is INT4, which is not read"):
        body_of(tmp_path / "m.onnx")


def test_what_onnx_runtime_cannot_run_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [node("Identity", "x", "h"), *HEAD])
    file = read_onnx(path)
    write(path, [node("Reshape", "x t", "h"), *HEAD], constants={"t": np.array([2, 3, 5, 5])})
    with pytest.raises(TrainingError, match="ONNX Runtime cannot run it on images of 16 pixels: ") as told:
        onnx_body(path, file, SIDE)
    assert "\n" not in str(told.value)


TWICE = np.array([1, 1, 2, 2], np.float32)
RESIZED = {
    7: node("Upsample", "x", "h", scales=TWICE.tolist()),
    8: node("Upsample", "x", "h", scales=TWICE.tolist()),
    9: node("Upsample", "x scales", "h"),
    10: node("Resize", "x scales", "h"),
    11: node("Resize", "x none scales", "h", mode="linear"),
    18: helper.make_node("Resize", ["x", "", "", "sizes"], ["h"], mode="linear", axes=[2, 3]),
    19: helper.make_node("Resize", ["x", "", "two"], ["h"], mode="cubic", axes=[3, 2]),
}


@pytest.mark.parametrize("opset", RESIZED)
def test_resizing_of_every_operator_set(tmp_path: Path, opset: int) -> None:
    constants = {"scales": TWICE, "none": np.zeros(0, np.float32), "sizes": np.array([24, 40]), "two": TWICE[2:]}
    path = write(tmp_path / "m.onnx", [RESIZED[opset], *HEAD], opset=opset, constants=constants)
    body_of(path)  # compared with ONNX Runtime as it is opened


def test_resizing_at_other_coordinates_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [node("Upsample", "x scales", "h", mode="linear"), *HEAD], opset=9)
    model = onnx.load(str(path))
    model.graph.initializer.append(numpy_helper.from_array(TWICE, "scales"))
    onnx.save(model, str(path))
    with pytest.raises(TrainingError, match=r"Upsample \(n0_h\) asks for a linear resize with asymmetric coordinates"):
        body_of(path)


def test_shape_arithmetic_disappears(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("Shape", "c", "s"),
        node("Gather", "s zero", "n"),
        node("Unsqueeze", "n first", "n1"),
        node("Concat", "n1 rest", "t", axis=0),
        node("Reshape", "c t", "q"),
        node("ReduceMax", "q", "y", axes=[2], keepdims=0),
    ]
    constants = {"zero": np.array(0), "first": np.array([0]), "rest": np.array([5, -1])}
    body = body_of(write(tmp_path / "m.onnx", nodes, constants=constants))
    kinds = [name.split("_")[1] for name, _ in body.named_modules() if name.count(".") == 1]
    assert not any("Gather" in kind or "Concat" in kind for kind in kinds)
    assert body(torch.rand(7, 3, SIDE, SIDE)).shape == (7, 5)


def test_a_transformer_for_one_image_takes_many(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Tokens().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.rand(1, 3, SIDE, SIDE),), str(tmp_path / "m.onnx"), dynamo=False)
    body, x = body_of(tmp_path / "m.onnx"), torch.rand(5, 3, SIDE, SIDE)
    torch.testing.assert_close(body(x), network(x), rtol=1e-4, atol=1e-5)
    found = tapped_layers(body, classes=5, channels=3, side=SIDE)
    assert len(found) == 4
    assert set(found.values()) == {8}


class Swapped(nn.Module):
    """Tokens before the batch, joined into one axis for a matrix product, as attention of torch does."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)
        self.mix = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).permute(2, 0, 1)
        return self.head(self.mix(tokens, tokens, tokens, need_weights=False)[0].mean(0))


def test_tokens_before_the_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Swapped().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.rand(1, 3, SIDE, SIDE),), str(tmp_path / "m.onnx"), dynamo=False)
    x = torch.rand(5, 3, SIDE, SIDE)
    torch.testing.assert_close(body_of(tmp_path / "m.onnx")(x), network(x), rtol=1e-4, atol=1e-5)


def test_targets_for_one_image_become_those_for_many() -> None:
    assert rebatched([1, 12, -1], (3, 6, 8), axis=0, factor=3, before=None) == ([3, 12, 4], None)
    assert rebatched([197, 12, 64], (197, 2, 768), axis=1, factor=2, before=None) == ([197, 24, 64], None)
    assert rebatched([197, 768], (197, 2, 768), axis=1, factor=2, before=None) == ([394, 768], 197)
    assert rebatched([197, 1, 768], (394, 768), axis=0, factor=2, before=197) == ([197, 2, 768], None)
    assert expanded([1, 5], (2, 1), axis=0, factor=2) == [2, 5]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("NonMaxSuppression", "x x", "y")], r"the operator NonMaxSuppression \(n0_y\) is not read; open the net"),
        ([node("Inverse", "x", "y", domain="com.microsoft")], r"the operator com.microsoft.Inverse"),
        ([node("Conv", "x w", "c"), node("Gemm", "c w", "y")], r"Gemm \(n1_y\) cannot run: "),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, nodes: list[onnx.NodeProto], message: str) -> None:
    path = write(tmp_path / "m.onnx", nodes)
    with pytest.raises(TrainingError, match=message) as told:
        body_of(path)
    assert "\n" not in str(told.value)


def test_answers_that_differ_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [node("Identity", "x", "h"), *HEAD])
    file = read_onnx(path)
    write(tmp_path / "m.onnx", [node("Identity", "x", "h"), *HEAD], constants={"w": 1.01 * WEIGHT})
    with pytest.raises(TrainingError, match=r"its answers differ from ONNX Runtime's by [\d.]+e-0\d of"):
        onnx_body(path, file, SIDE)


@pytest.mark.parametrize(
    ("shape", "message"),
    [(("N", 3, 16, 8), "16 x 8; only square ones"), (("N", 12), "images have four axes")],
)
def test_inputs_that_are_no_images(tmp_path: Path, shape: tuple[int | str, ...], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        read_onnx(write(tmp_path / "m.onnx", [node("Relu", "x", "y")], shape=shape))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no graph")
    with pytest.raises(TrainingError, match="not a readable ONNX file"):
        read_onnx(tmp_path / "m.onnx")
