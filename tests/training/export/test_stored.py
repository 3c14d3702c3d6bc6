from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from gateway.core.manifest import PART_FILES, WEIGHTS
from training.export.parts import write_parts
from training.export.stored import exact_in_half, pack, unpack


def product(weight: np.ndarray) -> onnx.ModelProto:
    """y = x @ weight."""
    n, m = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", n])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", m])],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def random_weight(*, half: bool) -> np.ndarray:
    weight = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    return weight.astype(np.float16).astype(np.float32) if half else weight


def test_what_float16_holds_is_known() -> None:
    assert exact_in_half(np.array([0.5, -3.0, 2.0**-14], np.float32))
    assert not exact_in_half(np.array([0.1], np.float32))
    assert not exact_in_half(np.array([70_000.0], np.float32))
    assert not exact_in_half(np.array([np.nan], np.float32))
    assert not exact_in_half(np.array([1], np.int64))


def test_exact_weights_take_half_the_room_and_give_the_same_bits(tmp_path: Path) -> None:
    weight = random_weight(half=True)
    x = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    write_parts({"full": ir.from_proto(product(weight))}, tmp_path)
    assert (tmp_path / WEIGHTS).stat().st_size == weight.nbytes // 2
    session = ort.InferenceSession(str(tmp_path / PART_FILES["full"]), providers=["CPUExecutionProvider"])
    plain = ort.InferenceSession(product(weight).SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], plain.run(None, {"x": x})[0])


def test_other_weights_stay_as_they_are(tmp_path: Path) -> None:
    weight = random_weight(half=False)
    write_parts({"full": ir.from_proto(product(weight))}, tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == weight.tobytes()


def test_unpacking_gives_the_graph_that_was_packed() -> None:
    model = product(random_weight(half=True))
    graph = ir.from_proto(model)
    pack(graph, smallest=1024)
    packed = ir.to_proto(graph)
    del packed.graph.value_info[:]  # which no part that is written has
    assert len(packed.graph.node) == 2
    onnx.checker.check_model(packed)
    assert unpack(packed) == model
