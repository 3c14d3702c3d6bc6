"""Loading a user's weights into a user's network, with the cause stated where they do not fit."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from training.errors import TrainingError

PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")  # of networks saved from inside a wrapper
# Of wrapped parts inside a network (compiled, in parallel, sharded, with checkpoints of activations).
INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module.")
COUNTER = "n_averaged"  # of torch's AveragedModel, beside the network


def fill(body: nn.Module, path: Path, *, classes: int | None) -> tuple[list[float], list[float]] | None:
    """Load the safetensors file `path` into `body`, in float32; mean and deviation if the file has them as well.

    It has them if it is of a run of ours. Raises `TrainingError` if the file is missing or none, of another
    architecture, or of another number of classes than `classes`.
    """
    wanted = body.state_dict()
    found, normalise = _of_our_runs(unwrapped(read_tensors(path), wanted), wanted)
    tensors = {name: t.to(wanted[name].dtype) if name in wanted else t for name, t in found.items()}
    _check(path, tensors, wanted, classes)
    body.load_state_dict(tensors, strict=False)  # `_check` was strict
    return normalise


def stated_classes(tensors: dict[str, Tensor], wanted: dict[str, Tensor], guess: int) -> int:
    """How many classes the weights answer with, where a network of `guess` classes has the tensors `wanted`."""
    found = _of_our_runs(unwrapped(tensors, wanted), wanted)[0]
    other = [
        len(tensor)
        for name, tensor in found.items()
        if name in wanted and tensor.shape != wanted[name].shape and wanted[name].ndim and len(wanted[name]) == guess
    ]
    return other[0] if other and len(set(other)) == 1 else guess


def _of_our_runs(
    tensors: dict[str, Tensor], wanted: Collection[str]
) -> tuple[dict[str, Tensor], tuple[list[float], list[float]] | None]:
    """Tensors of the network inside one of ours, and that one's mean and deviation."""
    mean, std = tensors.get("normalise.mean"), tensors.get("normalise.std")
    if mean is None or std is None or "normalise.mean" in wanted:
        return tensors, None
    inside = {name.removeprefix("body."): tensor for name, tensor in tensors.items() if name.startswith("body.")}
    return inside, (mean.flatten().tolist(), std.flatten().tolist())


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


def read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise TrainingError(f"{path}: no such file")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{path} is not a safetensors file ({error}); write one with "
            "safetensors.torch.save_model(network, 'weights.safetensors')"
        ) from None


def _check(path: Path, tensors: dict[str, Tensor], wanted: dict[str, Tensor], classes: int | None) -> None:
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
        if classes is not None and tensor.shape[1:] == wanted[name].shape[1:] and len(wanted[name]) == classes:
            raise TrainingError(f"{path} answers with {len(tensor)} classes ({name}), the data have {classes}")
        raise TrainingError(
            f"{path} is not of this architecture: {name} is {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}"
        )
