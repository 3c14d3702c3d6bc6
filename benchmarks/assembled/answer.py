"""The answer that both assembled services give."""

from __future__ import annotations

from typing import Any

import numpy as np

from gateway.core.loading import Bundle
from gateway.core.outputs import softmax
from gateway.core.verdict import Verdict


def answer(
    bundle: Bundle, logits: np.ndarray, companion: np.ndarray, verdict: Verdict, saliency: str
) -> dict[str, Any]:
    """Label, probability, verdict, companion's label and the map (base64 of its bytes)."""
    probabilities = softmax(logits)
    index = int(probabilities.argmax())
    return {
        "label": bundle.manifest.classes[index],
        "probability": float(probabilities[index]),
        "companion": bundle.manifest.classes[int(companion.argmax())],
        "flagged": verdict.flagged,
        "p_value": verdict.p_value,
        "evidence": verdict.evidence,
        "saliency": saliency,
    }
