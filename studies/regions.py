"""What finds a patch, and which answers hiding it recovers: localisers and strategies, on the select split.

A patch that fools the answering network counts as recovered if the answer is right once the strategy has hidden what
it suspects. The price is paid by benign images behind the gate, which are neutralised, too. So that strategies are
compared at one price, each serves its answer where the window stands out and the answer is clear by a threshold fitted
on benign images of the calibrate split, as the calibration does it (`training.bundling.calibrate.fit_recovery`).

`python -m studies.regions BUNDLE`
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.table import Table
from torch import Tensor

from gateway.core.pipeline import Pipeline
from gateway.core.verdict import lead
from studies.strategies import BATCH, FORWARDS, USUAL_SHARE, Answers, strategies
from training.analysis.contrast import predictions
from training.analysis.explain import PATCH_SHARE
from training.attacks.coarse import searched
from training.attacks.patch import Kind, patch_attack
from training.bundling.calibrate import COST, allowed_count, fit_recovery
from training.bundling.networks import load_defence
from training.commands.figures import today, with_data, write_json
from training.commands.terminal import BundlePath, JsonPath, Threads, command, console, progress_bars, use_threads
from training.data.dataset import Dataset, Split
from training.defence.graph import DefenceGraph
from training.defence.localisers.windows import window_sides
from training.errors import TrainingError
from training.imaging.inpaint import inpaint
from training.imaging.pixels import to_tensor
from training.imaging.resize import working_size
from training.models.network import Network
from training.served.answers import open_pipeline
from training.served.scoring import to_uint8
from training.util.module_modes import frozen, seeded
from training.util.signatures import Progress, StepProgress, silent
from training.util.statistics import interval

KINDS: tuple[Kind, ...] = ("noisy", "low_frequency")
GATES = (0.05, 0.1)
COVERED = 0.8
Behind = tuple["Images", np.ndarray, dict[str, Answers]]
"""Benign images, the rows of those behind the widest gate, and what strategies answer to these."""


@dataclass(frozen=True)
class Images:
    """N images with the system's answers to them as they come.

    `logits` (N, K) are the answering network's; `p_value` (N,) is what gates look at; `served` (N,) the label that is
    served, and `after` (N,) the one of the served second pass (of the first where there is none); `patch` (N, H, W) is
    where the patch lies.
    """

    x: Tensor
    y: Tensor
    group: np.ndarray
    logits: Tensor
    p_value: np.ndarray
    served: np.ndarray
    after: np.ndarray
    patch: Tensor

    def __len__(self) -> int:
        return len(self.y)

    @property
    def truth(self) -> np.ndarray:
        return self.y.cpu().numpy()

    @property
    def right(self) -> np.ndarray:
        """Whether the first answer is right (N,)."""
        return np.asarray(self.logits.argmax(1).cpu().numpy() == self.truth)

    def take(self, rows: np.ndarray) -> Images:
        """The images of `rows` (M,)."""
        return Images(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def regions_report(
    defence: DefenceGraph,
    pipeline: Pipeline,
    data: Dataset,
    *,
    n: int = 200,
    benign: int | None = None,
    seed: int = 0,
    progress: StepProgress = silent,
) -> dict[str, Any]:
    """Localisers and strategies on patches that fool (`n` of a kind, select split) and on benign images; JSON content.

    `benign` images of the select and of the calibrate split are looked at (None: all). Raises `TrainingError` where
    there is no companion, or where no patch fools the answering network.
    """
    if defence.companion is None:
        raise TrainingError(
            f"{pipeline.bundle.name} has no companion, whose disagreement is one of the localisers that are compared"
        )
    height, width = data.select.x.shape[1:3]
    if working_size(height, width) != (height, width):
        raise TrainingError(f"images of {height} x {width} are too large: windows are compared pixel by pixel")
    side = round(PATCH_SHARE * min(height, width))
    cutoffs = {gate: pipeline.judge.cutoff(gate) for gate in GATES}
    effect = pipeline.judge.calibration.design_effect
    widest = max(cutoffs.values())

    def behind(split: Split, name: str, stage: int) -> Behind:
        rows = np.random.default_rng([seed, stage]).permutation(len(split))[:benign]
        some = _seen(pipeline, split.take(np.sort(rows)), None, partial(progress, f"{name}: passes"))
        gated = np.flatnonzero(some.p_value <= widest)
        if len(gated) < 2:
            raise TrainingError(f"{len(gated)} of {len(some)} images of the {name} are behind the gate; use more")
        return some, gated, _all_answers(defence, some.take(gated), seeded(seed, 31, stage))

    patched: dict[str, Images] = {}
    answers: dict[str, dict[str, Answers]] = {}
    tried: dict[str, int] = {}
    for kind in KINDS:
        made, tried[kind] = _fooling(defence.network, data.select, n, kind, side, seed, progress)
        patched[kind] = _seen(pipeline, *made, partial(progress, f"{kind}: passes"))
        progress(f"{kind}: strategies", 0, 1)
        answers[kind] = _all_answers(defence, patched[kind], seeded(seed, 30, KINDS.index(kind)))
    clean = behind(data.select, "benign images of the select split", 0)
    fit = behind(data.calibrate, "benign images of the calibrate split", 1)
    return {
        "seed": seed,
        "n": {kind: len(images) for kind, images in patched.items()} | {"benign": len(clean[0]), "fit": len(fit[0])},
        "attacked": tried,
        "side": side,
        "cost": COST,
        "gates": {f"{gate:g}": {"p_cutoff": cutoff} for gate, cutoff in cutoffs.items()},
        "accuracy": _cell(clean[0].right, clean[0].group),
        "as_served": _as_served(clean[0], patched),
        "diagnosis": {kind: _diagnosis(defence, images, cutoffs[min(GATES)]) for kind, images in patched.items()},
        "strategies": {
            name: {
                "forwards": forwards,
                "found": {kind: _found(images, answers[kind][name]) for kind, images in patched.items()},
                "gates": {
                    f"{gate:g}": _at_gate(name, cutoff, clean, fit, patched, answers, effect=effect)
                    for gate, cutoff in cutoffs.items()
                },
            }
            for name, forwards in FORWARDS.items()
        },
    }


def _at_gate(
    name: str,
    cutoff: float,
    clean: Behind,
    fit: Behind,
    patched: dict[str, Images],
    answers: dict[str, dict[str, Answers]],
    *,
    effect: float,
) -> dict[str, Any]:
    """Recovered patches and clean accuracy of the strategy `name` behind the gate at `cutoff`."""
    images, rows, found = fit
    gated = images.p_value[rows] <= cutoff
    lost = images.right[rows].astype(int) - (found[name].label == images.truth[rows])
    rule = fit_recovery(
        found[name].stands_out.cpu().numpy()[gated].astype(np.float64),
        lead(found[name].scores.cpu().numpy())[gated],
        lost[gated],
        allowed=allowed_count(len(images), len(images) / effect, share=COST),
    )

    def serves(answered: Answers, *, always: bool) -> np.ndarray:
        if always or rule is None:
            return np.full(len(answered.label), always)
        strength = rule.strength(answered.stands_out.cpu().numpy(), lead(answered.scores.cpu().numpy()), 0.0)
        return np.asarray(strength >= rule.threshold)

    result: dict[str, Any] = {"recovery": None if rule is None else rule.model_dump()}
    for way, always in (("always", True), ("threshold", False)):
        some, rows, found = clean
        after = some.right.copy()
        served = (some.p_value[rows] <= cutoff) & serves(found[name], always=always)
        after[rows[served]] = found[name].label[served] == some.truth[rows[served]]
        result[way] = {
            "neutralised": float(served.sum() / len(some)),
            "clean_change": _cell(after, some.group, some.right),
        }
        for kind, images in patched.items():
            answered = answers[kind][name]
            served = (images.p_value <= cutoff) & serves(answered, always=always)
            result[way][kind] = _cell(served & (answered.label == images.truth), images.group)
    return result


def _found(images: Images, answered: Answers) -> dict[str, Any]:
    """How well the first window covers the patch, and how often the answer is right, whatever the gate reports."""
    shared = (images.patch * answered.window).sum((1, 2))
    area, own = images.patch.sum((1, 2)), answered.window.sum((1, 2))
    return {
        "covered": _cell((shared / area >= COVERED).cpu().numpy(), images.group),
        "overlap": float((shared / (area + own - shared)).mean()),
        "right": _cell(answered.label == images.truth, images.group),
    }


def _as_served(clean: Images, patched: dict[str, Images]) -> dict[str, Any]:
    """The bundle's results as shipped."""
    found: dict[str, Any] = {"clean_change": _cell(clean.served == clean.truth, clean.group, clean.right)}
    return found | {kind: _cell(images.served == images.truth, images.group) for kind, images in patched.items()}


