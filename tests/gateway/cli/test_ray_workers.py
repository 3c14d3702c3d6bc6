"""The workers' pool without Ray: a stand-in for the package, with workers that die when they are told to."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.cli.main import app
from gateway.cli.ray_workers import OnRay, Pool, _knock
from gateway.cli.sources import Setup
from gateway.errors import ConfigError, PalisadeError, RayUnavailable, UnreadableFile
from tests.gateway.server import free_port

SETUP = Setup("tiny", "1.0.0", 0.01, "sanitize")


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class Ray:
    """The newest call is answered first, when it is waited for."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def wait(self, references: Sequence[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return list(references[-num_returns:]), list(references[:-num_returns])

    def get(self, reference: Callable[[], Any]) -> Any:
        try:
            return reference()
        except PalisadeError as error:
            raise RayTaskError(error) from None

    def kill(self, worker: Any) -> None:
        raise ValueError("it is dead already")


class Method:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.remote = lambda *arguments: lambda: function(*arguments)


class Crowd:
    """Makes workers; `judge` and `open` say what they do."""

    def __init__(self, judge: Callable[[list[str]], list[str]], setups: Sequence[Setup | None] = ()) -> None:
        self.made = 0
        self._judge, self._setups = judge, list(setups)

    def __call__(self) -> Any:
        self.made += 1
        setup = self._setups.pop(0) if self._setups else SETUP

        def start() -> Setup:
            if setup is None:
                raise RayError("killed")
            return setup

        return SimpleNamespace(open=Method(start), judge=Method(self._judge))


def results(pool: Pool, items: list[str], size: int) -> list[tuple[list[str], list[str] | None]]:
    return [(list(piece), result) for piece, result in pool.run("judge", items, size)]


def test_each_piece_is_done_once() -> None:
    crowd = Crowd(lambda items: [item.upper() for item in items])
    assert sorted(results(Pool(Ray(), crowd, 2), list("abcde"), 2)) == [
        (["a", "b"], ["A", "B"]),
        (["c", "d"], ["C", "D"]),
        (["e"], ["E"]),
    ]
    assert crowd.made == 2


def test_a_piece_whose_worker_was_killed_is_done_by_another() -> None:
    calls: Counter[str] = Counter()

    def judge(items: list[str]) -> list[str]:
        calls[items[0]] += 1
        if (items[0], calls[items[0]]) in {("a", 1), ("c", 1)}:
            raise RayError("killed")
        return items

    crowd = Crowd(judge)
    done = results(Pool(Ray(), crowd, 2), list("abcdef"), 2)
    assert sorted(item for piece, result in done if result == piece for item in piece) == list("abcdef")
    assert crowd.made == 4


def test_an_image_that_kills_workers_is_named_and_its_neighbours_are_judged() -> None:
    def judge(items: list[str]) -> list[str]:
        if "c" in items:
            raise RayError("killed")
        return items

    done = results(Pool(Ray(), Crowd(judge), 2), list("abcdef"), 3)
    assert (["c"], None) in done
    assert sorted(item for piece, result in done if result is not None for item in piece) == list("abdef")
    image = SimpleNamespace(name="c", stat=lambda: (1, 0.0))
    ((row,),) = OnRay(Pool(Ray(), Crowd(lambda items: judge(["c"])), 1), 1, 8).rows([image])
    assert (row["path"], row["error"], row["model"]) == ("c", "worker_lost", "tiny")


def test_workers_that_cannot_start_end_the_scan() -> None:
    with pytest.raises(RayUnavailable, match="before they have opened the bundle: killed"):
        _ = Pool(Ray(), Crowd(list, [None] * 100), 2).setup
    crowd = Crowd(list, [None, None, SETUP])
    assert Pool(Ray(), crowd, 1).setup == SETUP
    assert crowd.made == 3


def test_workers_with_another_bundle_and_errors_of_all_images_end_the_scan() -> None:
    other = SETUP._replace(version="2.0.0")
    with pytest.raises(ConfigError, match="different bundles"):
        results(Pool(Ray(), Crowd(list, [SETUP, other]), 2), list("abcdef"), 1)

    def refuses(items: list[str]) -> list[str]:
        raise UnreadableFile("no disk")

    with pytest.raises(UnreadableFile, match="no disk"):
        results(Pool(Ray(), Crowd(refuses), 1), ["a"], 1)


def test_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"")

    def said(*options: str) -> str:
        result = CliRunner().invoke(app, ["scan", str(tmp_path), "--out", str(tmp_path / "r.jsonl"), *options])
        assert result.exit_code == 2
        return result.stderr

    assert "--workers is for scans on Ray" in said("--workers", "2")
    assert "choose one of them" in said("--ray", "local", "--url", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "scans on Ray need ray: pip install 'palisade-gateway[ray]'" in said("--ray", "local")


def test_addresses() -> None:
    for address in ("nonsense", "auto", "ray://host", "host:port"):
        with pytest.raises(ConfigError, match="expected local, HOST:PORT or ray://HOST:PORT"):
            _knock(address)
    for address in ("127.0.0.1", "ray://127.0.0.1"):
        with pytest.raises(RayUnavailable, match="refused"):
            _knock(f"{address}:{free_port()}")
