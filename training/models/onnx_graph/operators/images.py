"""Operators on images: convolution, pooling, normalisation, resizing; with constant weights as torch's own modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.onnx_graph.operators.operator import Attributes, Operator, Unexpressed, operators


def convolution(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations = _each(attributes, "strides", 2), _each(attributes, "dilations", 2)
    x, pads = _padded(attributes, x, weight.shape[2:], strides, dilations)
    return F.conv2d(x, weight, bias, strides, pads, dilations, attributes.get("group", 1))


def convolution_module(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """A convolution of constant weights, behind its padding where the sides differ; `x` is an example."""
    if weight.ndim != 4:
        raise Unexpressed(f"a convolution over {weight.ndim - 2} axes")
    strides, dilations = _each(attributes, "strides", 2), _each(attributes, "dilations", 2)
    groups = attributes.get("group", 1)
    widths, pads = _widths(attributes, x.shape[2:], weight.shape[2:], strides, dilations)
    made = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        (strides[0], strides[1]),
        (pads[0], pads[1]),
        (dilations[0], dilations[1]),
        groups,
        bias=bias is not None,
    )
    made.weight = nn.Parameter(weight.clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.clone())
    return nn.Sequential(nn.ZeroPad2d((widths[0], widths[1], widths[2], widths[3])), made) if any(widths) else made


def batch_norm(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, weight, bias, eps=attributes.get("epsilon", 1e-5))


def batch_norm_module(
    attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> nn.Module:
    kind = nn.BatchNorm2d if x.ndim == 4 else nn.BatchNorm1d
    made = kind(len(weight), eps=attributes.get("epsilon", 1e-5))
    made.weight, made.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    made.running_mean, made.running_var = mean.clone(), var.clone()
    return made.eval()


def convolution_transpose(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    pads = attributes.get("pads", [0] * 4)
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or pads[:2] != pads[2:]:
        raise Unexpressed("a transposed convolution whose padding differs by side")
    strides, dilations = _each(attributes, "strides", 2), _each(attributes, "dilations", 2)
    more = _each(attributes, "output_padding", 2, 0)
    return F.conv_transpose2d(x, weight, bias, strides, pads[:2], more, attributes.get("group", 1), dilations)


def max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel, strides = attributes["kernel_shape"], _each(attributes, "strides", 2)
    dilations = _each(attributes, "dilations", 2)
    x, pads = _padded(attributes, x, kernel, strides, dilations, float("-inf"))
    return F.max_pool2d(x, kernel, strides, pads, dilations, bool(attributes.get("ceil_mode", 0)))


def average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel, strides = attributes["kernel_shape"], _each(attributes, "strides", 2)
    widths, pads = _widths(attributes, x.shape[2:], kernel, strides, [1, 1])
    counted = bool(attributes.get("count_include_pad", 0))
    if any(widths):
        if not counted:
            share = F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1]), widths), kernel, strides)
            return F.avg_pool2d(F.pad(x, widths), kernel, strides) / share
        x = F.pad(x, widths)
    return F.avg_pool2d(x, kernel, strides, pads, bool(attributes.get("ceil_mode", 0)), counted)


def global_average_pool(_: Attributes, x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.ndim)), keepdim=True)


def global_max_pool(_: Attributes, x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.ndim)), keepdim=True)


def layer_norm(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = attributes.get("axis", -1) % x.ndim
    sizes = [int(size) for size in x.shape[axis:]]
    weight, bias = weight.expand(sizes), None if bias is None else bias.expand(sizes)
    return F.layer_norm(x, sizes, weight, bias, attributes.get("epsilon", 1e-5))


def rms_norm(attributes: Attributes, x: Tensor, weight: Tensor) -> Tensor:
    axes = list(range(attributes.get("axis", -1) % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + attributes.get("epsilon", 1e-5)) * weight


def group_norm(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    groups = attributes["num_groups"]
    if len(weight) == groups != x.shape[1]:  # operator set 18: one number for each group
        weight, bias = (t.repeat_interleave(x.shape[1] // groups) for t in (weight, bias))
    return F.group_norm(x, groups, weight, bias, attributes.get("epsilon", 1e-5))


def instance_norm(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As a group norm of one channel each: its gradient is traced as others are."""
    return F.group_norm(x, x.shape[1], weight, bias, attributes.get("epsilon", 1e-5))


def lp_norm(attributes: Attributes, x: Tensor) -> Tensor:
    return F.normalize(x, attributes.get("p", 2), attributes.get("axis", -1))