@torch.no_grad()
def _diagnosis(defence: DefenceGraph, images: Images, cutoff: float) -> dict[str, Any]:
    """Where recovery is lost as served; each image counts for the first reason that applies."""
    network, truth = defence.network, images.truth
    window = torch.cat([defence.localiser.locate(x)[0] for x in images.x.split(BATCH)])
    covered = ((images.patch * window).sum((1, 2)) >= COVERED * images.patch.sum((1, 2))).cpu().numpy()
    (usual,) = window_sides(*images.x.shape[2:], shares=(USUAL_SHARE,))
    grown = max(0, usual - int(images.patch[0].amax(0).sum())) // 2
    around = F.max_pool2d(images.patch[:, None], 2 * grown + 1, 1, grown)[:, 0]
    own, placed = (predictions(network, inpaint(images.x, m)).cpu().numpy() == truth for m in (images.patch, around))
    up, after = images.p_value <= cutoff, images.after == truth
    missed, reasons = images.served != truth, dict[str, Any]()
    for reason, which in (
        ("gate_down", ~up),
        ("kept_back", after),
        ("window_beside", ~covered),
        ("wrong_behind_any_mask", ~own),
        ("wrong_behind_this_window", np.ones(len(images), bool)),
    ):
        reasons[reason] = float((missed & which).mean())
        missed = missed & ~which
    cells = {"gate_up": up, "covered": covered, "patch_itself_hidden": own, "window_around_patch_hidden": placed}
    return {"missed": reasons} | {name: _cell(which, images.group) for name, which in cells.items()}


