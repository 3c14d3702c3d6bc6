"""Events made up for tests of the store and the spool."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.answers.schemas import ClassScore
from gateway.audit.event import Event, EventNeutralization, Record

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def record(i: int, *, pictures: dict[str, bytes] | None = None, **fields: Any) -> Record:
    """The i-th event, one a second; `fields` replace those of a flagged input that was neutralised."""
    event = Event(
        **{
            "id": f"{i:026d}",
            "time": NOON + timedelta(seconds=i),
            "kind": "flagged",
            "model": "tiny",
            "version": "1.0.0",
            "stage": "verdict",
            "action": "sanitize",
            "flagged": True,
            "blocked": False,
            "p_value": 0.0025,
            "alpha": 0.01,
            "p_cutoff": 0.008,
            "before": ClassScore(label="blue", index=2, probability=0.9),
            "after": ClassScore(label="red", index=0, probability=0.8),
            "evidence": {"neuron_sensitivity": 0.005, "margin_drop": 0.02},
            "layers": {"stem": 1.4, "stage1": 0.3},
            "neutralization": EventNeutralization(region="roa", area=0.14, changed=True, served=True, p_value=0.7),
            "caller": "key-1",
            "image_sha256": "0" * 64,
            "sampled": False,
            "sample_probability": 0.01,
            **fields,
        }
    )
    return Record(event, {"input": b"pixels", "roa": b"map"} if pictures is None else pictures)
