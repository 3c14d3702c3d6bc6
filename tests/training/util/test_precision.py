"""bfloat16 where the machine is made for it, float32 elsewhere, and a run keeps what it began with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import training.loop.runs
from tests.training.toy import toy_dataset
from training.errors import TrainingError
from training.loop.runs import settled
from training.loop.trainer import Trainer
from training.recipes.training import Recipe
from training.util.precision import Choice, machine_precision, say_once

NEW, OLD = {"avx512_bf16": True, "amx_bf16": True}, {"avx512_bf16": False, "avx512_f": True}


def machine(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], *, torch_uses: str = "AVX512", cap: str | None = None
) -> Choice:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: torch_uses)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if cap:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    return machine_precision("cpu")


@pytest.mark.parametrize(
    ("flags", "torch_uses", "cap", "precision", "why"),
    [
        (NEW, "AVX512", None, "bf16", "AMX"),
        ({"avx512_bf16": True}, "AVX512", None, "bf16", "AVX512_BF16"),
        (NEW, "AVX512", "AVX512_CORE_AMX", "bf16", "AMX"),
        (NEW, "AVX512", "all", "bf16", "AMX"),
        (NEW, "AVX512", "AVX512_CORE", "fp32", "ONEDNN_MAX_CPU_ISA=AVX512_CORE"),
        (NEW, "AVX512", "AVX512_CORE_VNNI", "fp32", "ONEDNN_MAX_CPU_ISA"),
        (NEW, "AVX512", "avx2", "fp32", "ONEDNN_MAX_CPU_ISA=avx2"),
        (NEW, "AVX2", None, "fp32", "torch uses AVX2"),
        (OLD, "AVX512", None, "fp32", "neither AMX nor AVX512_BF16"),
        ({}, "AVX512", None, "fp32", "neither"),
    ],
)
def test_a_processor(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], torch_uses: str, cap: str | None, precision: str, why: str
) -> None:
    choice = machine(monkeypatch, flags, torch_uses=torch_uses, cap=cap)
    assert choice.precision == precision
    assert why in choice.why


@pytest.mark.parametrize("has", [True, False])
def test_a_gpu(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has and not including_emulation)
    assert machine_precision("cuda").precision == ("bf16" if has else "fp32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine_precision("cuda").precision == "fp32"


def recipe(**changes: object) -> Recipe:
    content = {
        "name": "small",
        "data": {"source": "toy"},
        "model": {"width": 4, "stem_stride": 2},
        "stages": [{"name": "plain", "epochs": 1, "lr": 0.01}],
        "batch": 32,
    }
    return Recipe.model_validate(content | changes)


def test_a_run_keeps_the_precision_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    say_once.cache_clear()
    caplog.set_level("INFO", logger="training")
    monkeypatch.setattr(training.loop.runs, "machine_precision", lambda _device: Choice("fp32", "an old machine"))
    assert settled(recipe(), tmp_path / "run", device="cpu").precision == "fp32"
    assert settled(recipe(precision="fp16"), tmp_path / "run", device="cpu").precision == "fp16"
    data = toy_dataset(train=64)
    Trainer(recipe(), data, tmp_path / "run").run()
    starts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["precision"] == "fp32"
    assert [(start["precision"], start["memory_format"]) for start in starts] == [("fp32", "contiguous")]
    monkeypatch.setattr(training.loop.runs, "machine_precision", lambda _device: Choice("bf16", "a new machine"))
    assert settled(recipe(), tmp_path / "run", device="cpu").precision == "fp32"
    told = [record.getMessage() for record in caplog.records]
    assert told.count("small: precision fp32 (an old machine)") == 1
    assert told.count("small: precision fp32 (as the run began)") == 1
    assert sum(line.startswith("small: memory format contiguous (stem.0 (3 to 4 channels)") for line in told) == 1
    assert settled(recipe(), tmp_path / "other", device="cpu").precision == "bf16"
    Trainer(recipe(), data, tmp_path / "run").run()  # the same run
    with pytest.raises(TrainingError, match="another recipe"):
        Trainer(recipe(precision="bf16"), data, tmp_path / "run").run()