def _fooling(
    network: Network, split: Split, count: int, kind: Kind, side: int, seed: int, progress: StepProgress
) -> tuple[tuple[Split, np.ndarray], int]:
    """`count` images of `split` with patches that fool: uint8 images, patches (N, H, W); and how many were attacked."""
    order = np.random.default_rng(seed).permutation(len(split))
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    tried = fooled = 0
    predict = searched(network)
    for start in range(0, len(order), BATCH):
        progress(f"{kind} patches", min(fooled, count), count)
        rows = order[start : start + BATCH]
        rows = rows[predictions(network, to_tensor(split.x[rows])).numpy() == split.y[rows]]
        x, y = to_tensor(split.x[rows]), torch.from_numpy(split.y[rows])
        generator = seeded(seed, 32, KINDS.index(kind), start)
        patched, mask = patch_attack(predict, x, y, side=side, kind=kind, generator=generator)
        images = to_uint8(patched.numpy())
        fools = predictions(network, to_tensor(images)).numpy() != split.y[rows]
        kept.append((images[fools], mask.numpy()[fools], rows[fools]))
        tried, fooled = tried + len(rows), fooled + int(fools.sum())
        if fooled >= count:
            break
    if fooled < 2:
        raise TrainingError(f"{kind} patches fool the answering network on {fooled} of {tried} images: none to measure")
    images, patch, rows = (np.concatenate(column)[:count] for column in zip(*kept, strict=True))
    return (Split(images, split.y[rows], split.group[rows]), patch), tried


def _seen(pipeline: Pipeline, images: Split, patch: np.ndarray | None, progress: Progress) -> Images:
    """Images as the gateway's pipeline answers them."""
    decisions = []
    for start in range(0, len(images), BATCH):
        decisions += pipeline.decide_images(list(images.x[start : start + BATCH]), explain=False)
        progress(len(decisions), len(images))
    after = [d.raw if d.neutralized is None else d.neutralized.result for d in decisions]
    return Images(
        x=to_tensor(images.x),
        y=torch.from_numpy(images.y),
        group=images.group,
        logits=torch.from_numpy(np.stack([d.raw.outputs.logits for d in decisions])),
        p_value=np.array([d.raw.verdict.p_value for d in decisions]),
        served=np.array([d.served.prediction.index for d in decisions]),
        after=np.array([each.prediction.index for each in after]),
        patch=torch.zeros(images.x.shape[:3]) if patch is None else torch.from_numpy(patch).float(),
    )


