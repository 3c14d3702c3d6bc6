"""Starts that cannot succeed, and homes that cannot be written: one line, and an end, whatever the cause."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from circus.process import DEAD_OR_ZOMBIE, RUNNING

from gateway.errors import ConfigError, StoreUnavailable
from gateway.process import home, serving, supervisor
from gateway.settings import Settings, load_settings
from gateway.telemetry import tracing
from gateway.versions.rollout import Worker
from tests.gateway.server import ROOT, Server, free_port, start, stop, wait_until_ready
from tests.gateway.tiny import clean_image, encode, write_bundle


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("models") / "tiny")


def cli(*arguments: str, **variables: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in (os.environ | variables).items() if value is not None}
    command = [sys.executable, "-m", "gateway.cli", *arguments]
    return subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


# In each worker, and not in the supervisor, which imports the service as well.
BROKEN_WORKER = """
import os, sys
if "_bentoml_impl.worker.service" in sys.orig_argv:
    {}
"""


@pytest.mark.parametrize("end", ["os._exit(3)", "os.abort()"])
def test_workers_that_end_before_they_can_answer_end_the_server(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BROKEN_WORKER.format(end))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    server = start(models, tmp_path, workers=2)
    try:
        assert server.process.wait(240) == 1
    finally:
        stop(server)
    log = server.log.read_text()
    (line,) = [line for line in log.splitlines() if "palisade cannot start" in line]
    assert "workers in turn ended before they could answer" in line
    assert "Traceback" not in log


class _Arbiter(supervisor._Arbiter):
    """Of two workers, without processes."""

    def __init__(self) -> None:
        self._starts, self._served, self._failed, self._store = 0, False, False, None
        self.processes = {pid: SimpleNamespace(status=RUNNING) for pid in (1, 2)}
        self.watchers = [SimpleNamespace(numprocesses=2, processes=self.processes)]

    def started(self, times: int) -> bool:
        """Whether it is hopeless, with a dead worker, after so many starts more."""
        for _ in range(times):
            assert self._count(watcher=None, arbiter=self, hook_name="after_spawn", pid=1)
        self.processes[2].status = DEAD_OR_ZOMBIE
        return self._hopeless()


@pytest.fixture
def living(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Worker]]:
    workers = list[Worker]()
    monkeypatch.setattr(supervisor, "living_workers", lambda _: workers)
    return workers


def test_starts_in_vain_are_counted_until_a_worker_is_ready(
    living: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    completed = list[object]()
    monkeypatch.setattr(supervisor, "complete", completed.append)
    arbiter = _Arbiter()
    assert not arbiter.started(2 * supervisor.TRIES - 1)
    living.append(Worker(1))
    assert arbiter.started(1), "one that is not ready changes nothing"
    living[0] = Worker(1, ready=True)
    assert not arbiter.started(0)
    assert len(completed) == 1, "workers were replaced while one is ready: the server is"
    for _ in range(20):
        assert not arbiter.started(3), "others serve"
    living.clear()
    assert not arbiter.started(2 * supervisor.TRIES - 1)
    assert arbiter.started(1)


def test_the_first_workers_complete_the_server_by_themselves(
    living: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "complete", lambda _: pytest.fail("the second one still loads"))
    living.append(Worker(1, ready=True))
    assert not _Arbiter().started(2)


def test_many_workers_that_live_are_no_failure(living: list[Worker]) -> None:
    arbiter = _Arbiter()
    assert arbiter.started(50)
    arbiter.processes[2].status = RUNNING
    assert not arbiter._hopeless()


def test_a_store_that_fails_does_not_end_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> list[Worker]:
        raise StoreUnavailable("locked")

    monkeypatch.setattr(supervisor, "living_workers", fails)
    assert not _Arbiter().started(50)


UNUSABLE: dict[str, Callable[[Path], str]] = {
    "a file": lambda folder: str(folder / "file"),
    "below a file": lambda folder: str(folder / "file" / "home"),
    "not absolute": lambda _: "~nobody-of-this-name",
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_home_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", UNUSABLE[kind](tmp_path))
    monkeypatch.chdir(tmp_path)
    data, state = tmp_path / "data", tmp_path / "state"
    assert home.bentoml_home(Settings(data_dir=data, state_dir=state)) == {"BENTOML_HOME": str(data / "bentoml")}
    (line,) = caplog.messages
    assert "no home folder can be written" in line
    assert home.bentoml_home(Settings(data_dir=tmp_path / "file", state_dir=state)) == {
        "BENTOML_HOME": str(state / "bentoml")
    }
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    variables = home.bentoml_home(Settings())
    assert Path(variables["BENTOML_HOME"]).is_relative_to(tmp_path)
    assert variables[home.TEMPORARY] == variables["BENTOML_HOME"]
    assert {path.name for path in tmp_path.iterdir()} - {"data", "state", "file"} == {
        Path(variables["BENTOML_HOME"]).name
    }


def test_a_home_of_the_users_choice_must_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home.bentoml_home(Settings()) == {"BENTOML_HOME": str(tmp_path / "bentoml")}
    monkeypatch.setenv("BENTOML_HOME", "~/chosen")
    assert home.bentoml_home(Settings()) == {"BENTOML_HOME": str(tmp_path / "chosen")}
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BENTOML_HOME", "$HOME/file")
    with pytest.raises(ConfigError, match=f"BENTOML_HOME={tmp_path}/file: .*name a folder"):
        home.bentoml_home(Settings(data_dir=tmp_path / "data"))
    monkeypatch.delenv("BENTOML_HOME")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "file")])
    with pytest.raises(ConfigError, match="TMPDIR"):
        home.bentoml_home(Settings())


def test_a_full_disk_is_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="No space left on device"):
        home.bentoml_home(Settings())


@pytest.fixture
def homeless(models: Path, tmp_path: Path) -> Iterator[Server]:
    """`palisade serve`, whose home folder cannot be made, with a folder for temporary files of its own."""
    (tmp_path / "file").write_text("")
    (tmp_path / "temporary").mkdir()
    port, log = free_port(), tmp_path / "server.log"
    folders = {"HOME": tmp_path / "file" / "home", "TMPDIR": tmp_path / "temporary", "PYTHONPATH": ROOT}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "serve", "--models", str(models), "--port", str(port)],
            cwd=ROOT,
            env=os.environ | {name: str(folder) for name, folder in folders.items()},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    server = Server(f"http://127.0.0.1:{port}", port, log, process)
    try:
        wait_until_ready(server)
        yield server
    finally:
        stop(server)


def test_a_server_without_a_home_serves_and_removes_what_it_used(homeless: Server, tmp_path: Path) -> None:
    assert homeless.post(content=encode(clean_image())).status_code == 200
    assert list((tmp_path / "temporary").glob("palisade-bentoml-*"))
    stop(homeless)
    log = homeless.log.read_text()
    assert "no home folder can be written: BentoML uses" in log
    assert "nothing is kept for review" in log
    assert "Traceback" not in log
    assert not list((tmp_path / "temporary").glob("palisade-*"))


@pytest.mark.parametrize("home_folder", ["/proc/no-such-home", "", None])
def test_commands_without_a_home(models: Path, tmp_path: Path, home_folder: str | None) -> None:
    image = tmp_path / "images" / "clean.png"
    image.parent.mkdir()
    image.write_bytes(encode(clean_image()))
    for arguments in (
        ["predict", str(image), "--models", str(models), "--json"],
        ["scan", str(image.parent), "--models", str(models), "--out", str(tmp_path / "report")],
        ["keys", "create", "--id", "a", "--file", str(tmp_path / "keys.json")],
        ["bundle", "verify", str(models)],
        *([["wrap", "--help"]] if home_folder else []),  # seconds, to import torch
    ):
        done = cli(*arguments, HOME=home_folder)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert not (ROOT / "~").exists()


def test_a_folder_of_nobodys_home_is_refused() -> None:
    with pytest.raises(ConfigError, match="PALISADE_DATA_DIR"):
        load_settings(data_dir="~nobody-of-this-name/palisade")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("PALISADE_TRACE_ENDPOINT", "collector:4318", "expected a URL that begins with http:// or https://"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many", "see the variables OTEL_"),
    ],
)
def test_tracing_that_cannot_work_is_one_line(
    models: Path, tmp_path: Path, unused_port: int, variable: str, value: str, said: str
) -> None:
    done = cli("serve", "--models", str(models), "--port", str(unused_port), **{variable: value, "HOME": str(tmp_path)})
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if said in line]
    assert line.startswith(("error: ", "palisade: "))


@pytest.fixture
def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class _Exporter(ModuleType):
    """In place of the package's module, which may be absent."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__("trace_exporter")
        self._error = error
        self.ended = 0

    def OTLPSpanExporter(self, *, endpoint: str) -> _Exporter:  # noqa: N802
        if self._error is not None:
            raise self._error
        return self

    def shutdown(self) -> None:
        self.ended += 1


