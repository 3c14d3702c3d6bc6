"""Hostile requests of the Open Inference Protocol: read to images of the model's shape, or refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.manifest import InputSpec
from gateway.errors import PalisadeError
from gateway.http.routes.oip.images import read_images
from gateway.http.routes.oip.outputs import OUTPUTS, wanted
from gateway.http.routes.oip.tensors import read_request

SPEC = InputSpec(height=8, width=8, channels=1)
SIZE = 64

numbers: st.SearchStrategy[object] = st.one_of(
    st.integers(-2, 300), st.floats(), st.sampled_from([10**30, 1e308, -0.0, True, None, "1", "x" * 50, [], {}])
)
shapes = st.one_of(
    st.sampled_from([[1, 8, 8, 1], [1, 1, 8, 8], [2, 8, 8, 1], [1], [2, 1], [0, 8, 8, 1]]),
    st.lists(st.one_of(st.integers(-1, 9), st.sampled_from([2**31, 2**63, 2**64])), max_size=5),
)
data = st.one_of(
    st.none(),
    st.lists(numbers, max_size=4),
    st.builds(lambda value, n: [value] * n, numbers, st.sampled_from([SIZE - 1, SIZE, 2 * SIZE])),
    st.builds(lambda value: [[[[value]] * 8] * 8], numbers),
    st.lists(st.text(max_size=8), max_size=3),
)
parameters = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "binary_data_output", "classification", "x"]),
    st.one_of(st.integers(-1, 70), st.sampled_from([SIZE, 4 * SIZE, True, 1.5, "a", None, 2**70])),
    max_size=2,
)
inputs = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["pixels", "image", "other", ""]),
        "shape": shapes,
        "datatype": st.sampled_from(["UINT8", "FP32", "BYTES", "FP16", ""]),
    },
    optional={"data": data, "parameters": parameters},
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(inputs, max_size=3)},
    optional={
        "id": st.text(max_size=5),
        "parameters": parameters,
        "outputs": st.lists(
            st.fixed_dictionaries({"name": st.sampled_from([*OUTPUTS, "other"])}, optional={"parameters": parameters}),
            max_size=3,
        ),
    },
)
blobs = st.one_of(st.binary(max_size=80), st.sampled_from([bytes(SIZE), bytes(4 * SIZE), b"\x02\0\0\0ab"]))


def read(body: bytes, header_length: str | None) -> None:
    try:
        request, tensors = read_request(body, header_length)
        outputs = wanted(request, "full")
        images = read_images(tensors, SPEC, 4)
    except PalisadeError as error:
        assert error.status < 500
        assert len(error.detail) < 1000
        return
    assert set(outputs) <= set(OUTPUTS)
    assert 1 <= len(images) <= 4
    for image in images:
        if isinstance(image, np.ndarray):
            assert (image.shape, image.dtype.name) in [((8, 8, 1), "uint8"), ((1, 8, 8), "float32")]
            assert image.min() >= 0
            assert image.max() <= (255 if image.dtype == np.uint8 else 1)


@given(requests, blobs, st.integers(-3, 3))
def test_odd_requests(request: dict[str, Any], blob: bytes, off: int) -> None:
    head = json.dumps(request).encode()
    read(head, None)
    read(head + blob, str(len(head) + (off if abs(off) == 3 else 0)))


@given(requests, blobs, st.data())
def test_damaged_requests(request: dict[str, Any], blob: bytes, draw: st.DataObject) -> None:
    body = bytearray(json.dumps(request).encode() + blob)
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, len(body)))
        body[at : at + draw.draw(st.integers(0, 4))] = draw.draw(st.binary(max_size=4))
    read(bytes(body), draw.draw(st.one_of(st.none(), st.integers(-1, len(body) + 1).map(str), st.text(max_size=3))))
