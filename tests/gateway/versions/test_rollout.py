"""Versions at run time: two workers that share a store, in one process."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import weakref
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from gateway.errors import BundleError, ConfigError, Conflict, UnknownModel, UnknownVersion
from gateway.settings import Settings
from gateway.versions.registry import Registry
from gateway.versions.rollout import Rollout, complete, forget_workers, stored_wanted
from gateway.versions.shared_state import Store
from tests.gateway.tiny import SIZE, clean_image, write_bundle

ME, OTHER = os.getpid(), os.getppid()  # two processes that live


class Server:
    """Two workers over one folder of models and one of state."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models, self.state = folder / "models", folder / "state"
        self.state.mkdir()
        for version in ("1.0.0", "2.0.0"):
            write_bundle(self.models / "tiny" / version, version=version)
        self.settings = Settings(models=[self.models], threads=1, workers=2, state_dir=self.state)
        self._monkeypatch = monkeypatch

    def worker(self, pid: int) -> Rollout:
        self._monkeypatch.setattr("gateway.versions.rollout.os.getpid", lambda: pid)
        rollout = Rollout(self.settings, Store(self.state))
        self._monkeypatch.undo()
        rollout.start()
        return rollout


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(tmp_path, monkeypatch)


def active(rollout: Rollout) -> str:
    return rollout.registry.get("tiny").bundle.version


def test_a_switch_reaches_the_other_worker_and_back(server: Server) -> None:
    one, two = server.worker(ME), server.worker(OTHER)
    assert one.all_ready()
    assert [active(one), active(two)] == ["2.0.0", "2.0.0"]
    generation = one.activate("tiny", "1.0.0")
    assert [active(one), active(two)] == ["1.0.0", "2.0.0"]
    assert not one.converged(generation)
    two.follow()
    assert active(two) == "1.0.0"
    assert one.converged(generation)
    two.rollback("tiny")
    one.follow()
    assert [active(one), active(two)] == ["2.0.0", "2.0.0"]
    info = {
        version: REGISTRY.get_sample_value(
            "palisade_model_info", {"model": "tiny", "version": version, "provider": "cpu", "precision": "fp32"}
        )
        for version in ("1.0.0", "2.0.0")
    }
    assert info == {"1.0.0": 0.0, "2.0.0": 1.0}
    assert two.activate("tiny", "2.0.0") == two.wanted()[1], "nothing to change"


def test_who_has_a_pipeline_keeps_it_and_then_it_is_freed(server: Server) -> None:
    rollout = server.worker(ME)
    held = rollout.registry.get("tiny")
    rollout.activate("tiny", "1.0.0")
    with pytest.raises(UnknownVersion, match=r"has 1\.0\.0"):
        rollout.registry.get("tiny", "2.0.0")
    rollout.follow()
    assert held.decide_images([clean_image()])[0].version == "2.0.0"
    freed = weakref.ref(held)
    gc.disable()
    try:
        del held
        rollout.follow()
        assert freed() is None
    finally:
        gc.enable()


def test_a_broken_bundle_is_refused_and_the_old_one_serves(server: Server) -> None:
    rollout = server.worker(ME)
    broken = write_bundle(server.models / "tiny" / "3.0.0", version="3.0.0")
    (broken / "verdict.onnx").write_bytes(b"no graph")
    before = rollout.wanted()
    for change in (rollout.load, rollout.activate, rollout.shadow):
        with pytest.raises(BundleError, match=r"3\.0\.0/verdict\.onnx"):
            change("tiny", "3.0.0")
    for change in (rollout.load, rollout.activate, rollout.shadow):
        with pytest.raises(UnknownVersion):
            change("tiny", "../../etc")
        with pytest.raises(UnknownModel):
            change("../nope", "1.0.0")
    assert rollout.wanted() == before
    assert active(rollout) == "2.0.0"


def test_a_setting_that_a_version_cannot_meet_refuses_it(server: Server) -> None:
    rollout = server.worker(ME)
    rollout._settings = server.settings.model_copy(update={"alpha": 0.02})
    with pytest.raises(BundleError, match="PALISADE_ALPHA"):
        rollout.activate("tiny", "1.0.0")


def test_loaded_versions_are_addressed_by_version_until_unloaded(server: Server) -> None:
    rollout = server.worker(ME)
    rollout.load("tiny", "1.0.0")
    assert rollout.registry.get("tiny", "1.0.0").bundle.version == "1.0.0"
    assert active(rollout) == "2.0.0"
    with pytest.raises(Conflict, match="is active"):
        rollout.unload("tiny", "2.0.0")
    rollout.unload("tiny", "1.0.0")
    with pytest.raises(UnknownVersion):
        rollout.unload("tiny", "1.0.0")
    with pytest.raises(UnknownVersion):
        rollout.registry.get("tiny", "1.0.0")


