"""Rewrites of an exported graph that leave its results alone and save time in ONNX Runtime.

Each changes the model in place and returns in how many places, so that a test can check that it still finds them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from training.export.draft import ancestors, make


def pool_globally(model: ir.Model) -> int:
    """ReduceMean over height and width -> GlobalAveragePool, which runs in the blocked layout of the convolutions.

    ONNX Runtime would otherwise bring every activation into plain layout only to average it.
    """
    replaced = 0
    for node in model.graph:
        if node.op_type != "ReduceMean" or len(node.inputs) < 2 or node.attributes.get_int("keepdims", 1) != 0:
            continue
        axes = None if node.inputs[1] is None else ir.convenience.get_const_tensor(node.inputs[1])
        if axes is None or sorted(axes.numpy().ravel().tolist()) not in ([2, 3], [-2, -1]):
            continue
        made = node.outputs[0]
        pool = make("GlobalAveragePool", [node.inputs[0]], f"{made.name}_pooled")
        flat = ir.node("Flatten", pool.outputs, {"axis": 1}, name=node.name)
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [pool, flat], [made], flat.outputs)
        replaced += 1
    return replaced


def skip_inpainting(model: ir.Model) -> int:
    """Run what leads to `neutral_pixels` only if some entry of `mask` is above 0.5; else it is `pixels`, as it came.

    An `If` of stock ONNX. Inpainting returns pixels outside the mask bit-identical, so that both branches agree where
    no pixel is marked.
    """
    graph = model.graph
    inpainted = next((value for value in graph.outputs if value.name == "neutral_pixels"), None)
    if inpainted is None or inpainted.producer() is None:
        return 0
    RemoveUnusedNodesPass()(model)
    pixels, mask = (next(value for value in graph.inputs if value.name == name) for name in ("pixels", "mask"))
    # Whatever the rest of the graph needs from before the inpainting (such as sizes) stays where both can read it.
    outside = ancestors((value for value in graph.outputs if value is not inpainted), stop=inpainted)
    branch = [node for node in graph if node not in outside]
    level = ir.val("mask_level", const_value=ir.tensor(np.array(0.5, np.float32), name="mask_level"))
    graph.register_initializer(level)
    peak = make("ReduceMax", [mask], "mask_peak", keepdims=0)
    marked = make("Greater", [*peak.outputs, level], "mask_marked")
    neutral = ir.Value(name="neutral_pixels", type=pixels.type, shape=pixels.shape)
    inpainted.replace_all_uses_with(neutral, replace_graph_outputs=True)
    graph.remove(branch)
    inpainted.name, inpainted.type, inpainted.shape = "inpainted_pixels", pixels.type, pixels.shape
    untouched = ir.Value(name="untouched_pixels", type=pixels.type, shape=pixels.shape)
    copy = ir.node("Identity", [pixels], outputs=[untouched])
    branches = {
        "then_branch": ir.Graph(
            [], [inpainted], nodes=branch, initializers=_only_read_by(graph, branch), name="inpainted"
        ),
        "else_branch": ir.Graph([], [untouched], nodes=[copy], name="untouched"),
    }
    graph.extend([peak, marked, ir.node("If", marked.outputs, branches, outputs=[neutral], name="inpaint")])
    graph.sort()
    return 1


def _only_read_by(graph: ir.Graph, nodes: list[ir.Node]) -> list[ir.Value]:
    """Constants of `graph` that only `nodes` read, which are taken out of it."""
    inside = set(nodes)
    own = [value for value in graph.initializers.values() if value.uses() and inside.issuperset(value.consumers())]
    for value in own:
        del graph.initializers[str(value.name)]
    return own
