"""The defence graph in ONNX: default domain, dynamic batch.

The graph holds the network's own tensors until it is written: no copy of the weights is made on the way.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from training.errors import ExportError
from training.export.draft import check
from training.export.rewrite import pool_globally, skip_inpainting
from training.export.simplify import simplify
from training.export.trace import trace
from training.util.signatures import Progress, silent

OPSET = 20
# Sizes that coincide share one symbol while tracing, so the example's batch must differ from every other size.
EXAMPLE_BATCH = 11


def export_module(
    module: nn.Module,
    path: Path,
    *,
    inputs: dict[str, Tensor],
    outputs: list[str],
    meta: dict[str, str] | None = None,
    progress: Progress = silent,
) -> onnx.ModelProto:
    """Trace `module` (`export_graph`) and write it to `path`, weights inside; returns the checked model."""
    model = ir.to_proto(export_graph(module, inputs=inputs, outputs=outputs, meta=meta, progress=progress))
    onnx.save(model, str(path))
    return model


def export_graph(
    module: nn.Module,
    *,
    inputs: dict[str, Tensor],
    outputs: list[str],
    meta: dict[str, str] | None = None,
    progress: Progress = silent,
) -> ir.Model:
    """Trace `module`; the checked model, whose initializers are the tensors of `module` and share their memory.

    `inputs` are examples by name with a batch of `EXAMPLE_BATCH`; the first axis of every input becomes the dynamic
    `N`. Raises `ExportError` if the graph cannot be expressed in operators of the default domain.
    """
    example = tuple(inputs.values())
    if any(tensor.shape[0] != EXAMPLE_BATCH for tensor in example):
        raise ValueError(f"examples must have a batch of {EXAMPLE_BATCH}")
    try:
        program = _program(module, example, list(inputs), outputs, progress)
    except Exception as error:  # noqa: BLE001  # tracing runs the user's network, which may raise anything
        raise ExportError(f"the defence graph cannot be exported: {_why(error)}") from None
    made = program.model
    _tidy(made)
    pool_globally(made)
    skip_inpainting(made)
    made.producer_name, made.producer_version = "palisade", None
    made.metadata_props.clear()
    made.metadata_props.update(meta or {})
    foreign = {node.domain for node in made.graph.all_nodes()} - {"", "ai.onnx"}
    if foreign:
        raise ExportError(f"the graph needs operators of {sorted(foreign)}; only stock ONNX operators are served")
    check(made, full=True)
    return made


def _program(
    module: nn.Module, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str], progress: Progress
) -> torch.onnx.ONNXProgram:
    traced = trace(module, example, lambda done: progress(done, 5))
    batch = torch.export.Dim("N", min=1, max=4096)
    with _quiet():
        exported = torch.export.export(traced, example, dynamic_shapes=tuple({0: batch} for _ in example))
        progress(3, 5)
        program = torch.onnx.export(
            exported,
            (),
            dynamo=True,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        progress(4, 5)
        simplify(program.model)
        progress(5, 5)
    return program


def _why(error: BaseException) -> str:
    """What stopped an export, in one line: the operator that ONNX lacks, or the first cause in its own words."""
    while error.__cause__ is not None:
        error = error.__cause__
    message = " ".join(str(error).split())
    lacks = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", message)
    return f"ONNX has no operator for {lacks[1]}" if lacks else f"{type(error).__name__}: {message[:300]}"


def _tidy(model: ir.Model) -> None:
    """Drop stack traces of the exporting machine, and call the batch axis `N` where the exporter used its symbol."""
    ClearMetadataAndDocStringPass()(model)
    batch = str(model.graph.inputs[0].shape[0])  # type: ignore[index]
    for value in ir.convenience.create_value_mapping(model.graph).values():
        value.metadata_props.clear()
        if value.shape is not None:
            value.shape = ir.Shape(dim if isinstance(dim, int) else _renamed(dim, batch) for dim in value.shape)


def _renamed(dim: ir.SymbolicDim, batch: str) -> str | None:
    return None if dim.value is None else dim.value.replace(batch, "N")


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
