"""A bundle small enough to be made in a test: a colour classifier with the defence graph's signature.

Its parts are cut from one graph, as the shipped ones are. Classes are the mean colour of the image (blue counts four
times). Saturated pixels, any channel above 0.98, are the region of attack and raise both scores; what is under the mask
becomes grey 0.5.
"""

from __future__ import annotations

import io
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from gateway.core.certificate import By
from gateway.core.loading import hash_files, read_manifest, write_manifest
from gateway.core.manifest import (
    Calibration,
    Cascade,
    Cutoff,
    Guard,
    InputSpec,
    Manifest,
    MonitoredLayer,
    Policy,
    Recovery,
    expected_inputs,
    graphs_sha256,
)
from gateway.core.rules import PoolRule, VoteRule
from gateway.core.small_field import SMALL_FIELD, SmallFieldSpec
from gateway.core.verdict import Fusion, component_p, fisher
from training.bundling.rules import add_rule
from training.export.parts import graph_specs, split_parts, write_parts
from training.export.proof import append_proof

SIZE = 16
CLASSES = ["red", "green", "blue"]
SCORES = ["neuron_sensitivity", "margin_drop", "unused"]
FUSED = ["neuron_sensitivity", "margin_drop"]
SCREEN_SCORES = ["neuron_sensitivity", "margin_drop"]
LAYERS = ["stem", "stage1"]


