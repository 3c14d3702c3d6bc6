"""The robustness card: every measurement with n, seed and date; headline figures with bounds that `verify` checks."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
from pydantic import BaseModel, ConfigDict, Field

from gateway.bundle import Bundle
from gateway.pipeline import Pipeline
from gateway.verdict import Judge
from training.attacks.joint import Beaten, Conditions, companion_says, joint_attack, screened, unflagged
from training.data import Dataset, Split
from training.defence.graph import SCORES, SCREEN_SCORES, DefenceGraph
from training.evaluate import measures
from training.evaluate.served import open_pipeline
from training.networks import load_defence
from training.pixels import to_tensor

Progress = Callable[[str, int, int], None]


class Bound(BaseModel):
    """A headline figure and what it must keep: `at_least` or `at_most` `bound`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    figure: Literal["accuracy_answering", "accuracy_companion", "pgd50_4", "pgd50_8", "flagged_0.05", "joint_excess_8"]
    kind: Literal["at_least", "at_most"]
    bound: float


class Evaluation(BaseModel):
    """How much of the test split each measurement uses (None: all of it)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    robust: int | None = Field(None, ge=1, description="test images for PGD against the companion")
    unaware: int = Field(1000, ge=1, description="correctly answered test images for attacks on the answering network")
    patched: int = Field(300, ge=1)
    adaptive: int = Field(200, ge=0, description="test images for the joint attack; 0 leaves it out")
    adaptive_steps: int = 60
    adaptive_targets: int = 3
    steps: int = 50
    bounds: list[Bound] = []


FIGURES = {
    "accuracy_answering": "clean accuracy, answering network",
    "accuracy_companion": "clean accuracy, companion",
    "pgd50_4": "companion under PGD-50, 4/255",
    "pgd50_8": "companion under PGD-50, 8/255",
    "flagged_0.05": "benign images flagged at alpha 5 %",
    "joint_excess_8": "joint attack at 8/255 beyond the companion's own error, alpha 5 %",
}


def headline(
    bundle: Bundle,
    data: Dataset,
    settings: Evaluation,
    progress: Progress,
    *,
    robust: int | None = None,
    radii: tuple[int, ...] = (8,),
) -> dict[str, Any]:
    """The figures that bounds are put on: {figure: {value, n, seed}}, plus the measurements they came from.

    `robust` limits the images that are attacked further than the card's own settings (a quick look); `radii` are those
    of the joint attack, of 255.
    """
    pipeline, defence = open_pipeline(bundle), load_defence(bundle)
    benign, answers = measures.benign(pipeline, data.test, progress)
    count = min(n for n in (robust, settings.robust, len(data.test)) if n is not None)
    attacked = data.test.take(np.arange(count))
    figures = {
        "accuracy_answering": {"value": benign["accuracy_answering"], "n": len(data.test)},
        "accuracy_companion": {"value": benign["accuracy_companion"], "n": len(data.test)},
        "flagged_0.05": {"value": benign["flagged"]["0.05"], "n": len(data.test)},
    }
    pgd = {}
    for eps in (4, 8):
        result = measures.robust_accuracy(
            defence, attacked, eps=eps, steps=settings.steps, seed=settings.seed, progress=progress
        )
        figures[f"pgd50_{eps}"] = {"value": result["accuracy"], "n": count}
        pgd[f"eps_{eps}"] = result
    found: dict[str, Any] = {"benign": benign, "companion_pgd": pgd, "answers": answers}
    if settings.adaptive:
        count = min(n for n in (robust, settings.adaptive, len(data.test)) if n is not None)
        found["adaptive"] = adaptive(pipeline, defence, data.test.take(np.arange(count)), settings, radii, progress)
        figures["joint_excess_8"] = {"value": found["adaptive"]["eps_8"]["excess_0.05"], "n": count}
    return {"figures": {name: figure | {"seed": settings.seed} for name, figure in figures.items()}, **found}


def evaluate(bundle: Bundle, data: Dataset, settings: Evaluation, progress: Progress) -> dict[str, Any]:
    """The whole card, as plain JSON content."""
    pipeline, defence = open_pipeline(bundle), load_defence(bundle)
    head = headline(bundle, data, settings, progress, radii=(4, 8))
    answers = head.pop("answers")
    unaware: dict[str, Any] = {}
    made: dict[str, tuple[np.ndarray, Split]] = {}
    attacked = measures.correct_first(answers, data.test, settings.unaware)
    for eps in (4, 8):
        name = f"PGD-{settings.steps} at {eps}/255 on the answering network"
        progress(name, 0, 1)
        images = measures.attack_answering(defence, attacked, eps=eps, steps=settings.steps, seed=settings.seed)
        made[f"pgd_{eps}"] = images, attacked
        unaware[f"pgd_{eps}"] = measures.unaware(pipeline, images, attacked, answers, name=name, progress=progress)
    patched = measures.correct_first(answers, data.test, settings.patched)
    side = round(0.22 * bundle.manifest.input.height)
    progress("patches on the answering network", 0, 1)
    images = measures.patch_answering(defence, patched, side=side, seed=settings.seed)
    made["patch"] = images, patched
    unaware["patch"] = {"side": side} | measures.unaware(
        pipeline, images, patched, answers, name="patched", progress=progress
    )
    card = {
        "schema_version": 2,
        "bundle": bundle.name,
        "version": bundle.version,
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"palisade evaluate models/{bundle.name}",
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)",
        "software": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "settings": settings.model_dump(mode="json"),
        **head,
        "unaware": unaware,
    }
    if pipeline.can_screen:
        card["cascade"] = measures.cascade(pipeline, data.test, made, progress)
    card["samples"] = json.loads((bundle.path / "samples" / "answers.json").read_text("utf-8"))
    return card


def adaptive(
    pipeline: Pipeline,
    defence: DefenceGraph,
    test: Split,
    settings: Evaluation,
    radii: Sequence[int],
    progress: Progress,
) -> dict[str, Any]:
    """White-box joint attack on both networks and the detector: share of images answered wrong and not flagged.

    Beside it, with the same effort: the companion attacked alone, whose error is what a flag cannot be asked to undo;
    and the cascade, of which the attacker has to pass the screen or the verdict.
    """
    judge = pipeline.judge
    x, y = to_tensor(test.x), torch.from_numpy(test.y)
    level = judge.level(max(measures.ALPHAS))
    full = partial(_passes, judge)
    out: dict[str, Any] = {"n": len(test), "steps": settings.adaptive_steps, "targets": settings.adaptive_targets}
    rates = [f"{alpha:g}" for alpha in measures.ALPHAS]

    def attack(name: str, eps: int, conditions: Conditions, beaten: Beaten) -> torch.Tensor:
        return joint_attack(
            defence, x, y, eps=eps / 255, steps=settings.adaptive_steps, targets=settings.adaptive_targets,
            conditions=conditions, beaten=beaten, progress=partial(progress, f"{name} at {eps}/255"),
        )  # fmt: skip

    for eps in radii:
        alone = attack("companion alone", eps, companion_says, partial(_companion_errs, defence))
        error = float(alone[:, 0].float().mean())
        row: dict[str, Any] = {"companion": error}
        if pipeline.can_screen:
            composite = partial(_passes_cascade, judge)
            joint = attack("joint attack", eps, unflagged(judge.fusion, level), judged_by(defence, composite, full))
            through = attack("joint attack on the screen", eps, _screen(judge), judged_by(defence, full, composite))
            a = len(rates)
            won = joint[:, a:] | through[:, :a]
            lost = joint[:, :a] | through[:, a:]
            row |= {f"cascade_{rate}": float(lost[:, i].float().mean()) for i, rate in enumerate(rates)}
        else:
            won = attack("joint attack", eps, unflagged(judge.fusion, level), judged_by(defence, full))
        row |= {f"alpha_{rate}": float(won[:, i].float().mean()) for i, rate in enumerate(rates)}
        row |= {f"excess_{rate}": row[f"alpha_{rate}"] - error for rate in rates}
        out[f"eps_{eps}"] = row
    return out


def _screen(judge: Judge) -> Conditions:
    cascade = judge.calibration.cascade
    assert cascade is not None
    return screened(judge.fusion, [SCORES.index(name) for name in cascade.scores], cascade.threshold)


def _passes(judge: Judge, scores: np.ndarray) -> np.ndarray:
    """Which images of scores (N, S) the gateway does not flag, (N, A), at each of `measures.ALPHAS`."""
    # p-values come in steps and cutoffs are some of them: in float32 a p-value at its cutoff would go unflagged.
    return judge.p_values(scores)[:, None] > np.array([judge.cutoff(alpha) for alpha in measures.ALPHAS])


def _passes_cascade(judge: Judge, scores: np.ndarray) -> np.ndarray:
    """The same for the composite of screen and verdict."""
    on = judge.screen(scores[:, [SCORES.index(name) for name in SCREEN_SCORES]])
    cutoffs = np.array([judge.cutoff(alpha, cascade=True) for alpha in measures.ALPHAS])
    return ~on[:, None] | (judge.p_values(scores, cascade=True)[:, None] > cutoffs)


def judged_by(defence: DefenceGraph, *rules: Callable[[np.ndarray], np.ndarray]) -> Beaten:
    """Which images (N, sum of A) are answered wrong and pass each rule, (N, S) -> (N, A), in turn."""

    def beaten(adv: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits, taps = defence.network.taps(adv)
            scores, _ = defence.detector_scores(adv, logits, taps, defence.companion(adv))
        passed = torch.from_numpy(np.concatenate([rule(scores.numpy()) for rule in rules], axis=1))
        return (logits.argmax(1) != label)[:, None] & passed

    return beaten


def _companion_errs(defence: DefenceGraph, adv: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return (defence.companion(adv).argmax(1) != label)[:, None]


def check(figures: dict[str, Any], bounds: list[Bound]) -> list[dict[str, Any]]:
    """One row for each bound: figure, value, bound, whether it is kept, n and seed."""
    rows = []
    for bound in bounds:
        figure = figures[bound.figure]
        value = figure["value"]
        kept = value >= bound.bound if bound.kind == "at_least" else value <= bound.bound
        rows.append({**bound.model_dump(), "title": FIGURES[bound.figure], **figure, "pass": kept})
    return rows


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """`card.json` and `card.md` of a bundle folder."""
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    (folder / "card.md").write_text(markdown(card), "utf-8")


def markdown(card: dict[str, Any]) -> str:
    """The card as a page."""
    settings = Evaluation.model_validate(card["settings"])
    lines = [
        f"# Robustness card: {card['bundle']} {card['version']}",
        "",
        (
            f"Measured on {card['date']} by `{card['command']}` ({card['device']}), seed {settings.seed}, on the "
            "system as served: PNG images through the gateway's decoder, ONNX Runtime session, calibration and policy "
            "`sanitize`."
        ),
        "",
        "| figure | value | bound | kept | n |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in check(card["figures"], settings.bounds):
        sign = ">=" if row["kind"] == "at_least" else "<="
        kept = "yes" if row["pass"] else "**no**"
        lines.append(
            f"| {row['title']} | {_percent(row['value'])} | {sign} {_percent(row['bound'])} | {kept} | {row['n']:,} |"
        )
    lines += [
        "",
        "PGD has one random start, searches in bfloat16 and is judged in float32; any iterate that fools counts.",
    ]
    benign = card["benign"]
    lines += [
        "",
        "## Benign test images",
        "",
        (
            f"n = {benign['n']:,}. Served accuracy {_percent(benign['accuracy_served'])}; flagged at alpha 1 %: "
            f"{_percent(benign['flagged']['0.01'])}, at 5 %: {_percent(benign['flagged']['0.05'])}. Neutralisation ran "
            f"on {_percent(benign['neutralised'])} and turned a right answer into a wrong one on "
            f"{_percent(benign['harmed'], 2)}."
        ),
        "",
        "## Attackers who don't know the defence",
        "",
        (
            "Attacks on the answering network alone; only images that fool it count. `max softmax` rejects the least "
            "confident answers at the same measured false-positive rate."
        ),
        "",
        (
            "| attack | images | fooled | alpha | measured FPR | flagged | max softmax | served right "
            "| wrong and unflagged, of all |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in card["unaware"].items():
        title = f"patch {row['side']}x{row['side']}" if name == "patch" else f"PGD-{settings.steps}, {name[4:]}/255"
        for alpha in measures.ALPHAS:
            at = row[f"alpha_{alpha:g}"]
            lines.append(
                f"| {title} | {row['n']} | {row['fooled']} | {_percent(alpha, 0)} | {_percent(at['measured_fpr'])} | "
                f"{_percent(at['flagged'])} | {_percent(at['max_softmax'])} | {_percent(row['recovered'])} | "
                f"{_percent(at['undetected'])} |"
            )
    if "adaptive" in card:
        found = card["adaptive"]
        lines += [
            "",
            "## An attacker who knows everything",
            "",
            (
                f"Joint white-box attack on answering network, companion and detector ({found['targets']} targets x "
                f"{found['steps']} steps, n = {found['n']}): share of images answered wrong **and not flagged**."
            ),
            "",
            "| eps | attacked | alpha 1 % | alpha 5 % |",
            "| --- | --- | --- | --- |",
            *(row for name in ("eps_4", "eps_8") for row in _adaptive_rows(name[4:], found[name])),
            "",
            (
                "`companion alone`: the same attack with the companion's answer as its only condition; a wrong answer "
                "that the companion shares cannot be told by its objection."
            ),
            "",
            "A stronger attack may find more. This is the figure to plan with.",
        ]
    if "cascade" in card:
        lines += _cascade(card["cascade"])
    if "samples" in card:
        lines += [
            "",
            "## Samples",
            "",
            (
                "Chosen by a fixed rule (`training/evaluate/samples.py`). `before` is the answer to the image as it "
                "came, `after` the one to the neutralised image, `served` what the caller gets under `sanitize`."
            ),
            "",
            "| file | truth | flagged | p-value | before | after | served |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(
                f"| {name} | {row['truth']} | {'yes' if row['flagged'] else 'no'} | {row['p_value']:.4f} "
                f"| {row['before']} | {row['after'] or '-'} | {row['label']} |"
                for name, row in card["samples"].items()
            ),
        ]
    return "\n".join(lines) + "\n"


def _adaptive_rows(eps: str, row: dict[str, float]) -> list[str]:
    systems = [("all together", "alpha_0.01", "alpha_0.05"), ("companion alone, same effort", "companion", "companion")]
    if "cascade_0.05" in row:
        systems.append(("all behind the cascade", "cascade_0.01", "cascade_0.05"))
    return [f"| {eps}/255 | {name} | {_percent(row[one])} | {_percent(row[five])} |" for name, one, five in systems]


def _cascade(found: dict[str, Any]) -> list[str]:
    return [
        "",
        "## Behind the cascade",
        "",
        (
            f"Off unless it is switched on. The screen lets {_percent(found['screened'])} of benign test images off "
            f"(n = {found['n']:,}); the composite flags {_percent(found['flagged']['0.01'])} of them at alpha 1 %, "
            f"{_percent(found['flagged']['0.05'])} at 5 %."
        ),
        "",
        "| attack on the answering network | fooled | let off by the screen | flagged, alpha 1 % | alpha 5 % |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {row['fooled']} | {_percent(row['screened'])} | {_percent(row['alpha_0.01'])} "
            f"| {_percent(row['alpha_0.05'])} |"
            for name, row in found["attacks"].items()
        ),
    ]


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"
