"""Starting and stopping the server process around the service."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

from gateway.bento_compat import is_supervisor
from gateway.errors import ConfigError
from gateway.settings import Settings

log = logging.getLogger(__name__)

SERVICE = "gateway.service:Palisade"
_LEFTOVER_SECONDS = 3
# Set for the server when the command has loaded the bundles, so that it does not load them again before workers start.
CHECKED = "PALISADE_CHECKED"


def server_command(settings: Settings) -> list[str]:
    """The `bentoml serve` command of `settings`."""
    options = {
        "host": _address(settings.host),
        "port": settings.port,
        "timeout-keep-alive": settings.keep_alive,
        # Later than our own limit on requests in flight (gateway.http.connection), for those that it could not end.
        "timeout-graceful-shutdown": settings.drain_timeout + _LEFTOVER_SECONDS,
    }
    arguments = [part for option, value in options.items() for part in (f"--{option}", str(value))]
    return [sys.executable, "-m", "bentoml", "serve", SERVICE, *arguments]


def server_environment(settings: Settings) -> dict[str, str]:
    """Our environment, with the (checked) `settings` as `PALISADE_*`; `import gateway` put telemetry off in it."""
    environment = dict(os.environ)
    # Defaults too: an option that was given outweighs a variable, also where it equals the default.
    for name, value in settings.model_dump(exclude_none=True).items():
        paths = [str(path.resolve()) for path in value] if isinstance(value, list) else None
        environment[f"PALISADE_{name.upper()}"] = str(value) if paths is None else os.pathsep.join(paths)
    environment[CHECKED] = "1"
    return environment


def run_server(settings: Settings, variables: Mapping[str, str]) -> None:
    """Replace this process by the server, with `variables` beside those of the settings."""
    sys.stdout.flush()
    sys.stderr.flush()
    command = server_command(settings)
    environment = {**server_environment(settings), **variables}
    os.execve(command[0], command, environment)  # noqa: S606  # our own interpreter, no shell


def sample_image(bundle: Path) -> Path:
    """A clean sample that the bundle ships, or the name of one to fill in; relative where that is shorter."""
    images = sorted((bundle / "samples").rglob("*.png"))
    if not images:
        return Path("image.png")
    image = next((image for image in images if "clean" in image.as_posix()), images[0])
    return image.relative_to(Path.cwd()) if image.is_relative_to(Path.cwd()) else image


def log_to_stderr(form: Literal["text", "json"] = "text") -> None:
    """Show the gateway's log: as text in the shape of BentoML's, which configures its own loggers only, or as JSON."""
    logger = logging.getLogger("gateway")
    if logger.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(log_formatter(form))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # Pillow and the parser of forms warn about odd uploads; the sender learns the reason from the answer.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def log_formatter(form: Literal["text", "json"]) -> logging.Formatter:
    """A line, or a JSON object with `time`, `level`, `logger`, `message` and the record's extra fields."""
    time_format = "%Y-%m-%dT%H:%M:%S%z"
    if form == "text":
        return logging.Formatter("%(asctime)s [%(levelname)s] [%(name)s] %(message)s", time_format)
    names = {"asctime": "time", "levelname": "level", "name": "logger"}
    return JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s", time_format, rename_fields=names)


def use_one_gpu(worker: int | None) -> None:
    """In worker `worker` (from 1; None in no worker), before CUDA is touched: make only this worker's GPU visible."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        gpus = [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    else:
        gpus = [gpu for gpu in visible.split(",") if gpu]
    if worker is not None and gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[(worker - 1) % len(gpus)]


def abort_server(reason: str) -> None:
    """End a worker that cannot serve, and its supervisor, which would only start it again."""
    log.critical("palisade cannot start: %s", reason)
    sys.stderr.flush()
    supervisor = os.getppid()
    if is_supervisor(supervisor):
        os.kill(supervisor, signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)


def free_port(settings: Settings) -> None:
    """`ConfigError` when the server could not listen on its address and port: it listens there for a moment."""
    host, port = _address(settings.host), settings.port
    family = socket.AF_INET if host.version == 4 else socket.AF_INET6
    try:
        socket.create_server((str(host), port), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = f"port {port} of {settings.host} is in use: choose another with --port"
        elif isinstance(error, PermissionError):
            reason = f"this user may not open port {port}: choose one above 1023 with --port"
        else:
            reason = f"PALISADE_HOST={settings.host!r}: not an address of this machine ({error.strerror})"
        raise ConfigError(reason) from None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address to listen on; BentoML takes no names."""
    try:
        return ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise ConfigError(
            f"PALISADE_HOST={host!r}: an IP address is needed, 127.0.0.1 for this machine alone, 0.0.0.0 for all"
        ) from None
