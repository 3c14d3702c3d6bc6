"""What a recipe's teacher gives: maps of what it looks at, for terms with a `grid`, and soft labels of clean images.

Soft labels are those of adversarial distillation: Goldblum et al. 2020 (arXiv 1905.09747), Zi et al. 2021 (arXiv
2108.07969), and with a naturally trained network as the teacher Cui et al. 2021 (arXiv 2011.11164), whose student is
more accurate on clean images.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from training.imaging.pixels import to_tensor
from training.losses.perturbation_saliency import perturbation_saliency
from training.models.memory_format import arranged
from training.util.checkpoint import write_tensors
from training.util.module_modes import frozen
from training.util.signatures import Progress, silent


class Teacher:
    """A frozen copy of `network` on the device of `fabric`; in `precision` (fp32, bf16, fp16)."""

    def __init__(self, network: nn.Module, fabric: Fabric, precision: str) -> None:
        self.fabric, self.precision = fabric, precision
        frozen_copy = copy.deepcopy(network).to(fabric.device).eval().requires_grad_(False)
        self.network, self.layout = arranged(frozen_copy, fabric.device)

    def predict(self, x: Tensor) -> Tensor:
        """Logits (N, K), fp32, of pixels (N, C, H, W) in [0, 1]."""
        with self.fabric.autocast():
            logits: Tensor = self.network(x.contiguous(memory_format=self.layout.format))
        return logits.float()

    def soft_labels(self, x: np.ndarray, *, temperature: float, flip: bool, batch: int = 512) -> Tensor:
        """Softmax at `temperature` (N, K) of uint8 images (N, H, W, C); with `flip` its mean with the mirrored image's.

        Of the images as they are: augmentation leaves the class as it is, and so they are computed once.
        """
        parts = []
        with torch.no_grad():
            for i in range(0, len(x), batch):
                pixels = to_tensor(x[i : i + batch]).to(self.fabric.device)
                views = [pixels, pixels.flip(3)] if flip else [pixels]
                parts.append(torch.stack([F.softmax(self.predict(view) / temperature, 1) for view in views]).mean(0))
        return torch.cat(parts).cpu()

    def maps(self, x: np.ndarray, *, grid: int, cache: Path, report: Callable[[dict[str, Any]], None]) -> Tensor:
        """`teacher_maps` of uint8 images (N, H, W, C), made by one process for all."""
        with self.fabric.rank_zero_first():
            return teacher_maps(
                self.network,
                x,
                grid=grid,
                precision=self.precision,
                cache=cache,
                progress=lambda done, total: report({"step": "maps of the teacher", "done": done, "total": total}),
            )


def mixed(share: float, soft: Tensor, y: Tensor) -> Tensor:
    """Targets (N, K) that sum to 1: `share` of soft labels `soft` (N, K), the rest of the true ones `y` (N,)."""
    return share * soft + (1 - share) * F.one_hot(y, soft.shape[1]).to(soft)


def teacher_maps(
    teacher: nn.Module, x: np.ndarray, *, grid: int, precision: str, cache: Path, progress: Progress = silent
) -> Tensor:
    """Perturbation saliency (N, grid, grid) of uint8 images (N, H, W, C) by the frozen teacher, computed once.

    The maps are kept in the folder `cache`, which may be shared, in a file that is named after the settings and a hash
    of images and teacher. A file that can't be read, or holds something else, is written anew.
    """
    digest = hashlib.sha256(x.tobytes())
    for tensor in teacher.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    path = cache / f"teacher-maps-{grid}-{precision}-{digest.hexdigest()[:16]}.safetensors"
    if (known := _read_maps(path, (len(x), grid, grid))) is not None:
        return known
    device = next(teacher.parameters()).device

    def predict(pixels: Tensor) -> Tensor:
        # The blur stays in float32: oneDNN takes minutes for a convolution of three groups in bfloat16, channels last.
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits: Tensor = teacher(pixels)
        return logits.float()

    with frozen(teacher):
        parts: list[Tensor] = []
        for part in np.array_split(x, max(1, len(x) // 256)):
            parts.append(perturbation_saliency(predict, to_tensor(part).to(device), grid=grid).cpu())
            progress(sum(map(len, parts)), len(x))
    maps = torch.cat(parts)
    cache.mkdir(parents=True, exist_ok=True)
    write_tensors(path, {"maps": maps})
    return maps


def _read_maps(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    try:
        maps = load_file(path)["maps"]
    except (OSError, KeyError, SafetensorError):
        return None
    return maps if maps.shape == shape and bool(maps.isfinite().all()) else None
