"""Rows of images to a server of the Open Inference Protocol v2, and its numbers back: JSON or binary tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from gateway.core.upstream import Protocol2
from gateway.errors import UpstreamInvalid
from gateway.upstream.connection import Answer, Connection, parsed

DTYPES = {"FP32": "<f4", "FP16": "<f2", "FP64": "<f8", "UINT8": "u1"}
_LENGTH = "Inference-Header-Content-Length"


class Protocol2Peer:
    """One model of such a server."""

    def __init__(self, spec: Protocol2, connection: Connection) -> None:
        self.spec = spec
        self._connection = connection

    def values(self, rows: np.ndarray, *, deadline: float = math.inf) -> np.ndarray:
        """The output (M, K) of `rows` float32 (M, C, H, W), as the model takes them; raises the errors of `Connection`.

        `UpstreamInvalid` for an answer without that output, or of another shape.
        """
        n = len(rows)
        if self.spec.batch is not None and n < self.spec.batch:
            rows = np.concatenate([rows, np.zeros((self.spec.batch - n, *rows.shape[1:]), rows.dtype)])
        body, headers = request_of(self.spec, rows)
        answer = self._connection.post(f"{self.spec.url}/infer", body, headers, deadline=deadline)
        return output_of(self.spec.output, len(rows), answer)[:n]


def request_of(spec: Protocol2, rows: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """The body and headers that ask for the output of `rows` (M, C, H, W)."""
    tensor = rows if spec.layout == "nchw" else rows.transpose(0, 2, 3, 1)
    if spec.datatype == "UINT8":
        tensor = np.rint(tensor * 255.0).clip(0, 255)
    tensor = np.ascontiguousarray(tensor, DTYPES[spec.datatype])
    described: dict[str, Any] = {"name": spec.input, "shape": list(tensor.shape), "datatype": spec.datatype}
    wanted: dict[str, Any] = {"name": spec.output}
    if not spec.binary:
        described["data"] = tensor.ravel()  # to the bit
        return _compact({"inputs": [described], "outputs": [wanted]}), {"Content-Type": "application/json"}
    described["parameters"] = {"binary_data_size": tensor.nbytes}
    wanted["parameters"] = {"binary_data": True}
    head = _compact({"inputs": [described], "outputs": [wanted]})
    headers = {"Content-Type": "application/octet-stream", _LENGTH: str(len(head))}
    return head + tensor.tobytes(), headers


def output_of(name: str, n: int, answer: Answer) -> np.ndarray:
    """The output `name` of an answer, float32 (n, K); `UpstreamInvalid` names what does not fit."""
    length = answer.headers.get(_LENGTH)
    end = len(answer.body)
    if length is not None:
        if not (length.isascii() and length.isdecimal()) or int(length) > end:
            raise UpstreamInvalid(f"the upstream's {_LENGTH} is {length[:40]!r}, of {end} bytes")
        end = int(length)
    head, rest = parsed(answer.body[:end]), memoryview(answer.body)[end:]
    outputs = head.get("outputs") if isinstance(head, dict) else None
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise UpstreamInvalid("the upstream's answer has no list of outputs")
    for output in outputs:
        size = _binary_size(output, len(rest))
        blob, rest = (None, rest) if size is None else (rest[:size], rest[size:])
        if output.get("name") == name:
            return _values(output, blob, n)
    raise UpstreamInvalid(f"the upstream's answer has no output {name!r}")


def _binary_size(output: Mapping[str, Any], left: int) -> int | None:
    parameters = output.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        return None
    if type(size) is not int or not 0 <= size <= left:
        raise UpstreamInvalid(f"the upstream's binary_data_size is {str(size)[:40]}, {left} bytes follow")
    return size


def _values(output: Mapping[str, Any], blob: memoryview | None, n: int) -> np.ndarray:
    shape, datatype, name = output.get("shape"), output.get("datatype"), str(output.get("name"))[:80]
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise UpstreamInvalid(f"the upstream's output {name!r} states no shape")
    # Some servers keep axes of one behind the classes.
    if len(shape) < 2 or shape[0] != n or shape[1] < 2 or any(size != 1 for size in shape[2:]):
        raise UpstreamInvalid(f"the upstream's output {name!r} has the shape {str(shape)[:60]}, not [{n}, classes]")
    if datatype not in DTYPES:
        raise UpstreamInvalid(f"the upstream's output {name!r} is {str(datatype)[:20]}, not {' or '.join(DTYPES)}")
    try:
        if blob is not None:
            values = np.frombuffer(blob, DTYPES[datatype])
        else:
            # JSON has no word for NaN; some servers write null.
            values = np.array(_flat(output.get("data")), np.float64)
        return values.reshape(n, shape[1]).astype(np.float32)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise UpstreamInvalid(f"the upstream's output {name!r} has not the numbers that its shape states") from None


def _flat(data: Any) -> list[Any]:
    """The elements of a flat or nested list."""
    if not isinstance(data, list):
        raise TypeError("no list")
    kinds = set(map(type, data))
    if kinds <= {float, int}:
        return data
    if list not in kinds:
        return [math.nan if element is None else _number(element) for element in data]
    return [element for inner in data for element in _flat(inner)]


def _number(element: Any) -> float:
    if isinstance(element, bool) or not isinstance(element, int | float):
        raise TypeError("no number")
    return float(element)


def _compact(head: Mapping[str, Any]) -> bytes:
    return orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
