"""Tensors of the Open Inference Protocol on the wire: JSON and the binary tensor data extension, read and written.

Numbers are little-endian and row-major; an element of BYTES is its length (uint32) and its bytes. In JSON the elements
of BYTES are text, and those of an input are base64 (docs/api.md, "Open Inference Protocol v2").
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import chain
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from gateway.answers.certificate_request import Asked
from gateway.errors import BadParameter, ImageTooLarge
from gateway.http.bodies import StrictBody
from gateway.names import nearest

# Parsed JSON takes up to 25 times its own size.
MAX_JSON_BYTES = 4_000_000
DTYPES = {"BOOL": "?", "UINT8": "u1", "INT64": "<i8", "FP32": "<f4"}
# By the kind of numpy's dtype: the JSON values that are elements of such a tensor, and what they are called.
_ELEMENTS: dict[str, tuple[set[type], str]] = {
    "b": ({bool}, "true and false"),
    "u": ({int}, "integers"),
    "i": ({int}, "integers"),
    "f": ({int, float}, "numbers"),
}
_UNSUPPORTED = ("classification", "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")
CERTIFICATE_PARAMETERS = tuple(field.name for field in fields(Asked))
_ASKED = TypeAdapter(Asked)
# So near to a parameter of this server that it is a slip, not an extension of another server.
_SLIP = 0.85

Parameters = dict[str, bool | int | float | str]
# Each name is compared with those that are read here, which takes longer than to parse it.
_Given = Annotated[Parameters, Field(max_length=64)]


class TensorRequest(StrictBody):
    """An input: its `data` are flat or nested, or follow the JSON (`parameters.binary_data_size`)."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(min_length=1, max_length=4)]
    datatype: str
    parameters: _Given | None = None
    data: list[Any] | None = None


class RequestedOutput(StrictBody):
    """An output that is asked for; `parameters.binary_data` for this one."""

    name: str
    parameters: _Given | None = None


class InferRequest(StrictBody):
    """`parameters.binary_data_output`: whether outputs without `binary_data` are sent as binary data.

    `model_name` is what KServe's client repeats from the path.
    """

    id: Annotated[str, Field(max_length=256)] | None = None
    model_name: str | None = None
    parameters: _Given | None = None
    inputs: Annotated[list[TensorRequest], Field(min_length=1, max_length=8)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=64)] | None = None


