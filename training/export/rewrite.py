"""Rewrites of an exported graph that leave its results alone and save time in ONNX Runtime.

Each returns how many places it changed, so that a test can tell that it still finds them.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def pool_globally(model: onnx.ModelProto) -> int:
    """ReduceMean over height and width -> GlobalAveragePool, which runs in the blocked layout of the convolutions.

    ONNX Runtime would otherwise bring every activation into plain layout only to average it.
    """
    graph, constants = model.graph, _constants(model)
    replaced = 0
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        axes = constants.get(node.input[1]) if node.op_type == "ReduceMean" and len(node.input) > 1 else None
        if axes is None or sorted(axes.ravel().tolist()) not in ([2, 3], [-2, -1]) or _attribute(node, "keepdims", 1):
            nodes.append(node)
            continue
        pooled = node.output[0] + "_pooled"
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name + "_pool"))
        nodes.append(helper.make_node("Flatten", [pooled], [node.output[0]], name=node.name, axis=1))
        replaced += 1
    _set_nodes(graph, nodes)
    return replaced


def skip_inpainting(model: onnx.ModelProto) -> int:
    """Run what leads to `neutral_pixels` only if some entry of `mask` is above 0.5; else it is `pixels`, as it came.

    An `If` of stock ONNX. Inpainting returns pixels outside the mask bit-identical, so that both branches agree where
    no pixel is marked.
    """
    graph = model.graph
    made_by = {output: node for node in graph.node for output in node.output}
    if "neutral_pixels" not in made_by:
        return 0
    # Whatever the rest of the graph needs from before the inpainting (sizes, say) stays where both can read it.
    outside = _ancestors(made_by, {value.name for value in graph.output} - {"neutral_pixels"}, stop="neutral_pixels")
    branch = [node for node in graph.node if node.output[0] not in outside]
    rest = [node for node in graph.node if node.output[0] in outside]
    needed = {name for node in rest for name in node.input}
    made_inside = {output for node in branch for output in node.output}
    pixels = next(value for value in graph.input if value.name == "pixels")
    made = _branch(graph, branch, needed, pixels.type)
    copy = helper.make_graph(
        [helper.make_node("Identity", ["pixels"], ["untouched_pixels"])],
        "untouched",
        [],
        [_value("untouched_pixels", pixels.type)],
    )
    graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "mask_level"))
    condition = [
        helper.make_node("ReduceMax", ["mask"], ["mask_peak"], name="mask_peak", keepdims=0),
        helper.make_node("Greater", ["mask_peak", "mask_level"], ["mask_marked"], name="mask_marked"),
        helper.make_node("If", ["mask_marked"], ["neutral_pixels"], name="inpaint", then_branch=made, else_branch=copy),
    ]
    for value in [value for value in graph.value_info if value.name in made_inside]:
        graph.value_info.remove(value)
    _set_nodes(graph, _in_order([*condition, *rest], {value.name for value in graph.input}))
    return 1


def _ancestors(made_by: dict[str, onnx.NodeProto], names: set[str], *, stop: str) -> set[str]:
    """First outputs of every node that `names` depend on, not looking behind the tensor `stop`."""
    found: set[str] = set()
    wanted = list(names)
    while wanted:
        node = made_by.get(wanted.pop())
        if node is None or stop in node.output or node.output[0] in found:
            continue
        found.add(node.output[0])
        wanted.extend(node.input)
    return found


def _in_order(nodes: list[onnx.NodeProto], inputs: set[str]) -> list[onnx.NodeProto]:
    """`nodes` such that each comes after those it reads from; tensors that no node makes are known from the start."""
    made = {output for node in nodes for output in node.output} - inputs
    known: set[str] = set()
    ordered: list[onnx.NodeProto] = []
    waiting = nodes
    while waiting:
        ready = [node for node in waiting if all(name in known or name not in made for name in _reads(node))]
        if not ready:
            raise ValueError(f"nodes read from one another in a circle: {[node.name for node in waiting[:5]]}")
        known |= {output for node in ready for output in node.output}
        done = {node.output[0] for node in ready}
        ordered, waiting = ordered + ready, [node for node in waiting if node.output[0] not in done]
    return ordered


def _reads(node: onnx.NodeProto) -> set[str]:
    """Tensors that a node needs, those that its branches take from outside included."""
    inner = {name for a in node.attribute if a.HasField("g") for n in a.g.node for name in n.input}
    return set(node.input) | inner


def _branch(
    graph: onnx.GraphProto, nodes: list[onnx.NodeProto], needed: set[str], kind: onnx.TypeProto
) -> onnx.GraphProto:
    """`nodes` as a graph without inputs, with the constants that only they read; its output is `inpainted_pixels`."""
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = ["inpainted_pixels" if name == "neutral_pixels" else name for name in names]
    read = {name for node in nodes for name in node.input}
    own = [tensor for tensor in graph.initializer if tensor.name in read - needed]
    made = helper.make_graph(nodes, "inpainted", [], [_value("inpainted_pixels", kind)], initializer=own)
    for tensor in own:
        graph.initializer.remove(tensor)
    return made


def _value(name: str, kind: onnx.TypeProto) -> onnx.ValueInfoProto:
    value = onnx.ValueInfoProto(name=name)
    value.type.CopyFrom(kind)
    return value


def _constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    found = {tensor.name: tensor for tensor in model.graph.initializer if np.prod(tensor.dims) <= 8}
    for node in model.graph.node:
        if node.op_type == "Constant":
            name = node.output[0]
            found.update((name, attribute.t) for attribute in node.attribute if attribute.name == "value")
    return {name: numpy_helper.to_array(tensor) for name, tensor in found.items()}


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _set_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
