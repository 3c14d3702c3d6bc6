"""Every operator of every shipped graph against a committed list of what the CUDA provider of ONNX Runtime runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from gateway.core.manifest import PART_FILES
from training.export.half import halved

ROOT = Path(__file__).resolve().parents[2]
LIST = json.loads((ROOT / "tests" / "data" / "cuda_operators.json").read_text("utf-8"))
NAMES = {"FLOAT": "float", "FLOAT16": "float16", "INT64": "int64", "BOOL": "bool"}
GRAPHS = [path for file in PART_FILES.values() for path in sorted((ROOT / "models").rglob(file))]


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the branches inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def operators(model: onnx.ModelProto) -> set[tuple[str, str]]:
    """(operator, type of the first input), and of a Cast's output too."""
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    every = list(graphs(model.graph))
    types = {
        value.name: value.type.tensor_type.elem_type for g in every for value in [*g.value_info, *g.input, *g.output]
    }
    types |= {tensor.name: tensor.data_type for g in every for tensor in g.initializer}

    def kind(name: str) -> str:
        found = onnx.TensorProto.DataType.Name(types[name])
        return NAMES.get(found, found)

    nodes = [node for g in every for node in g.node if node.op_type != "Constant"]
    found = {(node.op_type, kind(node.input[0])) for node in nodes}
    return found | {("Cast", kind(node.output[0])) for node in nodes if node.op_type == "Cast"}


def test_there_are_graphs_of_every_part() -> None:
    assert {path.name for path in GRAPHS} == set(PART_FILES.values())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_cuda_provider_runs_every_operator(path: Path, precision: str) -> None:
    model = onnx.load(str(path))
    if precision == "fp16":
        model = ir.to_proto(halved(ir.from_proto(model)))
        assert ("Conv", "float16") in operators(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", LIST["opset"])]
    missing = {(name, kind) for name, kind in operators(model) if kind not in LIST["operators"].get(name, [])}
    assert not missing
