"""Model files in every form, opened and exported at 224 pixels: `python -m benchmarks.model_files --out FILE.json`.

Each is made in a process of its own and opened and exported in another, whose largest memory at that point and
processor time are stated. A forward is the forward-only
graph cut out of the exported one; it, the verdict and the verdict with its explanation run in turns. `run` is how many
forwards the multiply-accumulates of a graph amount to. Weights and images are random: the export is what is measured.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import onnx
import torch
import typer
from rich.console import Console

from benchmarks.cost import in_turns
from benchmarks.model_cases import CASES, CLASSES, SIDE, made
from benchmarks.record import origin, record
from gateway.core.engine import Engine, open_session
from gateway.core.manifest import GraphSpec, InputSpec, Part
from training.bundling.assemble import export_defence
from training.bundling.preprocessing import Wanted
from training.defence.constants import Constants
from training.defence.graph import DefenceGraph
from training.export.fold import folded
from training.export.macs import macs
from training.export.parts import OUTPUTS, cut
from training.models.forms import open_model
from training.models.named import with_taps
from training.models.network import Network
from training.util.module_modes import seeded

IMAGES = 2
COLUMNS = (
    "file",
    "command",
    "open s",
    "export s",
    "peak MB",
    "MB",
    "logits",
    "saliency cosine",
    "forward ms",
    "verdict (run)",
    "with explanation (run)",
)


def constants(network: Network) -> Constants:
    """Benign constants of the right shapes: no images are seen here."""
    torch.manual_seed(1)
    channels = list(network.tap_channels.values())
    count, last = sum(channels), channels[-1]
    fitted = {"whiten": torch.randn(last, last) / last, "class_means": torch.randn(CLASSES, last) / last}
    return Constants(torch.rand(count), torch.rand(count) + 0.5, fitted)


def one(title: str, folder: Path) -> dict[str, Any]:
    """The figures of one file."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as maker:
        given = maker.submit(made, title, folder).result()
    start = time.process_time()
    opened = open_model(given.model, weights=given.weights, classes=CLASSES, side=SIDE)
    mean, std = Wanted().of(opened, SIDE).normalise.of_unit_pixels()
    network = with_taps(opened.body, classes=CLASSES, mean=mean, std=std, side=SIDE).eval()
    read = time.process_time() - start
    defence = DefenceGraph(folded(network, side=SIDE), None, constants(network)).eval()
    bundle = folder / "bundle"
    bundle.mkdir()
    start = time.process_time()
    graphs = export_defence(defence, bundle, channels=3, height=SIDE, width=SIDE)
    exported = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "file": title,
        "command": given.command,
        "layers": list(network.tap_channels),
        "open_s": round(read, 1),
        "export_s": round(exported, 1),
        "peak_mb": peak // 1024,
        "bundle_mb": round(sum(path.stat().st_size for path in bundle.iterdir()) / 1e6, 1),
        **compared(defence, network, bundle, graphs),
    }


def compared(defence: DefenceGraph, network: Network, bundle: Path, graphs: dict[Part, GraphSpec]) -> dict[str, Any]:
    """Parity with torch, and times in forwards, on one thread."""
    engine = Engine(bundle, graphs, InputSpec(height=SIDE, width=SIDE), provider="cpu", threads=1)
    x = torch.rand(IMAGES, 3, SIDE, SIDE, generator=seeded(2))
    found = engine.run(x.numpy())
    with torch.no_grad():
        logits = network(x)
    saliency = defence(x, torch.zeros(IMAGES, SIDE, SIDE)).saliency.flatten(1)
    assert found.saliency is not None
    served = torch.from_numpy(found.saliency).flatten(1)
    whole = onnx.load(str(bundle / graphs["full"].file), load_external_data=False)  # they stay in their file
    forward_only = cut(whole, ["logits"])
    onnx.save(forward_only, str(bundle / "forward.onnx"))
    forward = open_session(bundle / "forward.onnx", "cpu", 1)
    pixels = x[:1].numpy()
    times = in_turns(
        {
            "forward": lambda: forward.run(["logits"], {"pixels": pixels}),
            "verdict": lambda: engine.run(pixels, part="verdict"),
            "full": lambda: engine.run(pixels, part="full"),
        },
        repeats=30,
        seconds=20,
    )
    unit = min(times["forward"].processor)
    names = [output.name for output in whole.graph.output]
    row: dict[str, Any] = {
        "logits_difference": float((torch.from_numpy(found.logits) - logits).abs().max() / logits.abs().max()),
        "saliency_cosine": float(torch.cosine_similarity(served, saliency).min()),
        "forward_ms": round(unit * 1e3, 1),
    }
    for part in ("verdict", "full"):
        wanted = [name for name in names if name in OUTPUTS[part] and name not in ("neutral_pixels", "screen_scores")]
        row[f"{part}_forwards"] = round(min(times[part].processor) / unit, 2)
        row[f"{part}_run"] = round(macs(cut(whole, wanted), 1, products=True) / macs(forward_only, 1, products=True), 2)
    return row


def line(row: dict[str, Any]) -> str:
    """A row of the table in Markdown."""
    if "error" in row:
        return f"| {row['file']} | {row['error']} |" + " |" * (len(COLUMNS) - 2)
    cells = [
        row["file"],
        f"`{row['command']}`",
        *(str(row[name]) for name in ("open_s", "export_s", "peak_mb", "bundle_mb")),
        f"{row['logits_difference']:.0e}",
        f"{row['saliency_cosine']:.4f}",
        str(row["forward_ms"]),
        *(f"{row[f'{part}_forwards']:.2f} ({row[f'{part}_run']:.2f})" for part in ("verdict", "full")),
    ]
    return "| " + " | ".join(cells) + " |"


def in_a_process(title: str) -> dict[str, Any]:
    """The figures of one file, measured in a process of its own; `error` where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "row.json"
        command = [sys.executable, "-m", "benchmarks.model_files", "--one", title, "--out", str(result)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603  # our own module
        if done.returncode or not result.is_file():
            reason = " ".join(done.stderr.rpartition("Error: ")[2].split()) or "no message"
            return {"file": title, "error": reason[:300]}
        return json.loads(result.read_text())


def main(
    out: Annotated[Path, typer.Option(help="File of the figures.")],
    only: Annotated[list[str] | None, typer.Option(help="Files whose title contains this; more than once.")] = None,
    one_of: Annotated[str | None, typer.Option("--one", hidden=True)] = None,
) -> None:
    """Open and export every model file; rows of an existing `--out` are kept where `--only` leaves them out."""
    if one_of is not None:
        with tempfile.TemporaryDirectory() as folder:
            out.write_text(json.dumps(one(one_of, Path(folder))))
        return
    known = {row["file"]: row for row in json.loads(out.read_text())["files"]} if only and out.is_file() else {}
    console = Console(width=200)
    for title in CASES:
        if only and not any(part in title for part in only):
            continue
        known[title] = in_a_process(title) | {"measured": origin()}  # other rows may be of other runs and machines
        console.print(line(known[title]), markup=False)
        rows = [known[name] for name in CASES if name in known]
        record(out, "model files opened and exported at 224 pixels", {"images": IMAGES, "seed": 0, "files": rows})
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    print("\n".join(line(known[name]) for name in CASES if name in known))


if __name__ == "__main__":
    typer.run(main)
