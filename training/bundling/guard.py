"""Bundles of networks that stay in another server: calibrated on its answers, without its weights."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import ValidationError

from gateway.core.loading import Bundle, hash_files, load_bundle, write_manifest
from gateway.core.manifest import InputSpec, Manifest, graphs_sha256
from gateway.core.outputs import softmax
from gateway.core.pipeline import Pipeline
from gateway.core.preprocessing import Normalisation
from gateway.core.upstream import MOST_ROWS, PlainHttp, Protocol2, Upstream, probe_image
from gateway.errors import ConfigError
from gateway.upstream.connection import Connection
from gateway.upstream.describe import describe
from gateway.upstream.engine import UpstreamEngine
from gateway.upstream.peer import Classifier
from gateway.versions.replay import ANSWERS, FOLDER, sample_answer
from training.bundling.assemble import Report, check_free, input_spec
from training.bundling.calibrate import benign_scores, calibrate, enough_to_calibrate
from training.bundling.samples import first_of_classes
from training.bundling.wrap import slug
from training.data.dataset import Dataset, load_dataset
from training.defence.localisers import LOCALISER, localiser_named
from training.defence.scores import of_answers
from training.defence.upstream import GRID, ROWS
from training.export.upstream import export_upstream
from training.recipes.training import DataSpec
from training.served.answers import serve
from training.served.scoring import png
from training.util.atomic import draft_of
from training.util.registry import Titled

MAX_ROWS = 64
# Nothing is fitted on the first share; of what is left of a folder of classes alone when a fifth is its test part.
FRACTIONS = (0.0, 0.2, 0.8)
_SAMPLES = 4
# Benign test images whose flags are counted: each is a request to someone's server.
_TRIED = 1000


@dataclass(frozen=True)
class Asked:
    """An upstream as it was found: how it is asked, the size of its images where known, and its largest request."""

    protocol: Protocol2 | PlainHttp
    size: tuple[int, int] | None
    max_rows: int


@dataclass(frozen=True)
class Calibrated:
    """A finished bundle: its data, the upstream's accuracy on the calibrate split where that has labels, and flags of
    benign test images.
    """

    bundle: Bundle
    data: Dataset
    accuracy: float | None
    flagged: int
    tested: int


def find_upstream(
    text: str,
    connection: Connection,
    *,
    model: str | None = None,
    input_name: str | None = None,
    output_name: str | None = None,
    max_rows: int | None = None,
) -> Asked:
    """What `text` names: a server of the Open Inference Protocol v2 by its URL, or a YAML file of a plain classifier.

    Raises `ConfigError`, and the errors of `Connection`.
    """
    if text.startswith(("http://", "https://")):
        found = describe(text, connection, model=model, input_name=input_name, output_name=output_name)
        if found.channels != 3:
            raise ConfigError(f"{found.protocol.url}: takes images of {found.channels} channel(s), 3 are supported")
        most = found.max_rows or max_rows or MAX_ROWS
        return Asked(found.protocol, found.size, min(most, max_rows or most, MOST_ROWS))
    path = Path(text)
    if not path.is_file():
        raise ConfigError(f"--upstream {text}: neither http://HOST:PORT nor a YAML file")
    try:
        protocol = PlainHttp.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())[:200]}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}") from None
    return Asked(protocol, None, max_rows or MAX_ROWS)


def guard(
    asked: Asked,
    data: DataSpec,
    out: Path,
    *,
    labels: Sequence[str] | None = None,
    values: Literal["logits", "probabilities"] | None = None,
    normalise: Normalisation = Normalisation(),
    version: str = "1.0.0",
    timeout: float = 30.0,
    token: str | None = None,
    force: bool = False,
    report: Report,
) -> Calibrated:
    """The bundle in `out` of the upstream `asked`, calibrated on `data` by its answers to them.

    `labels` name its classes in its order (default: the folders' names, sorted); `values` say what its numbers are
    (default: as they look). Raises `TrainingError`, `ConfigError` and the errors of the upstream; `out` is replaced
    only by a finished bundle, and only if `force`.
    """
    check_free(out, force=force)
    images = load_dataset(
        data.source,
        seed=data.split_seed,
        fractions=data.fractions,
        classes=None if labels is None else list(labels),
        test_share=data.test_share,
        pool_scarce=data.pool_scarce,
        size=data.size,
        resize=data.resize,
        images_per_class=data.images_per_class,
        held_out=data.held_out,
        progress=report.step,
    )
    enough_to_calibrate(images)
    spec = input_spec(images, data.resize)
    upstream = _tried(asked, images.classes, spec, values, normalise, timeout=timeout, token=token)
    name = slug(out.name)
    with draft_of(out) as draft:
        report.step("exporting four graphs", 0, 1)
        export_upstream(draft, spec, classes=len(images.classes), scores=of_answers())
        classifier = Classifier(upstream, images.classes, model=name, timeout=timeout, token=token)
        engine = UpstreamEngine(draft, spec, classifier)
        manifest, accuracy = _calibrated(
            draft, engine, upstream, images, spec, name=name, version=version, report=report
        )
        pipeline = Pipeline.on(engine, load_bundle(draft), action="sanitize", pool=False)
        _write_samples(draft, pipeline, images)
        write_manifest(draft, manifest)
        answers = serve(
            pipeline, images.test.x[:_TRIED], lambda done, total: report.step("trying benign images", done, total)
        )
    flagged = int((answers.p_value <= pipeline.judge.p_cutoff).sum())
    return Calibrated(load_bundle(out), images, accuracy, flagged, len(answers))


def _tried(
    asked: Asked,
    classes: Sequence[str],
    spec: InputSpec,
    values: Literal["logits", "probabilities"] | None,
    normalise: Normalisation,
    *,
    timeout: float,
    token: str | None,
) -> Upstream:
    """The upstream as the bundle states it, after a first question to it."""
    if asked.size is not None and asked.size != (spec.height, spec.width):
        raise ConfigError(f"--size {spec.height}: the upstream takes images of {asked.size[0]} x {asked.size[1]}")
    as_bytes = isinstance(asked.protocol, PlainHttp) or asked.protocol.datatype == "UINT8"
    if as_bytes and normalise != Normalisation(channel_order=normalise.channel_order):
        raise ConfigError(
            "the upstream takes images as bytes, which hold no other scale and no normalisation: "
            "leave out --scale and --normalise, or give --scale unit --normalise none over the file of --preprocessing"
        )
    given: dict[str, Any] = {
        "protocol": asked.protocol,
        "normalise": normalise,
        "max_rows": asked.max_rows,
        "rows": ROWS,
    }
    given |= {"maps": GRID * GRID, "values": values or "logits", "probe": [0.0, 0.0]}
    upstream = Upstream.model_validate(given)
    classifier = Classifier(upstream, classes, model=slug("trial"), timeout=timeout, token=token)
    answers = classifier.unchecked(probe_image(spec.channels, spec.height, spec.width).repeat(2, axis=0))
    classifier.close()
    if not np.isfinite(answers).all():
        raise ConfigError("the upstream's numbers are not finite; check --input, --output and --normalise")
    if values is None and answers.min() >= 0 and np.abs(answers.sum(1) - 1).max() < 1e-3:
        upstream = upstream.model_copy(update={"values": "probabilities"})
        answers = np.log(np.maximum(answers, 1e-38))
    return upstream.model_copy(update={"probe": [round(float(p), 6) for p in softmax(answers[0])]})


def _calibrated(
    draft: Path,
    engine: UpstreamEngine,
    upstream: Upstream,
    images: Dataset,
    spec: InputSpec,
    *,
    name: str,
    version: str,
    report: Report,
) -> tuple[Manifest, float | None]:
    scores, localiser = of_answers(), localiser_named(LOCALISER)
    names = [score.name for score in scores]
    benign = benign_scores(
        engine, spec, images, lambda step, done, total: report.step(f"calibrating: {step}", done, total), guarded=False
    )
    if not images.labelled:  # a second answer is then served where it agrees with the server's first one
        benign = replace(benign, labels=benign.answers)
    calibration = calibrate(
        benign, names=names, fused=names, provider="cpu", graphs_sha256=graphs_sha256(hash_files(draft)), out=draft
    )
    described: list[Titled] = [*scores, localiser]
    manifest = Manifest(
        name=name,
        version=version,
        description=f"The model of another server, behind `palisade guard`: {ROWS} rows an image.",
        created=datetime.now(UTC).date(),
        classes=images.classes,
        input=spec,
        upstream=upstream,
        scores=names,
        layer_scores=[],
        localiser=localiser.name,
        titles={each.name: each.title for each in described},
        meanings={each.name: each.meaning for each in described},
        layers=[],
        companion=False,
        calibrations=[calibration],
        data=images.describe(),
        software={"python": platform.python_version(), "numpy": np.__version__},
        files=hash_files(draft),
    )
    write_manifest(draft, manifest)
    return manifest, float((benign.answers == images.calibrate.y).mean()) if images.labelled else None


def _write_samples(draft: Path, pipeline: Pipeline, images: Dataset) -> None:
    """Clean test images of distinct classes with their answers: nothing can be attacked without a gradient."""
    answers = {}
    (draft / FOLDER).mkdir()
    chosen = first_of_classes(images.test.y, np.ones(len(images.test), bool), _SAMPLES)
    for number, index in enumerate(chosen):
        data = png(images.test.x[index])
        (draft / FOLDER / f"clean_{number}.png").write_bytes(data)
        label = int(images.test.y[index])
        truth = images.classes[label] if label >= 0 else None
        answers[f"clean_{number}.png"] = {"test_index": index, "truth": truth, **sample_answer(pipeline.decide(data))}
    (draft / FOLDER / ANSWERS).write_text(json.dumps(answers, indent=1) + "\n", "utf-8")
