"""Loading a user's weights into a user's network, with the cause stated where they do not fit."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from training.errors import TrainingError
from training.models.adapted import Adapted
from training.models.network import Network

PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")  # of networks saved from inside a wrapper
# Of wrapped parts inside a network (compiled, in parallel, sharded, with checkpoints of activations).
INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module.")
COUNTER = "n_averaged"  # of torch's AveragedModel, beside the network


def fill(network: Network, path: Path, *, classes: int) -> None:
    """Load the safetensors file `path` into `network`, or into the network inside it; in float32.

    Raises `TrainingError` if the file is missing or none, or of another architecture or number of classes.
    """
    found = _read(path)
    modules: list[nn.Module] = [network.body, network] if isinstance(network, Adapted) else [network]
    # The network inside, unless the file has more of the whole one: it was trained here.
    fits = [(unwrapped(found, module.state_dict()), module) for module in modules]
    tensors, module = max(fits, key=lambda fit: len(fit[0].keys() & fit[1].state_dict().keys()))
    wanted = module.state_dict()
    tensors = {name: t.to(wanted[name].dtype) if name in wanted else t for name, t in tensors.items()}
    _check(path, tensors, wanted, classes)
    module.load_state_dict(tensors, strict=False)  # `_check` was strict


def unwrapped(tensors: dict[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """`tensors` under the names that the network has itself: without those of wrappers, however many are stacked."""
    tensors = {name: tensor for name, tensor in tensors.items() if name != COUNTER or COUNTER in wanted}
    while not any(name in wanted for name in map(_bare, tensors)):
        prefix = next((p for p in PREFIXES if tensors and all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        tensors = {name: tensor for name, tensor in tensors.items() if name != COUNTER or COUNTER in wanted}
    return {name if name in wanted or _bare(name) not in wanted else _bare(name): t for name, t in tensors.items()}


def _bare(name: str) -> str:
    """`name` without the wrappers of parts."""
    for wrapper in INSIDE:
        name = name.replace("." + wrapper, ".")
    return name


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
        differences = [f"lacks {len(missing)} tensors, such as {missing[0]}"] if missing else []
        differences += [f"has {len(extra)} others, such as {extra[0]}"] if extra else []
        raise TrainingError(f"{path} is not of this architecture: it {' and '.join(differences)}")
    for name, tensor in tensors.items():
        if tensor.shape == wanted[name].shape:
            continue
        if tensor.shape[1:] == wanted[name].shape[1:] and len(wanted[name]) == classes:
            raise TrainingError(f"{path} answers with {len(tensor)} classes ({name}), the data have {classes}")
        raise TrainingError(
            f"{path} is not of this architecture: {name} is {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}"
        )
