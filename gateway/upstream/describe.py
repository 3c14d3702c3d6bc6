"""What a server of the Open Inference Protocol v2 says of itself, as a bundle states it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from gateway.core.upstream import Protocol2, checked_url
from gateway.errors import ConfigError, PalisadeError, UpstreamInvalid
from gateway.upstream.connection import Connection
from gateway.upstream.protocol2 import DTYPES

_BINARY = "binary_tensor_data"
_OURS = "palisade_onnx"
# Of several outputs, the one that says most.
_PREFERRED = ("logits", "probabilities", "scores", "output")


@dataclass(frozen=True)
class Described:
    """A model: how it is asked, its image's size where it states one, and the rows of its largest request."""

    protocol: Protocol2
    channels: int
    size: tuple[int, int] | None
    max_rows: int | None


def describe(
    url: str,
    connection: Connection,
    *,
    model: str | None = None,
    input_name: str | None = None,
    output_name: str | None = None,
) -> Described:
    """The model at `url`: that of a server (then `model`, or the only one that it has), or of a model with its path.

    Raises the errors of `Connection`, and `ConfigError` where the server does not say enough, with the way out.
    """
    try:
        base = checked_url(url)
    except ValueError as error:
        raise ConfigError(f"--upstream {error}") from None
    if "/v2/models/" not in base:
        base = base.removesuffix("/v2")
        base = f"{base}/v2/models/{quote(model or _only_model(base, connection), safe='')}"
    metadata = connection.get(base).json()
    if not isinstance(metadata, dict):
        raise ConfigError(f"{base}: no metadata of a model")
    tensor = _chosen(base, metadata, "inputs", input_name, ())
    output = _chosen(base, metadata, "outputs", output_name, _PREFERRED)
    shape, datatype = tensor["shape"], str(tensor.get("datatype"))
    if datatype not in DTYPES:
        raise ConfigError(f"{base}: the input {tensor['name']!r} is {datatype[:40]}, not {' or '.join(DTYPES)}")
    layout, channels, size = _image(base, tensor["name"], shape)
    if metadata.get("platform") == _OURS:  # it takes float32, too, which needs no rounding of inpainted pixels
        layout, datatype = "nchw", "FP32"
    batch = shape[0] if shape[0] > 0 else None
    extensions = _asked(f"{base[: base.index('/v2/models/')]}/v2", connection).get("extensions")
    protocol = Protocol2.model_validate(
        {
            "url": base,
            "input": tensor["name"],
            "datatype": datatype,
            "layout": layout,
            "output": output["name"],
            "binary": isinstance(extensions, list) and _BINARY in extensions,
            "batch": batch,
        }
    )
    return Described(protocol, channels, size, batch or _max_rows(base, metadata, connection))


def _only_model(base: str, connection: Connection) -> str:
    try:
        found = connection.post(f"{base}/v2/repository/index", b"{}", {"Content-Type": "application/json"}).json()
        names = sorted({str(entry["name"]) for entry in found})
    except (UpstreamInvalid, KeyError, TypeError):
        raise ConfigError(f"{base}: does not list its models: name one with --model") from None
    if len(names) != 1:
        have = f"has {', '.join(names[:20])}" if names else "has none"
        raise ConfigError(f"{base}: name one of its models with --model ({have})")
    return names[0]


def _chosen(
    base: str, metadata: dict[str, Any], kind: str, name: str | None, preferred: tuple[str, ...]
) -> dict[str, Any]:
    """The metadata of one tensor: the named one, or the only one, or that of a preferred name."""
    tensors = metadata.get(kind)
    sound = isinstance(tensors, list) and all(
        isinstance(tensor, dict)
        and isinstance(tensor.get("name"), str)
        and isinstance(tensor.get("shape"), list)
        and all(type(extent) is int for extent in tensor["shape"])
        for tensor in tensors
    )
    option = f"--{kind.removesuffix('s')}"
    if not sound or not tensors:
        raise ConfigError(f"{base}: the model's metadata state no {kind}; state them where the server is configured")
    by_name: dict[str, dict[str, Any]] = {tensor["name"]: tensor for tensor in tensors}
    for wanted in [name] if name is not None else [*preferred, *(by_name if len(by_name) == 1 else ())]:
        if wanted in by_name:
            return by_name[wanted]
    raise ConfigError(f"{base}: choose one of its {kind} with {option}: {', '.join(by_name)}")


def _image(base: str, name: str, shape: list[int]) -> tuple[str, int, tuple[int, int] | None]:
    """Layout, channels, and height and width where the shape of an input states them."""
    if len(shape) == 4:
        for layout, at, sides in (("nchw", 1, shape[2:]), ("nhwc", 3, shape[1:3])):
            if shape[at] in (1, 3):
                return layout, shape[at], (sides[0], sides[1]) if min(sides) > 0 else None
    raise ConfigError(
        f"{base}: the input {name!r} has the shape {shape}; images (N, C, H, W) or (N, H, W, C) with one or three "
        "channels are expected: state the shape where the server is configured"
    )


def _max_rows(base: str, metadata: dict[str, Any], connection: Connection) -> int | None:
    """As the metadata say it (Palisade), or else the model's configuration (Triton)."""
    parameters = metadata.get("parameters")
    found = parameters.get("max_batch_size") if isinstance(parameters, dict) else None
    if found is None:
        found = _asked(f"{base}/config", connection).get("max_batch_size")
    return found if type(found) is int and found > 0 else None


def _asked(url: str, connection: Connection) -> dict[str, Any]:
    """A JSON object at `url`, or an empty one: what not every server has."""
    try:
        found = connection.get(url).json()
    except PalisadeError:
        return {}
    return found if isinstance(found, dict) else {}
