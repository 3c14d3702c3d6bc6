from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import typer
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from benchmarks.cost import BATCHES, in_turns, main
from benchmarks.subgraph import INPAINTING, STAGES
from tests.training.exported import Exported, open_session
from tests.training.toy import CLASSES, SIDE, SPEC
from training.export.macs import macs
from training.export.parts import cut, cut_masked
from training.util.module_modes import seeded


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.zeros(5, SIDE, SIDE)
    mask[2, 3:9, 4:9] = 1
    return torch.rand(5, 3, SIDE, SIDE, generator=seeded(0)), mask


@pytest.mark.parametrize("stage", STAGES)
def test_parts_give_what_the_whole_gives(exported: Exported, inputs, stage: str) -> None:
    """A part reads the image after inpainting; its outputs are those of the whole graph."""
    whole = exported.run(*inputs)
    part = open_session(cut(exported.model, STAGES[stage]).SerializeToString())
    assert [i.name for i in part.get_inputs()] == ["pixels"]
    values = part.run(STAGES[stage], {"pixels": whole["neutral_pixels"].numpy()})
    for name, found in zip(STAGES[stage], values, strict=True):
        np.testing.assert_allclose(found, whole[name].numpy(), atol=1e-5, rtol=1e-5)


def test_inpainting_alone(exported: Exported, inputs) -> None:
    pixels, mask = inputs
    part = open_session(cut_masked(exported.model, ["neutral_pixels"]).SerializeToString())
    (found,) = part.run(None, {"pixels": pixels.numpy(), "mask": mask.numpy()})
    assert np.array_equal(found, exported.run(pixels, mask)["neutral_pixels"].numpy())


def test_a_forward_has_no_gradient_in_it(exported: Exported) -> None:
    kinds = [node.op_type for node in cut(exported.model, ["logits"]).graph.node]
    assert "ConvTranspose" not in kinds
    assert kinds.count("Conv") == sum(isinstance(m, torch.nn.Conv2d) for m in exported.graph.network.modules())


def one_node(op: str, weight: tuple[int, ...], image: list[Any], result: list[Any], **more: Any) -> onnx.ModelProto:
    def value(name: str, shape: list[Any]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    made = helper.make_graph(
        [helper.make_node(op, ["pixels", "weight"], ["logits"], **more)],
        "one",
        [value("pixels", image)],
        [value("logits", result)],
        [numpy_helper.from_array(np.ones(weight, np.float32), "weight")],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("batch", [1, 8])
def test_multiply_accumulates_of_known_operators(batch: int) -> None:
    # 6 x 5 x 5 outputs of 4 x 3 x 3 products each.
    plain = one_node("Conv", (6, 4, 3, 3), ["N", 4, 10, 10], ["N", 6, 5, 5], pads=[1, 1, 1, 1], strides=[2, 2])
    assert macs(plain, batch) == batch * 6 * 25 * 4 * 9
    grouped = one_node("Conv", (6, 2, 3, 3), ["N", 4, 10, 10], ["N", 6, 8, 8], group=2)
    assert macs(grouped, batch) == batch * 6 * 64 * 2 * 9
    # 4 x 5 x 5 inputs that each go to 6 x 2 x 2 places.
    back = one_node("ConvTranspose", (4, 6, 2, 2), ["N", 4, 5, 5], ["N", 6, 10, 10], strides=[2, 2])
    assert macs(back, batch) == batch * 4 * 25 * 6 * 4
    dense = one_node("Gemm", (7, 3), ["N", 3], ["N", 7], transB=1)
    assert macs(dense, batch) == batch * 3 * 7


def test_multiply_accumulates_of_the_toy_network(exported: Exported) -> None:
    """By hand: a 3x3 stem, stages of width w, 2w, 4w at sides s, s/2, s/4, 1x1 shortcuts where the width grows."""
    w, side, total = SPEC.width, SIDE, SIDE * SIDE * 9 * 3 * SPEC.width
    inputs = w
    for stage, outputs in enumerate((w, 2 * w, 4 * w)):
        side = SIDE // 2**stage
        total += side * side * 9 * (inputs + outputs) * outputs + (side * side * inputs * outputs if stage else 0)
        inputs = outputs
    assert macs(cut(exported.model, ["logits"]), 2) == 2 * (total + inputs * CLASSES)  # and the head


def test_calls_take_turns() -> None:
    order: list[str] = []
    times = in_turns({name: partial(order.append, name) for name in "ab"}, repeats=6, seconds=0.0)
    assert order == ["a"] * 3 + ["b"] * 3 + ["a", "b"] * 5  # warm-up, then five rounds although time is up
    assert len(times["a"].seconds) == 5


def test_the_command_writes_what_it_measured(exported: Exported, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    report = tmp_path / "new" / "cost.json"
    arguments = ["--graph", str(exported.path), "--repeats", "5", "--seconds", "1", "--threads", "1"]
    done = CliRunner().invoke(app, [*arguments, "--json", str(report)])
    assert done.exit_code == 0, done.output
    assert "Cost of the defence" in done.output
    content = json.loads(report.read_text())
    assert [row["batch"] for row in content["batches"]] == list(BATCHES)
    assert {"cpu", "cores_usable"} <= set(content["device"])
    for row in content["batches"]:
        assert row["logits_difference"] < 1e-4
        run = {part: found["forwards_run"] for part, found in row["parts"].items()}
        assert run["screen"] == pytest.approx(2, abs=0.05)  # itself and the companion
        assert run["verdict"] == pytest.approx(4, abs=0.1)  # and two views
        assert run["full"] > 4.5  # and a gradient
        assert all(found["forwards_measured"] > 0 for found in row["parts"].values())
        assert set(row["stages"]) == {*STAGES, INPAINTING, "second call, a window inpainted"}
        assert row["stages"]["answering forward"]["forwards_run"] == 1.0


def test_an_unknown_provider_is_refused(exported: Exported) -> None:
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, ["--graph", str(exported.path), "--provider", "tpu"])
    assert done.exit_code == 2
