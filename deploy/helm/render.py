"""What the chart makes of its default values and of each file in cases/: `python deploy/helm/render.py [--write]`.

Lints the chart and renders it with `helm` where that is installed, else with the same engine from PyPI
(`helm-python-sdk`). With --write the result goes to rendered/, which tests read, so that they need no Helm; the first
line of each file is the chart's SHA-256.
"""  # noqa: INP001

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
CHART, CASES, RENDERED = HERE / "palisade", HERE / "cases", HERE / "rendered"
NAME, NAMESPACE, VERSION = "palisade", "palisade", "v1.34.0"


def cases() -> dict[str, Path | None]:
    """Files of values by name; the default values have none."""
    return {"default": None, **{path.stem: path for path in sorted(CASES.glob("*.yaml"))}}


def digest(case: Path | None) -> str:
    """SHA-256 over the names and contents of the chart's files and of the case's."""
    found = hashlib.sha256()
    for path in [*sorted(CHART.rglob("*")), *([case] if case else [])]:
        if path.is_file():
            found.update(f"{path.relative_to(HERE).as_posix()}\n".encode() + path.read_bytes())
    return found.hexdigest()


def render(case: Path | None) -> list[dict[str, Any]]:
    """The objects that the chart makes; raises `RuntimeError` where Helm refuses or warns."""
    text = _by_command(case) if shutil.which("helm") else _by_package(case)
    objects = [each for each in yaml.safe_load_all(text) if each]
    return sorted(objects, key=lambda each: (each["kind"], each["metadata"]["name"]))


def _by_command(case: Path | None) -> str:
    values = ["--values", str(case)] if case else []
    for command in (["lint", "--strict"], ["template", NAME, "--namespace", NAMESPACE, "--kube-version", VERSION]):
        done = subprocess.run(  # noqa: S603  # fixed arguments
            ["helm", *command, str(CHART), *values],  # noqa: S607  # the user's Helm
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr or done.stdout)
    return done.stdout


def _by_package(case: Path | None) -> str:
    import helm_python

    values = yaml.safe_load(case.read_text("utf-8")) if case else {}
    report = helm_python.lint(CHART, values, strict=True, kube_version=VERSION)
    # The icon that Helm recommends is information, 1.
    wrong = [row["error"] for row in report["messages"] if row["severity"] > 1]
    if wrong or report["errors"]:
        raise RuntimeError("; ".join([*wrong, *map(str, report["errors"])]))
    chart = helm_python.Chart.load(CHART)
    chart.validate_schema(values)
    made = chart.render(values, name=NAME, namespace=NAMESPACE)
    return "\n---\n".join(text for name, text in sorted(made.items()) if name.endswith(".yaml"))


def main() -> None:
    write = "--write" in sys.argv[1:]
    for name, case in cases().items():
        text = yaml.safe_dump_all(render(case), sort_keys=False, width=120, allow_unicode=True)
        if write:
            RENDERED.mkdir(exist_ok=True)
            (RENDERED / f"{name}.yaml").write_text(f"# {digest(case)}\n{text}", "utf-8")
        else:
            sys.stdout.write(f"---\n{text}")


if __name__ == "__main__":
    main()
