"""The shipped graphs in fp16 against themselves in fp32, on committed images, with every result rounded to float16."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from gateway.core.engine import Engine
from gateway.core.manifest import InputSpec, Part
from tests.training.rounded import rounded
from training.export.half import halved
from training.export.parts import graph_specs, write_parts


def test_fp16_agrees(bundle, engine, pixels, tmp_path):
    some = pixels[::12]  # clean, attacked and patched ones
    made = halved(ir.from_proto(onnx.load(bundle.path / bundle.manifest.graphs["full"].file)))
    parts: dict[Part, ir.Model] = {"full": ir.from_proto(rounded(ir.to_proto(made)))}
    write_parts(parts, tmp_path)
    spec = InputSpec(height=some.shape[2], width=some.shape[3])
    found, expected = Engine(tmp_path, graph_specs(parts), spec).run(some), engine.run(some)
    assert found.finite.all()
    assert np.abs(found.logits - expected.logits).max() < 0.01 * np.abs(expected.logits).max()
    top = np.sort(expected.logits, axis=1)
    clear = top[:, -1] - top[:, -2] > 0.01 * np.abs(expected.logits).max()
    np.testing.assert_array_equal(found.logits.argmax(1)[clear], expected.logits.argmax(1)[clear])
    assert (np.abs(found.scores - expected.scores).max(0) < 0.02 * expected.scores.std(0)).all()
    assert (np.abs(found.roa_score - expected.roa_score) < 0.01).all()
    assert found.saliency is not None
    for ours, theirs in zip(found.saliency, expected.saliency, strict=True):
        assert ours.max() == 1
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.99
