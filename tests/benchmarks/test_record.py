"""Results say where they come from, and not where this machine keeps things."""

from __future__ import annotations

import json
import sys

from benchmarks.record import record


def test_a_result_tells_its_command_without_folders_of_this_machine(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "models/gtsrb", "--work", str(tmp_path / "runs" / "evade"), "--n", "9"])
    record(tmp_path / "new" / "found.json", "a study", {"share": 0.5})
    found = json.loads((tmp_path / "new" / "found.json").read_text("utf-8"))
    assert found["command"].endswith("models/gtsrb --work runs/evade --n 9")
    assert str(tmp_path) not in json.dumps(found)
    assert (found["what"], found["share"]) == ("a study", 0.5)
    assert {"date", "device", "versions"} <= set(found)
