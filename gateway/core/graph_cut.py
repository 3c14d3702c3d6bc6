"""An ONNX file cut down to what one of its outputs needs, on the bytes of the file.

A masked forward pass needs the answering network alone, and the parts of a bundle compute its verdict with it. ONNX
Runtime runs every node of a graph whichever outputs are fetched, and the gateway does without the package `onnx`; so
the few messages of the format that matter here (onnx.proto: `ModelProto`, `GraphProto`, `NodeProto`) are read as
protobuf's wire format, and copied as they are. Weights stay where they are, in the file beside the graph.
"""

from __future__ import annotations

from collections.abc import Iterator

# Field numbers of onnx.proto, which never change.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_OUTPUT, _GRAPH_VALUE_INFO, _GRAPH_SPARSE = 1, 5, 12, 13, 15
_NODE_INPUT, _NODE_OUTPUT, _NODE_ATTRIBUTE = 1, 2, 5
_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 6, 11
_VALUE_NAME, _TENSOR_NAME = 1, 8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def cut_to(model: bytes, output: str) -> bytes:
    """The ONNX model `model` with the one output `output`, and only the nodes and initializers that it needs.

    Inputs, operator sets and the order of nodes stay. Raises `ValueError` where the bytes are no ONNX model, or no
    output has that name.
    """
    fields = list(_fields(model))
    graphs = [content for number, content, _ in fields if number == _MODEL_GRAPH]
    if len(graphs) != 1 or not isinstance(graphs[0], bytes):
        raise ValueError("not an ONNX model: it has no graph")
    graph = _cut_graph(graphs[0], output)
    return b"".join(_message(_MODEL_GRAPH, graph) if number == _MODEL_GRAPH else raw for number, _, raw in fields)


def _cut_graph(graph: bytes, output: str) -> bytes:
    fields = list(_fields(graph))
    if output not in {_name(content, _VALUE_NAME) for number, content, _ in fields if number == _GRAPH_OUTPUT}:
        raise ValueError(f"the graph has no output {output!r}")
    needed, kept = {output}, set[int]()
    for i in range(len(fields) - 1, -1, -1):  # nodes are in topological order
        number, content, _ = fields[i]
        if number == _GRAPH_NODE and needed & set(_names(content, _NODE_OUTPUT)):
            kept.add(i)
            needed |= _reads(content)
    whole = b""
    for i, (number, content, raw) in enumerate(fields):
        if number == _GRAPH_NODE:
            whole += raw if i in kept else b""
        elif number == _GRAPH_OUTPUT:
            whole += raw if _name(content, _VALUE_NAME) == output else b""
        elif number == _GRAPH_INITIALIZER:
            whole += raw if _name(content, _TENSOR_NAME) in needed else b""
        elif number == _GRAPH_SPARSE:
            raise ValueError("sparse initializers are not supported")
        elif number != _GRAPH_VALUE_INFO:  # shapes of values, some of which are gone; they are optional
            whole += raw
    return whole


def _reads(node: int | bytes) -> set[str]:
    """Names that a node reads, with those that its subgraphs may read from the graph around them."""
    found = set(_names(node, _NODE_INPUT))
    for number, attribute, _ in _fields(node):
        if number != _NODE_ATTRIBUTE:
            continue
        for kind, graph, _ in _fields(attribute):
            if kind not in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                continue
            for inner, content, _ in _fields(graph):
                if inner == _GRAPH_NODE:
                    found |= _reads(content)
                elif inner == _GRAPH_OUTPUT:  # a branch may return a value of the graph around it
                    found.add(_name(content, _VALUE_NAME))
    return found - {""}


def _names(message: int | bytes, field: int) -> list[str]:
    """The strings in a field of a message that may repeat."""
    return [
        content.decode() for number, content, _ in _fields(message) if number == field and isinstance(content, bytes)
    ]


def _name(message: int | bytes, field: int) -> str:
    return next(iter(_names(message, field)), "")


def _fields(message: int | bytes) -> Iterator[tuple[int, int | bytes, bytes]]:
    """Of each field of a message: its number, its content (a number, or bytes), and the field as it is stored."""
    if isinstance(message, int):
        raise ValueError("not an ONNX model: a number where a message is expected")  # noqa: TRY004  # of a value
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        content: int | bytes = 0
        if kind == _VARINT:
            content, at = _varint(message, at)
        elif kind == _BYTES:
            size, at = _varint(message, at)
            content, at = message[at : at + size], at + size
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"not an ONNX model: wire type {kind}")
        if at > len(message):
            raise ValueError("not an ONNX model: it ends early")
        yield number, content, message[start:at]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
    raise ValueError("not an ONNX model: it ends early")


def _message(number: int, content: bytes) -> bytes:
    return _number(number << 3 | _BYTES) + _number(len(content)) + content


def _number(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
