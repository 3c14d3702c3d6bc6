"""No command looks up a name, connects beyond this machine, or leaves files of telemetry behind.

Each command runs in an empty environment, since `CI` and others keep ONNX Runtime silent, and under a library
(data/network_calls.c) that notes its calls of the network.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from gateway import NO_RAY_TELEMETRY, NO_TELEMETRY
from tests.e2e.ray_scans import Scans, rows_by_path
from tests.gateway.server import ROOT, free_port
from tests.gateway.tiny import clean_image, encode, write_bundle
from tests.training.bundling.test_wrap import MODEL, write_folder
from tests.training.commands.test_train_command import RECIPE
from tests.training.models.test_adapted import Stages
from tests.training.toy import CLASSES, SIDE, gratings

# Seconds after it is ready in which a server with telemetry looks up its host: measured, 8 to 10.
QUIET_SECONDS = 12
LONG_SECONDS = 60
# No name at all, and those of this machine.
OWN = {"-", "localhost", socket.gethostname()}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD")


@pytest.fixture(scope="module")
def hook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler, cc")
    library = tmp_path_factory.mktemp("hook") / "network_calls.so"
    source = ROOT / "tests" / "data" / "network_calls.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


@dataclass(frozen=True)
class Watched:
    """A folder that is the home of a process, and what the process did to the network."""

    folder: Path
    hook: Path

    def environment(self, **variables: str) -> dict[str, str]:
        """Of a user without any setting: nothing of this process's."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        path = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(home), "LANG": "C.UTF-8"}
        return path | {"LD_PRELOAD": str(self.hook), "PALISADE_TEST_CALLS": str(self.folder / "calls")} | variables

    def run(self, *arguments: object, **variables: str) -> None:
        command = [sys.executable, "-m", "gateway.cli", *map(str, arguments)]
        done = subprocess.run(
            command,
            check=False,
            cwd=ROOT,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr

    @property
    def abroad(self) -> set[str]:
        """Names looked up and addresses connected to, but for those of this machine."""
        calls = self.folder / "calls"
        assert calls.exists(), "the library was not loaded"
        targets = {line.split(" ", 1)[1] for line in calls.read_text("utf-8").splitlines()}
        return {target for target in targets - OWN if not _is_loopback(target)}

    @property
    def telemetry(self) -> list[str]:
        """Files that ONNX Runtime or BentoML keep of what they would send."""
        made = [str(path.relative_to(self.folder)) for path in (self.folder / "home").rglob("*") if path.is_file()]
        return [name for name in made if any(word in name.lower() for word in ("microsoft", "onnxruntime", "deviceid"))]


def _is_loopback(target: str) -> bool:
    try:
        address = ipaddress.ip_address(target.partition("%")[0])
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    except ValueError:
        return False


@pytest.fixture
def watched(tmp_path: Path, hook: Path) -> Watched:
    watched = Watched(tmp_path, hook)
    # What calls nothing leaves no file of calls: one call shows that the library is there.
    program = "import socket; socket.getaddrinfo('localhost', 80)"
    subprocess.run([sys.executable, "-c", program], env=watched.environment(), check=True)
    return watched


def quiet(watched: Watched) -> None:
    assert watched.abroad == set()
    assert watched.telemetry == []


def test_the_library_sees_what_a_process_looks_up_and_connects_to(watched: Watched) -> None:
    """Of names that exist nowhere (RFC 6761) and an address for documentation (RFC 5737)."""
    program = (
        "import socket\n"
        "for call in (socket.getaddrinfo, socket.gethostbyname_ex):\n"
        "    try: call(*[call.__name__.replace('_', '-') + '.invalid', 80][: 2 if 'addr' in call.__name__ else 1])\n"
        "    except OSError: pass\n"
        "probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "try: probe.sendto(b'', ('192.0.2.1', 9))\n"
        "except OSError: pass\n"
        "probe.setblocking(False)\n"
        "try: probe.connect(('192.0.2.2', 9))\n"
        "except OSError: pass\n"
    )
    subprocess.run([sys.executable, "-c", program], env=watched.environment(), check=True, timeout=60)
    assert watched.abroad == {"getaddrinfo.invalid", "gethostbyname-ex.invalid", "192.0.2.1", "192.0.2.2"}


def test_predict_and_scan(watched: Watched, tmp_path: Path) -> None:
    images, models = tmp_path / "images", write_bundle(tmp_path / "models" / "tiny")
    images.mkdir()
    (images / "clean.png").write_bytes(encode(clean_image()))
    watched.run("predict", images / "clean.png", "--models", models)
    watched.run("scan", images, "--models", models, "--out", tmp_path / "report.jsonl")
    quiet(watched)


@pytest.mark.e2e
def test_scan_on_ray(watched: Watched, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    images, scans = tmp_path / "images", Scans(tmp_path, write_bundle(tmp_path / "models" / "tiny"))
    images.mkdir()
    for number in range(12):
        (images / f"{number}.png").write_bytes(encode(clean_image()))
    options = ("--ray", "local", "--workers", 2, "--batch", 2, "--out", tmp_path / "report.jsonl")
    watched.run("scan", images, "--models", scans.models, *options, PYTHONPATH=scans.environment["PYTHONPATH"])
    assert len(rows_by_path(tmp_path / "report.jsonl")) == 12
    quiet(watched)


def test_train(watched: Watched, tmp_path: Path) -> None:
    train, test = gratings(96, seed=1), gratings(16, seed=2)
    np.savez(tmp_path / "toy.npz", x_train=train.x, y_train=train.y, x_test=test.x, y_test=test.y)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), "utf-8")
    watched.run("train", tmp_path / "recipe.yaml", "--runs", tmp_path / "runs", PALISADE_DATA=str(tmp_path))
    quiet(watched)


