"""Which memory format a network gets, and that training survives the processor whose kernels corrupt the heap."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from training.models import ModelSpec, build_model
from training.models.memory_format import arranged, layout_of
from training.models.network import Network


def ours(width: int) -> Network:
    return build_model(ModelSpec(width=width), classes=5, mean=[0.5] * 3, std=[0.2] * 3)


@pytest.mark.parametrize(
    ("layer", "blocked"),
    [
        (nn.Conv2d(16, 32, 1, 2), True),
        (nn.Conv2d(8, 8, 3), True),
        (nn.Conv2d(4, 8, 1, 2), False),  # the shortcut of a network of width 4
        (nn.Conv2d(4, 8, 3, 2), True),  # such as of an image with a mask
        (nn.Conv2d(6, 8, 3), False),
        (nn.Conv2d(12, 16, 1, 2), False),
        (nn.Conv2d(16, 12, 1, 2), False),
        (nn.Conv2d(3, 16, 3), True),  # an image's channels, and a kernel that is not 1 x 1
        (nn.Conv2d(1, 16, 7, 2), True),
        (nn.Conv2d(3, 16, 1, 2), False),
        (nn.Conv2d(3, 16, (1, 3), 2), False),
        (nn.Conv2d(3, 12, 3), False),
        (nn.Conv2d(16, 16, 3, groups=16), True),  # depthwise: blocks of groups
        (nn.Conv2d(12, 12, 3, groups=12), False),
        (nn.Conv2d(16, 16, 3, groups=2), True),
        (nn.Conv2d(16, 16, 3, groups=4), False),
        (nn.ConvTranspose2d(3, 16, 3), False),
    ],
)
def test_channels_last_is_for_blocks_of_eight_channels(layer: nn.Module, blocked: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3), layer)
    layout = layout_of(network, "cpu")
    assert layout.format == (torch.channels_last if blocked else torch.contiguous_format)
    assert layout.why.startswith("the channels of every convolution" if blocked else "1 (")
    assert layout_of(network, "cuda").format == torch.channels_last


def test_a_convolution_that_is_written_as_a_function_counts() -> None:
    network = nn.Module()
    network.kernel = nn.Parameter(torch.rand(8, 4, 1, 1))
    layout = layout_of(network, "cpu")
    assert (layout.name, "kernel of 8 x 4 x 1 x 1" in layout.why) == ("contiguous", True)


def test_networks_that_are_trained_often() -> None:
    assert [layout_of(ours(width), "cpu").name for width in (4, 12, 16, 32)] == [
        *["contiguous"] * 2,
        *["channels last"] * 2,
    ]
    assert layout_of(models.resnet18(), "cpu").name == "channels last"
    assert layout_of(models.efficientnet_b0(), "cpu").name == "contiguous"  # squeezed to 6 channels


@pytest.mark.parametrize("width", [4, 16])
def test_weights_are_arranged(width: int) -> None:
    network, layout = arranged(ours(width).to(memory_format=torch.channels_last), "cpu")
    kernels = [p for p in network.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=layout.format) for kernel in kernels)


STEPS = """
import sys
import torch, torch.nn.functional as F
from pathlib import Path
from tests.training.toy import toy_dataset
from training.attacks.coarse import searched
from training.attacks.pgd import pgd
from training.recipes.training import Recipe
from training.loop.trainer import Trainer

data = toy_dataset(train=72)
adversary = {"eps": 4, "steps": 1, "clean_weight": 1.0, "clean_fraction": 0.3}
for batch in (8, 33):
    recipe = Recipe.model_validate({
        "name": f"narrow-{batch}", "data": {"source": "toy"}, "batch": batch, "ema": 0.9,
        "model": {"width": 4, "stem_stride": 2},
        "stages": [
            {"name": "plain", "epochs": 1, "lr": 0.01}, {"name": "at", "epochs": 1, "lr": 0.01, "adversary": adversary},
        ],
    })
    trainer = Trainer(recipe, data, Path(sys.argv[1]) / recipe.name)
    assert trainer.recipe.precision == "fp32", trainer.recipe.precision
    network = trainer.run()
    x, y = torch.rand(batch, 3, 16, 16), torch.zeros(batch, dtype=torch.long)
    pgd(searched(network), x, y, eps=0.1, steps=2)
    F.cross_entropy(network(x), y).backward()
print("trained")
"""


GRADIENTS = """
import copy, torch
from training.models import ModelSpec, build_model
from training.models.memory_format import arranged

torch.manual_seed(0)
network = build_model(ModelSpec(width=4), classes=5, mean=[0.5] * 3, std=[0.2] * 3).eval()
exact = copy.deepcopy(network).double()
network, layout = arranged(network, "cpu")
for side in (16, 17, 18, 19, 32) * 2:  # what stood beyond the buffer decides which of them are wrong
    x = torch.rand(4, 3, side, side)
    exact.zero_grad()
    network.zero_grad()
    exact(x.double()).square().sum().backward()
    network(x.contiguous(memory_format=layout.format)).square().sum().backward()
    for (name, mine), other in zip(network.named_parameters(), exact.parameters(), strict=True):
        atol = 1e-4 * float(other.grad.abs().max())
        torch.testing.assert_close(mine.grad.double(), other.grad, rtol=1e-3, atol=atol, msg=name)
print("equal")
"""


def with_avx2(script: str, *arguments: str) -> str:
    """What `script` prints in a process whose kernels are those of AVX2; it must not die."""
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "2", "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    done = subprocess.run(
        command, check=False, env=os.environ | limits, cwd=root, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_narrow_network_trains_with_kernels_of_avx2(tmp_path: Path) -> None:
    """oneDNN's AVX2 kernel writes beyond its buffers on such a network in channels last; the process then dies."""
    assert "trained" in with_avx2(STEPS, str(tmp_path))


def test_gradients_of_a_narrow_network_are_right_with_kernels_of_avx2() -> None:
    """In channels last the gradients of its 1 x 1 convolutions are wrong by half before anything crashes."""
    assert "equal" in with_avx2(GRADIENTS)
