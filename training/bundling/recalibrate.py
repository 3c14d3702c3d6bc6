"""`palisade calibrate`: a bundle's calibration made anew, or added, on the machine that will serve it.

A calibration holds for the session whose scores it is made of: the provider, and the precision of the graphs. The
card stays that of the CPU and fp32; the manifest marks a calibration made here as not measured by the card.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import onnx_ir as ir
from pydantic import ValidationError

from gateway.core.engine import Engine, Provider
from gateway.core.loading import Bundle, hash_files, load_bundle, write_manifest
from gateway.core.manifest import Calibration, Manifest, Precision, graphs_sha256
from training.bundling.calibrate import Benign, benign_scores, calibrate
from training.bundling.provenance import made_with
from training.data.dataset import Dataset
from training.errors import TrainingError
from training.export.half import half_parts
from training.export.parts import graph_specs, write_parts
from training.export.stored import unpack
from training.served.scoring import run_images
from training.util.atomic import draft_of
from training.util.signatures import StepProgress

TRIED = 256


def recalibrate(
    path: Path, out: Path, *, version: str, provider: Provider, precision: Precision, progress: StepProgress
) -> Bundle:
    """Write to `out` the bundle in `path` with a calibration for `provider` and `precision`, as `version`.

    fp16 graphs are made of the fp32 ones where the bundle has none. Raises `TrainingError` if `out` exists, the version
    is the old one, the data are not those that the bundle was made with, or float16 cannot hold the gradient; and what
    `Engine` raises where the provider is not there.
    """
    bundle = load_bundle(path)
    if out.exists():
        raise TrainingError(f"{out} exists; choose another --out")
    try:
        manifest = Manifest.model_validate(bundle.manifest.model_dump() | {"version": version})
    except ValidationError:
        raise TrainingError(f"--version {version}: expected three numbers, or a suffix too, as 1.4.1-rc1") from None
    if version == bundle.version:
        raise TrainingError(f"{path} is already version {version}; give another --version")
    data, evaluation = made_with(bundle)
    with draft_of(out) as draft:
        shutil.copytree(path, draft, dirs_exist_ok=True)
        if not manifest.graphs_of(precision):
            manifest = _with_half(draft, manifest)
        engine = Engine(
            draft,
            manifest.graphs_of(precision),
            manifest.input,
            provider=provider,
            precision=precision,
            buckets=manifest.buckets,
        )
        _try_gradient(engine, manifest, data)
        made = _calibrate(draft, manifest, engine, data, evaluation.seed, progress)
        kept = [calibration for calibration in manifest.calibrations if calibration.key != made.key]
        write_manifest(draft, manifest.model_copy(update={"calibrations": [*kept, made]}))
        load_bundle(draft)
    return load_bundle(out)


def card_measured(manifest: Manifest, measured: Calibration) -> Manifest:
    """`manifest` as it is once the card is that of the system with the calibration `measured`, and with no other."""
    marked = [c.model_copy(update={"evaluated": c.key == measured.key}) for c in manifest.calibrations]
    return manifest.model_copy(update={"calibrations": marked})


def _with_half(draft: Path, manifest: Manifest) -> Manifest:
    parts = half_parts(
        {part: ir.from_proto(unpack(onnx.load(draft / graph.file))) for part, graph in manifest.graphs.items()}
    )
    write_parts(parts, draft, "fp16")
    return manifest.model_copy(update={"variants": {"fp16": graph_specs(parts, "fp16")}})


def _calibrate(
    draft: Path, manifest: Manifest, engine: Engine, data: Dataset, seed: int, progress: StepProgress
) -> Calibration:
    """With the fused scores, guard, screen and benign images of the calibration that is there."""
    like = manifest.calibrations[0]
    scores = benign_scores(
        engine,
        manifest.input,
        data,
        lambda name, done, total: progress(f"calibrating: {name}", done, total),
        benign=Benign.model_validate(manifest.training.get("benign", {})),
        guarded=like.guard is not None,
        seed=seed,
    )
    return calibrate(
        scores,
        names=manifest.scores,
        fused=like.fused,
        guard=like.guard,
        screened_by=like.cascade.scores if like.cascade else [],
        provider=engine.provider,
        precision=engine.precision,
        graphs_sha256=graphs_sha256(hash_files(draft), engine.precision),
        out=draft,
        counted=like.counted,
        evaluated=False,
    )


def _try_gradient(engine: Engine, manifest: Manifest, data: Dataset) -> None:
    """`TrainingError` if an input gradient leaves the range of the engine's precision, upwards or downwards."""
    outputs = run_images(engine, data.select.x[:TRIED], manifest.input, batch=engine.buckets[-1])
    empty = outputs.saliency.max((1, 2)) == 0
    if not outputs.finite.all() or empty.mean() > 0.5:
        raise TrainingError(
            f"{engine.precision} cannot hold this network's values: of {len(empty)} benign images "
            f"{(~outputs.finite).sum()} have outputs that are not finite, {empty.sum()} an empty saliency"
        )
