"""Writes the rules of deploy/prometheus for the Prometheus operator: base/prometheusrule.yaml, and the Helm chart's."""  # noqa: INP001

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RULES = HERE.parent / "prometheus" / "rules"
TARGET = HERE / "base" / "prometheusrule.yaml"
CHART = HERE.parent / "helm" / "palisade" / "files" / "rules.yaml"


def prometheus_rule() -> dict[str, Any]:
    """The PrometheusRule of every group of rules, recording ones first."""
    files = sorted(RULES.glob("*.yml"), key=lambda file: (file.stem != "recording", file.stem))
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "palisade"},
        "spec": {"groups": [group for file in files for group in yaml.safe_load(file.read_text("utf-8"))["groups"]]},
    }


if __name__ == "__main__":
    text = yaml.safe_dump(prometheus_rule(), sort_keys=False, width=120, allow_unicode=True)
    spec = yaml.safe_dump(prometheus_rule()["spec"], sort_keys=False, width=120, allow_unicode=True)
    CHART.write_text(spec, "utf-8")
    TARGET.write_text(f"# From deploy/prometheus/rules by prometheus_rule.py: make kubernetes-rules.\n{text}", "utf-8")
