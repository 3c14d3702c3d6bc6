"""Where training runs: CPU, one GPU, or several processes started by `torchrun`, through Lightning Fabric.

Every process holds the whole network and a share of each batch (`training.util.distributed`). The network is not
wrapped (DistributedDataParallel): a step has several forward passes, through `taps` too, and double backprop, which
its hooks do not foresee.
"""

from __future__ import annotations

import logging
import os
from typing import Literal

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.plugins.precision import Precision as FabricPrecision

from training.errors import TrainingError
from training.util.precision import Precision

Device = Literal["auto", "cpu", "cuda"]


def open_fabric(device: Device = "auto", precision: Precision = "fp32") -> Fabric:
    """Device, precision and process group of this process; `auto` takes the GPU where there is one.

    Under `torchrun` there are as many processes as it started, each with a GPU of its own, or all on the CPU. Raises
    `TrainingError` where there are too few GPUs.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    count = processes()
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if count > 1 else 1
    found = torch.cuda.device_count()
    if device == "cuda" and found < local:
        raise TrainingError(f"{local} GPU(s) asked for, {found} found by torch {torch.__version__}; use --device cpu")
    where = chosen_device(device)
    if where == "cuda":
        # What runs in fp32 (penalties and their finite differences) is meant to: no convolution in TF32.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    cast: dict[Precision, FabricPrecision] = {
        "fp32": FabricPrecision(),
        "bf16": MixedPrecision("bf16-mixed", where),
        "fp16": MixedPrecision("16-mixed", where),
    }
    fabric = Fabric(
        accelerator=where,
        devices=local,
        num_nodes=count // local,
        strategy="ddp" if count > 1 else "auto",
        plugins=[TorchElasticEnvironment() if count > 1 else LightningEnvironment(), cast[precision]],
    )
    fabric.launch()
    return fabric


def chosen_device(device: Device) -> Literal["cpu", "cuda"]:
    """What `device` is on this machine: `auto` is the GPU where each local process has one."""
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if processes() > 1 else 1
    return "cuda" if device == "cuda" or (device == "auto" and torch.cuda.device_count() >= local) else "cpu"


def processes() -> int:
    """How many processes `torchrun` started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_available() and dist.is_torchelastic_launched() else 1
