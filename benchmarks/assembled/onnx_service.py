"""ONNX Runtime with a session for each question: forward, companion, scores (its own views), forward with gradient."""

from __future__ import annotations

import base64
import os
import tempfile
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import onnx
import onnxruntime as ort
from PIL import Image

from benchmarks.assembled.answer import answer
from gateway.core.loading import load_bundle
from gateway.core.verdict import Judge
from training.export.parts import cut

QUESTIONS = {
    "forward": ["logits"],
    "companion": ["companion_logits"],
    "scores": ["scores", "layer_deviation"],
    "saliency": ["saliency"],
}


@bentoml.service(name="assembled_onnx", workers=1, threads=2, metrics={"enabled": False})
class Assembled:
    def __init__(self) -> None:
        self.bundle = load_bundle(Path(os.environ["ASSEMBLED_BUNDLE"]))
        self.judge = Judge(self.bundle, self.bundle.calibration("cpu"))
        whole = onnx.load(str(self.bundle.path / self.bundle.manifest.graphs["full"].file))
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("ASSEMBLED_THREADS", "2"))
        self.sessions = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, outputs in QUESTIONS.items():
                path = str(Path(folder) / f"{name}.onnx")
                onnx.save(cut(whole, outputs), path)
                self.sessions[name] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    @bentoml.api(route="/predict")  # type: ignore[untyped-decorator]
    def predict(self, image: Image.Image) -> dict[str, Any]:
        spec = self.bundle.manifest.input
        small = image.convert("RGB").resize((spec.width, spec.height))
        x = np.asarray(small, np.float32).transpose(2, 0, 1)[None] / 255
        (logits,) = self.sessions["forward"].run(["logits"], {"pixels": x})
        (companion,) = self.sessions["companion"].run(["companion_logits"], {"pixels": x})
        scores, deviation = self.sessions["scores"].run(["scores", "layer_deviation"], {"pixels": x})
        (heat,) = self.sessions["saliency"].run(["saliency"], {"pixels": x})
        verdict = self.judge.judge(scores, deviation)[0]
        saliency = base64.b64encode((heat[0] * 255).astype(np.uint8).tobytes()).decode()
        return answer(self.bundle, logits[0], companion[0], verdict, saliency)
