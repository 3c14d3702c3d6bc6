"""PyTorch eager and captum: forward, two views and companion, then captum's `Saliency`, image by image."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import torch
from captum.attr import Saliency
from PIL import Image

from benchmarks.assembled.answer import answer
from gateway.core.loading import load_bundle
from gateway.core.verdict import Judge
from training.bundling.networks import load_defence


@bentoml.service(name="assembled_torch", workers=1, threads=2, metrics={"enabled": False})
class Assembled:
    def __init__(self) -> None:
        torch.set_num_threads(int(os.environ.get("ASSEMBLED_THREADS", "2")))
        self.bundle = load_bundle(Path(os.environ["ASSEMBLED_BUNDLE"]))
        self.judge = Judge(self.bundle, self.bundle.calibration("cpu"))
        self.defence = load_defence(self.bundle)
        self.saliency = Saliency(self.defence.network)

    @bentoml.api(route="/predict")  # type: ignore[untyped-decorator]
    def predict(self, image: Image.Image) -> dict[str, Any]:
        spec = self.bundle.manifest.input
        small = image.convert("RGB").resize((spec.width, spec.height))
        x = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)[None].float() / 255
        assert self.defence.companion is not None
        with torch.no_grad():
            logits, taps = self.defence.network.taps(x)
            companion = self.defence.companion(x)
            scores, deviation = self.defence.detector_scores(x, logits, taps, companion)
        index = int(logits.argmax())
        heat = self.saliency.attribute(x.requires_grad_(), target=index).amax(1)[0]
        verdict = self.judge.judge(scores.numpy(), deviation.numpy())[0]
        saliency = base64.b64encode((heat / heat.amax().clamp_min(1e-12) * 255).byte().numpy().tobytes()).decode()
        return answer(self.bundle, logits[0].numpy(), companion[0].numpy(), verdict, saliency)
