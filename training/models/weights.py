"""Somebody's weights into somebody's network, with the cause said where they don't fit."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from training.errors import TrainingError
from training.models.adapted import Adapted
from training.models.network import Network

PREFIXES = ("module.", "_orig_mod.", "model.")  # of networks saved from inside a wrapper


def fill(network: Network, path: Path, *, classes: int) -> None:
    """Load the safetensors file `path` into `network`, or into the network inside it; in float32.

    Raises `TrainingError` if the file is missing or none, or of another architecture or number of classes.
    """
    tensors = _read(path)
    inside = isinstance(network, Adapted) and "normalise.mean" not in tensors
    module = network.body if inside and isinstance(network, Adapted) else network
    wanted = module.state_dict()
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors) and not any(n in wanted for n in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    tensors = {name: t.to(wanted[name].dtype) if name in wanted else t for name, t in tensors.items()}
    _check(path, tensors, wanted, classes)
    module.load_state_dict(tensors, strict=False)  # `_check` was strict


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise TrainingError(f"{path}: no such file")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{path} is not a safetensors file ({error}); write one with "
            "safetensors.torch.save_model(network, 'weights.safetensors')"
        ) from None


def _check(path: Path, tensors: dict[str, Tensor], wanted: dict[str, Tensor], classes: int) -> None:
    missing, extra = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    # Older files lack these counters, which nothing here reads.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or extra:
        told = [f"lacks {len(missing)} tensors, such as {missing[0]}"] if missing else []
        told += [f"has {len(extra)} others, such as {extra[0]}"] if extra else []
        raise TrainingError(f"{path} is not of this architecture: it {' and '.join(told)}")
    for name, tensor in tensors.items():
        if tensor.shape == wanted[name].shape:
            continue
        if tensor.shape[1:] == wanted[name].shape[1:] and len(wanted[name]) == classes:
            raise TrainingError(f"{path} answers with {len(tensor)} classes ({name}), the data have {classes}")
        raise TrainingError(
            f"{path} is not of this architecture: {name} is {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}"
        )
