"""The output tensors of the Open Inference Protocol: what each holds, who may ask for it, and their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gateway.access.keys import Disclosure
from gateway.answers.disclosure import coarse_p_value, shows
from gateway.core.decision import Decision
from gateway.core.manifest import Manifest
from gateway.errors import BadParameter, Forbidden
from gateway.http.routes.oip.tensors import DTYPES, InferRequest, Parameters, check_parameters, flag

Axis = Literal["K", "H", "W", "C", "S", "L"]


@dataclass(frozen=True)
class Output:
    """An output of shape (N, *axes); `least` is the disclosure that shows it.

    `explained` marks one that needs the whole graph. An image that is not answered (`Decision.withheld`)
    has `blocked` as its row, or its own row where that is None.
    """

    datatype: str
    row: Callable[[Decision], Any]
    axes: tuple[Axis, ...] = ()
    least: Disclosure = "verdict"
    explained: bool = False
    blocked: Any = 0


def _neutral_mask(decision: Decision) -> np.ndarray:
    done = decision.neutralized
    return np.zeros(decision.pixels.shape[1:], np.float32) if done is None else done.mask.astype(np.float32)


def _neutral_pixels(decision: Decision) -> Any:
    neutral = decision.explained.neutral
    return decision.pixels if neutral is None else neutral.neutral_pixels


DEFAULT = ("label_index", "label", "probabilities", "flagged", "p_value")
OUTPUTS = {
    "label_index": Output("INT64", lambda d: d.served.prediction.index, least="label", blocked=-1),
    "label": Output("BYTES", lambda d: d.served.prediction.label, least="label", blocked=""),
    # Rounded as in /v1: with more digits they would disclose the logits.
    "probabilities": Output("FP32", lambda d: np.round(d.served.probabilities, 6), ("K",)),
    "flagged": Output("BOOL", lambda d: d.flagged, blocked=None),
    "level": Output("BYTES", lambda d: d.level, blocked=None),
    "p_value": Output("FP32", lambda d: d.raw.verdict.p_value, blocked=None),
    "certificate": Output("BYTES", lambda d: d.certificate.level if d.certificate else "none", blocked="none"),
    # Empty where the bundle does not tell kinds apart, and where the screen let the image through.
    "kind": Output("BYTES", lambda d: d.raw.verdict.kind or "", blocked=None),
    "logits": Output("FP32", lambda d: d.served.outputs.logits, ("K",), "full"),
    # The answer is explained on the pixels that gave it; regions and scores are those of the input as it came.
    "saliency": Output("FP32", lambda d: d.explained.served.saliency, ("H", "W"), explained=True),
    "roi": Output("FP32", lambda d: d.explained.raw.roi, ("H", "W"), explained=True),
    "roa": Output("FP32", lambda d: d.explained.raw.roa, ("H", "W"), explained=True),
    "neutral_mask": Output("FP32", _neutral_mask, ("H", "W"), explained=True),
    "neutral_pixels": Output("FP32", _neutral_pixels, ("C", "H", "W"), explained=True),
    "scores": Output("FP32", lambda d: d.explained.raw.scores, ("S",), "full", explained=True),
    "layer_deviation": Output("FP32", lambda d: d.explained.raw.layer_deviation, ("L",), "full", explained=True),
}


def shape_of(name: str, manifest: Manifest) -> list[int]:
    """Shape of one row of an output."""
    spec = manifest.input
    sizes: dict[Axis, int] = {
        "K": len(manifest.classes),
        "H": spec.height,
        "W": spec.width,
        "C": spec.channels,
        "S": len(manifest.scores),
        "L": len(manifest.layers),
    }
    return [sizes[axis] for axis in OUTPUTS[name].axes]


def visible(disclosure: Disclosure) -> list[str]:
    """The outputs that a caller may ask for."""
    return [name for name, output in OUTPUTS.items() if shows(disclosure, output.least)]


def wanted(request: InferRequest, disclosure: Disclosure, *, certified: bool = False) -> dict[str, bool]:
    """The outputs to send, in the request's order, and which of them as binary data.

    Without a list, those of `DEFAULT` that the caller may see. Raises `BadParameter` for a name that does not exist or
    is given twice, or that needs a certificate where none is made (`certified`), and `Forbidden` for one that the
    caller may not see.
    """
    may = visible(disclosure)
    binary = flag(request.parameters, "binary_data_output", default=False)
    if not request.outputs:
        return {name: binary for name in DEFAULT if name in may}
    names: dict[str, bool] = {}
    for output in request.outputs:
        shown = f"output {output.name[:80]!r}"
        if output.name not in OUTPUTS:
            raise BadParameter(f"{shown} does not exist (has {', '.join(may)})")
        if output.name not in may:
            raise Forbidden(f"{shown} is not for callers at disclosure {disclosure} (may ask for {', '.join(may)})")
        if output.name == "certificate" and not certified:
            raise BadParameter(f"{shown}: send the parameter certify, 'patch', too")
        if output.name in names:
            raise BadParameter(f"{shown} is asked for twice")
        check_parameters(shown, output.parameters, "binary_data")
        names[output.name] = flag(output.parameters, "binary_data", default=binary)
    return names


def values_of(name: str, decisions: Sequence[Decision], manifest: Manifest, disclosure: Disclosure) -> np.ndarray:
    """The tensor (N, ...) of an output; of BYTES an object array of text."""
    output = OUTPUTS[name]
    dtype: Any = object if output.datatype == "BYTES" else DTYPES[output.datatype]
    values = np.empty((len(decisions), *shape_of(name, manifest)), dtype)
    for i, decision in enumerate(decisions):
        values[i] = output.blocked if decision.withheld and output.blocked is not None else output.row(decision)
    if name == "p_value" and not shows(disclosure, "full"):
        values[:] = [coarse_p_value(p) for p in values.tolist()]
    return values


def parameters_of(decisions: Sequence[Decision], disclosure: Disclosure) -> Parameters | None:
    """The verdict in `parameters`: of the image where there is one, else counts over the batch."""
    blocked: Parameters = {"blocked": count} if (count := sum(d.withheld for d in decisions)) else {}
    if not shows(disclosure, "verdict"):
        return blocked or None
    verdict = decisions[0].raw.verdict
    parameters: Parameters = {"action": decisions[0].action}
    if len(decisions) == 1:
        full = shows(disclosure, "full")
        parameters |= {
            "flagged": verdict.flagged,
            "level": verdict.level,
            "p_value": verdict.p_value if full else coarse_p_value(verdict.p_value),
            "neutralized": decisions[0].serve_neutralized,
            "pooled": decisions[0].pooled is not None,
        }
        if verdict.kind is not None:
            parameters["kind"] = verdict.kind
        if full:
            parameters["stage"] = decisions[0].stage
            for name in ("p_unfamiliar", "p_attacked"):
                if (p := getattr(verdict, name)) is not None:
                    parameters[name] = p
    else:
        flagged = sum(decision.flagged for decision in decisions)
        parameters |= {"any_flagged": flagged > 0, "flagged": flagged}
    certificates = [decision.certificate for decision in decisions if decision.certificate is not None]
    if certificates:
        parameters |= {
            "certificate_patch_side": certificates[0].masks.patch,
            "certificate_forwards": sum(certificate.forwards for certificate in certificates),
        }
        if len(decisions) == 1:
            parameters["certificate"] = certificates[0].level
    if shows(disclosure, "full"):
        parameters["alpha"] = verdict.alpha
    return parameters | blocked