def local_response(attributes: Attributes, x: Tensor) -> Tensor:
    alpha, beta, bias = attributes.get("alpha", 1e-4), attributes.get("beta", 0.75), attributes.get("bias", 1.0)
    return F.local_response_norm(x, attributes["size"], alpha, beta, bias)


def attention(attributes: Attributes, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Of operator set 23, on (N, heads, T, C), in plain products."""
    if query.ndim != 4 or attributes.get("is_causal", 0) or attributes.get("softcap", 0.0):
        raise Unexpressed("attention that is causal, capped or of three axes")
    scale = attributes.get("scale") or 1 / math.sqrt(query.shape[-1])
    scores = (query * scale) @ key.transpose(-1, -2)
    return torch.softmax(scores if mask is None else scores + mask, -1) @ value


def resize(
    attributes: Attributes,
    x: Tensor,
    roi: list[float] | None = None,
    scales: list[float] | None = None,
    sizes: list[int] | None = None,
) -> Tensor:
    """Before operator set 11 the second input is `scales`; from 18 on scales and sizes may be of some axes alone."""
    mode, where = attributes.get("mode", "nearest"), attributes.get("coordinate_transformation_mode", "half_pixel")
    if attributes["opset"] < 11:
        scales, where = roi, "asymmetric"
    wanted = list(x.shape)
    for i, axis in enumerate(attributes.get("axes") or range(x.ndim)):
        wanted[axis] = int(sizes[i]) if sizes else int(x.shape[axis] * scales[i])  # type: ignore[index]
    target = wanted[2:]
    if target == list(x.shape[2:]):
        return x
    if mode != "nearest" and where not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise Unexpressed(f"a {mode} resize with {where} coordinates")
    if mode == "nearest":
        return F.interpolate(x, target, mode="nearest")
    modes = {"linear": "bilinear", "cubic": "bicubic"}
    return F.interpolate(x, target, mode=modes[mode], align_corners=where == "align_corners")


def upsample(attributes: Attributes, x: Tensor, scales: list[float] | None = None) -> Tensor:
    """Of operator sets 7 to 9; before 9 the scales are an attribute."""
    return resize(attributes, x, attributes.get("scales", scales))


def _each(attributes: Attributes, name: str, count: int, default: int = 1) -> list[int]:
    return list(attributes.get(name) or [default] * count)


def _padded(
    attributes: Attributes,
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    value: float = 0.0,
) -> tuple[Tensor, list[int]]:
    widths, pads = _widths(attributes, x.shape[2:], kernel, strides, dilations)
    return (F.pad(x, widths, value=value) if any(widths) else x), pads


def _widths(
    attributes: Attributes, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], gaps: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Padding by side (left, right, top, bottom) where sides differ, else zeros; and by axis where they do not."""
    automatic = attributes.get("auto_pad", "NOTSET")
    begins, ends = [0, 0], [0, 0]
    if automatic == "NOTSET":
        pads = attributes.get("pads") or [0] * 4
        begins, ends = list(pads[:2]), list(pads[2:])
    elif automatic != "VALID":
        for i in range(2):
            size, reach = int(sizes[i]), gaps[i] * (kernel[i] - 1) + 1
            total = max(0, (-(-size // strides[i]) - 1) * strides[i] + reach - size)
            begins[i] = total // 2 if automatic == "SAME_UPPER" else total - total // 2
            ends[i] = total - begins[i]
    if begins == ends:
        return [0] * 4, begins
    return [begins[1], ends[1], begins[0], ends[0]], [0, 0]


IMAGES: dict[str, Operator] = {
    **operators(
        Conv=convolution,
        ConvTranspose=convolution_transpose,
        BatchNormalization=batch_norm,
        MaxPool=max_pool,
        AveragePool=average_pool,
        GlobalAveragePool=global_average_pool,
        GlobalMaxPool=global_max_pool,
        LayerNormalization=layer_norm,
        RMSNormalization=rms_norm,
        GroupNormalization=group_norm,
        InstanceNormalization=instance_norm,
        LpNormalization=lp_norm,
        LRN=local_response,
        Attention=attention,
    ),
    "Resize": Operator(resize, static=(1, 2, 3)),
    "Upsample": Operator(upsample, static=(1,)),
}
MODULES: dict[str, Callable[..., nn.Module]] = {"Conv": convolution_module, "BatchNormalization": batch_norm_module}
