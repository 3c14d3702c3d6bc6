"""The defence graph on a GPU, by how tensors are handed over, batch, part and precision: `python -m benchmarks.gpu`.

One command that fills the table within `--minutes`, on a machine that has nothing but this repository and the packages:
it needs no data and no calibration, since what the graphs compute is checked and not what it is worth. Ways:

- `arrays`: ONNX Runtime copies NumPy arrays in and out by itself;
- `bound`: inputs and outputs are bound to host memory, as the gateway's engine does it on CUDA;
- `pinned`: the same from memory that the CUDA driver has locked (`cudaHostRegister`);
- `kept`: buffers on the device that are allocated once and filled for each call;
- `bytes`: `kept` with pixels as uint8, a quarter of what is copied; the graph divides by 255;
- `graph`: `bytes` as a CUDA graph, captured for each batch.

A way that this machine or provider does not have is a line that says why. Every way's outputs are compared with those
of `arrays` in fp32. On the CPU provider the same code runs, which is what its test does.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import typer
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from benchmarks.cost import in_turns
from benchmarks.record import record
from gateway.core.engine import Provider, open_session
from gateway.core.loading import load_bundle
from gateway.core.manifest import BUCKETS, Precision
from gateway.errors import PalisadeError
from training.commands.terminal import JsonPath
from training.export.half import halved
from training.export.parts import cut
from training.export.stored import unpack

FORWARD = "forward"
BYTES = "pixel_bytes"
WAYS = ("arrays", "bound", "pinned", "kept", "bytes", "graph")
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_CUDART = ("libcudart.so", "libcudart.so.13", "libcudart.so.12")

Call = Callable[[], list[np.ndarray]]


class NotHere(Exception):
    """A way that this machine or provider does not have, and why."""


@dataclass(frozen=True)
class Graph:
    """A part in one precision, as a file that takes float32 pixels, and as one that takes bytes; its outputs."""

    part: str
    precision: Precision
    plain: Path
    of_bytes: Path
    outputs: list[str]
    masked: bool


def from_bytes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with an input `pixel_bytes`, uint8, in the place of `pixels`: it divides them by 255 itself."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    (pixels,) = (each for each in made.graph.input if each.name == "pixels")
    pixels.name, pixels.type.tensor_type.elem_type = BYTES, TensorProto.UINT8
    scale = helper.make_tensor("levels", TensorProto.FLOAT, [], [255.0])
    made.graph.initializer.append(scale)
    cast = helper.make_node("Cast", [BYTES], ["levels_of_pixels"], to=TensorProto.FLOAT)
    made.graph.node.insert(0, cast)
    made.graph.node.insert(1, helper.make_node("Div", ["levels_of_pixels", "levels"], ["pixels"]))
    onnx.checker.check_model(made)
    return made


def graphs_of(bundle: Path, folder: Path, precisions: Sequence[Precision]) -> list[Graph]:
    """The bare forward pass and every part of a bundle in each precision, written to `folder`, weights included."""
    manifest = load_bundle(bundle).manifest
    parts = {str(part): unpack(onnx.load(str(bundle / graph.file))) for part, graph in manifest.graphs.items()}
    models = {FORWARD: cut(parts["full"], ["logits"])} | parts
    made = []
    for precision in precisions:
        for part, model in models.items():
            exact = model if precision == "fp32" else ir.to_proto(halved(ir.from_proto(model)))
            plain, of_bytes = (folder / f"{part}-{precision}{kind}.onnx" for kind in ("", "-bytes"))
            onnx.save(exact, str(plain))
            onnx.save(from_bytes(exact), str(of_bytes))
            outputs = [each.name for each in exact.graph.output]
            masked = any(each.name == "mask" for each in exact.graph.input)
            made.append(Graph(part, precision, plain, of_bytes, outputs, masked))
    return made


def ways_of(graph: Graph, levels: np.ndarray, provider: Provider, threads: int) -> Iterator[tuple[str, Call | str]]:
    """Each way and its call on images uint8 `levels` (N, C, H, W), or why it is not to be had here."""
    pixels = {"pixels": levels.astype(np.float32) / np.float32(255)}
    mask = {"mask": np.zeros((len(levels), *levels.shape[2:]), np.float32)} if graph.masked else {}
    plain = open_session(graph.plain, provider, threads)
    yield "arrays", lambda: plain.run(graph.outputs, pixels | mask)
    yield "bound", lambda: _bound(plain, pixels | mask, graph.outputs)
    try:
        locked = {name: _locked(value, provider) for name, value in (pixels | mask).items()}
        yield "pinned", lambda: _bound(plain, locked, graph.outputs)
    except NotHere as error:
        yield "pinned", str(error)
    shapes = [value.shape for value in plain.run(graph.outputs, pixels | mask)]
    yield "kept", _kept(plain, pixels | mask, graph.outputs, shapes, provider)
    of_bytes = open_session(graph.of_bytes, provider, threads)
    fed = {BYTES: levels} | mask
    yield "bytes", _kept(of_bytes, fed, graph.outputs, shapes, provider)
    try:
        yield "graph", _kept(_captured(graph.of_bytes, provider), fed, graph.outputs, shapes, provider)
    except NotHere as error:
        yield "graph", str(error)


def _bound(session: ort.InferenceSession, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_cpu_input(name, value)
    for name in outputs:
        binding.bind_output(name, "cpu")
    session.run_with_iobinding(binding)
    return list(binding.copy_outputs_to_cpu())


def _kept(
    session: ort.InferenceSession,
    inputs: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    provider: Provider,
) -> Call:
    """Buffers of a fixed address on the device; every call copies the inputs in and the outputs out."""
    binding = session.io_binding()
    filled = {name: ort.OrtValue.ortvalue_from_numpy(value, provider, 0) for name, value in inputs.items()}
    found = [ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, provider, 0) for shape in shapes]
    for name, value in filled.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in zip(outputs, found, strict=True):
        binding.bind_ortvalue_output(name, value)

    def call() -> list[np.ndarray]:
        for name, value in inputs.items():
            filled[name].update_inplace(value)
        session.run_with_iobinding(binding)
        return [value.numpy() for value in found]

    return call


def _locked(value: np.ndarray, provider: Provider) -> np.ndarray:
    """A copy whose memory the CUDA driver has locked; it stays so until the process ends."""
    if provider != "cuda":
        raise NotHere("locked memory is CUDA's")
    copy = np.ascontiguousarray(value).copy()
    for name in _CUDART:
        try:
            register = ctypes.CDLL(name).cudaHostRegister
        except OSError:
            continue
        if code := register(ctypes.c_void_p(copy.ctypes.data), ctypes.c_size_t(copy.nbytes), ctypes.c_uint(0)):
            raise NotHere(f"cudaHostRegister: error {code}")
        return copy
    raise NotHere(f"none of {', '.join(_CUDART)} is there")


def _captured(path: Path, provider: Provider) -> ort.InferenceSession:
    """A session whose first run is captured as a CUDA graph and replayed after that."""
    if provider != "cuda":
        raise NotHere("CUDA graphs are CUDA's")
    try:
        return ort.InferenceSession(str(path), providers=[(_PROVIDERS["cuda"], {"enable_cuda_graph": "1"})])
    except Exception as error:  # noqa: BLE001  # ONNX Runtime has a class of its own for each of its status codes
        raise NotHere(" ".join(str(error).split())[:160]) from None


def measure(
    graph: Graph, reference: Graph, levels: np.ndarray, provider: Provider, threads: int, *, seconds: float
) -> dict[str, Any]:
    """Every way of one part, precision and batch: milliseconds, images a second, and the difference of the outputs.

    `reference` is the same part in fp32. `largest_difference` is over all outputs, relative to the largest value of
    each; it is 1 where rounding moves the window of the region of attack, as it may on the noise that is asked here.
    """
    pixels = {"pixels": levels.astype(np.float32) / np.float32(255)}
    mask = {"mask": np.zeros((len(levels), *levels.shape[2:]), np.float32)} if reference.masked else {}
    right = open_session(reference.plain, provider, threads).run(graph.outputs, pixels | mask)
    calls, refused = dict[str, Call](), dict[str, str]()
    for way, call in ways_of(graph, levels, provider, threads):
        if isinstance(call, str):
            refused[way] = call
            continue
        try:
            call()
            calls[way] = call
        except Exception as error:  # noqa: BLE001  # as above: a graph that cannot be captured fails in its first run
            refused[way] = " ".join(str(error).split())[:160]
    differences = {way: _difference(call(), right) for way, call in calls.items()}
    times = in_turns(calls, repeats=200, seconds=seconds)
    return {
        "part": graph.part,
        "precision": graph.precision,
        "batch": len(levels),
        "ways": {
            way: {
                **times[way].summary(),
                "images_a_second": round(len(levels) / times[way].median, 1),
                "largest_difference": differences[way],
            }
            for way in calls
        },
        "not_here": refused,
    }


def _difference(found: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> float:
    return float(
        max(
            np.abs(a.astype(np.float64) - b).max() / max(np.abs(b).max(), 1e-6)
            for a, b in zip(found, right, strict=True)
        )
    )


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Milliseconds by way, and of the best one images a second and forward passes of the same batch and precision."""
    made = Table(title="Defence graph by how tensors are handed over: median ms")
    for column in ("precision", "part", "batch", *WAYS, "best, images/s", "forwards"):
        made.add_column(column, justify="right")
    forward = {
        (row["precision"], row["batch"], way): found["median_ms"]
        for row in rows
        if row["part"] == FORWARD
        for way, found in row["ways"].items()
    }
    for row in rows:
        best = min(row["ways"], key=lambda way: row["ways"][way]["median_ms"])
        once = forward.get((row["precision"], row["batch"], best))
        made.add_row(
            row["precision"],
            row["part"],
            str(row["batch"]),
            *(f"{row['ways'][way]['median_ms']:.3f}" if way in row["ways"] else "-" for way in WAYS),
            f"{row['ways'][best]['images_a_second']:,.0f}",
            f"{row['ways'][best]['median_ms'] / once:.2f}" if once else "-",
        )
    return made


