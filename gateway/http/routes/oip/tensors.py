"""Tensors of the Open Inference Protocol on the wire: JSON and the binary tensor data extension, read and written.

Numbers are little-endian and row-major; an element of BYTES is its length (uint32) and its bytes. In JSON the elements
of BYTES are text, and those of an input are base64 (docs/architecture.md, "Open Inference Protocol").
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from gateway.errors import BadParameter, ImageTooLarge, UnsupportedMediaType

# Parsed JSON takes up to 25 times its own size.
MAX_JSON_BYTES = 4_000_000
DTYPES = {"BOOL": "?", "UINT8": "u1", "INT64": "<i8", "FP32": "<f4"}

Parameters = dict[str, bool | int | float | str]


class TensorRequest(BaseModel):
    """An input: its `data` are flat or nested, or follow the JSON (`parameters.binary_data_size`)."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(min_length=1, max_length=4)]
    datatype: str
    parameters: Parameters = {}
    data: list[Any] | None = None


class RequestedOutput(BaseModel):
    """An output that is asked for; `parameters.binary_data` for this one."""

    name: str
    parameters: Parameters = {}


class InferRequest(BaseModel):
    """`parameters.binary_data_output`: whether outputs that don't say otherwise are sent as binary data."""

    id: Annotated[str, Field(max_length=256)] = ""
    parameters: Parameters = {}
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
        """The tensor (shape as told, its datatype one of `DTYPES`); `BadParameter` says what doesn't fit."""
        tensor = self.tensor
        dtype = np.dtype(DTYPES[tensor.datatype])
        if self.blob is not None:
            _check_size(tensor, len(self.blob), math.prod(tensor.shape) * dtype.itemsize)
            return np.frombuffer(self.blob, dtype).reshape(tensor.shape)
        try:
            # As float64 at once: left to itself numpy makes room for the longest string in every element.
            values = np.asarray(tensor.data, np.float64)
        except (ValueError, TypeError, OverflowError):
            raise BadParameter(f"{tensor.name}: data must be numbers, flat or nested as the shape says") from None
        if values.size != math.prod(tensor.shape) or (values.ndim > 1 and list(values.shape) != tensor.shape):
            raise BadParameter(f"{tensor.name}: data has shape {list(values.shape)}, declared is {tensor.shape}")
        if dtype.kind != "f" and not _fits(values, dtype):
            raise BadParameter(f"{tensor.name}: {tensor.datatype} takes whole numbers of its range")
        with np.errstate(over="ignore"):
            return values.astype(dtype).reshape(tensor.shape)

    def items(self) -> list[bytes]:
        """The elements of a tensor of BYTES."""
        tensor = self.tensor
        items = (
            list(_split(tensor, self.blob)) if self.blob is not None else [_decoded(tensor, d) for d in _data(tensor)]
        )
        if len(items) != math.prod(tensor.shape):
            raise BadParameter(f"{tensor.name}: {len(items)} elements, shape {tensor.shape} declares others")
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
    try:
        request = InferRequest.model_validate_json(body[:length])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadParameter(f"{where + ': ' if where else ''}{first['msg'][:200]}") from None
    inputs: dict[str, Input] = {}
    rest = memoryview(body)[length:]
    for tensor in request.inputs:
        if tensor.name in inputs:
            raise BadParameter(f"{tensor.name[:80]}: this input is there twice")
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


def inflate(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """A body as `Content-Encoding` says it was before; never more than `max_bytes` (`ImageTooLarge`)."""
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:40]!r}: send gzip, deflate or the body as it is")
    reader = zlib.decompressobj(wbits=47)  # the header tells which of the two it is
    try:
        inflated = reader.decompress(body, max_bytes + 1)
    except zlib.error:
        raise BadParameter(f"the body is not {encoding}") from None
    if len(inflated) > max_bytes:
        raise ImageTooLarge(f"the body inflates to more than {max_bytes} bytes")
    if not reader.eof:
        raise BadParameter(f"the body is truncated {encoding}")
    return inflated


def flag(parameters: Parameters, name: str, *, default: bool) -> bool:
    """A boolean parameter; `BadParameter` if it is something else."""
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadParameter(f"parameter {name}: must be true or false")
    return value


def _length(header: str, limit: int) -> int:
    if not (header.isascii() and header.isdecimal()) or len(header) > 12 or int(header) > limit:
        raise BadParameter(f"Inference-Header-Content-Length: must be 0 to {limit}, the body's length")
    return int(header)


def _take(tensor: TensorRequest, rest: memoryview) -> tuple[memoryview | None, memoryview]:
    """The binary data of `tensor`, if it declares any, and what is left of `rest`."""
    name = tensor.name[:80]
    if "binary_data_size" not in tensor.parameters:
        if tensor.data is None:
            raise BadParameter(f"{name}: has neither data nor the parameter binary_data_size")
        return None, rest
    size = tensor.parameters["binary_data_size"]
    if tensor.data is not None:
        raise BadParameter(f"{name}: has both data and the parameter binary_data_size")
    if type(size) is not int or not 0 <= size <= len(rest):
        raise BadParameter(f"{name}: binary_data_size must be 0 to {len(rest)}, the bytes that are there")
    return rest[:size], rest[size:]


def _check_size(tensor: TensorRequest, found: int, expected: int) -> None:
    if found != expected:
        raise BadParameter(
            f"{tensor.name}: {found} bytes of binary data, {tensor.datatype} {tensor.shape} takes {expected}"
        )


def _fits(values: np.ndarray, dtype: np.dtype[Any]) -> bool:
    bounds = np.iinfo(dtype)
    return bool(((values >= bounds.min) & (values <= bounds.max) & (values == np.rint(values))).all())


def _data(tensor: TensorRequest) -> list[Any]:
    """The elements of a BYTES input of shape (N,) or (N, 1)."""
    data = tensor.data or []
    return [item[0] if isinstance(item, list) and len(item) == 1 else item for item in data]


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