def _all_answers(defence: DefenceGraph, images: Images, generator: torch.Generator) -> dict[str, Answers]:
    with frozen(defence):
        parts = [
            strategies(defence, x, logits, generator)
            for x, logits in zip(images.x.split(BATCH), images.logits.split(BATCH), strict=True)
        ]
    return {
        name: Answers(*(torch.cat([getattr(part[name], f.name) for part in parts]) for f in fields(Answers)))
        for name in FORWARDS
    }


def _cell(which: np.ndarray, group: np.ndarray, minus: np.ndarray | None = None) -> dict[str, Any]:
    """Mean of `which` (N,), less that of `minus`, with its interval over groups."""
    mean = float(which.mean()) - (0.0 if minus is None else float(minus.mean()))
    return {"mean": mean, "interval": interval(which, group, minus=minus)}


def regions_tables(report: dict[str, Any]) -> list[Table]:
    """Where recovery is lost as served; and, for every gate, a row for each strategy at its own threshold."""
    lost = Table("patches", "n", "gate up", "window covers", "kept back", "beside", "any mask", "this window")
    for kind, lost_by in report["diagnosis"].items():
        reasons = [lost_by["missed"][r] for r in ("kept_back", "window_beside", "wrong_behind_any_mask")]
        lost.add_row(
            kind,
            str(report["n"][kind]),
            _percent(lost_by["gate_up"]),
            _percent(lost_by["covered"]),
            *(f"{100 * share:.1f}" for share in (*reasons, lost_by["missed"]["wrong_behind_this_window"])),
        )
    tables = [lost]
    for gate in report["gates"]:
        columns = [f"{kind}: {what}" for kind in KINDS for what in ("covers", "recovered")]
        table = Table("strategy", "forwards", *columns, "clean accuracy", title=f"gate {gate}")

        def row(name: str, forwards: str, covers: dict[Kind, Any], at: dict[str, Any], table: Table = table) -> None:
            cells = [cell for kind in KINDS for cell in (f"{100 * covers[kind]['mean']:.1f}", _percent(at[kind]))]
            table.add_row(name, forwards, *cells, _percent(at["clean_change"]))

        covers = {kind: report["diagnosis"][kind]["covered"] for kind in KINDS}
        row("as served", "", covers, report["as_served"])
        for name, strategy in report["strategies"].items():
            covers = {kind: strategy["found"][kind]["covered"] for kind in KINDS}
            row(name, str(strategy["forwards"]), covers, strategy["gates"][gate]["threshold"])
        tables.append(table)
    return tables


def _percent(cell: dict[str, Any]) -> str:
    low, high = cell["interval"]
    return f"{100 * cell['mean']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main(
    bundle: BundlePath = Path("models/gtsrb"),
    json_path: JsonPath = None,
    n: Annotated[
        int, typer.Option("--n", min=2, help="Number of patches of each kind that fool the answering network.")
    ] = 200,
    benign: Annotated[
        int | None, typer.Option(min=20, help="Number of benign images of each split (default: all).")
    ] = None,
    seed: int = 0,
    threads: Threads = None,
) -> None:
    """Which localiser finds patches, and which way to answer recovers them, at what price? On the select split."""
    use_threads(threads)
    loaded, data = with_data(bundle)
    with progress_bars() as bars:
        report = regions_report(
            load_defence(loaded), open_pipeline(loaded), data, n=n, benign=benign, seed=seed, progress=bars.step
        )
    if json_path:
        write_json(
            json_path, {"subject": f"{loaded.name} {loaded.version}", "date": today(), "split": "select", **report}
        )
    for table in regions_tables(report):
        console.print(table)
    console.print(f"% of the select split's images [95 % interval over groups], seed {seed}")


if __name__ == "__main__":
    typer.run(command(main))
