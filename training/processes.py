"""Where training runs: CPU, one GPU, or several processes started by `torchrun`, through Lightning Fabric.

Every process holds the whole network and a share of each batch. Gradients are averaged after the backward pass, and
means over a batch that do not stand alone in the loss (BatchNorm's, `batch_mean`) are taken over all shares, so that
several processes make the step that one would. The network is not wrapped (DistributedDataParallel): a step has several
forward passes, through `taps` too, and double backprop, which its hooks do not foresee.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.plugins.precision import Precision as FabricPrecision
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from training.errors import TrainingError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16", "fp16"]


def open_fabric(device: Device = "auto", precision: Precision = "fp32") -> Fabric:
    """Device, precision and process group of this process; `auto` takes the GPU where there is one.

    Under `torchrun` there are as many processes as it started, each with a GPU of its own, or all on the CPU. Raises
    `TrainingError` where there are too few GPUs.
    """
    launched = dist.is_available() and dist.is_torchelastic_launched()
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if launched else 1
    nodes = int(os.environ["WORLD_SIZE"]) // local if launched else 1
    found = torch.cuda.device_count()
    if device == "cuda" and found < local:
        raise TrainingError(f"{local} GPU(s) asked for, {found} found by torch {torch.__version__}; use --device cpu")
    on_gpu = device == "cuda" or (device == "auto" and found >= local)
    if on_gpu:
        # What runs in fp32 (penalties and their finite differences) is meant to: no convolution in TF32.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    where = "cuda" if on_gpu else "cpu"
    cast: dict[Precision, FabricPrecision] = {
        "fp32": FabricPrecision(),
        "bf16": MixedPrecision("bf16-mixed", where),
        "fp16": MixedPrecision("16-mixed", where),
    }
    fabric = Fabric(
        accelerator=where,
        devices=local,
        num_nodes=nodes,
        strategy="ddp" if launched else "auto",
        plugins=[TorchElasticEnvironment() if launched else LightningEnvironment(), cast[precision]],
    )
    fabric.launch()
    return fabric


def process() -> tuple[int, int]:
    """Rank of this process and how many there are, also before `open_fabric`."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


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
    return all_reduce(mean) / dist.get_world_size() if _several() else mean


class SharedBatchNorm(_BatchNorm):
    """BatchNorm (Ioffe and Szegedy 2015, arXiv 1502.03167) whose batch statistics are those of all processes' shares.

    As torch's SyncBatchNorm, but on the CPU as well. Shares are of equal size.
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
