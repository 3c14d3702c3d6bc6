from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from tests.training.exported import Exported, open_session
from tests.training.toy import CLASSES, SIDE
from training.defence.graph import DefenceGraph, DefenceOutputs
from training.errors import ExportError
from training.export.onnx_file import EXAMPLE_BATCH, export_module
from training.export.parts import tensor_specs
from training.util.module_modes import seeded

TOLERANCE = {"logits": 1e-4, "companion_logits": 1e-4, "saliency": 1e-3, "neutral_pixels": 1e-5}


def batch(n: int, seed: int = 0, *, masked: bool = False) -> tuple[Tensor, Tensor]:
    pixels = torch.rand(n, 3, SIDE, SIDE, generator=seeded(seed))
    mask = torch.zeros(n, SIDE, SIDE)
    if masked:
        mask[::2, 3:8, 5:12] = 1
    return pixels, mask


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those inside branches included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)


def of(name: str) -> Callable[[str], str]:
    return lambda message: f"{name}: {message}"


def assert_agree(found: dict[str, Tensor], expected: DefenceOutputs) -> None:
    assert list(found) == list(DefenceOutputs._fields)
    for name, value in expected._asdict().items():
        tolerance = TOLERANCE.get(name, 2e-3)
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=1e-3, msg=of(name))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n", [1, 2, 7, 16])
def test_runtime_agrees_with_torch_at_any_batch(exported: Exported, n: int, masked: bool) -> None:
    pixels, mask = batch(n, seed=n, masked=masked)
    assert_agree(exported.run(pixels, mask), exported.graph(pixels, mask))


def test_batch_equals_singles(exported: Exported) -> None:
    """One marked image changes nothing for its neighbours."""
    pixels, mask = batch(7, masked=True)
    together = exported.run(pixels, mask)
    singles = [exported.run(pixels[i : i + 1], mask[i : i + 1]) for i in range(7)]
    for name, value in together.items():
        alone = torch.cat([single[name] for single in singles])
        torch.testing.assert_close(value, alone, atol=1e-3, rtol=1e-3, msg=of(name))
    assert torch.equal(together["neutral_pixels"][1], pixels[1])
    assert not torch.equal(together["neutral_pixels"][0], pixels[0])


def test_empty_mask_returns_the_pixels_bit_for_bit(exported: Exported) -> None:
    pixels, mask = batch(4)
    assert torch.equal(exported.run(pixels, mask)["neutral_pixels"], pixels)


def test_operators_are_stock_and_batchnorm_is_gone(exported: Exported) -> None:
    found = list(nodes(exported.model.graph))
    assert {node.domain for node in found} <= {"", "ai.onnx"}
    assert "BatchNormalization" not in {node.op_type for node in found}
    assert [entry.domain for entry in exported.model.opset_import] in ([""], ["ai.onnx"])
    assert not exported.model.functions


def test_input_gradient_needs_convtranspose_for_strided_convolutions_alone(exported: Exported) -> None:
    convolutions = [m for m in exported.graph.network.modules() if isinstance(m, nn.Conv2d)]
    strided = [m for m in convolutions if m.stride != (1, 1)]
    kinds = [node.op_type for node in nodes(exported.model.graph)]
    assert kinds.count("ConvTranspose") == len(strided) == 4
    # Forward of input, of views and of the companion, and backward of the rest.
    assert kinds.count("Conv") >= 3 * len(convolutions) + len(convolutions) - len(strided)


def test_map_follows_the_input(exported: Exported) -> None:
    maps = [exported.run(*batch(3, seed))["saliency"] for seed in (0, 1)]
    assert (maps[0] - maps[1]).abs().amax((1, 2)).min() > 0.05
    assert maps[0].amax((1, 2)).min() > 0.99


