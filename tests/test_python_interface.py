"""The examples of docs/python.md and of the README, run as they are written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = [
    pytest.param(code, id=f"{path.name}-{number}")
    for path in (ROOT / "README.md", ROOT / "docs" / "python.md")
    for number, code in enumerate(BLOCK.findall(path.read_text("utf-8")))
]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_runs(code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(code, "example", "exec"), {})  # noqa: S102  # our own documents
    assert ("Vehicles over 3.5 metric tons prohibited True" in capsys.readouterr().out) == ("print" in code)


@pytest.mark.parametrize(("package", "heavy"), [("gateway", "onnxruntime"), ("training", "torch")])
def test_importing_a_package_alone_is_light(package: str, heavy: str) -> None:
    check = f"import {package}, sys; assert {heavy!r} not in sys.modules; assert not hasattr({package}, 'nothing')"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)


@pytest.mark.parametrize("package", ["gateway", "training"])
def test_every_public_name_is_there(package: str) -> None:
    module = __import__(package)
    assert all(getattr(module, name) is not None for name in module.__all__)
