from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks.gpu import BYTES, FORWARD, WAYS, from_bytes, main
from tests.gateway.tiny import write_bundle
from tests.training.exported import Exported, open_session
from tests.training.toy import SIDE

ON_A_CPU = {"arrays", "bound", "kept", "bytes"}


def test_a_graph_that_takes_bytes_gives_the_same_numbers(exported: Exported) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (3, 3, SIDE, SIDE), np.uint8)
    mask = np.zeros((3, SIDE, SIDE), np.float32)
    names = [output.name for output in exported.model.graph.output]
    plain, of_bytes = (
        open_session(model.SerializeToString()) for model in (exported.model, from_bytes(exported.model))
    )
    wanted = plain.run(names, {"pixels": levels.astype(np.float32) / np.float32(255), "mask": mask})
    found = of_bytes.run(names, {BYTES: levels, "mask": mask})
    for name, a, b in zip(names, found, wanted, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_the_command_fills_the_table_on_a_cpu(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    bundle, report = tmp_path / "tiny", tmp_path / "new" / "gpu.json"
    write_bundle(bundle)
    arguments = ["--bundle", str(bundle), "--provider", "cpu", "--batch", "1", "--batch", "3", "--minutes", "0.01"]
    done = CliRunner().invoke(app, [*arguments, "--json", str(report)])
    assert done.exit_code == 0, done.output
    assert "pinned: locked memory is CUDA's" in done.output
    assert "graph: CUDA graphs are CUDA's" in done.output
    content = json.loads(report.read_text("utf-8"))
    assert content["provider"] == "cpu"
    assert {(row["precision"], row["batch"]) for row in content["rows"]} == {
        (precision, batch) for precision in ("fp32", "fp16") for batch in (1, 3)
    }
    assert {row["part"] for row in content["rows"]} == {FORWARD, "screen", "verdict", "full"}
    for row in content["rows"]:
        assert set(row["ways"]) == ON_A_CPU
        assert set(row["not_here"]) == set(WAYS) - ON_A_CPU
        if row["precision"] == "fp32":
            assert all(found["largest_difference"] < 1e-6 for found in row["ways"].values())


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="has a GPU")
def test_a_provider_that_does_not_start_is_named(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, ["--bundle", str(write_bundle(tmp_path / "tiny"))])
    assert done.exit_code == 1
    assert "did not start CUDAExecutionProvider" in done.output
