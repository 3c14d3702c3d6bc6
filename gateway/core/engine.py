"""The defence graph in ONNX Runtime: open, check against the manifest, warm up, run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from gateway.core.batch_sizes import worthwhile
from gateway.core.cores import threads_per_worker
from gateway.core.graph_cut import cut_to
from gateway.core.loading import Bundle
from gateway.core.manifest import BUCKETS, GraphSpec, InputSpec, Part, Precision, TensorSpec
from gateway.core.outputs import FullOutputs, PartOutputs, ScreenOutputs, VerdictOutputs, names_of, outputs_of
from gateway.errors import BundleError, ConfigError, EngineError, PalisadeError

if TYPE_CHECKING:
    import onnxruntime as ort

log = logging.getLogger(__name__)

_TWICE = 32 << 20
"""Bytes of graphs and weights up to which sessions are opened a second time, with half the threads."""

Device = Literal["auto", "cpu", "cuda"]
Provider = Literal["cpu", "cuda"]
WantedPrecision = Literal["auto", "fp32", "fp16"]
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Engine:
    """ONNX Runtime sessions of the parts of a bundle's defence graph; `run` may be called from several threads."""

    def __init__(
        self,
        folder: Path,
        graphs: Mapping[Part, GraphSpec],
        spec: InputSpec,
        *,
        provider: Provider = "cpu",
        precision: Precision = "fp32",
        threads: int = 0,
        buckets: Sequence[int] = BUCKETS,
        binding: bool | None = None,
    ) -> None:
        """Open the `graphs` in `folder`, which must have the stated signatures; this needs no bundle yet.

        `precision` states that of the graphs, which are run as they are.
        `threads` 0 means every core that this process may use. `binding` (default: on CUDA) hands tensors over by
        IO binding. Raises `BundleError` naming the file, or `ConfigError` when ONNX Runtime does not give the provider.
        """
        self.spec = spec
        self._folder = folder
        self.provider: Provider = provider
        self.precision: Precision = precision
        self.threads = threads_per_worker(threads, 1)
        self.buckets = tuple(buckets)
        self._binding = provider == "cuda" if binding is None else binding
        self._parts = {
            part: _Part(part, folder / graph.file, graph, provider, self.threads) for part, graph in graphs.items()
        }
        self._graphs = dict(graphs)
        self._beside: dict[Part, _Part] = {}
        """The parts again, with half the threads: two batches at once on threads of their own finish sooner."""
        self._running = self._begun = 0
        self._crowded = False
        """Whether the batch that ended last had others beside it: then the next one will, too."""
        self._seconds: dict[Part, dict[int, float]] = {}
        """Of parts on the CPU: seconds of a batch by its size."""
        self._answering: ort.InferenceSession | None = None
        self._opening, self._counting = threading.Lock(), threading.Lock()

    @classmethod
    def open(
        cls, bundle: Bundle, *, device: Device = "auto", precision: WantedPrecision = "auto", threads: int = 0
    ) -> Engine:
        """The engine of a bundle, on a provider and in a precision that it was calibrated for.

        `auto` falls back to the CPU, and takes fp16 on CUDA alone. Raises `BundleError` where nothing fitting was
        calibrated, and `ConfigError` when ONNX Runtime does not give the provider asked for.
        """
        manifest = bundle.manifest

        def opened(provider: Provider, precision: Precision) -> Engine:
            return cls(
                bundle.path,
                manifest.graphs_of(precision),
                manifest.input,
                provider=provider,
                precision=precision,
                threads=threads,
                buckets=manifest.buckets,
            )

        provider, chosen = choose(bundle, device, precision)
        try:
            engine = opened(provider, chosen)
        except ConfigError as error:
            if device != "auto" or provider == "cpu":
                raise
            log.warning("%s; using the CPU", error.detail)
            engine = opened(*choose(bundle, "cpu", precision))
        if (engine.provider, engine.precision) == ("cpu", "fp16"):
            log.warning("%s: on the CPU fp16 is slower than fp32, because of casts between the two", bundle.path)
        return engine

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that can be run."""
        return tuple(self._parts)

    def sizes(self, part: Part) -> tuple[int, ...]:
        """Sizes of the batches of a part that images of several requests should share.

        On the CPU, once warmed up, none larger than pays: at 224 pixels eight images take longer than twice four, which
        fit its caches.
        """
        measured = self._seconds.get(part)
        return tuple(self.buckets) if measured is None else worthwhile(measured)

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers that ONNX Runtime started, the one asked for first."""
        return tuple(self._parts["full" if "full" in self._parts else self.parts[0]].session.get_providers())

    @overload
    def run(self, pixels: np.ndarray, mask: None = ..., *, part: Literal["screen"]) -> ScreenOutputs: ...
    @overload
    def run(self, pixels: np.ndarray, mask: np.ndarray | None = ..., *, part: Literal["verdict"]) -> VerdictOutputs: ...
    @overload
    def run(self, pixels: np.ndarray, mask: np.ndarray | None = ..., *, part: Literal["full"] = ...) -> FullOutputs: ...
    @overload
    def run(self, pixels: np.ndarray, mask: np.ndarray | None = ..., *, part: Part) -> PartOutputs: ...
    def run(self, pixels: np.ndarray, mask: np.ndarray | None = None, *, part: Part = "full") -> PartOutputs:
        """Run a part on `pixels` float32 (N, C, H, W) in [0, 1]; `mask` (N, H, W) in {0, 1} is inpainted first.

        Without a mask nothing is inpainted and the input stays bit-identical. On CUDA a batch is padded to the next of
        `buckets`. Raises `ValueError` for a wrong shape, type or part, or for a mask where the part (`screen`) takes
        none. `Outputs.finite` marks an image whose outputs are not finite; the others do not fail.
        """
        if part not in self.parts:
            raise ValueError(f"part {part!r}: the bundle has {', '.join(self.parts)}")
        return self._outputs(part, self._checked(pixels), mask)

    def answer(self, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Logits (N, K) of the answering network alone, where `mask` (N, H, W) in {0, 1} of `pixels` is inpainted.

        Those of `run` but for rounding, at the cost of one forward pass; numbers that are not finite are returned, too.
        The first call opens a further session. Raises `ValueError` for a wrong shape, `BundleError` if the graph of the
        part `verdict` cannot be cut down to its logits.
        """
        return self._answers(self._checked(pixels), self._mask(mask, len(pixels)))

    def _answers(self, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
        inputs, n = {"pixels": pixels, "mask": mask}, len(pixels)
        if self.provider == "cuda":
            inputs = {name: _padded(value, self.buckets) for name, value in inputs.items()}
        (logits,) = self._answering_session().run(["logits"], inputs)
        return np.asarray(logits)[:n]

    def _answering_session(self) -> ort.InferenceSession:
        with self._opening:
            if self._answering is None:
                path = self._parts["verdict"].path
                try:
                    model = cut_to(path.read_bytes(), "logits")
                except (OSError, ValueError) as error:
                    raise BundleError(f"{path}: {error}") from None
                session = open_session(path, self.provider, self.threads, model=model)
                self._check_answering(path, session)
                self._answering = session
            return self._answering

    def _check_answering(self, path: Path, session: ort.InferenceSession) -> None:
        """`BundleError` unless it answers as the part does, also if the files were changed since that was opened.

        And unless its fill leaves alone what the mask hides: a certificate would state nothing otherwise.
        """
        shape = (1, self.spec.channels, self.spec.height, self.spec.width)
        pixels, mask = np.random.default_rng(0).random(shape, np.float32), np.zeros((1, *shape[2:]), np.float32)
        mask[:, : shape[2] // 2] = 1.0
        (logits,) = session.run(["logits"], {"pixels": pixels, "mask": mask})
        if not np.allclose(logits, self.run(pixels, mask, part="verdict").logits, rtol=1e-3, atol=1e-3):
            raise BundleError(f"{path}: cut down to its logits, the graph answers otherwise")
        hidden = np.where(mask[:, None] > 0, 1 - pixels, pixels)
        if not np.array_equal(session.run(["logits"], {"pixels": hidden, "mask": mask})[0], logits):
            raise BundleError(f"{path}: what the mask hides changes the logits")

    def failure(self, model: str) -> PalisadeError:
        """The error of an image whose outputs are not finite."""
        return EngineError(f"{model}: the graph gave logits that are not finite")

    @property
    def problem(self) -> str | None:
        """Why no image can be answered at present; None while images can be."""
        return None

    def _outputs(self, part: Part, pixels: np.ndarray, mask: np.ndarray | None) -> PartOutputs:
        with self._counting:
            company = self._running > 0
            self._running += 1
            self._begun += 1
            begun, beside = self._begun, company or self._crowded
        try:
            opened = self._parts[part]
            return self._run(self._beside.get(part, opened) if beside else opened, part, pixels, mask)
        finally:
            with self._counting:
                self._running -= 1
                self._crowded = company or self._begun > begun

    def _run(self, opened: _Part, part: Part, pixels: np.ndarray, mask: np.ndarray | None) -> PartOutputs:
        inputs = {"pixels": pixels}
        if "mask" in opened.inputs:
            inputs["mask"] = self._mask(mask, len(pixels))
        elif mask is not None:
            raise ValueError(f"part {part!r} takes no mask")
        n = len(pixels)
        if self.provider == "cuda":
            inputs = {name: _padded(value, self.buckets) for name, value in inputs.items()}
        values = opened.bound(inputs) if self._binding else opened.session.run(opened.outputs, inputs)
        return outputs_of(part, {name: value[:n] for name, value in zip(opened.outputs, values, strict=True)})

    def _checked(self, pixels: np.ndarray) -> np.ndarray:
        shape = (self.spec.channels, self.spec.height, self.spec.width)
        if pixels.dtype != np.float32 or pixels.shape[1:] != shape:
            raise ValueError(f"pixels: expected float32 (N, {', '.join(map(str, shape))}), got {pixels.shape}")
        return pixels

    def _mask(self, mask: np.ndarray | None, n: int) -> np.ndarray:
        shape = (n, self.spec.height, self.spec.width)
        if mask is None:
            return np.zeros(shape, np.float32)
        if mask.shape != shape:
            raise ValueError(f"mask: expected {shape}, got {mask.shape}")
        return mask.astype(np.float32)

    def warm_up(self) -> float:
        """Run every part at every bucket, with a marked pixel; on the CPU twice more, for `sizes`.

        Returns the seconds that all took. Raises `BundleError` if a graph fails, or an output does not have the shape
        that the manifest states.
        """
        start = time.perf_counter()
        measured: dict[Part, dict[int, float]] = {}
        for part, opened in self._parts.items():
            for n in self.buckets:
                pixels = np.full((n, self.spec.channels, self.spec.height, self.spec.width), 0.5, np.float32)
                mask = None
                if "mask" in opened.inputs:
                    mask = np.zeros((n, self.spec.height, self.spec.width), np.float32)
                    mask[:, 0, 0] = 1.0
                try:
                    outputs = self.run(pixels, mask, part=part)
                except Exception as error:  # noqa: BLE001  # as in `open_session`
                    text = " ".join(str(error).split())[:300]
                    raise BundleError(f"{opened.path}: fails on a batch of {n}: {text}") from None
                for name, wanted in opened.shapes.items():
                    shape = getattr(outputs, name).shape
                    if shape != (n, *wanted):
                        raise BundleError(f"{opened.path}: output {name!r} has shape {shape} for a batch of {n}")
                if self.provider == "cpu":
                    measured.setdefault(part, {})[n] = min(self._timed(pixels, mask, part) for _ in range(2))
        self._seconds = measured
        if self.provider == "cpu" and self.threads > 1 and self._weights() <= _TWICE:
            self._beside = {
                part: _Part(part, opened.path, self._graphs[part], self.provider, self.threads // 2)
                for part, opened in self._parts.items()
            }
        return time.perf_counter() - start

    def _weights(self) -> int:
        """Bytes of the files that the parts are opened from, those of their weights among them."""
        return sum(path.stat().st_size for path in self._folder.iterdir() if path.suffix in (".onnx", ".bin"))

    def _timed(self, pixels: np.ndarray, mask: np.ndarray | None, part: Part) -> float:
        start = time.perf_counter()
        self.run(pixels, mask, part=part)
        return time.perf_counter() - start


class _Part:
    """One session, checked against the manifest's signature."""

    def __init__(self, part: Part, path: Path, graph: GraphSpec, provider: Provider, threads: int) -> None:
        self.path = path
        self.session = open_session(path, provider, threads)
        active = self.session.get_providers()
        if _PROVIDERS[provider] not in active:
            raise ConfigError(f"{path}: ONNX Runtime did not start {provider}, only {', '.join(active)}")
        _check_signature(path, "input", graph.inputs, self.session.get_inputs())
        _check_signature(path, "output", graph.outputs, self.session.get_outputs())
        self.inputs = {tensor.name for tensor in graph.inputs}
        self.shapes = {tensor.name: tensor.shape[1:] for tensor in graph.outputs}
        self.outputs = [name for name in self.shapes if name in names_of(part)]

    def bound(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run with inputs and outputs bound to host memory, so that the provider copies each of them once."""
        binding = self.session.io_binding()
        for name, value in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name in self.outputs:
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        return list(binding.copy_outputs_to_cpu())


def _padded(values: np.ndarray, buckets: Sequence[int]) -> np.ndarray:
    """`values` (N, ...) with zero rows up to the smallest bucket that holds them; as they are beyond the largest."""
    rows = next((bucket for bucket in buckets if bucket >= len(values)), len(values)) - len(values)
    return np.concatenate([values, np.zeros((rows, *values.shape[1:]), values.dtype)]) if rows else values


def choose(bundle: Bundle, device: Device, precision: WantedPrecision = "auto") -> tuple[Provider, Precision]:
    """Provider and precision to serve with, among those that the bundle was calibrated for; `BundleError` if none fits.

    `cuda` where asked for, or where a GPU and the provider exist; fp16 where asked for, or on CUDA.
    """
    calibrated = {(calibration.provider, calibration.precision) for calibration in bundle.manifest.calibrations}
    providers: list[Provider] = ["cuda", "cpu"] if device == "auto" else [device]
    wanted: list[tuple[Provider, Precision]] = []
    for provider in providers:
        best: list[Precision] = ["fp16", "fp32"] if provider == "cuda" else ["fp32"]
        wanted += [(provider, known) for known in (best if precision == "auto" else [precision])]
    possible = (pair for pair in wanted if pair in calibrated and (device != "auto" or pair[0] == "cpu" or _has_cuda()))
    chosen = next(possible, wanted[-1])
    bundle.calibration(*chosen)
    return chosen


def _has_cuda() -> bool:
    # ONNX Runtime built for CUDA lists its provider on any machine and prints an error when it finds no GPU.
    return Path("/dev/nvidiactl").exists() and _PROVIDERS["cuda"] in _onnxruntime().get_available_providers()


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"onnxruntime cannot be imported ({error}): install onnxruntime-gpu") from None
    return onnxruntime


def open_session(path: Path, provider: str, threads: int, *, model: bytes | None = None) -> ort.InferenceSession:
    """A session of the graph in `path` on `provider`; `BundleError` if ONNX Runtime refuses it.

    `model` is run in place of the file, with the weights beside it.
    """
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads starve the other workers and the event loop when they share cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if model is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(path.parent.resolve())
        )
    providers = [_PROVIDERS["cpu"]]
    if provider == "cuda":
        if hasattr(runtime, "preload_dlls"):
            runtime.preload_dlls()
        providers.insert(0, _PROVIDERS["cuda"])
    try:
        return runtime.InferenceSession(model or str(path), options, providers=providers)
    except Exception as error:  # noqa: BLE001  # ONNX Runtime has a class of its own for each of its status codes
        raise BundleError(f"{path}: ONNX Runtime refuses the graph: {' '.join(str(error).split())[:300]}") from None


def _check_signature(path: Path, kind: str, expected: list[TensorSpec], actual: list[ort.NodeArg]) -> None:
    found = {node.name: node for node in actual}
    if set(found) != {tensor.name for tensor in expected}:
        names = sorted(tensor.name for tensor in expected)
        raise BundleError(f"{path}: graph {kind}s are {sorted(found)}, the manifest states {names}")
    for tensor in expected:
        node = found[tensor.name]
        dtype = {"tensor(float)": "float32"}.get(node.type, node.type)
        if dtype != tensor.dtype:
            raise BundleError(f"{path}: graph {kind} {tensor.name!r} is {dtype}, the manifest states {tensor.dtype}")
        shape = [size if isinstance(size, int) else "dynamic" for size in node.shape]
        wanted = [size if isinstance(size, int) else "dynamic" for size in tensor.shape]
        if shape != wanted:
            raise BundleError(f"{path}: graph {kind} {tensor.name!r} has shape {shape}, the manifest states {wanted}")
