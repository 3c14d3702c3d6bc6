"""fp16 parts against the fp32 ones they are made of: as the CPU runs them, and with every result rounded to float16."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from gateway.core.engine import Engine
from gateway.core.manifest import WEIGHTS, InputSpec, Part, variant_file
from gateway.core.outputs import FullOutputs, VerdictOutputs
from tests.training.exported import Exported, keep_blocked
from tests.training.rounded import element_types, rounded
from tests.training.toy import SIDE
from training.export import half
from training.export.half import half_parts, halved
from training.export.parts import OUTPUTS, graph_specs, split_parts, write_parts
from training.util.module_modes import seeded

Parts = dict[Part, ir.Model]
PIXELS = torch.rand(24, 3, SIDE, SIDE, generator=seeded(0)).numpy()


@pytest.fixture(scope="module", params=["plain", "blocked"])
def parts(request: pytest.FixtureRequest, exported: Exported) -> Parts:
    model = onnx.ModelProto.FromString(exported.model.SerializeToString())
    if request.param == "blocked":
        assert keep_blocked(model)
    return split_parts(ir.from_proto(model))


@pytest.fixture(scope="module")
def single(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return opened(tmp_path_factory.mktemp("single"), parts)


@pytest.fixture(scope="module")
def halves(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return opened(tmp_path_factory.mktemp("half"), half_parts(parts))


def opened(folder: Path, parts: Parts) -> Engine:
    write_parts(parts, folder)
    return Engine(folder, graph_specs(parts), InputSpec(height=SIDE, width=SIDE), threads=1)


def run_rounded(parts: Parts, folder: Path) -> FullOutputs:
    return opened(folder, {"full": ir.from_proto(rounded(ir.to_proto(halved(parts["full"]))))}).run(PIXELS)


def operators(model: onnx.ModelProto) -> Iterator[tuple[str, bool]]:
    """Each operator and whether it computes in float16."""
    kinds = element_types(model)
    for node in model.graph.node:
        yield node.op_type, kinds.get(node.input[0]) == TensorProto.FLOAT16 if node.input else False


def check(found: VerdictOutputs, expected: VerdictOutputs, *, scores: float) -> None:
    """Logits within 1 %, the same answers and maps, scores within `scores` of their spread over the images."""
    logits, wanted = found.logits, expected.logits
    assert np.abs(logits - wanted).max() <= 0.01 * np.abs(wanted).max()
    top = np.sort(wanted, axis=1)
    clear = top[:, -1] - top[:, -2] > 0.01 * np.abs(wanted).max()
    np.testing.assert_array_equal(logits.argmax(1)[clear], wanted.argmax(1)[clear])
    spread = expected.scores.std(0)
    assert (np.abs(found.scores - expected.scores)[clear] <= scores * spread).all()
    np.testing.assert_array_equal(found.neutral_pixels, expected.neutral_pixels)


def correlations(found: FullOutputs, expected: FullOutputs) -> np.ndarray:
    pairs = zip(found.saliency, expected.saliency, strict=True)
    return np.array([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs])


@pytest.mark.parametrize("part", OUTPUTS)
def test_parts_agree(single: Engine, halves: Engine, part: Part) -> None:
    found, expected = halves.run(PIXELS, part=part), single.run(PIXELS, part=part)
    assert set(found.arrays()) == set(OUTPUTS[part])
    if part != "screen":
        assert isinstance(found, VerdictOutputs)
        assert isinstance(expected, VerdictOutputs)
        check(found, expected, scores=0.02)
    if part == "full":
        assert isinstance(found, FullOutputs)
        assert isinstance(expected, FullOutputs)
        assert np.median(correlations(found, expected)) > 0.99


def test_every_result_rounded_agrees(parts: Parts, single: Engine, tmp_path: Path) -> None:
    """And the input gradient neither underflows nor overflows: every image has a saliency, and that of fp32."""
    found, expected = run_rounded(parts, tmp_path), single.run(PIXELS)
    check(found, expected, scores=0.05)
    assert found.finite.all()
    assert (found.saliency.max((1, 2)) == 1).all()
    assert np.median(correlations(found, expected)) > 0.99


@pytest.mark.parametrize("exponent", [-4, 0, 10])
def test_the_scale_of_the_gradient_has_room(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exponent: int
) -> None:
    before = run_rounded(parts, tmp_path)
    monkeypatch.setattr(half, "GRADIENT_SCALE", 2.0**exponent)
    assert correlations(run_rounded(parts, tmp_path), before).min() > 0.999


@pytest.mark.parametrize("exponent", [-30, 24])
def test_a_scale_out_of_range_would_be_seen(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exponent: int
) -> None:
    monkeypatch.setattr(half, "GRADIENT_SCALE", 2.0**exponent)
    outputs = run_rounded(parts, tmp_path)
    assert not (outputs.finite & (outputs.saliency.max((1, 2)) == 1)).any()


def test_a_batch_is_its_images(halves: Engine) -> None:
    whole = halves.run(PIXELS[:5])
    for i in range(5):
        alone = halves.run(PIXELS[i : i + 1])
        for name, value in whole.image(i).arrays().items():
            np.testing.assert_allclose(getattr(alone, name)[0], value, atol=1e-3, rtol=1e-3, err_msg=name)


def test_only_the_networks_are_halved(parts: Parts) -> None:
    for part, model in parts.items():
        found = set(operators(ir.to_proto(halved(model))))
        assert {"Conv", "Relu", "Add"} <= {name for name, is_half in found if is_half}, part
        lossy = {"Pow", "Sqrt", "Log", "Div", "Sub", "ReduceSum", "ReduceMean", "GlobalAveragePool", "MatMul", "Gemm"}
        assert not lossy & {name for name, is_half in found if is_half}, part


def test_weights_are_stored_once_and_small(parts: Parts, tmp_path: Path) -> None:
    made = half_parts(parts)
    write_parts(made, tmp_path, "fp16")
    write_parts(parts, tmp_path)
    assert (tmp_path / variant_file(WEIGHTS, "fp16")).stat().st_size < 0.75 * (tmp_path / WEIGHTS).stat().st_size
    engine = Engine(
        tmp_path, graph_specs(made, "fp16"), InputSpec(height=SIDE, width=SIDE), precision="fp16", threads=1
    )
    assert engine.precision == "fp16"
    assert engine.run(PIXELS).finite.all()


@pytest.mark.parametrize(("size", "is_half"), [(1.0, True), (1e5, False)])
def test_weights_beyond_the_range_stay(size: float, is_half: bool) -> None:
    weight = np.full((2, 3, 1, 1), size, np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["pixels", "w"], ["logits"])],
        "one",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2, 4, 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert (("Conv", True) in set(operators(ir.to_proto(halved(ir.from_proto(model)))))) == is_half
