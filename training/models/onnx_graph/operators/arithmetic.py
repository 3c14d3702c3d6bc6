"""Elementwise operators, reductions and products of matrices."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor

from training.models.onnx_graph.operators.operator import Attributes, Operator, Unexpressed, axes_of, operators

DTYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float32,  # computed in float32 throughout
    TensorProto.BFLOAT16: torch.float32,
    TensorProto.DOUBLE: torch.float32,
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.BOOL: torch.bool,
}


def _plain(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda _attributes, *inputs: function(*inputs)


def cast(attributes: Attributes, x: Tensor) -> Tensor:
    """Images that would be cast to bytes stay what they are: rounding has no gradient."""
    wanted = DTYPES.get(attributes["to"])
    if wanted is None:
        raise Unexpressed(f"a cast to the type {TensorProto.DataType.Name(attributes['to'])}")
    return x if wanted in (torch.uint8, torch.int8) and x.is_floating_point() else x.to(wanted)


def divide(_: Attributes, a: Tensor, b: Tensor) -> Tensor:
    whole = not a.is_floating_point() and not b.is_floating_point()
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


def clip(attributes: Attributes, x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    low, high = attributes.get("min", low), attributes.get("max", high)
    return x if low is None and high is None else torch.clamp(x, low, high)


def matmul(_: Attributes, a: Tensor, b: Tensor) -> Tensor:
    if a.ndim > 2 and b.ndim == 2:
        # As one product of two matrices. Traced as a product of batches, the matrix would be repeated for every image,
        # in its gradient too: gigabytes for a transformer's.
        return (a.reshape(-1, a.shape[-1]) @ b).reshape(*a.shape[:-1], b.shape[-1])
    return a @ b


def gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    made = a @ b if alpha == 1 else alpha * (a @ b)
    return made if c is None else made + (c if beta == 1 else beta * c)


def softmax(attributes: Attributes, x: Tensor, function: Callable[..., Tensor] = torch.softmax) -> Tensor:
    """Before operator set 13 everything from `axis` on is one axis."""
    if attributes["opset"] >= 13:
        return function(x, attributes.get("axis", -1))
    axis = attributes.get("axis", 1) % x.ndim
    return function(x, axis) if axis == x.ndim - 1 else function(x.flatten(axis), axis).reshape(x.shape)


def gelu(attributes: Attributes, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=attributes.get("approximate", "none"))


def hard_sigmoid(attributes: Attributes, x: Tensor) -> Tensor:
    alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0, 1)


def prelu(_: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def argmax(attributes: Attributes, x: Tensor) -> Tensor:
    return x.argmax(attributes.get("axis", 0), keepdim=bool(attributes.get("keepdims", 1)))


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def reduced(attributes: Attributes, x: Tensor, given: list[int] | None = None) -> Tensor:
        axes = axes_of(attributes, given)
        if not axes:
            if attributes.get("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        return function(x, axes, bool(attributes.get("keepdims", 1)))

    return Operator(reduced, static=(1,))


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:  # noqa: FBT001  # a reduction's signature
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def einsum(attributes: Attributes, *inputs: Tensor) -> Tensor:
    return torch.einsum(attributes["equation"], *inputs)


def where(_: Attributes, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


def dropout(_: Attributes, x: Tensor, *_rest: Any) -> Tensor:
    return x


def dequantise(attributes: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """A weight that was stored in integers; of activations the rounding before it is left out."""
    if scale.ndim == 1 and x.ndim > 1:
        sizes = [-1 if axis == attributes.get("axis", 1) % x.ndim else 1 for axis in range(x.ndim)]
        scale = scale.reshape(sizes)
        zero = None if zero is None else zero.reshape(sizes)
    return (x.float() - (0 if zero is None else zero.float())) * scale


ARITHMETIC: dict[str, Operator] = {
    **operators(
        Add=_plain(torch.add),
        Sub=_plain(torch.sub),
        Mul=_plain(torch.mul),
        Div=divide,
        Pow=_plain(torch.pow),
        Neg=_plain(torch.neg),
        Abs=_plain(torch.abs),
        Sqrt=_plain(torch.sqrt),
        Reciprocal=_plain(torch.reciprocal),
        Exp=_plain(torch.exp),
        Log=_plain(torch.log),
        Erf=_plain(torch.erf),
        Tanh=_plain(torch.tanh),
        Sigmoid=_plain(torch.sigmoid),
        Sin=_plain(torch.sin),
        Cos=_plain(torch.cos),
        Floor=_plain(torch.floor),
        Ceil=_plain(torch.ceil),
        Round=_plain(torch.round),
        Sign=_plain(torch.sign),
        Mod=_plain(torch.remainder),
        Equal=_plain(torch.eq),
        Greater=_plain(torch.gt),
        GreaterOrEqual=_plain(torch.ge),
        Less=_plain(torch.lt),
        LessOrEqual=_plain(torch.le),
        Not=_plain(torch.logical_not),
        And=_plain(torch.logical_and),
        Or=_plain(torch.logical_or),
        Max=lambda _, *inputs: reduce(torch.maximum, inputs),
        Min=lambda _, *inputs: reduce(torch.minimum, inputs),
        Sum=lambda _, *inputs: reduce(torch.add, inputs),
        Mean=lambda _, *inputs: reduce(torch.add, inputs) / len(inputs),
        Relu=_plain(F.relu),
        LeakyRelu=lambda attributes, x: F.leaky_relu(x, attributes.get("alpha", 0.01)),
        Elu=lambda attributes, x: F.elu(x, attributes.get("alpha", 1.0)),
        Celu=lambda attributes, x: F.celu(x, attributes.get("alpha", 1.0)),
        Selu=_plain(F.selu),
        PRelu=prelu,
        Gelu=gelu,
        HardSigmoid=hard_sigmoid,
        HardSwish=_plain(F.hardswish),
        Mish=_plain(F.mish),
        Swish=lambda attributes, x: x * torch.sigmoid(attributes.get("alpha", 1.0) * x),
        Softplus=_plain(F.softplus),
        Softsign=_plain(F.softsign),
        Softmax=softmax,
        LogSoftmax=lambda attributes, x: softmax(attributes, x, torch.log_softmax),
        Cast=cast,
        MatMul=matmul,
        Gemm=gemm,
        Einsum=einsum,
        Where=where,
        Identity=_plain(lambda x: x),
        Dropout=dropout,
        ArgMax=argmax,
        CastLike=lambda _, x, like: x.to(like.dtype),
        DequantizeLinear=dequantise,
    ),
    "Clip": Operator(clip, static=(1, 2)),
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduction(_product),
    "ReduceL2": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
}
