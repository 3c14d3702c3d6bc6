"""What we take from the inside of BentoML, circus and uvicorn; a failure here names the release that moved it."""

from __future__ import annotations

import ast
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from starlette.types import Receive, Scope, Send

from gateway import bento_compat

ROOT = Path(__file__).resolve().parents[2]
PRIVATE = ("bentoml._internal", "_bentoml_impl", "_bentoml_sdk", "circus", "uvicorn")


def test_both_packages_are_pinned_to_a_range_that_holds_here() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    ranges = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    for name in ("bentoml", "uvicorn"):
        assert {clause.operator for clause in ranges[name]} == {">=", "<"}
        assert version(name) in ranges[name], f"{name} {version(name)}"


def test_no_other_module_reaches_inside() -> None:
    wrong = []
    for path in sorted((ROOT / "gateway").rglob("*.py")):
        if path == Path(bento_compat.__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong += [f"{path.name}: {name}" for name in names if name.startswith(PRIVATE)]
    assert not wrong


def test_bentoml_times_requests_by_the_class_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from bentoml._internal.server.http import traffic

    monkeypatch.setattr(traffic, "TimeoutMiddleware", traffic.TimeoutMiddleware)
    found = f"bentoml {version('bentoml')}"
    assert "timeout" in traffic.TimeoutMiddleware.__init__.__code__.co_varnames, found
    bento_compat.without_timeout()

    async def app(scope: Scope, receive: Receive, send: Send) -> None: ...

    assert traffic.TimeoutMiddleware(app, timeout=1.0)._app is app


def test_bentoml_supervises_by_the_class_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from bentoml._internal.utils import circus

    monkeypatch.setattr(circus, "Arbiter", circus.Arbiter)
    monkeypatch.setenv("BENTOML_CONTAINERIZED", "1")
    base = bento_compat.arbiter()
    for name in ("start", "stop", "manage_watchers"):
        assert callable(getattr(base, name)), f"bentoml {version('bentoml')}, circus {version('circus')}: {name}"

    class Other(base):  # type: ignore[misc, valid-type]
        pass

    bento_compat.replace_arbiter(Other)
    assert bento_compat.arbiter() is Other
    assert issubclass(bento_compat.conflict_error(), Exception)
    assert len(set(bento_compat.ended_states())) == 2


def test_uvicorn_takes_the_protocol_and_has_what_it_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn.config

    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
    found = f"uvicorn {version('uvicorn')}"
    hooks = ("connection_made", "connection_lost", "data_received", "on_headers_complete", "on_message_complete")
    for name in (*hooks, "shutdown", "send_400_response"):
        assert callable(getattr(bento_compat.HttpToolsProtocol, name)), f"{found}: {name}"
    assert bento_compat.STATUS_LINE[431].startswith(b"HTTP/1.1 431"), found
    bento_compat.replace_http_protocol(bento_compat.HttpToolsProtocol)
    assert uvicorn.config.HTTP_PROTOCOLS["auto"].endswith(":HttpToolsProtocol"), found


def test_bentoml_has_one_provider_of_tracers() -> None:
    assert bento_compat.tracer_provider() is bento_compat.tracer_provider(), f"bentoml {version('bentoml')}"


def test_the_host_that_bentoml_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENTOML_HOST", raising=False)
    for arguments, expected in (
        (["serve"], None),
        (["serve", "--host", "0.0.0.0"], "0.0.0.0"),  # noqa: S104
        (["serve", "--host=::1"], "::1"),
    ):
        monkeypatch.setattr("sys.argv", ["bentoml", *arguments])
        assert bento_compat.given_host() == expected
    monkeypatch.setattr("sys.argv", ["bentoml", "serve"])
    monkeypatch.setenv("BENTOML_HOST", "192.0.2.1")
    assert bento_compat.given_host() == "192.0.2.1"


def test_a_supervisor_is_known_by_its_command_line() -> None:
    import os

    assert not bento_compat.is_supervisor(os.getpid())
    assert not bento_compat.is_supervisor(2**22 + 1)


def test_bentoml_says_whether_it_answers_for_other_origins() -> None:
    assert bento_compat.sets_cors_headers() is False, f"bentoml {version('bentoml')}"