def main(
    bundle: Annotated[Path, typer.Option(help="Bundle to measure.")] = Path("models/gtsrb"),
    provider: Annotated[Provider, typer.Option(help="Execution provider: cuda or cpu.")] = "cuda",
    precision: Annotated[list[str] | None, typer.Option(help="fp32, fp16; default: both.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch sizes; default: the buckets and 128.")] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="Time for all measurements together.")] = 8.0,
    threads: Annotated[int, typer.Option(min=1, help="Intra-op threads.")] = 1,
    json_path: JsonPath = None,
) -> None:
    """Measure forward pass and parts of a bundle on a provider, by how tensors are handed over."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    precisions: list[Precision] = ["fp16" if each == "fp16" else "fp32" for each in precision or ("fp32", "fp16")]
    batches = batch or [*BUCKETS, 128]
    spec, rng = load_bundle(bundle).manifest.input, np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        graphs = graphs_of(bundle, Path(folder), list(dict.fromkeys(["fp32", *precisions])))
        if _PROVIDERS[provider] not in open_session(graphs[0].plain, provider, threads).get_providers():
            raise SystemExit(f"ONNX Runtime did not start {_PROVIDERS[provider]} here; --provider cpu works anywhere")
        exact = {graph.part: graph for graph in graphs if graph.precision == "fp32"}
        wanted = [(graph, n) for graph in graphs if graph.precision in precisions for n in batches]
        end = time.monotonic() + 60 * minutes
        for left, (graph, n) in zip(range(len(wanted), 0, -1), wanted, strict=True):
            levels = rng.integers(0, 256, (n, spec.channels, spec.height, spec.width), np.uint8)
            share = max(0.2, (end - time.monotonic()) / left)
            try:
                rows.append(measure(graph, exact[graph.part], levels, provider, threads, seconds=0.7 * share))
            except PalisadeError as error:
                raise SystemExit(error.detail) from None
            if json_path is not None:  # as far as it is: a machine that is lent may be taken back
                record(json_path, "defence graph by how tensors are handed over", {"provider": provider, "rows": rows})
    console.print(table(rows))
    for way, why in sorted({(way, why) for row in rows for way, why in row["not_here"].items()}):
        console.print(f"{way}: {why}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
