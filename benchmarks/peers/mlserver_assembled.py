"""A runtime of MLServer with the work of `benchmarks/assembled/onnx_service.py`, but for the judgement of the scores.

It runs in MLServer's own environment, with the sessions' graphs beside it. Requests share batches (`max_batch_size`).
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from PIL import Image


class Assembled(MLModel):  # type: ignore[misc]  # it is installed in an environment of its own
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(self.settings.parameters.extra["threads"])
        self._side = int(self.settings.parameters.extra["side"])
        self._sessions = [
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for path in sorted(Path(__file__).parent.glob("*.onnx"))
        ]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        pixels = np.stack([self._decoded(file) for file in Base64Codec.decode_input(payload.inputs[0])])
        outputs = []
        for session in self._sessions:
            names = [output.name for output in session.get_outputs()]
            for name, values in zip(names, session.run(names, {"pixels": pixels}), strict=True):
                if name == "saliency":  # of bytes, as the other services send it
                    maps = [(heat * 255).astype(np.uint8).tobytes() for heat in values]
                    outputs.append(Base64Codec.encode_output(name, maps))
                else:
                    outputs.append(NumpyCodec.encode_output(name, values))
        return InferenceResponse(model_name=self.name, outputs=outputs)

    def _decoded(self, file: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(file)).convert("RGB").resize((self._side, self._side))
        return np.asarray(image, np.float32).transpose(2, 0, 1) / np.float32(255)
