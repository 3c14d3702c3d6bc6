from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from gateway.core.cores import quota, threads_per_worker, usable_cores
from gateway.core.engine import choose
from gateway.core.loading import hash_files, load_bundle
from gateway.core.manifest import graphs_sha256
from gateway.errors import BundleError, ConfigError, UnknownModel
from gateway.ids import new_id
from gateway.settings import Settings, load_settings
from gateway.versions.registry import load_pipeline, load_registry
from tests.gateway.tiny import write_bundle


def test_a_broken_bundle_is_refused_and_the_others_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_bundle(tmp_path / "good", name="good")
    broken = write_bundle(tmp_path / "broken", name="broken")
    (broken / "calibration.npz").unlink()
    (tmp_path / "no-bundle").mkdir()
    with caplog.at_level(logging.ERROR):
        registry = load_registry(Settings(models=[tmp_path], threads=1))
    assert registry.names == ["good"]
    assert "calibration.npz: listed in the manifest but missing" in caplog.text


def test_a_graph_that_fails_when_it_is_run_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "tiny" / "1.0.0")
    broken = write_bundle(tmp_path / "tiny" / "2.0.0", version="2.0.0")
    graph = onnx.load(broken / "defense.onnx")
    (index,) = (tensor for tensor in graph.graph.initializer if tensor.name == "zero_index")
    index.CopyFrom(onnx.numpy_helper.from_array(np.array(7), "zero_index"))  # of three channels
    onnx.save(graph, broken / "defense.onnx")
    manifest = json.loads((broken / "manifest.json").read_text())
    manifest["files"] = hash_files(broken)
    manifest["calibrations"][0]["graphs_sha256"] = graphs_sha256(manifest["files"])
    (broken / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"defense\.onnx: fails on a batch of 1"):
        load_pipeline(broken, Settings(threads=1))
    assert load_registry(Settings(models=[tmp_path], threads=1)).get("tiny").bundle.version == "1.0.0"


def test_nothing_to_serve_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        load_registry(Settings(models=[tmp_path / "absent"]))
    with pytest.raises(ConfigError, match="no bundle to serve"):
        load_registry(Settings(models=[tmp_path]))
    (write_bundle(tmp_path / "broken") / "defense.onnx").unlink()
    with pytest.raises(ConfigError, match=r"first problem: .*defense\.onnx"):
        load_registry(Settings(models=[tmp_path]))


def test_default_model(tmp_path: Path) -> None:
    for name in ("zebra", "alpha", "gtsrb"):
        write_bundle(tmp_path / name, name=name)
    assert load_registry(Settings(models=[tmp_path], threads=1)).default == "gtsrb"
    chosen = load_registry(Settings(models=[tmp_path], threads=1, default_model="zebra"))
    assert chosen.get().bundle.name == "zebra"
    shutil.rmtree(tmp_path / "gtsrb")
    assert load_registry(Settings(models=[tmp_path], threads=1)).default == "alpha"
    with pytest.raises(ConfigError, match="'gtsrb': not served"):
        load_registry(Settings(models=[tmp_path], threads=1, default_model="gtsrb"))
    with pytest.raises(UnknownModel, match=r"'cat' is not served \(has alpha, gtsrb, zebra\)"):
        chosen.get("cat")


def test_of_two_versions_the_newest_is_served(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a", version="1.9.0")
    write_bundle(tmp_path / "b", version="1.10.0")
    assert load_registry(Settings(models=[tmp_path], threads=1)).get("tiny").bundle.version == "1.10.0"


def test_a_bundle_that_is_being_built_is_not_served(tmp_path: Path) -> None:
    write_bundle(tmp_path / "tiny", version="1.0.0")
    write_bundle(tmp_path / "tiny.part", version="2.0.0")
    assert load_registry(Settings(models=[tmp_path], threads=1)).get("tiny").bundle.version == "1.0.0"


def test_alpha_must_have_been_calibrated(bundle_folder: Path) -> None:
    registry = load_registry(Settings(models=[bundle_folder], threads=1, alpha=0.05))
    assert registry.get().judge.p_cutoff == pytest.approx(0.04)
    with pytest.raises(ConfigError, match=r"PALISADE_ALPHA.*0\.02 \(has 0\.01, 0\.05, 0\.1\)"):
        load_registry(Settings(models=[bundle_folder], threads=1, alpha=0.02))


def test_cuda_without_a_calibration_is_refused(bundle_folder: Path) -> None:
    bundle = load_bundle(bundle_folder)
    assert choose(bundle, "auto") == ("cpu", "fp32")
    with pytest.raises(BundleError, match="no calibration for cuda"):
        choose(bundle, "cuda")


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALISADE_MODELS", "one:two")
    monkeypatch.setenv("PALISADE_POLICY", "block")
    settings = load_settings(port=1234)
    assert (settings.models, settings.policy, settings.port) == ([Path("one"), Path("two")], "block", 1234)
    monkeypatch.setenv("PALISADE_POLICY", "panic")
    with pytest.raises(ConfigError, match="PALISADE_POLICY='panic'"):
        load_settings()


def test_cores_respect_quotas(tmp_path: Path) -> None:
    assert quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert quota(tmp_path) is None
    old = tmp_path / "old"
    (old / "cpu").mkdir(parents=True)
    (old / "cpu/cpu.cfs_quota_us").write_text("200000")
    (old / "cpu/cpu.cfs_period_us").write_text("100000")
    assert quota(old) == 2.0
    assert threads_per_worker(3, 8) == 3
    assert threads_per_worker(0, 10_000) == 1
    assert threads_per_worker(0, 1) == usable_cores()


def test_ids_sort_by_time_and_never_repeat() -> None:
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert [i[:10] for i in ids] == sorted(i[:10] for i in ids)
    assert all(len(i) == 26 and i.isalnum() and i.isupper() for i in ids)