@pytest.mark.parametrize("tensor", ["head.weight", "stem.0.bias"])
def test_map_follows_the_weights(exported: Exported, tensor: str) -> None:
    """New weights written into the file give torch's map for them: no gradient was frozen into a constant."""
    parameter = dict(exported.graph.network.named_parameters())[tensor]
    before, pixels = parameter.detach().clone(), batch(4)
    after = torch.randn(before.shape, generator=seeded(5)) * before.std() + 0.3 * before.abs().mean()
    model = onnx.ModelProto.FromString(exported.model.SerializeToString())
    replaced = 0
    for initializer in model.graph.initializer:
        value = numpy_helper.to_array(initializer)
        for old, new in ((before, after), (before.T, after.T)) if before.dim() == 2 else ((before, after),):
            if value.shape == old.shape and np.allclose(value, old.numpy(), atol=1e-7):
                initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(new.numpy()), initializer.name))
                replaced += 1
                break
    assert replaced > 0
    names = [value.name for value in model.graph.output]
    index = names.index("saliency")
    session = open_session(model.SerializeToString())
    found = torch.from_numpy(session.run(None, {"pixels": pixels[0].numpy(), "mask": pixels[1].numpy()})[index])
    original = exported.graph(*pixels).saliency
    try:
        parameter.copy_(after)
        expected = exported.graph(*pixels).saliency
    finally:
        parameter.copy_(before)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert (found - original).abs().max() > 0.05


def test_file_names_no_paths_and_no_machine(exported: Exported) -> None:
    content = exported.path.read_bytes()
    for word in {str(Path.home()), str(Path.cwd()), sys.prefix, "site-packages", ".py", "Traceback", 'File "'}:
        assert word == "/" or word.encode() not in content, word
    assert not re.search(rb"/(home|usr|tmp|root|opt|Users)/", content)
    assert all(not node.doc_string and not node.metadata_props for node in nodes(exported.model.graph))


def test_metadata_is_what_was_given(exported: Exported) -> None:
    assert {p.key: p.value for p in exported.model.metadata_props} == {"palisade.test": "yes"}
    assert exported.model.producer_name == "palisade"
    assert exported.path.stat().st_size < 1_000_000
    assert [p.name for p in exported.path.parent.iterdir()] == ["graph.onnx"]  # weights are inside


def test_specs_for_the_manifest(exported: Exported) -> None:
    inputs, outputs = tensor_specs(ir.from_proto(exported.model))
    assert inputs == [
        {"name": "pixels", "dtype": "float32", "shape": ["N", 3, SIDE, SIDE]},
        {"name": "mask", "dtype": "float32", "shape": ["N", SIDE, SIDE]},
    ]
    assert [spec["name"] for spec in outputs] == list(DefenceOutputs._fields)
    shapes = {spec["name"]: spec["shape"] for spec in outputs}
    assert all(isinstance(shape, list) and shape[0] == "N" for shape in shapes.values())
    assert shapes["logits"] == ["N", CLASSES]
    assert shapes["scores"] == ["N", len(exported.graph.score_names)]
    assert shapes["neutral_pixels"] == ["N", 3, SIDE, SIDE]


def test_example_of_another_batch_is_refused(defence: DefenceGraph, tmp_path: Path) -> None:
    inputs = {"pixels": torch.rand(2, 3, SIDE, SIDE), "mask": torch.zeros(2, SIDE, SIDE)}
    with pytest.raises(ValueError, match="batch of"):
        export_module(defence, tmp_path / "g.onnx", inputs=inputs, outputs=list(DefenceOutputs._fields))


class Odd(nn.Module):
    """What cannot be expressed in ONNX: an operator that it lacks, or control flow that depends on the pixels."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "operator":
            return torch.special.bessel_j1(x)
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize(("kind", "message"), [("operator", r"no operator for \w+\.\w*bessel_j1"), ("flow", "")])
def test_what_cannot_be_exported_is_one_line_that_names_the_cause(kind: str, message: str, tmp_path: Path) -> None:
    inputs = {"x": torch.rand(EXAMPLE_BATCH, 3)}
    with pytest.raises(ExportError, match="cannot be exported: .*" + message) as raised:
        export_module(Odd(kind), tmp_path / "g.onnx", inputs=inputs, outputs=["y"])
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
