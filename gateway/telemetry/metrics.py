"""Every Prometheus metric of the gateway, and how they are read from one process or several.

Label values are bounded: names of loaded models, their classes, scores and layers, and codes of `gateway.errors`.
"""

from __future__ import annotations

import math
import os
import random
from functools import lru_cache
from itertools import product
from threading import Lock
from weakref import ref

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from gateway.core.certificate import RANK
from gateway.core.decision import Decision
from gateway.core.engine import Engine
from gateway.core.kinds import KINDS
from gateway.core.pipeline import Pipeline
from gateway.core.votes import NAME as VOTES
from gateway.errors import PalisadeError, UpstreamInvalid, UpstreamTimeout, UpstreamUnavailable
from gateway.telemetry import worker_metrics
from gateway.telemetry.drift import DriftWatches

# Before the first metric is created, which opens its file.
worker_metrics.use_folder()

_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_P_VALUES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# Deviations are benign-normalised: about 1 is ordinary.
_DEVIATIONS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0)

requests_total = Counter("palisade_requests_total", "Requests for a prediction, by outcome.", ["model", "outcome"])
predictions_total = Counter("palisade_predictions_total", "Predictions by served label.", ["model", "label"])
flagged_total = Counter(
    "palisade_flagged_total", "Flagged inputs by the score with the smallest p-value.", ["model", "evidence", "action"]
)
suspects_total = Counter(
    "palisade_suspects_total",
    "Inputs that are suspect: unusual at the second level (5 % of benign images), but not flagged.",
    ["model"],
)
kinds_total = Counter(
    "palisade_kinds_total",
    "Inputs by kind of anomaly (ordinary, unfamiliar, attacked, both), of bundles that tell them apart.",
    ["model", "kind", "flagged"],
)
neutralized_total = Counter(
    "palisade_neutralized_total", "Neutralised inputs, by whether the label changed.", ["model", "changed"]
)
p_value = Histogram("palisade_p_value", "Conformal p-value of inputs as they came.", ["model"], buckets=_P_VALUES)
layer_deviation = Histogram(
    "palisade_layer_deviation",
    "Deviation of a layer's neurons between the image and its views (benign-normalised).",
    ["model", "layer"],
    buckets=_DEVIATIONS,
)
stage_seconds = Histogram(
    "palisade_stage_seconds", "Seconds that an image spent in each stage.", ["stage"], buckets=_SECONDS
)
rejected_total = Counter("palisade_rejected_total", "Requests answered with an error, by its code.", ["code"])
queue_depth = Gauge("palisade_queue_depth", "Passes waiting for a batch.", multiprocess_mode="livesum")
batch_size = Histogram("palisade_batch_size", "Images in a batch of the engine.", buckets=(1, 2, 4, 8, 16, 32, 64))
cascade_total = Counter(
    "palisade_cascade_total",
    "Images by the part that decided: screen, verdict, or audit (drawn at random for the verdict).",
    ["model", "stage"],
)
cascade_missed_total = Counter(
    "palisade_cascade_missed_total",
    "Audited images that the screen lets through and the whole verdict flags.",
    ["model"],
)
certificates_total = Counter(
    "palisade_certificates_total", "Certificates against patches, by the level that was reached.", ["model", "level"]
)
certificate_forwards_total = Counter(
    "palisade_certificate_forwards_total", "Forward passes of masked images, for certificates.", ["model"]
)
companion_total = Counter(
    "palisade_companion_total", "Predictions by whether the companion agrees with them.", ["model", "agrees"]
)
pooled_total = Counter(
    "palisade_pooled_total", "Answers of the pool of all networks, in place of the first one.", ["model"]
)
auth_total = Counter("palisade_auth_total", "Requests by how their sender was recognised or refused.", ["result"])
store_failures_total = Counter(
    "palisade_store_failures_total", "Failed operations of the store that workers share.", ["operation"]
)
audit_events_total = Counter(
    "palisade_audit_events_total",
    "Audit events by result: spooled or lost (unspooled, failed, dropped_spool_full), then stored, duplicate, refused.",
    ["result"],
)
audit_pictures_dropped_total = Counter(
    "palisade_audit_pictures_dropped_total",
    "Audit events spooled without their pictures, since the spool was nearly full.",
)
audit_late_total = Counter(
    "palisade_audit_late_total", "Answers sent before their audit event was in the spool, because the disk was slow."
)
audit_spool_damaged_total = Counter(
    "palisade_audit_spool_damaged_total",
    "Damaged records found in the spool, as a kill during a write leaves them.",
)
audit_spool_bytes = Gauge(
    "palisade_audit_spool_bytes", "Bytes of audit events that wait for the store.", multiprocess_mode="livesum"
)
audit_spool_age_seconds = Gauge(
    "palisade_audit_spool_age_seconds",
    "Seconds that the oldest audit event has waited for the store.",
    multiprocess_mode="livemax",
)
campaigns_total = Counter(
    "palisade_campaigns_total", "Query campaigns found, by the kind of attack that they resemble.", ["resembles"]
)
query_groups_total = Counter(
    "palisade_query_groups_total",
    "Groups of near-duplicate queries that are no campaign, by what they are.",
    ["pattern"],
)
campaign_queries = Gauge(
    "palisade_campaign_queries",
    "Queries of the campaigns that went on within the last hour.",
    multiprocess_mode="livemax",
)
fingerprints_total = Counter(
    "palisade_fingerprints_total", "Decided images by whether their fingerprints were kept or left out.", ["result"]
)
shadow_total = Counter(
    "palisade_shadow_total",
    "Images offered to a shadow version, by how its decision compares with the answer.",
    ["model", "version", "agreement"],
)
upstream_seconds = Histogram(
    "palisade_upstream_seconds", "Seconds that the upstream took for the rows of a batch.", ["model"], buckets=_SECONDS
)
upstream_rows_total = Counter("palisade_upstream_rows_total", "Images that the upstream classified.", ["model"])
upstream_failures_total = Counter(
    "palisade_upstream_failures_total", "Batches that the upstream did not answer soundly, by error.", ["model", "code"]
)
upstream_breaker_opened_total = Counter(
    "palisade_upstream_breaker_opened_total",
    "Times that the upstream was left alone for a while, after failures in a row or a trial that failed.",
    ["model"],
)
upstream_up = Gauge(
    "palisade_upstream_up",
    "1 while the upstream answers as it did when it was calibrated.",
    ["model"],
    multiprocess_mode="livemin",
)
ready = Gauge("palisade_ready", "Workers that are ready.", multiprocess_mode="livesum")
model_info = Gauge(
    "palisade_model_info",
    "1 for each model served.",
    ["model", "version", "provider", "precision"],
    multiprocess_mode="livemax",
)
drift_evidence = Gauge(
    "palisade_drift_evidence",
    "log10 of the evidence against the calibration over its limit: at 0 or above, calibrate again.",
    ["model"],
    multiprocess_mode="livemax",
)
drift_images_total = Counter(
    "palisade_drift_images_total",
    "Images drawn at random whose p-values were compared with the calibration.",
    ["model"],
)
expected_suspect_rate = Gauge(
    "palisade_expected_suspect_rate",
    "Largest share of benign inputs that is suspect or flagged.",
    ["model"],
    multiprocess_mode="livemax",
)
expected_flag_rate = Gauge(
    "palisade_expected_flag_rate",
    "Largest share of benign inputs that is flagged (alpha).",
    ["model"],
    multiprocess_mode="livemax",
)


