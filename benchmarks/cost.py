"""What the defence costs, in forwards of the network that it defends: `python -m benchmarks.cost`.

A forward is the best forward-only graph of the same network: cut out of the served graph itself, so that folding,
opset, weights, threads and session options are the same. Both are timed in turns (A B A B ...) in one process.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnx_ir as ir
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.record import origin
from benchmarks.subgraph import INPAINTING, STAGES
from gateway.core.engine import Engine, Provider, open_session
from gateway.core.loading import hash_files, load_bundle
from gateway.core.manifest import InputSpec, Part, graphs_sha256
from training.commands.terminal import JsonPath
from training.export.macs import macs
from training.export.parts import OUTPUTS, cut, cut_masked, graph_specs, split_parts, write_parts

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
    """The graph under measurement: its engine, the whole of it as a model, and how to open a stage in the same way."""

    engine: Engine
    spec: InputSpec
    model: onnx.ModelProto
    digest: str

    def stage(self, name: str, model: onnx.ModelProto, folder: Path) -> Any:
        """An ONNX Runtime session of `model`, with the engine's own options."""
        path = folder / f"{name.replace(' ', '-')}.onnx"
        onnx.save(model, str(path))
        return open_session(path, self.engine.provider, self.engine.threads)


def open_served(*, bundle: Path, graph: Path | None, provider: Provider, threads: int, folder: Path) -> Served:
    """The graphs of a bundle, or a bare exported `graph` file, whose parts are then written into `folder`."""
    if graph is None:
        loaded = load_bundle(bundle)
        spec, graphs, place = loaded.manifest.input, loaded.manifest.graphs, bundle
        model = onnx.load(str(bundle / graphs["full"].file))
    else:
        model = onnx.load(str(graph))
        parts = split_parts(ir.from_proto(model))
        write_parts(parts, folder)
        graphs, place = graph_specs(parts), folder
        _, channels, height, width = next(t.shape for t in graphs["full"].inputs if t.name == "pixels")
        spec = InputSpec.model_validate({"height": height, "width": width, "channels": channels})
    engine = Engine(place, graphs, spec, provider=provider, threads=threads)
    return Served(engine, spec, model, graphs_sha256(hash_files(place)))


def in_turns(calls: Mapping[str, Callable[[], object]], *, repeats: int, seconds: float) -> dict[str, Times]:
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
    stages = {name: cut(served.model, wanted) for name, wanted in STAGES.items() if set(wanted) <= set(names)}
    sessions = {name: served.stage(name, model, folder) for name, model in stages.items()}
    inpainting = served.stage(INPAINTING, cut_masked(served.model, ["neutral_pixels"]), folder)
    forward = next(iter(sessions))
    difference = np.abs(
        sessions[forward].run(["logits"], {"pixels": pixels})[0] - served.engine.run(pixels).logits
    ).max()
    if difference > 1e-4:
        raise SystemExit(f"the forward-only graph is another network: its logits differ by {difference:g}")

    def run(name: str) -> Callable[[], object]:
        return lambda: sessions[name].run(STAGES[name], {"pixels": pixels})

    def run_part(part: Part) -> Callable[[], object]:
        return lambda: served.engine.run(pixels, part=part)

    main = in_turns(
        {"forward": run(forward), **{part: run_part(part) for part in served.engine.parts}},
        repeats=repeats,
        seconds=0.5 * seconds,
    )
    calls = {name: run(name) for name in sessions}
    calls[INPAINTING] = lambda: inpainting.run(None, {"pixels": pixels, "mask": mask})
    calls["second call, a window inpainted"] = lambda: served.engine.run(pixels, window)
    timed = in_turns(calls, repeats=repeats, seconds=0.5 * seconds)
    unit = macs(stages[forward], batch)

    def figures(part: Part) -> dict[str, Any]:
        # Everything behind inpainting, which has no convolution of its own.
        wanted = [name for name in names if name in OUTPUTS[part] and name not in ("neutral_pixels", "screen_scores")]
        theory = macs(cut(served.model, wanted), batch) / unit
        ratio = main[part].median / main["forward"].median
        processor = statistics.median(main[part].processor) / statistics.median(main["forward"].processor)
        return {
            **main[part].summary(),
            "forwards_measured": round(ratio, 3),
            "forwards_measured_min": round(min(main[part].seconds) / min(main["forward"].seconds), 3),
            "forwards_measured_processor": round(processor, 3),
            "forwards_run": round(theory, 3),
            "measured_over_run": round(ratio / theory, 3),
        }

    return {
        "batch": batch,
        "repeats": len(main["forward"].seconds),
        "forward": main["forward"].summary(),
        "parts": {part: figures(part) for part in served.engine.parts},
        "forward_macs_per_image": unit // batch,
        "logits_difference": float(difference),
        "stages": {
            name: {
                **times.summary(),
                "forwards": round(times.median / timed[forward].median, 3),
                "forwards_run": round(macs(stages[name], batch) / unit, 3) if name in stages else None,
            }
            for name, times in timed.items()
        },
    }


def show(report: dict[str, Any], console: Console) -> None:
    """The report as two tables."""
    table = Table(title=f"Cost of the defence, {report['device']['cpu']}, {report['threads']} thread(s)")
    for column in ("batch", "part", "forward ms", "part ms", "forwards", "minima", "CPU time", "run", "overhead"):
        table.add_column(column, justify="right")
    for row in report["batches"]:
        for part, found in row["parts"].items():
            ratios = [found[f"forwards_{name}"] for name in ("measured", "measured_min", "measured_processor", "run")]
            table.add_row(
                str(row["batch"]),
                part,
                f"{row['forward']['median_ms']:.2f}",
                f"{found['median_ms']:.2f}",
                *(f"{ratio:.2f}" for ratio in ratios),
                f"{(found['measured_over_run'] - 1) * 100:+.0f} %",
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
    graph: Annotated[
        Path | None, typer.Option(help="Bare defence graph (.onnx) to measure in place of a bundle.")
    ] = None,
    json_path: JsonPath = None,
    threads: Annotated[int, typer.Option(min=0, help="Intra-op threads; 0: the engine's default.")] = 0,
    provider: Annotated[Provider, typer.Option(help="Execution provider: cpu or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option(min=5, help="Largest number of rounds.")] = 200,
    seconds: Annotated[float, typer.Option(min=1.0, help="Time limit in seconds for each batch size.")] = 20.0,
) -> None:
    """Measure the parts of a defence graph in forwards of the network it defends, at batch 1, 8 and 32."""
    if provider not in ("cpu", "cuda"):
        raise typer.BadParameter("cpu or cuda", param_hint="--provider")
    with tempfile.TemporaryDirectory() as folder:
        served = open_served(bundle=bundle, graph=graph, provider=provider, threads=threads, folder=Path(folder))
        rows = [measure(served, n, Path(folder), repeats=repeats, seconds=seconds) for n in BATCHES]
    report = {
        "what": "cost of the defence in forwards of the answering network",
        **origin(),
        "graphs_sha256": served.digest,
        "graph_nodes": len(served.model.graph.node),
        "provider": provider,
        "threads": served.engine.threads,
        "batches": rows,
    }
    show(report, Console())
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    typer.run(main)
