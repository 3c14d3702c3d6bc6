"""Several processes with a share of each batch: means over the whole of it, so that the step is that of a single one.

Gradients are averaged after the backward pass. Means over a batch that do not stand alone in the loss (BatchNorm's, the
size that a penalty is relative to) are taken over all shares while it is computed. Shares are of equal size. In a
single process nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def average_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of each process by their mean over all processes, in one message."""
    if not _several() or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def batch_mean(mean: Tensor) -> Tensor:
    """The mean over the whole batch of means over the processes' shares; differentiable.

    The loss of each process then has gradients whose average over the processes is that of the whole batch's loss.
    """
    return _BatchMean.apply(mean) if _several() else mean


class _BatchMean(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, mean: Tensor) -> Tensor:
        total = mean.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        """Every process's loss depends on every share: its gradients add up, each with a share's weight."""
        made: Tensor = _BatchMean.apply(gradient)
        return made


class SharedBatchNorm(_BatchNorm):
    """BatchNorm (Ioffe and Szegedy 2015, arXiv 1502.03167) whose batch statistics are those of all processes' shares.

    As torch's SyncBatchNorm, but on the CPU as well.
    """

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002  # torch's name
        """Any (N, C, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        dims = [0, *range(2, x.dim())]
        values = x.float()
        mean = batch_mean(values.mean(dims, keepdim=True))
        centred = values - mean
        variance = batch_mean(centred.square().mean(dims, keepdim=True))
        with torch.no_grad():
            count = x.numel() // x.shape[1] * dist.get_world_size()
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * (count / (count - 1)), self.momentum)
        shape = mean.shape
        scale = torch.rsqrt(variance + self.eps) * self.weight.view(shape)
        return (centred * scale + self.bias.view(shape)).to(x.dtype)


def share_batchnorm(network: nn.Module) -> None:
    """Turn every BatchNorm of `network` into one over all processes; parameters, buffers and their names stay."""
    if _several():
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.__class__ = SharedBatchNorm


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