_engines: dict[str, ref[Engine]] = {}
"""Of models behind an upstream: the engine of the active version."""
_answering = Lock()


def announce(pipeline: Pipeline) -> None:
    """Create the series of a model that is now served, and of errors, at zero.

    To Prometheus a series that begins at 1 has not increased: the first of anything would raise no alert.
    """
    model = pipeline.bundle.name
    for code in sorted(_codes(PalisadeError)):
        rejected_total.labels(code)
    for operation in ("get", "put", "take"):
        store_failures_total.labels(operation)
    _info(pipeline).set(1)
    expected_flag_rate.labels(model).set(pipeline.judge.alpha)
    expected_suspect_rate.labels(model).set(max(pipeline.judge.alpha, pipeline.judge.suspect_alpha))
    suspects_total.labels(model)
    drift_images_total.labels(model)
    drift_evidence.labels(model).set(-math.inf)  # of the version before, if there was one
    for outcome in ("ok", "flagged", "blocked", "rejected", "failed"):
        requests_total.labels(model, outcome)
    p_value.labels(model)
    if pipeline.bundle.manifest.upstream is not None:
        for failure in (UpstreamUnavailable, UpstreamTimeout, UpstreamInvalid):
            upstream_failures_total.labels(model, failure.code)
        upstream_breaker_opened_total.labels(model)
        upstream_seconds.labels(model)
        with _answering:
            _engines[model] = ref(pipeline.engine)
            upstream_up.labels(model).set(pipeline.engine.problem is None)
    for evidence in (*pipeline.judge.calibration.heard, *([VOTES] if pipeline.votes else [])):
        flagged_total.labels(model, evidence, pipeline.action)
    for label in pipeline.bundle.manifest.classes:
        predictions_total.labels(model, label)
    for stage in ("screen", "verdict", "audit"):
        cascade_total.labels(model, stage)
    cascade_missed_total.labels(model)
    for level in RANK:
        certificates_total.labels(model, level)
    certificate_forwards_total.labels(model)
    pooled_total.labels(model)
    _announce_kinds(pipeline)
    for yes in ("true", "false"):
        neutralized_total.labels(model, yes)
        companion_total.labels(model, yes)


