"""How well a bundle tells unfamiliar images from attacked ones: `python -m studies.kinds BUNDLE`.

On test images, which chose nothing: other data sets, photos and benign shifts against attacks that fool the answering
network, of which the rule was fitted on PGD and patches alone. AUROC of `unfamiliar` against `attacked` by the served
p-values (log p_attacked - log p_unfamiliar) and by the rule's log-odds, the kinds that verdicts name, false alarms of
either kind on all test images, and two attackers who know the rule: one who also makes himself look unfamiliar, one who
avoids `attacked`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.record import record
from gateway.core.kinds import KINDS, Kinds, kind_of
from gateway.core.loading import Bundle, load_bundle
from gateway.core.rules import KindRule
from gateway.core.verdict import Judge
from training.attacks.listed import ATTACKS
from training.attacks.margin import margin
from training.attacks.unaware import Scene
from training.bundling.kinds import Reader
from training.bundling.networks import load_defence
from training.bundling.provenance import made_with
from training.commands.terminal import JsonPath, Threads, command, progress_bars, use_threads
from training.data.corruptions import CHANGES, NOISES, changed
from training.data.dataset import Dataset, Split, data_dir
from training.defence.graph import DefenceGraph
from training.evaluate.harness.tracks import inferred_tracks
from training.evaluate.measurements.shifts import FOREIGN
from training.imaging.pixels import to_tensor
from training.served.scoring import to_uint8
from training.util.module_modes import seeded
from training.util.statistics import auroc, interval

ATTACKED = ("fgsm_8", "pgd_4", "pgd_8", "l2_1", "patch", "patch_low")
ATTACKED_FILE = "attacked.npz"
EPS, STEPS = 8 / 255, 60


class Effort:
    """Of the attacks on the answering network alone."""

    steps, square_queries = 20, 0


def unfamiliar_images(bundle: Bundle, test: Split, photos: Path | None, read: Reader, *, n: int, seed: int) -> Any:
    """uint8 images by name: of other data sets and photos `n` each at most, of each shift n / 10."""
    found = {}
    for name in FOREIGN:
        path = data_dir() / f"{name}.npz"
        own = name.removesuffix("_full") in str(bundle.manifest.data.get("name", ""))  # in part or in full
        if path.is_file() and not own:
            with np.load(path, allow_pickle=False) as file:
                images = file["x_test"][:n]
            found[name] = images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3)
    if photos is not None:
        paths = sorted(path for path in photos.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})[:n]
        found["photos"] = np.stack([read.decode(path.read_bytes()) for path in paths])
    for number, name in enumerate((*CHANGES, *NOISES)):
        first = number * (n // 10)
        found[f"shift: {name}"] = changed(test.x[first : first + n // 10], name, seed=seed)
    return found


def fooling(
    defence: DefenceGraph, pool: Split, *, seed: int, counts: dict[str, int], work: Path | None = None
) -> dict[str, np.ndarray]:
    """Images that each attack on the answering network alone turns from rightly to wrongly answered, uint8.

    Of the attacks in `counts`, each on so many images. They are kept in the folder `work`, if there is one, and taken
    from there.
    """
    if work is not None and (file := work / ATTACKED_FILE).is_file():
        with np.load(file, allow_pickle=False) as kept:
            if set(counts) <= set(kept.files):
                return {name: kept[name] for name in counts}
    network, found = defence.network, {}
    for number, name in enumerate(ATTACKED):
        if name not in counts:
            continue
        some = pool.take(np.arange(min(counts[name], len(pool))))
        x, y = to_tensor(some.x), torch.from_numpy(some.y)
        scene, made = Scene(network, Effort(), lambda _trained: [], seeded(seed, 11, number)), []
        for part, labels in zip(x.split(64), y.split(64), strict=True):
            images = to_uint8(ATTACKS[name].make(scene, part, labels).adversarial.detach().numpy())
            made.append(images[_fools(network, part, to_tensor(images), labels).numpy()])
        found[name] = np.concatenate(made)
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        np.savez(work / ATTACKED_FILE, allow_pickle=False, **found)
    return found


@torch.no_grad()
def _fools(network: Any, x: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
    return (network(x).argmax(1) == y) & (network(adversarial).argmax(1) != y)


def odds_of(defence: DefenceGraph, rule: KindRule, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and log-odds (N, 2) of pixels x, differentiable but for the window's score."""
    logits, taps = defence.network.taps(x)
    companion = None if defence.companion is None else defence.companion(x)
    scores, _ = defence.detector_scores(x, logits, taps, companion)
    found = {name: scores[:, s] for s, name in enumerate(defence.score_names)}
    if "window" in rule.readings:
        found["window"] = defence.context(x, logits, taps, companion).region[1].detach()
    for prefix, some in (("", logits), ("companion_", companion)):
        if some is not None:
            best = some.topk(2, 1).values
            found |= {f"{prefix}energy": -some.logsumexp(1), f"{prefix}doubt": best[:, 1] - best[:, 0]}
    standard = torch.stack([found[name] for name in rule.readings], 1)
    standard = torch.asinh((standard - torch.tensor(rule.mean)) / torch.tensor(rule.std))
    z = standard @ torch.tensor(rule.weights).T + torch.tensor(rule.bias)
    return logits, torch.stack([z[:, 1] - z[:, [0, 2]].logsumexp(1), z[:, 2] - z[:, :2].logsumexp(1)], 1)


