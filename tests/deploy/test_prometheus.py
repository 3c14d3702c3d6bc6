"""Rules, alerts and dashboard against the gateway's metrics, the run books and each other."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase

from gateway.telemetry import metrics
from tests.deploy.deployment import DEPLOY, ROOT, alerts, load, rules, script

QUERIES = list(script("grafana", "queries.py").dashboard_queries())
CASES = sorted((DEPLOY / "prometheus" / "tests").glob("*.yml"))


def series_of_the_gateway() -> set[str]:
    names = set()
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}[family.type]
            names |= {family.name + suffix for suffix in suffixes}
    return names


def used_series(query: str) -> set[str]:
    return set(re.findall(r"\bpalisade[:_][a-z0-9_:]+", query))


@pytest.mark.parametrize(
    ("where", "query"), [(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()] + QUERIES
)
def test_queries_ask_for_series_that_exist(where: str, query: str) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert used_series(query) <= series_of_the_gateway() | recorded


def test_every_metric_is_on_the_dashboard() -> None:
    expressions = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
    shown = " ".join(query for _, query in QUERIES)
    shown += " ".join(expression for name, expression in expressions.items() if name in shown)
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in series_of_the_gateway()}
    assert not {family for family in families if family not in shown}


def test_alert_has_severity_summary_and_run_book() -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    anchors = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    }
    for name, alert in alerts().items():
        assert alert["labels"]["severity"] in {"critical", "warning"}, name
        assert alert["annotations"]["summary"], name
        assert alert["annotations"]["description"], name
        file, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert file == "docs/operations.md", name
        assert anchor == name.lower(), name
        assert anchor in anchors, name


def test_each_alert_fires_in_a_case() -> None:
    fired = {name for file in CASES for name in re.findall(r'alertname="(\w+)"}', file.read_text("utf-8"))}
    assert fired == alerts().keys()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_cases(file: Path) -> None:
    result = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_prometheus_rule_of_kubernetes_is_the_same() -> None:
    expected = script("kubernetes", "prometheus_rule.py").prometheus_rule()
    assert load("kubernetes", "base", "prometheusrule.yaml") == expected, "run make kubernetes-rules"


def test_inhibitions_name_alerts() -> None:
    text = (DEPLOY / "alertmanager" / "alertmanager.yml").read_text("utf-8")
    for pattern in re.findall(r"alertname =~? \"([^\"]+)\"", text):
        assert any(re.fullmatch(pattern, name) for name in alerts()), pattern