@pytest.mark.e2e
def test_wrap(watched: Watched, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(Stages(CLASSES).state_dict(), tmp_path / "weights.safetensors")
    photos = write_folder(tmp_path / "photos", gratings(240, seed=5))
    given = {
        "weights": tmp_path / "weights.safetensors",
        "data": photos,
        "out": tmp_path / "models" / "toy",
    }
    options = given | {"size": SIDE, "normalise": "0.5,0.5,0.5/0.15,0.15,0.15", "threads": 1}
    watched.run("wrap", MODEL, *(part for name, value in options.items() for part in (f"--{name}", value)))
    quiet(watched)


@contextmanager
def server(watched: Watched, models: Path) -> Iterator[str]:
    """`palisade serve` until it is ready; its URL."""
    port = free_port()
    with (watched.folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "serve", "--models", str(models), "--port", str(port)],
            cwd=ROOT,
            env=watched.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 180
        while True:
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert process.poll() is None, (watched.folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(180) == 0


@pytest.mark.parametrize("seconds", [QUIET_SECONDS, pytest.param(LONG_SECONDS, marks=pytest.mark.e2e)])
def test_serve(watched: Watched, tmp_path: Path, seconds: float) -> None:
    with server(watched, write_bundle(tmp_path / "models" / "tiny")) as url:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert httpx.post(f"{url}/v1/predict", content=encode(clean_image())).status_code == 200
            time.sleep(1.0)
    quiet(watched)


def test_whatever_a_user_set_telemetry_is_off(hook: Path) -> None:
    wanted = NO_TELEMETRY | NO_RAY_TELEMETRY
    program = f"import os; assert os.environ.items() >= {wanted}.items()"
    environment = os.environ | dict.fromkeys(wanted, "x")
    for package in ("gateway", "training", "studies", "benchmarks"):
        command = [sys.executable, "-c", f"import {package}\n{program}"]
        subprocess.run(command, cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)}, check=True)