def adaptive(
    defence: DefenceGraph, rule: KindRule, x: Tensor, y: Tensor, *, aim: str, seed: int, steps: int = STEPS
) -> Tensor:
    """Within 8/255 of x (N, C, H, W): wrongly answered, and as `unfamiliar` or as little `attacked` as can be.

    Signed descent on the sum of two gradients of unit norm: of the margin while it is not safely negative, and of the
    log-odds; the image kept is the wrongly answered one that reaches its aim best.
    """
    generator = seeded(seed, 13, len(aim))
    adversarial = (x + EPS * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)
    best, reached = x.clone(), torch.full((len(x),), torch.inf)
    for step in range(steps):
        leaf = adversarial.detach().requires_grad_()
        logits, odds = odds_of(defence, rule, leaf)
        lead = margin(logits, y)
        goal = odds[:, 1] - odds[:, 0] if aim == "unfamiliar" else odds[:, 1]
        wrong = lead.detach() < -0.5
        (to_err,) = torch.autograd.grad((lead + 0.5).relu().sum(), leaf, retain_graph=True)
        (to_aim,) = torch.autograd.grad(goal.sum(), leaf)
        now = torch.where(lead.detach() < 0, goal.detach(), torch.inf)
        better = now < reached
        best, reached = torch.where(better[:, None, None, None], leaf.detach(), best), torch.minimum(now, reached)
        share = torch.where(wrong, 0.0, 1.0)[:, None, None, None]
        move = share * _unit(to_err) + _unit(to_aim)
        size = 2 / 255 if step < steps // 2 else 0.5 / 255
        moved = adversarial.detach() - size * move.sign()
        adversarial = torch.minimum(torch.maximum(moved, x - EPS), x + EPS).clamp(0, 1)
    return best


def _unit(gradient: Tensor) -> Tensor:
    return gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]


