"""Writing the defence graph as an ONNX file: default domain, dynamic batch, weights inside."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from training.errors import ExportError
from training.export.rewrite import pool_globally, skip_inpainting
from training.export.trace import trace

OPSET = 20
# Sizes that coincide share one symbol while tracing, so the example's batch must differ from every other size.
EXAMPLE_BATCH = 11


def export_module(
    module: nn.Module, path: Path, *, inputs: dict[str, Tensor], outputs: list[str], meta: dict[str, str] | None = None
) -> onnx.ModelProto:
    """Trace `module` and write it to `path`; returns the checked model.

    `inputs` are examples by name with a batch of `EXAMPLE_BATCH`; the first axis of every input becomes the dynamic
    `N`. Raises `ExportError` if the graph cannot be said in operators of the default domain.
    """
    example = tuple(inputs.values())
    if any(tensor.shape[0] != EXAMPLE_BATCH for tensor in example):
        raise ValueError(f"examples must have a batch of {EXAMPLE_BATCH}")
    try:
        program = _program(module, example, list(inputs), outputs)
    except Exception as error:  # noqa: BLE001  # tracing runs somebody's network, which may raise anything
        raise ExportError(f"the defence graph cannot be exported: {_why(error)}") from None
    program.save(str(path), external_data=False)
    model = onnx.load(str(path))
    _name_batch(model)
    del model.metadata_props[:]
    for node in model.graph.node:  # stack traces of the exporting machine
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
    pool_globally(model)
    skip_inpainting(model)
    model.producer_name = "palisade"
    for key, value in (meta or {}).items():
        model.metadata_props.add(key=key, value=value)
    foreign = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if foreign:
        raise ExportError(f"the graph needs operators of {sorted(foreign)}; only stock ONNX operators are served")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return model


def _program(
    module: nn.Module, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str]
) -> torch.onnx.ONNXProgram:
    traced = trace(module, example)
    batch = torch.export.Dim("N", min=1, max=4096)
    with _quiet():
        exported = torch.export.export(traced, example, dynamic_shapes=tuple({0: batch} for _ in example))
        program = torch.onnx.export(
            exported, (), dynamo=True, input_names=inputs, output_names=outputs, opset_version=OPSET, verbose=False
        )
    assert program is not None
    return program


def _why(error: BaseException) -> str:
    """What stopped an export, in one line: the operator that ONNX lacks, or the first cause in its own words."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = " ".join(str(error).split())
    lacks = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", said)
    return f"ONNX has no operator for {lacks[1]}" if lacks else f"{type(error).__name__}: {said[:300]}"


def _name_batch(model: onnx.ModelProto) -> None:
    """Call the batch axis `N` wherever the exporter called it by its symbol."""
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_param = "N"
            elif dim.dim_param:
                dim.dim_param = dim.dim_param.replace(symbol, "N")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns of its own deprecations; neither helps the caller."""
    level = logging.getLogger("torch").level
    logging.getLogger("torch").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.getLogger("torch").setLevel(level)