def _announce_kinds(pipeline: Pipeline) -> None:
    if pipeline.judge.calibration.kinds is None:
        return
    for kind, flagged in product(KINDS, ("true", "false")):
        if (kind, flagged) != ("ordinary", "true"):  # what is flagged has a kind
            kinds_total.labels(pipeline.bundle.name, kind, flagged)


def _codes(error: type[PalisadeError]) -> set[str]:
    return {error.code}.union(*(_codes(kind) for kind in error.__subclasses__()))


def withdraw(pipeline: Pipeline) -> None:
    """Report that a version is no longer the active one."""
    _info(pipeline).set(0)
    if pipeline.bundle.manifest.upstream is not None:
        with _answering:
            _engines.pop(pipeline.bundle.name, None)
            upstream_up.labels(pipeline.bundle.name).set(math.nan)  # until the next version is announced, if it has one


def checked(engine: Engine, model: str) -> None:
    """Report whether the upstream answers, if `engine` is that of the active version: others have answers of theirs."""
    with _answering:
        if model in _engines and _engines[model]() is engine:
            upstream_up.labels(model).set(engine.problem is None)


def _info(pipeline: Pipeline) -> Gauge:
    bundle, engine = pipeline.bundle, pipeline.engine
    return model_info.labels(bundle.name, bundle.version, engine.provider, engine.precision)


@lru_cache(maxsize=8192)
def _counter(metric: Counter, *labels: str) -> Counter:
    """`metric.labels(*labels)`, which takes a lock and ten times as long."""
    return metric.labels(*labels)


@lru_cache(maxsize=8192)
def _histogram(metric: Histogram, *labels: str) -> Histogram:
    return metric.labels(*labels)


def observe(decision: Decision, pipeline: Pipeline) -> None:
    """Count one decision, which `pipeline` made."""
    model, verdict = decision.model, decision.raw.verdict
    outcome = "blocked" if decision.withheld else "flagged" if decision.flagged else "ok"
    _counter(requests_total, model, outcome).inc()
    _histogram(p_value, model).observe(_uniform_p(decision, pipeline))
    if (whole := decision.raw.whole) is not None:
        for layer, deviation in zip(verdict.layers, whole.layer_deviation, strict=True):
            _histogram(layer_deviation, model, layer).observe(float(deviation))
    if decision.raw.companion is not None:
        agrees = decision.raw.companion.index == decision.raw.prediction.index
        _counter(companion_total, model, str(agrees).lower()).inc()
    _counter(cascade_total, model, "audit" if decision.audited else decision.stage).inc()
    if decision.audited and verdict.flagged_without_votes:
        _counter(cascade_missed_total, model).inc()
    if decision.level == "suspect":
        _counter(suspects_total, model).inc()
    if decision.flagged:
        _counter(flagged_total, model, decision.strongest_evidence, decision.action).inc()
    if verdict.kind is not None:
        _counter(kinds_total, model, verdict.kind, str(decision.flagged).lower()).inc()
    if not decision.withheld:
        _counter(predictions_total, model, decision.served.prediction.label).inc()
    if decision.certificate is not None:
        _counter(certificates_total, model, decision.certificate.level).inc()
        _counter(certificate_forwards_total, model).inc(decision.certificate.forwards)
    _observe_repairs(decision)
    for stage in ("decode", "queue", "engine"):
        _histogram(stage_seconds, stage).observe(getattr(decision.timing, stage))


def _observe_repairs(decision: Decision) -> None:
    model = decision.model
    if decision.pooled is not None:
        _counter(pooled_total, model).inc()
    if decision.neutralized is not None:
        changed = decision.neutralized.result.prediction.index != decision.raw.prediction.index
        _counter(neutralized_total, model, str(changed).lower()).inc()


def compare(decision: Decision, pipeline: Pipeline, watches: DriftWatches) -> None:
    """Let the watch on drift look at a decision, if it draws it."""
    found = watches.note(decision.model, decision.version, pipeline.judge.calibration, _uniform_p(decision, pipeline))
    if found is not None:
        drift_images_total.labels(decision.model).inc()
        drift_evidence.labels(decision.model).set(found)


def _uniform_p(decision: Decision, pipeline: Pipeline) -> float:
    """The p-value, uniform over benign images also where a screen answers for most of them.

    Of an image that it lets through it is only known that every image it sends on is more unusual; such ties are broken
    at random (Vovk et al. 2005, smoothed conformal predictors).
    """
    cascade, verdict = pipeline.judge.calibration.cascade, decision.raw.verdict
    if decision.stage == "verdict" or cascade is None:
        return verdict.p_value if verdict.p_without_votes is None else verdict.p_without_votes
    return random.uniform(cascade.goes_on, 1.0)


def exposition() -> bytes:
    """The text that Prometheus scrapes, summed over workers when `PROMETHEUS_MULTIPROC_DIR` is set."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    worker_metrics.forget_dead_workers()
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
