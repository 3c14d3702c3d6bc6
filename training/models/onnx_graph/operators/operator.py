"""What an operator of ONNX is here: a function of torch tensors, under its name in a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Attributes = Mapping[str, Any]
Function = Callable[..., Any]


@dataclass(frozen=True)
class Operator:
    """`function(attributes, *inputs)`; inputs at the places `static` are Python numbers and lists, known beforehand.

    The node's operator set is the attribute `opset`. Optional inputs that are left out are None.
    """

    function: Function
    static: tuple[int, ...] = ()


class Unexpressed(Exception):
    """What a node asks for and the table does not have; the message says what."""


def operators(**functions: Function) -> dict[str, Operator]:
    """Operators without static inputs, by name."""
    return {name: Operator(function) for name, function in functions.items()}


def axes_of(attributes: Attributes, given: list[int] | int | None, name: str = "axes") -> list[int] | None:
    """Axes as an input gives them (newer operator sets) or an attribute does (older ones)."""
    found = attributes.get(name) if given is None else given
    return [found] if isinstance(found, int) else found


def is_float(x: Tensor) -> bool:
    return x.is_floating_point()
