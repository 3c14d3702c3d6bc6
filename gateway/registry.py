"""The bundles that are served: found in folders, loaded, warmed up; a broken one is refused and the others go on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from gateway.bundle import MANIFEST, load_bundle, read_manifest
from gateway.cores import threads_per_worker
from gateway.decode import Limits
from gateway.engine import Engine
from gateway.errors import BundleError, ConfigError, UnknownModel
from gateway.pipeline import Pipeline
from gateway.settings import DEFAULT_MODEL, Settings
from gateway.verdict import Judge

log = logging.getLogger(__name__)


class Registry:
    """Pipelines by model name; one of them answers requests that name none."""

    def __init__(self, pipelines: Iterable[Pipeline], *, default: str | None = None) -> None:
        self._pipelines = {pipeline.bundle.name: pipeline for pipeline in pipelines}
        if not self._pipelines:
            raise ConfigError("no bundle could be loaded")
        if default is not None and default not in self._pipelines:
            raise ConfigError(f"PALISADE_DEFAULT_MODEL={default!r}: not served (has {', '.join(self.names)})")
        self.default = default or (DEFAULT_MODEL if DEFAULT_MODEL in self._pipelines else self.names[0])

    @property
    def names(self) -> list[str]:
        return sorted(self._pipelines)

    def __iter__(self) -> Iterator[Pipeline]:
        return (self._pipelines[name] for name in self.names)

    def get(self, name: str | None = None) -> Pipeline:
        """The pipeline of `name`, or the default one; `UnknownModel` lists what is served."""
        pipeline = self._pipelines.get(self.default if name is None else name)
        if pipeline is None:
            shown = (name or "")[:80]
            raise UnknownModel(f"model {shown!r} is not served (has {', '.join(self.names)})")
        return pipeline


def find_bundles(roots: Iterable[Path]) -> list[Path]:
    """Folders that hold a manifest: each root itself, else its children; `ConfigError` for a root that is missing.

    Children named `*.part` are bundles that `palisade build` is still at work on.
    """
    folders = []
    for root in roots:
        if not root.is_dir():
            raise ConfigError(f"{root}: no such folder of bundles (PALISADE_MODELS)")
        if (root / MANIFEST).is_file():
            folders.append(root)
        else:
            folders += sorted(c for c in root.iterdir() if (c / MANIFEST).is_file() and c.suffix != ".part")
    return folders


def load_pipeline(folder: Path, settings: Settings) -> Pipeline:
    """Load, check and warm up one bundle; `BundleError` names the file, `ConfigError` the setting that is wrong."""
    bundle = load_bundle(folder)
    engine = Engine.open(bundle, device=settings.device, threads=threads_per_worker(settings.threads, settings.workers))
    calibration = bundle.calibration(engine.provider, engine.precision)
    try:
        judge = Judge(bundle, calibration, alpha=settings.alpha)
    except ValueError as error:
        raise ConfigError(f"PALISADE_ALPHA: {folder}: {error}") from None
    limits = Limits(max_bytes=settings.max_body_bytes, max_pixels=settings.max_pixels)
    pipeline = Pipeline(bundle, engine, judge, action=settings.policy, limits=limits)
    seconds = engine.warm_up()
    log.info("serving %s %s on %s (%.1f ms)", bundle.name, bundle.version, engine.provider, seconds * 1e3)
    return pipeline


def load_registry(settings: Settings) -> Registry:
    """Serve every sound bundle under `settings.models`; `ConfigError` when none is."""
    pipelines: dict[str, Pipeline] = {}
    refused = []
    folders = find_bundles(settings.models)
    for folder in sorted(folders, key=_newest_first):
        try:
            pipeline = load_pipeline(folder, settings)
        except BundleError as error:
            log.error("bundle refused: %s", error.detail)  # noqa: TRY400  # the reason is enough
            refused.append(error.detail)
            continue
        served = pipelines.setdefault(pipeline.bundle.name, pipeline)
        if served is not pipeline:
            log.warning("%s: not served, %s %s is", folder, served.bundle.name, served.bundle.version)
    if not pipelines:
        where = ", ".join(map(str, settings.models))
        raise ConfigError(f"no bundle to serve in {where}" + (f"; first problem: {refused[0]}" if refused else ""))
    return Registry(pipelines.values(), default=settings.default_model)


def _newest_first(folder: Path) -> tuple[list[int], str]:
    try:
        numbers = read_manifest(folder).version.partition("-")[0].split(".")
    except BundleError:
        numbers = []
    return [-int(number) for number in numbers], str(folder)
