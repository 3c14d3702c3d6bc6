"""`palisade guard` before a real model server: equal verdicts, what it adds to the extra rows, and the server killed.

`python -m benchmarks.guard --peer mlserver --command PATH/TO/mlserver` serves the answering network of a bundle by
MLServer (`pip install mlserver onnxruntime` in an environment of its own); `--peer palisade` serves the bundle by a
second gateway. In turns, the gateway's answer to one image is timed, and a plain request of as many rows. The bundle
that verdicts are compared with has the same network inside, and the same scores.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer

from benchmarks.peers.killed import killed_under_load
from benchmarks.peers.servers import mlserver, second_palisade
from benchmarks.record import record
from benchmarks.servers import Server, palisade
from gateway.core.decision import Decision
from gateway.core.decode import to_pixels
from gateway.core.loading import Bundle, load_bundle
from gateway.core.preprocessing import Resize
from gateway.core.upstream import Protocol2
from gateway.settings import Settings
from gateway.upstream.connection import Connection
from gateway.upstream.protocol2 import Protocol2Peer
from gateway.versions.registry import load_pipeline
from training.attacks.patch import patch_attack
from training.attacks.pgd import pgd
from training.bundling.assemble import Plan, Silent, assemble
from training.bundling.guard import FRACTIONS, find_upstream, guard
from training.bundling.networks import NETWORKS, load_networks
from training.bundling.provenance import load_data, recipe_of
from training.bundling.samples import Effort
from training.bundling.wrap import image_folder
from training.data.dataset import Dataset, load_dataset
from training.defence.scores import of_answers
from training.defence.upstream import ROWS
from training.models import ModelSpec
from training.models.network import Network
from training.recipes.training import DataSpec
from training.served.scoring import png, to_uint8
from training.util.atomic import draft_of
from training.util.module_modes import seeded

IN_A_ROW = 16
ASKED = ("guard", "in_process", "as_many_rows", "one_row")
Part = Literal["verdicts", "latency", "killed"]
PARTS: tuple[Part, ...] = ("verdicts", "latency", "killed")


def main(
    peer: Annotated[Literal["mlserver", "palisade"], typer.Option(help="What serves the network.")] = "palisade",
    command: Annotated[Path | None, typer.Option(help="The executable `mlserver`.")] = None,
    bundle: Annotated[Path, typer.Option(help="Bundle whose answering network is served.")] = Path("models/gtsrb"),
    folder: Annotated[Path | None, typer.Option(help="Folder for the two bundles, kept for the next run.")] = None,
    images: Annotated[
        int, typer.Option(help="Test images whose verdicts are compared, clean and attacked each.")
    ] = 200,
    rounds: Annotated[int, typer.Option(help="Answers timed.")] = 400,
    per_class: Annotated[int, typer.Option(help="Images of each class, of the bundle's test images.")] = 40,
    only: Annotated[Part | None, typer.Option(help="What is measured (default: all).")] = None,
    before: Annotated[float, typer.Option(min=1, help="Seconds of load before the peer is killed.")] = 4.0,
    seed: int = 0,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    torch.set_num_threads(1)
    parts = PARTS if only is None else (only,)
    if peer == "mlserver" and command is None:
        raise typer.BadParameter("--peer mlserver needs --command, the executable `mlserver`")
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        original = load_bundle(bundle)
        classes = len(original.manifest.classes)
        network = _network(original)

        def start(again: str = "") -> AbstractContextManager[Server]:
            if peer == "palisade":
                return second_palisade(bundle, place / f"second{again}")
            assert command is not None
            return mlserver(command, network, original.manifest.input, classes, place / f"mlserver{again}")

        with start() as server:
            model = f"{server.url}/v2/models/{'net' if peer == 'mlserver' else original.name}"
            made = place / f"guarded-{peer}"
            spec = _photos(place / "photos", original, per_class)
            data = _calibrated(model, spec, made)
            figures: dict[str, Any] = {
                "peer": peer,
                "bundle": f"{original.name} {original.version}",
                "rows_per_image": ROWS,
                "seed": seed,
            }
            if "verdicts" in parts:
                inside = _wrapped(place / "wrapped", network, data, spec, original)
                figures["verdicts"] = _verdicts(made, inside, model, network, data, images, seed=seed)
            if "latency" in parts:
                with palisade(made, path="/v1/predict", threads=1, upstream=model) as gateway:
                    figures["latency_ms"] = _latency(gateway, made, model, data, rounds)
        if "killed" in parts:
            bodies = [png(image) for image in _pictures(network, data, 64, seed=1)["patched"]]
            figures["killed"] = killed_under_load(start, made, model, bodies, place, before=before)
        print(json.dumps(figures, indent=1))
        if out is not None:
            record(out, "palisade guard before a model server", figures)


def _photos(folder: Path, original: Bundle, per_class: int) -> DataSpec:
    """`folder`/<class>/*.png of the original's test images, which no network has seen, as a user would have them."""
    recipe, _ = recipe_of(original)
    if not folder.is_dir():
        test = load_data(recipe).test
        for label in np.unique(test.y):
            place = folder / f"{label:03d}"
            place.mkdir(parents=True)
            for number, image in enumerate(test.x[test.y == label][:per_class]):
                (place / f"image{number}.png").write_bytes(png(image))
    spec = image_folder(folder, size=original.manifest.input.height, resize=Resize(), seen=True)
    return spec.model_copy(update={"fractions": FRACTIONS})


def _network(bundle: Bundle) -> Network:
    """The answering network as it was trained."""
    manifest = bundle.manifest
    models = {"standard": ModelSpec.model_validate(manifest.training["standard"]["model"])}
    file = bundle.path / NETWORKS
    return load_networks(file, models, classes=len(manifest.classes), spec=manifest.input)["standard"]


def _calibrated(model: str, spec: DataSpec, out: Path) -> Dataset:
    """The guard's bundle in `out`, unless an earlier run has made it; its data."""
    if out.is_dir():
        return load_dataset(
            spec.source, seed=spec.split_seed, fractions=spec.fractions, size=spec.size, resize=spec.resize
        )
    with Connection(timeout=30) as connection:
        asked = find_upstream(model, connection, output_name="logits")
    start = time.perf_counter()
    done = guard(asked, spec, out, force=True, report=Silent())
    print(
        f"calibrated in {time.perf_counter() - start:.0f} s: accuracy {done.accuracy}, "
        f"flagged {done.flagged} of {done.tested} benign test images"
    )
    return done.data


def _wrapped(out: Path, network: Network, data: Dataset, spec: DataSpec, original: Bundle) -> Bundle:
    """The bundle with the network inside, made as `palisade wrap` does, with the guard's scores alone fused."""
    if not out.is_dir():
        recipe, evaluation = recipe_of(original)
        standard = recipe.model_copy(update={"data": spec}).model_dump(mode="json")
        training = {"standard": standard, "evaluation": evaluation.model_dump(mode="json")}
        fused = [score.name for score in of_answers()]
        plan = Plan("wrapped", "1.0.0", training, fused, resize=spec.resize, samples=1, effort=Effort(8, 5))
        with draft_of(out) as draft:
            assemble(draft, plan, {"standard": network}, data, Silent())
    return load_bundle(out)


def _verdicts(
    made: Path, inside: Bundle, model: str, network: Network, data: Dataset, count: int, *, seed: int
) -> dict[str, Any]:
    """Both pipelines on clean, attacked and patched test images."""
    settings = Settings(threads=1, upstream=model, upstream_timeout=300)
    ours, theirs = load_pipeline(made, settings), load_pipeline(inside.path, settings)
    found: dict[str, Any] = {}
    for kind, pictures in _pictures(network, data, count, seed=seed).items():
        a, b = (
            pipeline.decide_images([pipeline.decode(png(image)) for image in pictures], explain=False)
            for pipeline in (ours, theirs)
        )
        apart = [abs(x.raw.verdict.p_value - y.raw.verdict.p_value) for x, y in zip(a, b, strict=True)]
        found[kind] = {
            "n": len(pictures),
            "largest_difference_of_p": max(apart),
            "same_flag": sum(x.flagged == y.flagged for x, y in zip(a, b, strict=True)),
            "same_answer": sum(
                x.served.prediction.index == y.served.prediction.index for x, y in zip(a, b, strict=True)
            ),
            "flagged": sum(x.flagged for x in a),
        }
    return found


def _pictures(network: Network, data: Dataset, count: int, *, seed: int) -> dict[str, np.ndarray]:
    """uint8 (N, H, W, C): clean, attacked (PGD, 8/255) and patched (5 %) test images."""
    test = data.test.take(np.arange(min(count, len(data.test))))
    x, y = torch.from_numpy(to_pixels(test.x)), torch.from_numpy(test.y)
    side = round(0.22 * x.shape[2])
    attacked = pgd(network, x, y, eps=8 / 255, steps=20, generator=seeded(seed, 8))
    patched, _ = patch_attack(network, x, y, side=side, steps=50, generator=seeded(seed, side))
    return {"clean": test.x, "attacked": to_uint8(attacked.numpy()), "patched": to_uint8(patched.numpy())}


def _latency(gateway: Server, made: Path, model: str, data: Dataset, rounds: int) -> dict[str, Any]:
    """In turns: images to the gateway, and as many rows as it sends there straight to the peer, by the same client.

    A turn is `IN_A_ROW` images one after the other, so that neither way finds the processor's caches as another left
    them. `in_process` is the same answer without the gateway's own HTTP. What is added is the difference of medians,
    and the median of the differences by image, which a busy machine changes less. Processor time stands beside the
    wall's: of the gateway, of this thread for an answer in process, and for what it does to send those rows.
    """
    bundle = load_bundle(made)
    upstream = bundle.manifest.upstream
    assert upstream is not None
    assert isinstance(upstream.protocol, Protocol2)
    inside = load_pipeline(made, Settings(threads=1, upstream=model))

    def decided(body: bytes) -> Decision:
        return inside.decide_images([inside.decode(body)], explain=False)[0]

    images = data.test.x[:64]
    wall: list[list[float]] = []
    own = np.zeros(len(ASKED))
    busy = 0.0
    with Connection(timeout=30) as connection:
        direct = Protocol2Peer(upstream.protocol.model_copy(update={"url": model}), connection)

        def ways(image: np.ndarray) -> dict[str, Callable[[], Any]]:
            body, rows = png(image), np.repeat(to_pixels(image), ROWS, axis=0)
            return {
                "guard": partial(connection.post, f"{gateway.url}/v1/predict", body, {"Content-Type": "image/png"}),
                "in_process": partial(decided, body),
                "as_many_rows": partial(direct.values, rows),
                "one_row": partial(direct.values, rows[:1]),
            }

        for turn in range(-1, rounds // IN_A_ROW):
            row = [ways(images[(turn * IN_A_ROW + k) % len(images)]) for k in range(IN_A_ROW)]
            taken: dict[str, list[tuple[float, float, Any]]] = {}
            for name in np.roll(ASKED, turn).tolist():
                before = gateway.cpu_seconds()
                taken[name] = [_timed(work[name]) for work in row]
                busy += gateway.cpu_seconds() - before if turn >= 0 and name == "guard" else 0.0
            if turn < 0:
                continue
            own += [sum(each[1] for each in taken[name]) for name in ASKED]
            # A second pass is rows once more.
            wall += [
                [each[0] for each in found]
                for found in zip(*(taken[name] for name in ASKED), strict=True)
                if found[ASKED.index("in_process")][2].neutralized is None
            ]
    rounds = rounds // IN_A_ROW * IN_A_ROW
    times = dict(zip(ASKED, np.array(wall).T, strict=True))
    figures: dict[str, Any] = {
        name: {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (10, 50, 95)}
        for name, values in times.items()
    }
    for name in ("guard", "in_process"):
        figures[f"added_{name}"] = {
            "of_medians": round(figures[name]["p50"] - figures["as_many_rows"]["p50"], 3),
            "in_turn_p50": round(float(np.median(times[name] - times["as_many_rows"])), 3),
        }
    spent = dict(zip(ASKED, np.round(own / rounds, 3).tolist(), strict=True))
    return figures | {
        "n": len(wall),
        "processor_ms": {
            "gateway": round(busy / rounds * 1e3, 3),
            "in_process": spent["in_process"],
            "as_many_rows": spent["as_many_rows"],
        },
    }


def _timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Milliseconds of `work`, those of this thread's processor time, and its result."""
    start, mine = time.perf_counter(), time.thread_time()
    found = work()
    return (time.perf_counter() - start) * 1e3, (time.thread_time() - mine) * 1e3, found


if __name__ == "__main__":
    typer.run(main)
