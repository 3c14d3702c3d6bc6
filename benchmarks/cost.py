"""What the defence costs, in forwards of the network that it defends: `python -m benchmarks.cost`.

A forward is the best forward-only graph of the same network: cut out of the served graph itself, so that folding,
opset, weights, threads and session options are the same. Both are timed in turns (A B A B ...) in one process.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.record import origin
from benchmarks.subgraph import INPAINTING, STAGES, cut, inpainting_part, macs
from gateway.bundle import GraphSpec, InputSpec, file_sha256, load_bundle
from gateway.cores import threads_per_worker
from gateway.engine import Engine, Provider, _open

BATCHES = (1, 8, 32)
WARM_UP = 3
WINDOW_SHARE = 0.28  # side of the region of attack that a second call inpaints


@dataclass(frozen=True)
class Times:
    """Seconds of repeated calls, and of processor time: what other programs took meanwhile is not in the latter."""

    seconds: list[float]
    processor: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def summary(self) -> dict[str, float]:
        figures = {
            "median_ms": self.median,
            "min_ms": min(self.seconds),
            "processor_median_ms": statistics.median(self.processor),
        }
        return {name: round(value * 1e3, 4) for name, value in figures.items()}


@dataclass(frozen=True)
class Served:
    """The graph under measurement: its file, its engine, and how to open a part of it in the same way."""

    path: Path
    engine: Engine
    spec: InputSpec
    model: onnx.ModelProto
    provider: Provider
    threads: int

    def part(self, name: str, model: onnx.ModelProto, folder: Path) -> Any:
        """An ONNX Runtime session of `model`, with the engine's own options."""
        path = folder / f"{name.replace(' ', '-')}.onnx"
        onnx.save(model, str(path))
        return _open(path, self.provider, self.threads)


def open_served(*, bundle: Path, graph: Path | None, provider: Provider, threads: int) -> Served:
    """The graph of a bundle, or a bare `graph` file."""
    if graph is None:
        loaded = load_bundle(bundle)
        graph, spec, signature = bundle / loaded.manifest.graph.file, loaded.manifest.input, loaded.manifest.graph
        model = onnx.load(str(graph))
    else:
        from training.export.onnx_file import tensor_specs

        model = onnx.load(str(graph))
        inputs, outputs = tensor_specs(model)
        signature = GraphSpec.model_validate({"inputs": inputs, "outputs": outputs})
        _, channels, height, width = next(t.shape for t in signature.inputs if t.name == "pixels")
        spec = InputSpec.model_validate({"height": height, "width": width, "channels": channels})
    engine = Engine(graph, signature, spec, provider=provider, threads=threads)
    return Served(graph, engine, spec, model, provider, threads_per_worker(threads, 1))