def test_an_exporter_is_made_before_a_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(trace_endpoint="http://localhost:4318/v1/traces", trace_rate=0.5)
    sound = _Exporter(None)
    monkeypatch.setitem(sys.modules, tracing._EXPORTER, sound)
    options = tracing.tracing_options(settings)
    assert (options["sample_rate"], options["otlp"]["protocol"]) == (0.5, "http")
    assert sound.ended == 1
    monkeypatch.setitem(sys.modules, tracing._EXPORTER, _Exporter(ValueError("timeout:\n'abc'")))
    with pytest.raises(ConfigError, match=r"cannot be made \(ValueError: timeout: 'abc'\): see the variables OTEL_"):
        tracing.tracing_options(settings)
    monkeypatch.setitem(sys.modules, tracing._EXPORTER, None)
    with pytest.raises(ConfigError, match=r"PALISADE_TRACE_ENDPOINT: .*palisade-gateway\[tracing\]"):
        tracing.tracing_options(settings)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("no such host", "an IP address is needed"),
        ("localhost.localdomain", "an IP address is needed"),
        ("192.0.2.1", "not an address of this machine"),
    ],
)
def test_a_host_that_is_no_address_of_this_machine(host: str, said: str, unused_port: int) -> None:
    with pytest.raises(ConfigError, match=f"PALISADE_HOST='{host}': {said}"):
        serving.free_port(load_settings(host=host, port=unused_port))


def test_a_port_in_use(unused_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for host in ("localhost", "127.0.0.1", "0.0.0.0"):  # noqa: S104
            with pytest.raises(ConfigError, match=f"port {port} of {host} is in use: choose another with --port"):
                serving.free_port(load_settings(host=host, port=port))
    serving.free_port(load_settings(host="127.0.0.1", port=unused_port))


def test_a_port_that_this_user_may_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refused)
    with pytest.raises(ConfigError, match="this user may not open port 80"):
        serving.free_port(load_settings(port=80))
