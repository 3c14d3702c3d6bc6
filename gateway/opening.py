"""A pipeline in one call, for programs that use the defence without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from gateway.core.decision import Action
from gateway.core.pipeline import Pipeline
from gateway.settings import load_settings
from gateway.versions.registry import load_pipeline as load_with


def load_pipeline(
    path: str | Path,
    *,
    alpha: float | None = None,
    action: Action | None = None,
    device: Literal["auto", "cpu", "cuda"] = "cpu",
    threads: int | None = None,
    votes: bool | None = None,
    pool: bool | None = None,
) -> Pipeline:
    """The pipeline of the bundle in `path`: every hash is checked, the graph is opened and run once.

    `alpha` is a calibrated false-positive rate, `action` the policy; both default to the bundle's. With `votes`, masks
    vote on every verdict; networks answer together where the bundle has a pool, unless `pool` is False. Raises
    `BundleError` (which names the file), `ConfigError` (which names the setting) and `EngineError`.
    """
    given: dict[str, Any] = {"alpha": alpha, "policy": action, "device": device, "threads": threads}
    given |= {"votes": votes, "pool": pool}
    return load_with(Path(path), load_settings(**{name: value for name, value in given.items() if value is not None}))
