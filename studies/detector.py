"""The detector on networks trained differently: does a penalty remove the signal that detection needs?

Each network is attacked by itself with the same settings, on the same images; benign images and images to attack are
disjoint. Nothing is fitted on either.

`python -m studies.detector RUN RUN`
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from gateway.core.verdict import Fusion
from training.analysis.contrast import ATTACKS, BATCH, predictions, white_box
from training.analysis.sample import sample
from training.analysis.subjects import load_subject
from training.analysis.tables import detector_table
from training.commands.figures import step_of, today, write_json
from training.commands.terminal import Threads, command, console, progress_bars, use_threads
from training.data.dataset import Dataset
from training.defence.constants import fit_constants
from training.defence.graph import DefenceGraph
from training.errors import TrainingError
from training.imaging.pixels import to_tensor
from training.models.network import Network
from training.util.signatures import StepProgress, silent
from training.util.statistics import interval, threshold_at

RATES = (0.01, 0.05)


def detector_report(
    network: Network,
    data: Dataset,
    *,
    images: int = 300,
    benign: int = 1000,
    steps: int = 20,
    seed: int = 0,
    progress: StepProgress = silent,
) -> dict[str, Any]:
    """AUROC of each score, of each layer's deviation and of all scores fused, by attack, for one network alone.

    `images` of the test split are attacked, of which those count that the network gets right before and wrong after;
    They are compared with `benign` others. Constants are fitted as for a bundle.
    """
    with torch.no_grad():
        defence = DefenceGraph(
            network, None, fit_constants(network, data.train, data.select, classes=len(data.classes))
        )
    index = np.random.default_rng(seed).permutation(len(data.test))
    clean = data.test.take(np.sort(index[:benign]))
    x, y, group = sample(data.test.take(np.sort(index[benign:])), images, seed=seed)
    names = defence.score_names
    fusion = Fusion.fit(_scores(defence, to_tensor(data.select.x))[:, : len(names)], names, names)
    reference = _columns(_scores(defence, to_tensor(clean.x)), fusion, defence)
    right = predictions(network, x) == y
    out: dict[str, Any] = {
        "clean_accuracy": float((predictions(network, to_tensor(clean.x)).cpu().numpy() == clean.y).mean()),
        "benign": len(clean),
        "attacked": int(right.sum()),
        "steps": steps,
        "seed": seed,
        "attacks": {},
    }
    for number, name in enumerate(ATTACKS):
        progress(name, number, len(ATTACKS))
        adversarial = white_box(network, x[right], y[right], name, steps=steps, seed=seed)
        fooled = predictions(network, adversarial) != y[right]
        found = _columns(_scores(defence, adversarial[fooled]), fusion, defence)
        groups = group[right.cpu().numpy()][fooled.cpu().numpy()]
        row = {score: _separated(reference[score], values, groups) for score, values in found.items()}
        out["attacks"][name] = {"fooled": int(fooled.sum()), "scores": row}
    return out


def _columns(scores: np.ndarray, fusion: Fusion, defence: DefenceGraph) -> dict[str, np.ndarray]:
    """Scores, their fusion and deviations by layer, by name."""
    names = defence.score_names
    own = scores[:, : len(names)]
    deviations = {f"deviation of {layer}": scores[:, len(names) + i] for i, layer in enumerate(defence.layers)}
    return dict(zip(names, own.T, strict=True)) | {"fused": fusion.statistic(own)} | deviations


def _separated(benign: np.ndarray, attacked: np.ndarray, group: np.ndarray) -> dict[str, Any] | None:
    """AUROC with its interval over attacked groups, and detection at measured false-positive rates."""
    if not len(attacked):
        return None
    ordered = np.sort(benign)
    below = (np.searchsorted(ordered, attacked, "left") + np.searchsorted(ordered, attacked, "right")) / 2 / len(benign)
    rates = {f"tpr_{rate:g}": float((attacked > threshold_at(benign, rate)).mean()) for rate in RATES}
    return {"auroc": float(below.mean()), "interval": interval(below, group)} | rates


@torch.no_grad()
def _scores(defence: DefenceGraph, x: Tensor) -> np.ndarray:
    """Scores and deviations by layer, (N, S + L)."""
    rows = []
    for part in x.split(BATCH):
        logits, taps = defence.network.taps(part)
        rows.append(torch.cat(defence.detector_scores(part, logits, taps, None), 1))
    if not rows:
        return np.empty((0, len(defence.scores) + len(defence.layers)))
    return torch.cat(rows).cpu().numpy().astype(np.float64)


def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders of training runs on the same data, for example two.")],
    out: Annotated[Path, typer.Option(help="JSON file to write the figures to.")] = Path("build/detector.json"),
    images: Annotated[int, typer.Option(min=8, help="Number of test images to attack.")] = 300,
    benign: Annotated[int, typer.Option(min=20, help="Number of other, benign test images.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Number of PGD steps.")] = 20,
    seed: int = 0,
    threads: Threads = None,
) -> None:
    """The detector on networks that were trained differently, by score and layer: has a penalty removed its signal?"""
    use_threads(threads)
    subjects = [load_subject(run) for run in runs]
    for subject in subjects[1:]:
        if subject.data.describe() != subjects[0].data.describe():
            raise TrainingError(f"{subject.name} and {subjects[0].name} use different data or splits")
    reports: dict[str, Any] = {}
    with progress_bars() as bars:
        for subject in subjects:
            for name, network in subject.networks.items():
                label = name if name == subject.name else f"{subject.name}, {name}"
                reports[label] = detector_report(
                    network,
                    subject.data,
                    images=images,
                    benign=benign,
                    steps=steps,
                    seed=seed,
                    progress=partial(step_of, bars, label),
                )
    write_json(out, {"date": today(), "split": "test", "networks": reports})
    for attack in next(iter(reports.values()))["attacks"]:
        console.print(detector_table(attack, reports))
    console.print(
        f"AUROC [95 % interval] and detection at 5 % false positives; {benign} benign test images, seed {seed}; {out}"
    )


if __name__ == "__main__":
    typer.run(command(main))
