"""Margins and one-hot labels in a form that traces to plain ONNX operators (no scatter, no gather)."""

from __future__ import annotations

import torch
from torch import Tensor


def served_one_hot(logits: Tensor) -> Tensor:
    """One-hot float (N, K) of the arg max of logits (N, K); the lowest index wins a tie."""
    return (torch.arange(logits.shape[1], device=logits.device) == logits.argmax(1, keepdim=True)).to(logits.dtype)


def one_hot_margin(logits: Tensor, one_hot: Tensor) -> Tensor:
    """Logit of the marked class minus the largest other one, (N,)."""
    return (logits * one_hot).sum(1) - (logits - 1e4 * one_hot).amax(1)
