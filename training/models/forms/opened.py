"""What a form of model gives: a network as its file has it, and what the file says about it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from training.errors import TrainingError
from training.models.forms.weights import read_tensors, stated_classes

KEPT = "folder:"  # before the name of a Hugging Face folder that a bundle keeps
Normalisation = tuple[list[float], list[float]]
BYTES: Normalisation = ([0.0] * 3, [1 / 255] * 3)  # of networks that take 0 to 255


@dataclass(frozen=True)
class Stated:
    """What a file says about preprocessing, in its own words: `content` is for the reader of that `source`."""

    source: Literal["torchvision", "timm", "huggingface", "onnx"]
    content: Any


@dataclass(frozen=True)
class Asked:
    """What is to be opened. `bare`: the architecture alone, its weights are loaded afterwards.

    `classes` is how many answers to make where the architecture leaves it open and the weights do not say; `side` the
    images' where it leaves that open. `kept` is the folder in which a bundle keeps what `argument` named.
    """

    argument: str
    weights: Path | None = None
    classes: int | None = None
    side: int | None = None
    bare: bool = False
    kept: Path | None = None

    def file(self) -> Path:
        """The file or folder that the argument names, or the bundle's own copy."""
        path = Path(self.argument.removeprefix(KEPT))
        return path if self.kept is None else self.kept / path.name


@dataclass(frozen=True)
class OpenedModel:
    """A network in evaluation mode: images (N, C, H, W) in the file's own convention, float32, to logits (N, K).

    `classes` are the names of the answers where the file has them; `preprocessing` what it says about that
    convention, and `normalise` the mean and deviation, of pixels in [0, 1], that lie in its weights or that its type of
    input implies; `side` is set where the network takes images
    of one size alone; `digest` is of the weights as they came. `arch` is what a bundle records, and `kept` are the
    files that it needs to make the architecture again.
    """

    body: nn.Module
    name: str
    arch: str
    digest: str = ""
    classes: list[str] | None = None
    preprocessing: Stated | None = None
    normalise: Normalisation | None = None
    side: int | None = None
    kept: tuple[Path, ...] = ()


def sized(asked: Asked, make: Callable[[int], nn.Module]) -> nn.Module:
    """`make`(how many classes): as many as the weights have, else as asked, else ImageNet's 1000."""
    guess = asked.classes or 1000
    body = make(guess)
    if asked.weights is None:
        return body
    count = stated_classes(read_tensors(asked.weights), body.state_dict(), guess)
    return body if count == guess else make(count)


def needs_weights(asked: Asked) -> None:
    """`TrainingError` where an architecture alone was named."""
    if asked.weights is None and not asked.bare:
        raise TrainingError(f"{asked.argument} names an architecture; pass its weights: --weights FILE.safetensors")


def digest_of(paths: Iterable[Path]) -> str:
    """SHA-256 of files, one after the other."""
    found = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()


def imagenet_names(count: int) -> list[str] | None:
    """ImageNet's names where there are a thousand classes."""
    from torchvision.models import ResNet18_Weights

    return list(ResNet18_Weights.DEFAULT.meta["categories"]) if count == 1000 else None
