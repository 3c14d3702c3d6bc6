"""A bundle's samples, answered again: whether this machine gives the answers that the bundle states."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gateway.core.decision import Decision
from gateway.core.engine import Engine
from gateway.core.loading import Bundle
from gateway.core.pipeline import Pipeline
from gateway.errors import BundleError, PalisadeError

FOLDER, ANSWERS = "samples", "answers.json"
# Rounding differs between processors and moves a conformal p-value by ranks.
P_TOLERANCE = 0.01


@dataclass(frozen=True)
class Difference:
    """An answer that differs from the one that the bundle states."""

    sample: str
    field: str
    stated: Any
    found: Any


def replay(bundle: Bundle, engine: Engine) -> tuple[int, list[Difference]]:
    """Number of samples, and where their answers (on `engine`, policy `sanitize`) differ; raises `BundleError`.

    They are stated without a pool.
    """
    path = bundle.path / FOLDER / ANSWERS
    if not path.is_file():
        return 0, []
    pipeline = Pipeline.on(engine, bundle, action="sanitize", pool=False)
    try:
        answers: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8"))
        if unlisted := sorted(name for name in answers if f"{FOLDER}/{name}" not in bundle.manifest.files):
            raise ValueError(f"{unlisted[0]!r} is no file of the bundle")
        found = {name: sample_answer(pipeline.decide((path.parent / name).read_bytes())) for name in answers}
        differences = [
            Difference(name, field, stated[field], value)
            for name, stated in answers.items()
            for field, value in found[name].items()
            if not _same(stated[field], value)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path}: unreadable samples: {error}") from None
    except PalisadeError as error:
        raise BundleError(f"{path.parent}: {error.detail}") from None
    return len(answers), differences


def sample_answer(decision: Decision) -> dict[str, Any]:
    """The fields of a decision that `answers.json` states."""
    after = decision.neutralized
    return {
        "label": decision.served.prediction.label,
        "before": decision.raw.prediction.label,
        "after": after.result.prediction.label if after else None,
        "flagged": decision.flagged,
        "p_value": decision.raw.verdict.p_value,
    }


def _same(stated: Any, found: Any) -> bool:
    if isinstance(found, float):
        return abs(float(stated) - found) <= P_TOLERANCE
    return bool(stated == found)
