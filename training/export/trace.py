"""Tracing a function with an input gradient inside into a graph that ONNX can say.

Exporters do not offer `torch.autograd.grad`, but `make_fx` records the operators that the backward pass runs. They are
decomposed to core operators; the input gradient of a stride-1 convolution is written as an ordinary convolution with
the kernel flipped and its channel axes swapped, which runs about as fast as the forward one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx


def convolution_backward(
    gradient: Tensor,
    inputs: Tensor,
    weight: Tensor,
    bias_sizes: list[int] | None,  # noqa: ARG001  # the operator's signature
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,  # noqa: FBT001
    output_padding: list[int],  # noqa: ARG001
    groups: int,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Decomposition of aten.convolution_backward for the input alone (weights are constants in a served graph)."""
    if transposed or output_mask[1] or output_mask[2]:
        raise NotImplementedError("only the input gradient of an ordinary convolution is traced")
    if not output_mask[0]:
        return None, None, None
    kernel = list(weight.shape[2:])
    plain = groups == 1 and all(s == 1 for s in stride) and all(d == 1 for d in dilation)
    if plain and all(k - 1 - p >= 0 for k, p in zip(kernel, padding, strict=True)):
        flipped = weight.flip([2, 3]).transpose(0, 1)
        return (
            F.conv2d(gradient, flipped, padding=[k - 1 - p for k, p in zip(kernel, padding, strict=True)]),
            None,
            None,
        )
    # Sizes that a stride skipped at the lower and right border must be put back by output_padding.
    missing = [
        inputs.shape[i + 2]
        - ((gradient.shape[i + 2] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i] - 1) + 1)
        for i in range(2)
    ]
    back = F.conv_transpose2d(
        gradient,
        weight,
        stride=stride,
        padding=padding,
        output_padding=[int(m) for m in missing],
        groups=groups,
        dilation=dilation,
    )
    return back, None, None


def threshold_backward(gradient: Tensor, output: Tensor, threshold: float) -> Tensor:
    """Decomposition of aten.threshold_backward for ReLU as a product: ONNX Runtime is slower at selecting."""
    if threshold != 0:
        raise NotImplementedError("only ReLU is traced")
    return gradient * (output > 0).to(gradient.dtype)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Core ATen decompositions plus ours; resizing and padding stay whole, ONNX has an operator for each."""
    kept = ("aten::upsample_", "aten::replication_pad2d", "aten::_upsample")
    table: dict[Any, Callable[..., Any]] = {
        operator: rule
        for operator, rule in core_aten_decompositions().items()
        if not str(operator.name()).startswith(kept)
    }
    table[torch.ops.aten.convolution_backward.default] = convolution_backward
    table[torch.ops.aten.threshold_backward.default] = threshold_backward
    return table


def trace(module: nn.Module, example: tuple[Tensor, ...]) -> GraphModule:
    """`module` as a graph of core operators, gradients included; sizes stay symbolic where torch.export wants it."""
    return make_fx(module, decomposition_table=decompositions(), tracing_mode="symbolic", _allow_non_fake_inputs=True)(
        *example
    )
