"""The defence graph in ONNX Runtime: open, check against the manifest, warm up, run."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gateway.bundle import Bundle, GraphSpec, InputSpec, TensorSpec
from gateway.cores import threads_per_worker
from gateway.errors import BundleError, ConfigError, EngineError

if TYPE_CHECKING:
    import onnxruntime as ort

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]
Provider = Literal["cpu", "cuda"]
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class GraphOutputs:
    """What the defence graph says of a batch; all float32, N first (docs/architecture.md, "Defence graph")."""

    logits: np.ndarray
    saliency: np.ndarray
    roi: np.ndarray
    roa: np.ndarray
    roa_score: np.ndarray
    neutral_pixels: np.ndarray
    layer_deviation: np.ndarray
    scores: np.ndarray
    companion_logits: np.ndarray | None = None

    def image(self, i: int) -> GraphOutputs:
        """The outputs of image `i`, without the axis N."""
        return GraphOutputs(**{name: value[i] for name, value in vars(self).items() if value is not None})


class Engine:
    """One ONNX Runtime session of a bundle's defence graph; `run` may be called from several threads."""

    def __init__(
        self, path: Path, graph: GraphSpec, spec: InputSpec, *, provider: Provider = "cpu", threads: int = 0
    ) -> None:
        """Open the graph at `path`, which must have the signature `graph`; calibration does so before a bundle exists.

        `threads` 0 means every core that this process may use. Raises `BundleError` naming the file, or `ConfigError`
        when ONNX Runtime does not give the provider.
        """
        self._spec = spec
        self._path = path
        self.provider: Provider = provider
        self.precision: Literal["fp32"] = "fp32"
        self._session = _open(path, provider, threads_per_worker(threads, 1))
        active = self._session.get_providers()
        if _PROVIDERS[provider] not in active:
            raise ConfigError(f"{path}: ONNX Runtime did not start {provider}, only {', '.join(active)}")
        _check_signature(path, "input", graph.inputs, self._session.get_inputs())
        _check_signature(path, "output", graph.outputs, self._session.get_outputs())
        self._outputs = [tensor.name for tensor in graph.outputs if tensor.name in GraphOutputs.__dataclass_fields__]
        self._shapes = {tensor.name: tensor.shape[1:] for tensor in graph.outputs}

    @classmethod
    def open(cls, bundle: Bundle, *, device: Device = "auto", threads: int = 0) -> Engine:
        """The engine of a bundle, on a provider that it was calibrated for; `auto` falls back to the CPU."""
        manifest = bundle.manifest
        path = bundle.path / manifest.graph.file
        provider = choose_provider(bundle, device)
        try:
            return cls(path, manifest.graph, manifest.input, provider=provider, threads=threads)
        except ConfigError as error:
            if device != "auto" or provider == "cpu":
                raise
            log.warning("%s; using the CPU", error.detail)
            bundle.calibration("cpu")
            return cls(path, manifest.graph, manifest.input, provider="cpu", threads=threads)

    def run(self, pixels: np.ndarray, mask: np.ndarray | None = None) -> GraphOutputs:
        """Run the graph on `pixels` float32 (N, C, H, W) in [0, 1]; `mask` (N, H, W) in {0, 1} is inpainted first.

        Without a mask nothing is inpainted and the input stays bit-identical. Raises `ValueError` for a wrong shape or
        type and `EngineError` when the logits are not finite.
        """
        h, w = self._spec.height, self._spec.width
        if pixels.dtype != np.float32 or pixels.shape[1:] != (self._spec.channels, h, w):
            raise ValueError(f"pixels: expected float32 (N, {self._spec.channels}, {h}, {w}), got {pixels.shape}")
        mask = np.zeros((len(pixels), h, w), np.float32) if mask is None else mask.astype(np.float32)
        if mask.shape != (len(pixels), h, w):
            raise ValueError(f"mask: expected ({len(pixels)}, {h}, {w}), got {mask.shape}")
        values = self._session.run(self._outputs, {"pixels": pixels, "mask": mask})
        outputs = GraphOutputs(**dict(zip(self._outputs, values, strict=True)))
        if not np.isfinite(outputs.logits).all():
            raise EngineError(f"{self._path.parent.name}: the graph gave logits that are not finite")
        return outputs

    def warm_up(self, sizes: tuple[int, ...] = (1, 2)) -> float:
        """Run each batch size once, check the outputs' shapes, and return the seconds the last run took."""
        seconds = 0.0
        for n in sizes:
            pixels = np.full((n, self._spec.channels, self._spec.height, self._spec.width), 0.5, np.float32)
            start = time.perf_counter()
            outputs = self.run(pixels)
            seconds = time.perf_counter() - start
            for name in self._outputs:
                shape = getattr(outputs, name).shape
                if shape != (n, *self._shapes[name]):
                    raise BundleError(f"{self._path}: output {name!r} has shape {shape} for a batch of {n}")
        return seconds


def choose_provider(bundle: Bundle, device: Device) -> Provider:
    """`cuda` where asked for, or where a GPU, the provider and a calibration for it exist; else `cpu`."""
    if device != "auto":
        bundle.calibration(device)
        return device
    calibrated = any(calibration.provider == "cuda" for calibration in bundle.manifest.calibrations)
    # ONNX Runtime built for CUDA lists its provider on any machine and prints an error when it finds no GPU.
    if not calibrated or not Path("/dev/nvidiactl").exists():
        return "cpu"
    return "cuda" if _PROVIDERS["cuda"] in _onnxruntime().get_available_providers() else "cpu"


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"onnxruntime cannot be imported ({error}): install onnxruntime-gpu") from None
    return onnxruntime


def _open(path: Path, provider: str, threads: int) -> ort.InferenceSession:
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads starve the other workers and the event loop when they share cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = [_PROVIDERS["cpu"]]
    if provider == "cuda":
        if hasattr(runtime, "preload_dlls"):
            runtime.preload_dlls()
        providers.insert(0, _PROVIDERS["cuda"])
    try:
        return runtime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # noqa: BLE001  # ONNX Runtime has a class of its own for each of its status codes
        raise BundleError(f"{path}: ONNX Runtime refuses the graph: {' '.join(str(error).split())[:300]}") from None


def _check_signature(path: Path, kind: str, expected: list[TensorSpec], actual: list[ort.NodeArg]) -> None:
    found = {node.name: node for node in actual}
    if set(found) != {tensor.name for tensor in expected}:
        names = sorted(tensor.name for tensor in expected)
        raise BundleError(f"{path}: graph {kind}s are {sorted(found)}, the manifest says {names}")
    for tensor in expected:
        node = found[tensor.name]
        dtype = {"tensor(float)": "float32"}.get(node.type, node.type)
        if dtype != tensor.dtype:
            raise BundleError(f"{path}: graph {kind} {tensor.name!r} is {dtype}, the manifest says {tensor.dtype}")
        shape = [size if isinstance(size, int) else "dynamic" for size in node.shape]
        wanted = [size if isinstance(size, int) else "dynamic" for size in tensor.shape]
        if shape != wanted:
            raise BundleError(f"{path}: graph {kind} {tensor.name!r} has shape {shape}, the manifest says {wanted}")