def in_turns(calls: dict[str, Callable[[], object]], *, repeats: int, seconds: float) -> dict[str, Times]:
    """Time every call once a round, for `repeats` rounds or until `seconds` have passed (five rounds at least)."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    end = time.perf_counter() + seconds
    for done in range(repeats):
        if done >= 5 and time.perf_counter() > end:
            break
        for name, call in calls.items():
            start, processor = time.perf_counter(), time.process_time()
            call()
            taken[name].append((time.perf_counter() - start, time.process_time() - processor))
    return {name: Times(*map(list, zip(*values, strict=True))) for name, values in taken.items()}


def measure(served: Served, batch: int, folder: Path, *, repeats: int, seconds: float) -> dict[str, Any]:
    """One batch size: defence against forward, then every stage against forward, `seconds` in all."""
    spec, rng = served.spec, np.random.default_rng(0)
    pixels = rng.random((batch, spec.channels, spec.height, spec.width), np.float32)
    mask = np.zeros((batch, spec.height, spec.width), np.float32)
    side = max(3, round(WINDOW_SHARE * min(spec.height, spec.width)))
    window = mask.copy()
    window[:, 4 : 4 + side, 4 : 4 + side] = 1.0

    names = [output.name for output in served.model.graph.output]
    parts = {name: cut(served.model, wanted) for name, wanted in STAGES.items() if set(wanted) <= set(names)}
    sessions = {name: served.part(name, model, folder) for name, model in parts.items()}
    inpainting = served.part(INPAINTING, inpainting_part(served.model), folder)
    forward = next(iter(sessions))
    difference = np.abs(
        sessions[forward].run(["logits"], {"pixels": pixels})[0] - served.engine.run(pixels).logits
    ).max()
    if difference > 1e-4:
        raise SystemExit(f"the forward-only graph is another network: its logits differ by {difference:g}")

    def run(name: str) -> Callable[[], object]:
        return lambda: sessions[name].run(STAGES[name], {"pixels": pixels})

    pair = in_turns(
        {"defence": lambda: served.engine.run(pixels), "forward": run(forward)}, repeats=repeats, seconds=0.5 * seconds
    )
    calls = {name: run(name) for name in sessions}
    calls[INPAINTING] = lambda: inpainting.run(None, {"pixels": pixels, "mask": mask})
    calls["second call, a window inpainted"] = lambda: served.engine.run(pixels, window)
    stages = in_turns(calls, repeats=repeats, seconds=0.5 * seconds)
    unit = macs(parts[forward], batch)
    # Everything behind inpainting, which has no convolution of its own.
    theory = macs(cut(served.model, [name for name in names if name != "neutral_pixels"]), batch) / unit
    ratio = pair["defence"].median / pair["forward"].median
    processor = statistics.median(pair["defence"].processor) / statistics.median(pair["forward"].processor)
    return {
        "batch": batch,
        "repeats": len(pair["defence"].seconds),
        "defence": pair["defence"].summary(),
        "forward": pair["forward"].summary(),
        "forwards_measured": round(ratio, 3),
        "forwards_measured_min": round(min(pair["defence"].seconds) / min(pair["forward"].seconds), 3),
        "forwards_measured_processor": round(processor, 3),
        "forwards_run": round(theory, 3),
        "measured_over_run": round(ratio / theory, 3),
        "forward_macs_per_image": unit // batch,
        "logits_difference": float(difference),
        "stages": {
            name: {
                **times.summary(),
                "forwards": round(times.median / stages[forward].median, 3),
                "forwards_run": round(macs(parts[name], batch) / unit, 3) if name in parts else None,
            }
            for name, times in stages.items()
        },
    }


def show(report: dict[str, Any], console: Console) -> None:
    """The report as two tables."""
    table = Table(title=f"Cost of the defence, {report['device']['cpu']}, {report['threads']} thread(s)")
    for column in ("batch", "forward ms", "defence ms", "forwards", "minima", "CPU time", "run", "overhead"):
        table.add_column(column, justify="right")
    for row in report["batches"]:
        ratios = [row[f"forwards_{name}"] for name in ("measured", "measured_min", "measured_processor", "run")]
        table.add_row(
            str(row["batch"]),
            *(f"{row[name]['median_ms']:.2f}" for name in ("forward", "defence")),
            *(f"{ratio:.2f}" for ratio in ratios),
            f"{(row['measured_over_run'] - 1) * 100:+.0f} %",
        )
    console.print(table)
    stages = Table(title="Stages in forwards of the same run: measured (run)")
    stages.add_column("stage")
    for row in report["batches"]:
        stages.add_column(f"batch {row['batch']}", justify="right")
    for name in report["batches"][0]["stages"]:
        cells = [row["stages"][name] for row in report["batches"]]
        stages.add_row(
            name,
            *(f"{c['forwards']:.2f}" + (f" ({c['forwards_run']:.2f})" if c["forwards_run"] else "") for c in cells),
        )
    console.print(stages)


def main(
    bundle: Annotated[Path, typer.Option(help="Bundle to measure.")] = Path("models/gtsrb"),
    graph: Annotated[Path | None, typer.Option(help="A bare defence graph (.onnx) in place of a bundle.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Intra-op threads; 0: the engine's default.")] = 0,
    provider: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option(min=5, help="Rounds at most.")] = 200,
    seconds: Annotated[float, typer.Option(min=1.0, help="Time at most for each batch size.")] = 20.0,
) -> None:
    """Measure the defence graph in forwards of the network it defends, at batch 1, 8 and 32."""
    if provider not in ("cpu", "cuda"):
        raise typer.BadParameter("cpu or cuda", param_hint="--provider")
    served = open_served(bundle=bundle, graph=graph, provider=provider, threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(served, n, Path(folder), repeats=repeats, seconds=seconds) for n in BATCHES]
    report = {
        "what": "cost of the defence in forwards of the answering network",
        **origin(),
        "graph_sha256": file_sha256(served.path),
        "graph_nodes": len(served.model.graph.node),
        "provider": provider,
        "threads": served.threads,
        "batches": rows,
    }
    show(report, Console())
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    typer.run(main)