class TensorResponse(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters | None = None
    data: list[Any] | None = None


class InferResponse(BaseModel):
    """One row of each output for each image of the request."""

    model_name: str
    model_version: str | None = None
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[TensorResponse]


@dataclass(frozen=True)
class Input:
    """An input tensor as it came; `blob` are its binary data, if it has any."""

    tensor: TensorRequest
    blob: memoryview | None

    def numbers(self) -> np.ndarray:
        """The tensor in the declared shape, its datatype one of `DTYPES`; `BadParameter` names what does not fit."""
        tensor = self.tensor
        dtype = np.dtype(DTYPES[tensor.datatype])
        if self.blob is not None:
            _check_size(tensor, len(self.blob), math.prod(tensor.shape) * dtype.itemsize)
            return np.frombuffer(self.blob, dtype).reshape(tensor.shape)
        return _numbers(tensor, dtype)

    def items(self) -> list[bytes]:
        """The elements of a tensor of BYTES."""
        tensor = self.tensor
        items = (
            list(_split(tensor, self.blob))
            if self.blob is not None
            else [_decoded(tensor, text) for text in _elements(tensor)]
        )
        if len(items) != math.prod(tensor.shape):
            raise BadParameter(f"{tensor.name}: {len(items)} elements do not match the declared shape {tensor.shape}")
        return items


def read_request(body: bytes, header_length: str | None) -> tuple[InferRequest, dict[str, Input]]:
    """The request and its inputs by name; `header_length` is the value of `Inference-Header-Content-Length`.

    Raises `BadParameter`, or `ImageTooLarge` for more JSON than `MAX_JSON_BYTES`.
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    if length > MAX_JSON_BYTES:
        raise ImageTooLarge(
            f"{length} bytes of JSON, at most {MAX_JSON_BYTES} are accepted: send tensors as binary data"
        )
    request = InferRequest.read(body[:length])
    check_parameters("the request", request.parameters, "binary_data_output", *CERTIFICATE_PARAMETERS)
    inputs: dict[str, Input] = {}
    rest = memoryview(body)[length:]
    for tensor in request.inputs:
        if tensor.name in inputs:
            raise BadParameter(f"{tensor.name[:80]}: this input is given twice")
        check_parameters(tensor.name[:80], tensor.parameters, "binary_data_size")
        blob, rest = _take(tensor, rest)
        inputs[tensor.name] = Input(tensor, blob)
    if rest:
        raise BadParameter(f"{len(rest)} bytes after the last tensor")
    return request, inputs


def write_response(response: InferResponse, blobs: Iterable[bytes]) -> tuple[bytes, dict[str, str]]:
    """The body and headers of a response; `blobs` are the binary data of its outputs in their order."""
    head = json.dumps(response.model_dump(exclude_none=True), ensure_ascii=False, separators=(",", ":")).encode()
    binary = b"".join(blobs)
    if not any(output.data is None for output in response.outputs):
        return head, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return head + binary, headers


def write_tensor(name: str, datatype: str, values: np.ndarray, *, binary: bool) -> tuple[TensorResponse, bytes]:
    """An output and its binary data (empty for JSON); `values` of BYTES are an object array of text."""
    shape = list(values.shape)
    if not binary:
        return TensorResponse(name=name, shape=shape, datatype=datatype, data=values.ravel().tolist()), b""
    if datatype == "BYTES":
        items = [text.encode() for text in values.ravel().tolist()]
        blob = b"".join(struct.pack("<I", len(item)) + item for item in items)
    else:
        blob = np.ascontiguousarray(values, DTYPES[datatype]).tobytes()
    parameters: Parameters = {"binary_data_size": len(blob)}
    return TensorResponse(name=name, shape=shape, datatype=datatype, parameters=parameters), blob


def check_parameters(where: str, parameters: Parameters | None, *known: str) -> None:
    """Raises `BadParameter` for unsupported parameters that would change the answer, and for slips of `known`.

    All others are extensions of the protocol that this server does not have, and are ignored.
    """
    for name in parameters or ():
        if name in _UNSUPPORTED:
            raise BadParameter(f"{where}: the parameter {name} is not supported")
        meant = None if name in known else nearest(name, list(known), cutoff=_SLIP)
        if meant is not None:
            raise BadParameter(f"{where}: unknown parameter {name[:60]!r}; did you mean {meant!r}?")


def flag(parameters: Parameters | None, name: str, *, default: bool) -> bool:
    """A boolean parameter; `BadParameter` if it is something else."""
    value = (parameters or {}).get(name, default)
    if not isinstance(value, bool):
        raise BadParameter(f"parameter {name}: must be true or false")
    return value


def asked_certificate(parameters: Parameters | None) -> Asked:
    """What the parameters of a request say of certificates; `BadParameter` for a value that none of them has."""
    given = {name: value for name, value in (parameters or {}).items() if name in CERTIFICATE_PARAMETERS}
    try:
        return _ASKED.validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadParameter(f"parameter {first['loc'][0]}: {first['msg']}") from None


def _length(header: str, limit: int) -> int:
    if not (header.isascii() and header.isdecimal()) or len(header) > 12 or int(header) > limit:
        raise BadParameter(f"Inference-Header-Content-Length: must be 0 to {limit}, the body's length")
    return int(header)


def _take(tensor: TensorRequest, rest: memoryview) -> tuple[memoryview | None, memoryview]:
    """The binary data of `tensor`, if it declares any, and what is left of `rest`."""
    name = tensor.name[:80]
    size = (tensor.parameters or {}).get("binary_data_size")
    if size is None:
        if tensor.data is None:
            raise BadParameter(f"{name}: has neither data nor the parameter binary_data_size")
        return None, rest
    if tensor.data is not None:
        raise BadParameter(f"{name}: has both data and the parameter binary_data_size")
    if type(size) is not int or not 0 <= size <= len(rest):
        raise BadParameter(f"{name}: binary_data_size must be 0 to {len(rest)}, the number of bytes that follow")
    return rest[:size], rest[size:]


def _check_size(tensor: TensorRequest, found: int, expected: int) -> None:
    if found != expected:
        raise BadParameter(
            f"{tensor.name}: {found} bytes of binary data, {tensor.datatype} {tensor.shape} takes {expected}"
        )


def _numbers(tensor: TensorRequest, dtype: np.dtype[Any]) -> np.ndarray:
    """The elements of `data`: booleans, integers or numbers as `dtype` takes them; nothing is converted to fit."""
    values = _elements(tensor)
    allowed, what = _ELEMENTS[dtype.kind]
    others = set(map(type, values)) - allowed
    if others:
        shown = next(value for value in values if type(value) in others)
        raise BadParameter(f"{tensor.name}: {tensor.datatype} takes {what} (got {json.dumps(shown)[:60]})")
    if dtype.kind in "iu" and values:
        bounds = np.iinfo(dtype)
        if min(values) < bounds.min or max(values) > bounds.max:
            raise BadParameter(f"{tensor.name}: {tensor.datatype} takes integers from {bounds.min} to {bounds.max}")
    try:
        # Numbers by way of float64: an integer beyond it raises, one beyond a smaller type becomes infinite.
        numbers = np.array(values, np.float64 if dtype.kind == "f" else dtype)
    except OverflowError:
        numbers = np.array([np.inf])
    with np.errstate(over="ignore"):
        numbers = numbers.astype(dtype)
    if not np.isfinite(numbers).all():
        raise BadParameter(f"{tensor.name}: {tensor.datatype} takes finite numbers of its range")
    return numbers.reshape(tensor.shape)


def _elements(tensor: TensorRequest) -> list[Any]:
    """The elements of `data`, which is flat or nested exactly as the shape requires."""
    shape, count = tensor.shape, math.prod(tensor.shape)
    level: list[Any] = [tensor.data or []]
    nested = _has_lists(level[0])
    for size in shape if nested else [count]:
        if not (set(map(type, level)) <= {list} and set(map(len, level)) <= {size}):
            break
        level = list(chain.from_iterable(level))
    else:
        if not _has_lists(level):
            return level
    raise BadParameter(
        f"{tensor.name}: data must have the shape {shape} that is declared, as a flat list of {count} elements or as "
        "lists nested in that shape"
    )


def _has_lists(values: list[Any]) -> bool:
    return list in set(map(type, values))


def _decoded(tensor: TensorRequest, text: Any) -> bytes:
    if not isinstance(text, str):
        raise BadParameter(f"{tensor.name}: in JSON an element of BYTES is base64 text")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadParameter(f"{tensor.name}: an element is not base64; send BYTES as base64 or as binary data") from None


def _split(tensor: TensorRequest, blob: memoryview) -> Iterable[bytes]:
    position = 0
    while position < len(blob):
        start = position + 4
        position = start + int.from_bytes(blob[position:start], "little")
        if start > len(blob) or position > len(blob):
            raise BadParameter(f"{tensor.name}: the length of an element goes beyond the binary data")
        yield bytes(blob[start:position])