class Told:
    """What verdicts say of images, from their readings."""

    def __init__(self, bundle: Bundle, alpha: float) -> None:
        calibration = bundle.calibration("cpu", "fp32")
        if calibration.kinds is None:
            raise typer.BadParameter(f"{bundle.path}: it has no rule; see `palisade kinds`")
        arrays = [bundle.arrays[f"{calibration.key}/{name}"] for name in ("kinds", "kind_weights")]
        self.rule, self.alpha = calibration.kinds, alpha
        self.kinds = Kinds(self.rule, bundle.manifest.scores, *arrays)
        self._judge = Judge(bundle, calibration, alpha=alpha)
        self._scores = len(bundle.manifest.scores)

    def __call__(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Of readings (N, R): `p` (N, 2), `odds` (N, 2), `flagged` (N,), `kind` (N,)."""
        odds = self.kinds.of_readings(values)
        p = self.kinds.p_of_odds(odds)
        flagged = self._judge.p_values(values[:, : self._scores]) <= self._judge.p_cutoff
        kind = [kind_of(u, a, flagged=bool(f), alpha=self.alpha) for (u, a), f in zip(p, flagged, strict=True)]
        return {"p": p, "odds": odds, "flagged": flagged, "kind": np.array(kind)}


def row(told: dict[str, np.ndarray]) -> dict[str, Any]:
    """n, share flagged, and the share of each kind."""
    n = len(told["kind"])
    counts = Counter(told["kind"].tolist())
    return {"n": n, "flagged": float(told["flagged"].mean())} | {kind: counts[kind] / n for kind in KINDS}


def contrast(told: dict[str, np.ndarray], by: str) -> np.ndarray:
    """How much rather unfamiliar than attacked (N,)."""
    if by == "odds":
        return np.asarray(told["odds"][:, 0] - told["odds"][:, 1])
    return np.asarray(np.log(told["p"][:, 1]) - np.log(told["p"][:, 0]))


def false_alarms(told: dict[str, np.ndarray], group: np.ndarray) -> dict[str, Any]:
    """On benign images: shares of p-values at or below each level by kind, and the kinds named; intervals by group."""
    found: dict[str, Any] = {"n": len(group), "groups": len(np.unique(group))}
    for k, kind in enumerate(("unfamiliar", "attacked")):
        for level in (0.01, 0.05, 0.1):
            which = told["p"][:, k] <= level
            found[f"{kind} p <= {level:g}"] = [float(which.mean()), interval(which, group)]
    for kind in KINDS:
        which = told["kind"] == kind
        found[f"named {kind}"] = [float(which.mean()), interval(which, group)]
    return found


def main(
    folder: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle with a rule for kinds.")],
    *,
    photos: Annotated[Path | None, typer.Option(help="Folder of photos that are none of the classes.")] = None,
    n: Annotated[int, typer.Option(help="Images of each other data set; a tenth of each shift.")] = 500,
    attacked: Annotated[int, typer.Option(help="Test images that are attacked; of patches half.")] = 300,
    known: Annotated[int, typer.Option(help="Test images that attackers who know the rule work on.")] = 100,
    benign: Annotated[int | None, typer.Option(help="Test images for false alarms; default: all.")] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder for attacked images, which are taken from it again.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Level at which kinds are named, and images flagged.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Seed of draws.")] = 0,
    threads: Threads = None,
    json_path: JsonPath = None,
) -> None:
    """Measure how well kinds are told apart."""
    use_threads(threads)
    bundle = load_bundle(folder)
    told, (data, settings) = Told(bundle, alpha), made_with(bundle)
    defence = load_defence(bundle)
    with progress_bars() as bars:
        read = Reader(bundle, bars.step, threads=threads or 0)
        drawn = data.test.take(np.random.default_rng([seed, 3]).permutation(len(data.test)))
        strange = unfamiliar_images(bundle, drawn, photos, read, n=n, seed=seed)
        unlike = {name: told(read(name, images)) for name, images in strange.items()}
        counts = {name: attacked // 2 if ATTACKS[name].local else attacked for name in ATTACKED}
        like = {
            name: told(read(name, images))
            for name, images in fooling(defence, drawn, seed=seed, counts=counts, work=work).items()
            if len(images)
        }
        figures = _pooled(unlike, like)
        figures["known"] = _known(told, defence, read, drawn.take(np.arange(known)), seed=seed)
        figures["benign"] = _benign(told, read, data, settings.track_frames, benign)
    figures |= {"bundle": f"{bundle.name} {bundle.version}", "alpha": alpha, "seed": seed, "fitted": told.rule.fitted}
    _print(figures)
    if json_path is not None:
        record(json_path, "kinds of anomaly", figures)


def _pooled(unlike: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """Rows by set, and AUROCs: of all sets together, and of each against the other kind."""
    found: dict[str, Any] = {"unfamiliar": {k: row(v) for k, v in unlike.items()}}
    found["attacked"] = {k: row(v) for k, v in like.items()}
    foreign = {name: each for name, each in unlike.items() if not name.startswith("shift")}
    for by in ("p", "odds"):

        def pool(sets: dict[str, Any], by: str = by) -> np.ndarray:
            return np.concatenate([contrast(each, by) for each in sets.values()])

        u, a = pool(unlike), pool(like)
        found[f"auroc by {by}"] = {
            "all": auroc(a, u),
            "other images alone": auroc(a, pool(foreign)),
            "n": [len(u), len(a)],
            "by set": {name: auroc(a, contrast(each, by)) for name, each in unlike.items()}
            | {name: auroc(contrast(each, by), u) for name, each in like.items()},
        }
    return found


def _known(told: Told, defence: DefenceGraph, read: Reader, pool: Split, *, seed: int) -> dict[str, Any]:
    x, y, found = to_tensor(pool.x), torch.from_numpy(pool.y), {}
    for aim in ("unfamiliar", "not attacked"):
        made, fools = [], []
        for part, labels in zip(x.split(50), y.split(50), strict=True):
            images = to_uint8(adaptive(defence, told.rule, part, labels, aim=aim, seed=seed).numpy())
            made.append(images)
            fools.append(_fools(defence.network, part, to_tensor(images), labels).numpy())
        which = np.concatenate(fools)
        seen = told(read(f"aims at {aim}", np.concatenate(made)[which]))
        found[aim] = row(seen) | {"tried": len(x)} if which.any() else {"n": 0, "tried": len(x)}
    return found


def _benign(told: Told, read: Reader, data: Dataset, frames: int | None, count: int | None) -> dict[str, Any]:
    test = data.test
    group = test.group if frames is None else inferred_tracks(test.x, test.y, frames=frames)
    chosen = np.random.default_rng(0).permutation(len(test))[:count]
    return false_alarms(told(read("test", test.x[chosen])), group[chosen])


def _print(figures: dict[str, Any]) -> None:
    console, table = Console(), Table("images", "n", "flagged", *KINDS)
    rows = figures["unfamiliar"] | figures["attacked"] | {f"knows: {k}": v for k, v in figures["known"].items()}
    for name, each in rows.items():
        if each["n"]:
            table.add_row(name, str(each["n"]), *(f"{100 * each[key]:.1f} %" for key in ("flagged", *KINDS)))
    console.print(table)
    for by in ("p", "odds"):
        console.print(f"AUROC by {by}: {figures[f'auroc by {by}']}")
    console.print(figures["benign"])


if __name__ == "__main__":
    typer.run(command(main))
