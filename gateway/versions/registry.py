"""The versions that this process has loaded: one of each model is active, another may be its shadow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.core.cores import threads_per_worker
from gateway.core.decode import Limits
from gateway.core.loading import Bundle
from gateway.core.pipeline import Pipeline
from gateway.errors import BundleError, ConfigError, UnknownModel, UnknownVersion
from gateway.settings import DEFAULT_MODEL, Settings
from gateway.upstream.engine import UpstreamEngine
from gateway.upstream.opening import open_engine
from gateway.versions.catalogue import Catalogue

log = logging.getLogger(__name__)

Loaded = dict[tuple[str, str], Pipeline]
"""Pipelines by name and version."""
Load = Callable[[Bundle, Settings], Pipeline]


@dataclass(frozen=True)
class Versions:
    """Which versions of one model are wanted.

    `active` answers requests that name no version, `previous` did so before, `shadow` is scored on the same images and
    only counted, `pinned` are kept loaded beside them.
    """

    active: str | None = None
    previous: str | None = None
    shadow: str | None = None
    pinned: tuple[str, ...] = ()

    @property
    def loaded(self) -> list[str]:
        """The versions that must be loaded: active, shadow and pinned ones."""
        return list(dict.fromkeys(v for v in (self.active, self.shadow, *self.pinned) if v is not None))


@dataclass(frozen=True)
class Served:
    """The loaded pipelines of one model, by version; never changed, only replaced, so that a switch is atomic."""

    versions: Versions
    pipelines: Mapping[str, Pipeline]

    @property
    def active(self) -> Pipeline | None:
        return self.pipelines.get(self.versions.active or "")

    @property
    def shadow(self) -> Pipeline | None:
        return self.pipelines.get(self.versions.shadow or "")


class Registry:
    """Pipelines by model and version; a caller may keep using one after it was replaced."""

    def __init__(self, pipelines: Iterable[Pipeline] = (), *, default: str | None = None) -> None:
        """Serve `pipelines`, each the active version of its model; `default` answers requests that name no model."""
        self._models: dict[str, Served] = {}
        self._default = default
        for pipeline in pipelines:
            name, version = pipeline.bundle.name, pipeline.bundle.version
            self.put(name, Versions(active=version), {(name, version): pipeline})

    @property
    def names(self) -> list[str]:
        """Models that are served: those with an active version."""
        return sorted(name for name, served in self._models.items() if served.active is not None)

    @property
    def default(self) -> str:
        """The model of requests that name none: the configured one, else `gtsrb`, else the first by name."""
        names = self.names
        return self._default or (DEFAULT_MODEL if DEFAULT_MODEL in names else names[0])

    def __iter__(self) -> Iterator[Pipeline]:
        return (self.get(name) for name in self.names)

    def get(self, name: str | None = None, version: str | None = None) -> Pipeline:
        """The active pipeline of `name` or of the default model, or a loaded `version` of it.

        Raises `UnknownModel` or `UnknownVersion`, which list the names that exist.
        """
        served = self._models.get(self.default if name is None else name)
        if version is not None and served is not None:
            pipeline = served.pipelines.get(version)
            if pipeline is None:
                versions = ", ".join(sorted(served.pipelines))
                raise UnknownVersion(f"version {version[:80]!r} is not loaded (has {versions})")
            return pipeline
        if served is None or served.active is None:
            shown = (name or "")[:80]
            raise UnknownModel(f"model {shown!r} is not served (has {', '.join(self.names)})")
        return served.active

    def served(self, name: str) -> Served:
        """The loaded versions of a model; of an unknown one, none."""
        return self._models.get(name, Served(Versions(), {}))

    def shadow_of(self, pipeline: Pipeline) -> Pipeline | None:
        """The shadow of `pipeline`, if `pipeline` is the active version and its model has a shadow."""
        served = self.served(pipeline.bundle.name)
        return served.shadow if served.active is pipeline else None

    def put(self, name: str, versions: Versions, loaded: Loaded) -> None:
        """Replace the versions of one model, all at once; those not among `loaded` were served before."""
        loaded = self.loaded | loaded
        served = Served(versions, {version: loaded[name, version] for version in versions.loaded})
        self._models = {**self._models, name: served}

    @property
    def problem(self) -> str | None:
        """Why a model cannot answer at present, as while its upstream is gone; None while all can."""
        found = ((pipeline.bundle.name, pipeline.engine.problem) for pipeline in self)
        return next((f"{name}: {problem}" for name, problem in found if problem is not None), None)

    @property
    def loaded(self) -> Loaded:
        """Every pipeline."""
        return {(n, v): pipeline for n, served in self._models.items() for v, pipeline in served.pipelines.items()}


def load_pipeline(folder: Path, settings: Settings) -> Pipeline:
    """Load, check and warm up one bundle; `BundleError` names the file, `ConfigError` the setting that is wrong."""
    return warmed(settings.demands.load(folder), settings)


def opened(bundle: Bundle, settings: Settings) -> Pipeline:
    """The pipeline of a checked bundle, its graphs open but not yet run; raises as `load_pipeline` does."""
    threads = threads_per_worker(settings.threads, settings.workers)
    engine = open_engine(
        bundle,
        device=settings.device,
        precision=settings.precision,
        threads=threads,
        url=settings.upstream,
        token=settings.upstream_token,
        timeout=settings.upstream_timeout,
        failures=settings.upstream_failures,
        pause=settings.upstream_pause,
    )
    limits = Limits(max_bytes=settings.max_body_bytes, max_pixels=settings.max_pixels)
    try:
        pipeline = Pipeline.on(
            engine,
            bundle,
            alpha=settings.alpha,
            action=settings.policy,
            block_from=settings.block_from,
            votes=settings.votes,
            pool=settings.pool,
            limits=limits,
        )
    except ValueError as error:
        raise ConfigError(f"PALISADE_ALPHA: {bundle.path}: {error}") from None
    if not pipeline.judge.calibration.evaluated:
        log.warning(
            "%s %s on %s: calibrated, but the card's figures were measured on another provider or precision",
            bundle.name,
            bundle.version,
            pipeline.judge.calibration.key,
        )
    return pipeline


def warmed(bundle: Bundle, settings: Settings) -> Pipeline:
    """As `opened`, and every graph was run once at every batch size."""
    pipeline = opened(bundle, settings)
    seconds, key = pipeline.engine.warm_up(), pipeline.judge.calibration.key
    if pipeline.votes is not None:
        pipeline.warm_votes()
    if isinstance(pipeline.engine, UpstreamEngine):
        pipeline.engine.watch(bundle.name, seconds=settings.upstream_pause)
    log.info("loaded %s %s on %s (%.1f ms)", bundle.name, bundle.version, key, seconds * 1e3)
    return pipeline


def load_wanted(
    settings: Settings, catalogue: Catalogue, wanted: Mapping[str, Versions], loaded: Loaded, *, load: Load = warmed
) -> dict[str, Versions]:
    """At the start, load what is `wanted`, and the newest sound version of each model of which nothing is wanted.

    Where the active version is gone or broken the newest sound one takes its place, with a warning. Pipelines are put
    into `loaded`. Returns what is served then; `ConfigError` when that is nothing.
    """
    bundles, refused = catalogue.look()
    reasons = {entry.folder: entry.reason for entry in refused}
    sound = {(found.name, found.version): found.bundle for found in bundles}

    def can_load(name: str, version: str | None) -> bool:
        if version is None or (name, version) in loaded:
            return version is not None
        bundle = sound.get((name, version))
        if bundle is None or bundle.path in reasons:
            return False
        try:
            loaded[name, version] = load(bundle, settings)
        except BundleError as error:
            reasons[bundle.path] = error.detail
            return False
        return True

    chosen = {}
    for name in sorted({*wanted, *(name for name, _ in sound)}):
        versions = wanted.get(name, Versions())
        newest_first = [version for found, version in sound if found == name]
        active = next((version for version in (versions.active, *newest_first) if can_load(name, version)), None)
        if active is None:
            continue
        if versions.active not in (None, active):
            log.warning("%s %s was active but cannot be loaded; now %s is", name, versions.active, active)
        shadow = versions.shadow if versions.shadow != active and can_load(name, versions.shadow) else None
        pinned = tuple(version for version in versions.pinned if can_load(name, version))
        chosen[name] = replace(versions, active=active, shadow=shadow, pinned=pinned)
    for reason in reasons.values():
        log.error("bundle refused: %s", reason)
    if not chosen:
        where = ", ".join(map(str, settings.models))
        problem = next((f"; first problem: {reason}" for reason in reasons.values()), "")
        raise ConfigError(f"no bundle to serve in {where}{problem}")
    if settings.default_model not in (None, *chosen):
        have = ", ".join(chosen)
        raise ConfigError(f"PALISADE_DEFAULT_MODEL={settings.default_model!r}: not served (has {have})")
    return chosen


def load_registry(settings: Settings, wanted: Mapping[str, Versions] | None = None, *, load: Load = warmed) -> Registry:
    """Serve what is wanted (default: the newest sound version of every model); `ConfigError` when nothing can be.

    `load` is `opened` where few images will be answered, or none, as in a check before workers load for themselves.
    """
    loaded: Loaded = {}
    chosen = load_wanted(settings, Catalogue(settings.models, settings.demands), wanted or {}, loaded, load=load)
    registry = Registry(default=settings.default_model)
    for name, versions in chosen.items():
        registry.put(name, versions, loaded)
    return registry
