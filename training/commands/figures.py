"""What the commands that report figures share: the data of a bundle, the date, JSON with rounded figures."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.core.loading import Bundle, load_bundle
from training.bundling.provenance import made_with
from training.commands.terminal import Bars
from training.data.dataset import Dataset


def step_of(bars: Bars, name: str, step: str, done: int, total: int) -> None:
    """Report a step of the part `name`, such as a network."""
    bars.step(f"{name}: {step}", done, total)


def with_data(path: Path) -> tuple[Bundle, Dataset]:
    """A bundle and the very data that it was made with."""
    loaded = load_bundle(path)
    return loaded, made_with(loaded)[0]


def today() -> str:
    """The date in UTC, as ISO 8601 writes it."""
    return datetime.now(UTC).date().isoformat()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """`content` as JSON, figures rounded to six digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(content), indent=1) + "\n", "utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