def tiny_graph(size: int = SIZE, *, gain: float = 10.0) -> onnx.ModelProto:
    """The graph; see the module's docstring. `gain` scales the logits, by which answers of versions can differ."""
    constants = {
        "one": np.float32(1.0),
        "half": np.float32(0.5),
        "two": np.float32(2.0),
        "high": np.float32(0.98),
        "ten": np.float32(10.0),
        "weights": np.array([gain, gain, 4.0 * gain], np.float32),
        "channel": np.array([1], np.int64),
        "plane": np.array([2, 3], np.int64),
        "area": np.array([1, 2], np.int64),
        "zero_index": np.array(0, np.int64),
    }

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], **attributes)

    nodes = [
        node("Unsqueeze", ["mask", "channel"], "mask4"),
        node("Sub", ["one", "mask4"], "kept"),
        node("Mul", ["pixels", "kept"], "visible"),
        node("Mul", ["half", "mask4"], "fill"),
        node("Add", ["visible", "fill"], "neutral_pixels"),
        node("ReduceMean", ["neutral_pixels", "plane"], "mean", keepdims=0),
        node("Mul", ["mean", "weights"], "logits"),
        node("Mul", ["mean", "ten"], "companion_logits"),
        node("Sub", ["neutral_pixels", "half"], "centred"),
        node("Abs", ["centred"], "distance"),
        node("Mul", ["distance", "two"], "contrast"),
        node("ReduceMax", ["contrast", "channel"], "saliency", keepdims=0),
        node("ReduceMax", ["neutral_pixels", "channel"], "brightest", keepdims=0),
        node("Greater", ["brightest", "high"], "saturated"),
        node("Cast", ["saturated"], "roa", to=TensorProto.FLOAT),
        node("Gather", ["neutral_pixels", "zero_index"], "red", axis=1),
        node("Greater", ["red", "half"], "reddish"),
        node("Cast", ["reddish"], "roi", to=TensorProto.FLOAT),
        node("ReduceMean", ["roa", "area"], "roa_score", keepdims=0),
        node("Unsqueeze", ["roa_score", "channel"], "share"),
        node("Mul", ["share", "ten"], "share10"),
        node("Concat", ["share", "share10", "share"], "scores", axis=1),
        node("Concat", ["share10", "share"], "layer_deviation", axis=1),
        node("Concat", ["share", "share10"], "screen_scores", axis=1),
    ]

    def tensor(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "tiny",
        [tensor(name, shape) for name, shape in expected_inputs(InputSpec(height=size, width=size)).items()],
        [tensor(name, shape) for name, shape in output_shapes(size).items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def output_shapes(size: int = SIZE) -> dict[str, list[int | str]]:
    k = len(CLASSES)
    return {
        "logits": ["N", k],
        "companion_logits": ["N", k],
        "saliency": ["N", size, size],
        "roi": ["N", size, size],
        "roa": ["N", size, size],
        "roa_score": ["N"],
        "neutral_pixels": ["N", 3, size, size],
        "layer_deviation": ["N", len(LAYERS)],
        "scores": ["N", len(SCORES)],
        "screen_scores": ["N", len(SCREEN_SCORES)],
    }


def write_bundle(
    folder: Path,
    *,
    name: str = "tiny",
    version: str = "1.0.0",
    seed: int = 0,
    classes: list[str] = CLASSES,
    gain: float = 10.0,
    size: int = SIZE,
    strictness: float = 1.0,
    **policy: Any,
) -> Path:
    """Write a sound bundle to `folder`; benign images have up to 2 % saturated pixels.

    `strictness` divides the cutoff at alpha 1 %: of 100, what is unusual is suspect at 5 % and not flagged.
    """
    folder.mkdir(parents=True)
    parts = split_parts(ir.from_proto(tiny_graph(size, gain=gain)))
    write_parts(parts, folder)
    rng = np.random.default_rng(seed)
    select, benign = (np.outer(rng.uniform(0.0, 0.02, n), [1.0, 10.0, 1.0]) for n in (200, 400))
    guard = Guard(score=FUSED[1], share_below=0.5, share=0.5, knee=0.01)
    fusion = Fusion.fit(select, SCORES, FUSED, guard)
    statistic, screen = fusion.statistic(benign), fisher(component_p(fusion.components[:, :2], benign[:, :2]))
    on = screen >= np.quantile(screen, 0.8)
    arrays = {
        "components": fusion.components,
        "fisher": fusion.fisher,
        "fused": np.sort(statistic),
        "cascade": np.sort(statistic[on]),
        "layers": np.sort(rng.uniform(0.0, 1.0, (200, 2)), axis=0),
    }
    named: dict[str, Any] = {f"cpu-fp32/{key}": value for key, value in arrays.items()}
    np.savez(folder / "calibration.npz", **named)
    cutoffs = [Cutoff(alpha=alpha, p_cutoff=alpha * 0.8, confidence=0.95) for alpha in (0.01, 0.05, 0.1)]
    cutoffs[0] = cutoffs[0].model_copy(update={"p_cutoff": cutoffs[0].p_cutoff / strictness})
    calibration = Calibration(
        provider="cpu",
        precision="fp32",
        graphs_sha256=graphs_sha256(hash_files(folder)),
        fused=FUSED,
        guard=guard,
        cutoffs=cutoffs,
        cascade=Cascade(
            scores=SCREEN_SCORES,
            threshold=float(screen[on].min()),
            goes_on=float(on.mean()),
            n_on=int(on.sum()),
            cutoffs=cutoffs,
        ),
        n=400,
        groups=40,
        n_select=200,
        design_effect=1.0,
        roa_threshold=0.005,
        recovery=Recovery(contrast_mean=0.0, contrast_std=0.01, lead_mean=0.0, lead_std=1.0, threshold=0.0),
        date=date(2025, 1, 1),
    )
    manifest = Manifest(
        name=name,
        version=version,
        description="A colour classifier for tests.",
        created=date(2025, 1, 1),
        classes=classes,
        input=InputSpec(height=size, width=size),
        graphs=graph_specs(parts),
        scores=SCORES,
        screen_scores=SCREEN_SCORES,
        layers=[MonitoredLayer(name=layer, channels=4, sensitive=[0]) for layer in LAYERS],
        companion=True,
        calibrations=[calibration],
        policy=Policy(**policy),
        files=hash_files(folder),
    )
    write_manifest(folder, manifest)
    return folder


def add_votes(folder: Path, *, patch: int = 6, groups: int = 400, by: By = "masks", whole: float | None = None) -> Path:
    """Let masks for patches of `patch` vote on verdicts of the bundle in `folder`; benign objections are negative."""
    masks = 4 if by == "masks" else None
    rule = VoteRule(patch=patch, by=by, masks_per_axis=masks, whole=whole, n=400, groups=groups)
    arrays = {"votes": np.linspace(-1.0, -0.01, 400), "vote_weights": np.full(400, groups / 400)}
    add_rule(folder, read_manifest(folder), "cpu-fp32", arrays, votes=rule)
    return folder


def add_pool(folder: Path, *, small_field: float | None = None, threshold: float = 0.0) -> Path:
    """Let a pool answer what is suspect, for the bundle in `folder`; its companion sees no more in blue than in red."""
    rule = PoolRule(
        answering=0.5, companion=1.0, small_field=small_field, threshold=threshold, harmed=0.01, n=400, groups=40
    )
    add_rule(folder, read_manifest(folder), "cpu-fp32", {}, pool=rule)
    return folder


def doubtful_image() -> np.ndarray:
    """A red image with a blue square, for which the classifier says blue, and saturated pixels outside of it."""
    image = clean_image((150, 0, 0))
    image[4:10, 4:10] = (0, 0, 249)
    image[12:14, 0:8] = 255
    return image


FIELDS = SmallFieldSpec(field=4, stride=2, first=0, height=7, width=7)
"""Of the small-field network: its cells see 4 x 4 pixels, every second one."""


def add_small_field(folder: Path, *, stated: SmallFieldSpec = FIELDS) -> Path:
    """Give the bundle in `folder` a small-field network that answers like the bundle's own where no pixel is bright."""
    weights = np.zeros((3, 3, 4, 4), np.float32)
    for channel, gain in enumerate((10.0, 10.0, 40.0)):
        weights[channel, channel] = gain / (16 * FIELDS.height * FIELDS.width)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["pixels", "weights"], ["cells"], strides=[FIELDS.stride] * 2)],
        "small_field",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("cells", TensorProto.FLOAT, ["N", 3, FIELDS.height, FIELDS.width])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    append_proof(model, len(CLASSES))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(folder / SMALL_FIELD))
    write_manifest(folder, read_manifest(folder).model_copy(update={"small_field": stated}), as_read=True)
    return folder


def clean_image(colour: tuple[int, int, int] = (120, 0, 0)) -> np.ndarray:
    """uint8 (H, W, 3) of one colour."""
    return np.full((SIZE, SIZE, 3), colour, np.uint8)


def patched_image() -> np.ndarray:
    """A red image with a saturated blue square, for which the classifier says blue."""
    image = clean_image()
    image[4:10, 4:10] = (0, 0, 255)
    return image


def speckled_image() -> np.ndarray:
    """A green image with two saturated pixels, one in the RoI: conspicuous, but no more than benign images are."""
    image = clean_image((0, 120, 0))
    image[2, 2] = (0, 255, 0)
    image[3, 3] = (255, 255, 0)
    return image


def encode(image: np.ndarray, fmt: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, fmt, **options)
    return buffer.getvalue()
