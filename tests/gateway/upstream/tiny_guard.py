"""A bundle with an upstream, small enough to be made in a test: graphs by hand, answers of a colour classifier.

Saturated pixels are the region of attack; every row but the last is the image, the last has that region painted grey.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gateway.core.loading import hash_files, write_manifest
from gateway.core.manifest import Calibration, Cutoff, InputSpec, Manifest, graphs_sha256
from gateway.core.upstream import UPSTREAM_FILES, Protocol2, Upstream, probe_image
from gateway.core.verdict import Fusion
from tests.gateway.tiny import CLASSES, SIZE
from tests.gateway.upstream.fake import Fake

ROWS, MAPS, SCORES = 5, 4, ["window_drop", "filter_drop"]
K = len(CLASSES)


def colours(rows: np.ndarray) -> np.ndarray:
    """Logits of rows (M, C, H, W): the mean colour, of which blue counts four times."""
    return rows.mean((2, 3)) * np.array([10, 10, 40], np.float32)


def fake_server(**fields: Any) -> Fake:
    return Fake(**{"model": colours, "shape": [-1, 3, SIZE, SIZE], "classes": K, **fields})


def write_guard(folder: Path, url: str, *, model: Callable[[np.ndarray], np.ndarray] = colours, **fields: Any) -> Path:
    """Write a sound bundle whose upstream is a `Fake` at `url`; `fields` change what it states of the upstream."""
    folder.mkdir(parents=True)
    for file, graph in zip(UPSTREAM_FILES, (_rows(), _judge(), _perturb(), _explain()), strict=True):
        onnx.save(graph, str(folder / file))
    rng = np.random.default_rng(0)
    select, benign = (np.outer(rng.uniform(0.0, 0.5, n), [1.0, 1.0]) for n in (200, 400))
    fusion = Fusion.fit(select, SCORES, SCORES)
    arrays: dict[str, Any] = {
        "cpu-fp32/components": fusion.components,
        "cpu-fp32/fisher": fusion.fisher,
        "cpu-fp32/fused": np.sort(fusion.statistic(benign)),
        "cpu-fp32/layers": np.zeros((200, 0)),
    }
    np.savez(folder / "calibration.npz", **arrays)
    logits = model(probe_image(3, SIZE, SIZE))[0].astype(np.float64)
    probe = np.exp(logits) / np.exp(logits).sum()
    upstream = Upstream.model_validate(
        {
            "protocol": Protocol2(url=f"{url}/v2/models/net", input="x", output="logits", binary=True),
            "values": "logits",
            "rows": ROWS,
            "maps": MAPS,
            "probe": probe.tolist(),
            **fields,
        }
    )
    calibration = Calibration(
        provider="cpu",
        precision="fp32",
        graphs_sha256=graphs_sha256(hash_files(folder)),
        fused=SCORES,
        cutoffs=[Cutoff(alpha=alpha, p_cutoff=alpha * 0.8, confidence=0.95) for alpha in (0.01, 0.05)],
        n=400,
        groups=40,
        n_select=200,
        design_effect=1.0,
        roa_threshold=0.005,
        date=date(2025, 1, 1),
    )
    manifest = Manifest(
        name="guarded",
        version="1.0.0",
        created=date(2025, 1, 1),
        classes=CLASSES,
        input=InputSpec(height=SIZE, width=SIZE),
        upstream=upstream,
        scores=SCORES,
        layer_scores=[],
        layers=[],
        companion=False,
        calibrations=[calibration],
        files=hash_files(folder),
    )
    write_manifest(folder, manifest)
    return folder


def _rows() -> onnx.ModelProto:
    nodes = [
        ("Unsqueeze", ["mask", "1"], "mask4", {}),
        ("Sub", ["one", "mask4"], "kept", {}),
        ("Mul", ["pixels", "kept"], "visible", {}),
        ("Mul", ["half", "mask4"], "fill", {}),
        ("Add", ["visible", "fill"], "x", {}),
        ("ReduceMax", ["x", "1"], "brightest", {"keepdims": 0}),
        ("Greater", ["brightest", "high"], "saturated", {}),
        ("Cast", ["saturated"], "roa", {"to": TensorProto.FLOAT}),
        ("ReduceMean", ["roa", "12"], "roa_score", {"keepdims": 0}),
        ("Unsqueeze", ["roa", "1"], "roa4", {}),
        ("Sub", ["one", "roa4"], "calm", {}),
        ("Mul", ["x", "calm"], "rest", {}),
        ("Mul", ["half", "roa4"], "grey", {}),
        ("Add", ["rest", "grey"], "hidden", {}),
        ("Unsqueeze", ["x", "1"], "x5", {}),
        ("Unsqueeze", ["hidden", "1"], "hidden5", {}),
        ("Concat", ["x5"] * (ROWS - 1) + ["hidden5"], "rows", {"axis": 1}),
    ]
    n, image = "N", [3, SIZE, SIZE]
    return _model(
        nodes,
        {"pixels": [n, *image], "mask": [n, SIZE, SIZE]},
        {"rows": [n, ROWS, *image], "roa": [n, SIZE, SIZE], "roa_score": [n]},
    )


def _judge() -> onnx.ModelProto:
    nodes = [
        ("Gather", ["answers", "first"], "own", {"axis": 1}),
        ("Gather", ["answers", "last"], "hidden", {"axis": 1}),
        ("Sub", ["own", "hidden"], "change", {}),
        ("Abs", ["change"], "size", {}),
        ("ReduceMax", ["size", "1"], "drop", {"keepdims": 1}),
        ("Concat", ["drop", "drop"], "scores", {"axis": 1}),
        ("Identity", ["roa"], "roi", {}),
    ]
    maps = ["N", SIZE, SIZE]
    return _model(nodes, {"answers": ["N", ROWS, K], "roa": maps}, {"scores": ["N", len(SCORES)], "roi": maps})


def _perturb() -> onnx.ModelProto:
    nodes = [
        ("Unsqueeze", ["pixels", "1"], "x5", {}),
        ("Concat", ["x5"] * MAPS, "perturbed", {"axis": 1}),
    ]
    image = [3, SIZE, SIZE]
    return _model(nodes, {"pixels": ["N", *image]}, {"perturbed": ["N", MAPS, *image]})


def _explain() -> onnx.ModelProto:
    nodes = [
        ("ReduceMax", ["answers", "12"], "own", {"keepdims": 1}),
        ("ReduceMax", ["perturbed", "12"], "other", {"keepdims": 1}),
        ("Sub", ["own", "other"], "moved", {}),
        ("Clip", ["moved", "zero", "one"], "share", {}),
        ("Mul", ["share", "plane"], "saliency", {}),
    ]
    return _model(nodes, {"answers": ["N", ROWS, K], "perturbed": ["N", MAPS, K]}, {"saliency": ["N", SIZE, SIZE]})


def _model(nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any]) -> onnx.ModelProto:
    constants = {
        "one": np.float32(1),
        "half": np.float32(0.5),
        "zero": np.float32(0),
        "high": np.float32(0.98),
        "plane": np.ones((1, SIZE, SIZE), np.float32),
        "1": np.array([1], np.int64),
        "12": np.array([1, 2], np.int64),
        "first": np.array(0, np.int64),
        "last": np.array(ROWS - 1, np.int64),
    }
    used = {name for _, names, _, _ in nodes for name in names}
    graph = helper.make_graph(
        [helper.make_node(op, names, [output], **attributes) for op, names, output, attributes in nodes],
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model
