"""Tracing a function with an input gradient inside into a graph that ONNX can express.

Exporters do not offer `torch.autograd.grad`, but `make_fx` records the operators that the backward pass runs. They are
decomposed to core operators; the input gradient of a stride-1 convolution is written as an ordinary convolution with
the kernel flipped and its channel axes swapped, which runs about as fast as the forward one. Pooling's gradients are
written without scatter, attention as plain products.
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
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from training.export.free_batch import with_free_batch
from training.util.signatures import silent

MORE = 2  # images in the second of two traces


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
    plain = all(s == 1 for s in stride) and all(d == 1 for d in dilation)
    if plain and all(k - 1 - p >= 0 for k, p in zip(kernel, padding, strict=True)):
        flipped = _swapped(weight.flip([2, 3]), groups)
        margin = [k - 1 - p for k, p in zip(kernel, padding, strict=True)]
        return F.conv2d(gradient, flipped, padding=margin, groups=groups), None, None
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


def _swapped(weight: Tensor, groups: int) -> Tensor:
    """(groups O, I, h, w) with the channels of each group swapped: (groups I, O, h, w)."""
    if groups == 1:
        return weight.transpose(0, 1)
    grouped = weight.unflatten(0, (groups, weight.shape[0] // groups))
    return grouped.transpose(1, 2).flatten(0, 1)


def max_pool2d_backward(
    gradient: Tensor,
    inputs: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,  # noqa: FBT001
    indices: Tensor,  # noqa: ARG001  # the operator's signature
) -> Tensor:
    """Decomposition of aten.max_pool2d_with_indices_backward: what equals the maximum first takes the gradient.

    One product with a mask for each place in the window; a transposed convolution by channel brings them to their
    pixels. Windows may overlap.
    """
    (kh, kw), (ph, pw), (dh, dw) = _pair(kernel_size), _pair(padding), _pair(dilation)
    sh, sw = _pair(stride or kernel_size)
    height, width, made_h, made_w = (int(n) for n in (*inputs.shape[2:], *gradient.shape[2:]))
    full_h, full_w = (made_h - 1) * sh + dh * (kh - 1) + 1, (made_w - 1) * sw + dw * (kw - 1) + 1
    more = (max(0, full_h - height - ph), max(0, full_w - width - pw))
    padded = F.pad(inputs, (pw, more[1], ph, more[0]), value=float("-inf"))
    largest = F.max_pool2d(inputs, kernel_size, stride or kernel_size, padding, dilation, ceil_mode)
    free, parts = torch.ones_like(largest), []
    for i in range(kh):
        for j in range(kw):
            rows, columns = (
                slice(i * dh, i * dh + (made_h - 1) * sh + 1, sh),
                slice(j * dw, j * dw + (made_w - 1) * sw + 1, sw),
            )
            mask = (padded[:, :, rows, columns] == largest).to(gradient.dtype) * free
            free = free - mask
            parts.append(gradient * mask)
    channels = int(inputs.shape[1])
    place = torch.eye(kh * kw, dtype=gradient.dtype, device=gradient.device).reshape(kh * kw, 1, kh, kw)
    spread = F.conv_transpose2d(
        torch.stack(parts, 2).flatten(1, 2),
        place.repeat(channels, 1, 1, 1),
        stride=(sh, sw),
        groups=channels,
        dilation=(dh, dw),
    )
    spread = F.pad(spread, (0, max(0, pw + width - full_w), 0, max(0, ph + height - full_h)))
    return spread[:, :, ph : ph + height, pw : pw + width]


def adaptive_avg_pool2d(inputs: Tensor, output_size: list[int]) -> Tensor:
    """Decomposition of aten._adaptive_avg_pool2d as products with two matrices."""
    rows, columns = (_fields(int(n), int(m)) for n, m in zip(inputs.shape[2:], output_size, strict=True))
    return rows.to(inputs) @ inputs @ columns.to(inputs).T


def adaptive_avg_pool2d_backward(gradient: Tensor, inputs: Tensor) -> Tensor:
    """Decomposition of aten._adaptive_avg_pool2d_backward: the same matrices, transposed."""
    sizes = zip(inputs.shape[2:], gradient.shape[2:], strict=True)
    rows, columns = (_fields(int(n), int(m)) for n, m in sizes)
    return rows.to(gradient).T @ gradient @ columns.to(gradient)


def _fields(inputs: int, outputs: int) -> Tensor:
    """(outputs, inputs): row o averages inputs floor(o n / m) to ceil((o + 1) n / m) - 1."""
    matrix = torch.zeros(outputs, inputs)
    for o in range(outputs):
        first, end = o * inputs // outputs, -(-(o + 1) * inputs // outputs)
        matrix[o, first:end] = 1 / (end - first)
    return matrix


def _pair(values: list[int]) -> tuple[int, int]:
    return (int(values[0]), int(values[-1]))


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
    table[torch.ops.aten.max_pool2d_with_indices_backward.default] = max_pool2d_backward
    table[torch.ops.aten._adaptive_avg_pool2d.default] = adaptive_avg_pool2d  # noqa: SLF001
    table[torch.ops.aten._adaptive_avg_pool2d_backward.default] = adaptive_avg_pool2d_backward  # noqa: SLF001
    return table


class PooledToOne(TorchFunctionMode):
    """`adaptive_avg_pool2d` to a single pixel as a mean.

    Where channels are last (ConvNeXt's, behind its permutations) ATen sets the mean's strides by hand; the gradient of
    that writes into a strided view of a flat tensor, for which ONNX has no operator.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.adaptive_avg_pool2d:
            inputs, size = _pooling(*args, **kwargs)
            if size in (1, (1, 1), [1, 1]):
                return inputs.mean((-2, -1), keepdim=True)
        return function(*args, **kwargs)


def _pooling(input: Tensor, output_size: Any) -> tuple[Tensor, Any]:  # noqa: A002  # the function's signature
    return input, output_size


def _traced(module: nn.Module, example: tuple[Tensor, ...]) -> GraphModule:
    tracer = make_fx(module, decomposition_table=decompositions(), tracing_mode="fake", _allow_non_fake_inputs=True)
    return tracer(*example)


def trace(module: nn.Module, example: tuple[Tensor, ...], traced: Callable[[int], object] = silent) -> GraphModule:
    """`module` as a graph of core operators, gradients included, for any batch: the first axis of every example.

    `traced` is told how many of two traces are done.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), PooledToOne():
            more = tuple(torch.cat([tensor, tensor[:MORE]]) for tensor in example)
            graphs = []
            for number, images in enumerate((example, more), 1):
                graphs.append(_traced(module, images))
                traced(number)
            return with_free_batch(graphs[0], graphs[1], (len(example[0]), len(more[0])))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
