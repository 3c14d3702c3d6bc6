"""The processes around the service: what they are told, and how the supervisor minds its workers."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from bentoml._internal.utils import circus
from circus.exc import ConflictError

from gateway.process import supervisor
from gateway.process.serving import log_formatter, server_command, use_one_gpu
from gateway.settings import Settings


@pytest.mark.parametrize(
    ("visible", "worker", "seen"),
    [
        ("0,1,2", 1, "0"),
        ("0,1,2", 3, "2"),
        ("0,1,2", 5, "1"),
        ("GPU-aa,GPU-bb", 2, "GPU-bb"),
        ("", 2, ""),
        ("0,1", None, "0,1"),
    ],
)
def test_each_worker_sees_one_gpu(monkeypatch: pytest.MonkeyPatch, visible: str, worker: int | None, seen: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    use_one_gpu(worker)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_gpus_are_counted_where_no_variable_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    # A container may have been given any of the machine's; CUDA counts them from 0.
    monkeypatch.setattr(Path, "glob", lambda *_: [Path("/dev/nvidia3"), Path("/dev/nvidia5")])
    use_one_gpu(2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_time_outs_are_handed_to_the_server() -> None:
    command = " ".join(server_command(Settings(keep_alive=7, drain_timeout=8)))
    assert "--timeout-keep-alive 7 --timeout-graceful-shutdown 11" in command


class _Arbiter(supervisor._Arbiter):
    """Without processes: `stop` and `manage_watchers` of BentoML's meet another command at work, once."""

    def __init__(self) -> None:
        self.busy, self.done, self.later = True, 0, list[Callable[[], object]]()
        self._starts, self.watchers = 0, list[object]()
        self.loop = self.sockets = self

    def call_later(self, _: float, callback: Callable[[], object]) -> None:
        self.later.append(callback)

    def close_all(self) -> None:
        self.done += 1


def test_the_supervisor_tries_again_when_it_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_work(arbiter: _Arbiter) -> str:
        if arbiter.busy:
            raise ConflictError
        return "stopping"

    monkeypatch.setattr(circus.Arbiter, "stop", at_work)
    monkeypatch.setattr(circus.Arbiter, "manage_watchers", at_work)
    arbiter = _Arbiter()
    assert arbiter.manage_watchers() is None
    assert arbiter.stop() is None
    assert arbiter.done == 0
    arbiter.busy = False
    (again,) = arbiter.later
    assert again() == "stopping"
    assert arbiter.done == 1


def test_dead_workers_are_replaced_in_containers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circus, "Arbiter", circus.Arbiter)
    monkeypatch.setenv("BENTOML_CONTAINERIZED", "true")
    supervisor.watch_closely()
    assert circus.Arbiter is supervisor._Arbiter
    assert "BENTOML_CONTAINERIZED" not in os.environ


def test_a_line_of_the_json_log_is_an_object_whatever_the_path() -> None:
    record = logging.LogRecord("gateway.access", logging.INFO, __file__, 1, "%s %r", ("id1", '/a\n"b'), None)
    record.request_id, record.path = "id1", '/a\n"b'
    line = log_formatter("json").format(record)
    assert "\n" not in line
    fields = json.loads(line)
    assert (fields["level"], fields["logger"], fields["request_id"]) == ("INFO", "gateway.access", "id1")
    assert fields["path"] == '/a\n"b'