def test_shadow_is_another_version_of_the_same_input(server: Server) -> None:
    rollout = server.worker(ME)
    rollout.shadow("tiny", "1.0.0")
    shadow = rollout.registry.shadow_of(rollout.registry.get("tiny"))
    assert shadow is rollout.registry.get("tiny", "1.0.0")
    assert rollout.registry.shadow_of(shadow) is None
    with pytest.raises(Conflict, match="is the shadow"):
        rollout.unload("tiny", "1.0.0")
    with pytest.raises(Conflict, match="other than the active one"):
        rollout.shadow("tiny", "2.0.0")
    write_bundle(server.models / "tiny" / "3.0.0", version="3.0.0", size=2 * SIZE)
    with pytest.raises(Conflict, match="another size"):
        rollout.shadow("tiny", "3.0.0")
    rollout.activate("tiny", "1.0.0")
    assert rollout.wanted()[0]["tiny"].shadow is None
    rollout.shadow("tiny", None)


def test_nothing_to_roll_back_to(server: Server) -> None:
    with pytest.raises(Conflict, match=r"before 2\.0\.0"):
        server.worker(ME).rollback("tiny")


def test_of_two_changes_at_once_one_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = server.worker(ME), server.worker(OTHER)
    stale = one.wanted()
    two.activate("tiny", "1.0.0")
    monkeypatch.setattr(one, "wanted", lambda: stale)
    with pytest.raises(Conflict):
        one.load("tiny", "1.0.0")


def test_a_restarted_worker_joins_the_others_also_when_a_newer_version_appeared(server: Server) -> None:
    one = server.worker(ME)
    one.activate("tiny", "1.0.0")
    write_bundle(server.models / "tiny" / "3.0.0", version="3.0.0")
    two = server.worker(OTHER)
    assert active(two) == "1.0.0"
    assert two.served_before()
    assert two.others_serve()


def test_state_survives_a_restart_of_the_server(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    assert stored_wanted(server.settings) == {}
    first = server.worker(ME)
    first.activate("tiny", "1.0.0")
    assert stored_wanted(server.settings)["tiny"].active == "1.0.0"
    forget_workers(Store(server.state))
    again = server.worker(ME)
    assert active(again) == "1.0.0"
    again.rollback("tiny")
    again.rollback("tiny")
    # Its folder is gone: the newest sound one takes its place.
    shutil.rmtree(server.models / "tiny" / "1.0.0")
    with caplog.at_level(logging.WARNING):
        assert active(server.worker(ME)) == "2.0.0"
    assert "tiny 1.0.0 was active but cannot be loaded; now 2.0.0 is" in caplog.text


def test_a_state_that_cannot_be_read_is_not_used(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    Store(server.state).put("models", {"tiny": "1.0.0"})
    assert active(server.worker(ME)) == "2.0.0"
    assert "the stored state of models is ignored" in caplog.text


def test_a_worker_that_cannot_follow_says_so_and_serves_on(server: Server) -> None:
    one, two = server.worker(ME), server.worker(OTHER)
    generation = one.activate("tiny", "1.0.0")
    hidden = shutil.move(server.models / "tiny" / "1.0.0", server.models.parent / "hidden")
    two.follow()
    assert active(two) == "2.0.0"
    assert not one.converged(generation)
    problems = [worker.problem for worker in one.workers() if worker.pid == OTHER]
    assert problems == ["tiny '1.0.0' is not on disk (has 2.0.0)"]
    shutil.move(hidden, server.models / "tiny" / "1.0.0")
    two._retry_at = 0.0
    two.follow()
    assert active(two) == "1.0.0"
    assert one.converged(generation)


def test_dead_workers_do_not_count(server: Server) -> None:
    one = server.worker(ME)
    gone = 2**22 + 1  # beyond the largest pid
    assert len(server.worker(gone).workers()) == 1
    assert not one.all_ready()
    assert one.served_before()
    assert not one.others_serve()


def test_a_server_that_was_ready_stays_so_when_a_worker_dies_whom_nobody_asked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = server.worker(ME)
    assert not one.all_ready()
    server.worker(OTHER)
    monkeypatch.setattr("gateway.versions.rollout._lives", lambda pid: pid == ME)
    assert [worker.pid for worker in one.workers()] == [ME]
    assert one.all_ready()
    forget_workers(Store(server.state))
    monkeypatch.undo()
    again = server.worker(ME)
    assert not again.all_ready(), "of a new server with the same state folder"
    complete(Store(server.state))
    assert again.all_ready()


def test_a_new_model_is_loaded_before_it_is_activated(server: Server) -> None:
    rollout = server.worker(ME)
    write_bundle(server.models / "new", name="new")
    rollout.load("new", "1.0.0")
    assert rollout.registry.names == ["tiny"]
    assert rollout.registry.get("new", "1.0.0").bundle.name == "new"
    with pytest.raises(UnknownModel):
        rollout.registry.get("new")
    rollout.activate("new", "1.0.0")
    assert rollout.registry.names == ["new", "tiny"]


def test_nothing_sound_is_an_error(server: Server) -> None:
    shutil.rmtree(server.models / "tiny")
    with pytest.raises(ConfigError, match="no bundle to serve"):
        server.worker(ME)
    assert not list(Registry())
