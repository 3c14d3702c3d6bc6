"""Starting the peers: MLServer with a network as ONNX, and a second Palisade with a bundle."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch

from benchmarks.assembled.onnx_service import QUESTIONS
from benchmarks.servers import Server, free_port, palisade, running
from gateway.core.loading import load_bundle
from gateway.core.manifest import InputSpec
from training.export.onnx_file import EXAMPLE_BATCH, export_module
from training.export.parts import cut
from training.models.network import Network

RUNTIME = Path(__file__).parent / "mlserver_onnx.py"
ASSEMBLED = Path(__file__).parent / "mlserver_assembled.py"


@contextmanager
def mlserver(command: Path, network: Network, spec: InputSpec, classes: int, folder: Path) -> Iterator[Server]:
    """`mlserver start` (the executable `command`) with the network alone, as `net`."""
    shutil.rmtree(folder, ignore_errors=True)
    model = folder / "net"
    model.mkdir(parents=True)
    pixels = torch.rand(EXAMPLE_BATCH, spec.channels, spec.height, spec.width)
    export_module(network, model / "net.onnx", inputs={"pixels": pixels}, outputs=["logits"])
    shutil.copy(RUNTIME, model / "runtime.py")
    (model / "model-settings.json").write_text(
        json.dumps(
            {
                "name": "net",
                "implementation": "runtime.OnnxModel",
                "inputs": [
                    {"name": "pixels", "datatype": "FP32", "shape": [-1, spec.channels, spec.height, spec.width]}
                ],
                "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, classes]}],
            }
        )
    )
    with _started(command, folder, "net", path="/v2") as server:
        yield server


@contextmanager
def assembled_mlserver(command: Path, bundle: Path, *, threads: int) -> Iterator[Server]:
    """`mlserver start` with the sessions of `benchmarks/assembled/onnx_service.py`; image files go in, base64."""
    loaded = load_bundle(bundle)
    whole = onnx.load(str(bundle / loaded.manifest.graphs["full"].file))
    settings = {
        "name": "net",
        "implementation": "runtime.Assembled",
        "max_batch_size": 32,
        "max_batch_time": 0.002,
        "parameters": {"extra": {"threads": threads, "side": loaded.manifest.input.height}},
    }
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "net"
        model.mkdir()
        for name, outputs in QUESTIONS.items():
            onnx.save(cut(whole, outputs), str(model / f"{name}.onnx"))
        shutil.copy(ASSEMBLED, model / "runtime.py")
        (model / "model-settings.json").write_text(json.dumps(settings))
        with _started(command, Path(folder), "net", path="/v2/models/net/infer") as server:
            yield server


@contextmanager
def _started(command: Path, folder: Path, model: str, *, path: str) -> Iterator[Server]:
    """`mlserver start` on the models in `folder`, once `model` is ready."""
    port = free_port()
    settings: dict[str, Any] = {"host": "127.0.0.1", "http_port": port, "parallel_workers": 0}
    settings |= {"grpc_port": free_port(), "metrics_port": free_port(), "debug": False}
    (folder / "settings.json").write_text(json.dumps(settings))
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    with running(
        [str(command), "start", str(folder)], environment, path=path, ready=f"/v2/models/{model}/ready", port=port
    ) as server:
        yield server


@contextmanager
def second_palisade(bundle: Path, folder: Path) -> Iterator[Server]:
    """A gateway with `bundle` that serves its first answers (`observe`), so that its logits are the network's."""
    with palisade(bundle, path="/v2", threads=1, policy="observe", audit=False, state_dir=folder / "state") as server:
        yield server
