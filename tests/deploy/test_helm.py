"""The Helm chart beside the kustomize manifests: what it renders to, as committed, and by Helm where there is one."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from functools import cache
from typing import Any

import jsonschema
import pytest
import yaml

from gateway import NO_TELEMETRY, __version__
from gateway.settings import Settings
from tests.deploy.deployment import DEPLOY, SETTING, load, script
from tests.deploy.test_manifests import UID, objects

HELM = script("helm", "render.py")
CHART = DEPLOY / "helm" / "palisade"
HAS_HELM = shutil.which("helm") is not None or importlib.util.find_spec("helm_python") is not None


@cache
def rendered(case: str) -> dict[str, dict[str, Any]]:
    """The committed objects of a case, by kind and name."""
    text = (DEPLOY / "helm" / "rendered" / f"{case}.yaml").read_text("utf-8")
    found = list(yaml.safe_load_all(text))
    by_name = {f"{each['kind']}/{each['metadata']['name']}": each for each in found}
    assert len(by_name) == len(found)
    return by_name


def pod(case: str) -> dict[str, Any]:
    spec: dict[str, Any] = rendered(case)["Deployment/palisade"]["spec"]["template"]["spec"]
    return spec


def data(case: str) -> dict[str, str]:
    found: dict[str, str] = rendered(case)["ConfigMap/palisade"]["data"]
    return found


@pytest.mark.parametrize("case", HELM.cases())
def test_what_is_committed_is_of_this_chart(case: str) -> None:
    first = (DEPLOY / "helm" / "rendered" / f"{case}.yaml").read_text("utf-8").partition("\n")[0]
    assert first == f"# {HELM.digest(HELM.cases()[case])}", "run make helm-rendered"


@pytest.mark.skipif(not HAS_HELM, reason="neither helm nor helm-python-sdk is installed")
@pytest.mark.parametrize("case", HELM.cases())
def test_helm_renders_what_is_committed(case: str) -> None:
    """Linted strictly as well (`render`)."""
    now = {f"{each['kind']}/{each['metadata']['name']}": each for each in HELM.render(HELM.cases()[case])}
    assert now == rendered(case)


def test_default_values_make_what_kustomize_makes() -> None:
    base, ours = objects("base"), rendered("default")
    assert {key.partition("/")[0] for key in ours} == base.keys() - {"Namespace"}
    for key, made in ours.items():
        kind, name = key.split("/")
        other = base[kind]
        assert name == other["metadata"]["name"]
        assert made["metadata"]["namespace"] == other["metadata"]["namespace"]
        assert made["apiVersion"] == other["apiVersion"]
        mine, wanted = ({k: v for k, v in each.items() if k != "metadata"} for each in (made, other))
        if kind == "Deployment":
            mine = json.loads(json.dumps(mine))
            assert mine["spec"]["template"]["metadata"].pop("annotations").keys() == {"checksum/config"}
        assert mine == wanted, key


@pytest.mark.parametrize("case", HELM.cases())
def test_pods_are_confined_and_names_meet(case: str) -> None:
    spec = pod(case)
    (container,) = spec["containers"]
    context = spec["securityContext"] | container["securityContext"]
    assert context["runAsNonRoot"]
    assert context["runAsUser"] == UID
    assert context["readOnlyRootFilesystem"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert spec["enableServiceLinks"] is False
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in spec["volumes"]}
    assert all(mounts[name]["readOnly"] for name in mounts.keys() & {"keys", "models", "trust"})
    assert rendered(case)["Service/palisade"]["spec"]["selector"] == {"app": "palisade"}
    assert data(case).items() >= NO_TELEMETRY.items()
    known = {f"PALISADE_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in data(case) if name.startswith("PALISADE_")} <= known


def test_models_from_addresses_signed_and_with_cards() -> None:
    found, settings = rendered("addresses"), data("addresses")
    assert settings["PALISADE_MODELS"] == "s3://models/gtsrb,oci://registry.example/models/signs:2.0.0"
    assert settings["PALISADE_CACHE_DIR"].startswith("/var/lib/palisade/")
    assert settings["PALISADE_REQUIRE_CARD"] == "0"
    assert settings["PALISADE_DISCLOSURE"] == "label"
    mount = next(each for each in pod("addresses")["containers"][0]["volumeMounts"] if each["name"] == "trust")
    assert settings["PALISADE_TRUST"] == f"{mount['mountPath']}/release.pub"
    assert found["ConfigMap/palisade-trust"]["data"].keys() == {"release.pub"}
    example = yaml.safe_load((DEPLOY / "kubernetes" / "secret.example.yaml").read_text("utf-8"))
    assert found["Secret/palisade"]["stringData"].keys() == example["stringData"].keys()
    ports = [rule["ports"] for rule in found["NetworkPolicy/palisade"]["spec"]["egress"]]
    assert [[port["port"] for port in each] for each in ports] == [[53, 53], [6432], [443, 5000]]
    disk = next(each for each in pod("addresses")["volumes"] if each["name"] == "data")
    assert disk["emptyDir"] == {"sizeLimit": "8Gi"}
    metrics = found["HorizontalPodAutoscaler/palisade"]["spec"]["metrics"]
    assert [each["pods"]["metric"]["name"] for each in metrics if "pods" in each] == ["palisade_queue_delay_seconds"]
    assert "palisade_queue_delay_seconds" in (DEPLOY.parent / "docs" / "operations.md").read_text("utf-8")


def test_models_on_a_volume_with_a_gpu() -> None:
    found, spec = rendered("volume"), pod("volume")
    assert data("volume")["PALISADE_MODELS"] == "/models"
    volume = next(each for each in spec["volumes"] if each["name"] == "models")
    assert volume["persistentVolumeClaim"] == {"claimName": "bundles", "readOnly": True}
    assert spec["containers"][0]["image"] == "palisade-cuda:latest"
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert found["Deployment/palisade"]["spec"]["replicas"] == 3
    kinds = {key.partition("/")[0] for key in found}
    assert not kinds & {"HorizontalPodAutoscaler", "NetworkPolicy", "ServiceMonitor", "PrometheusRule", "Secret"}


def test_values_are_held_to_their_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    values = load("helm", "palisade", "values.yaml")
    validator = jsonschema.Draft7Validator(schema)
    validator.validate(values)
    assert schema["properties"].keys() - {"global"} == values.keys()
    for wrong in (
        {"replicas": 0},
        {"luck": 1},
        {"models": {"addresses": ["models/gtsrb"]}},
        {"trust": {"keys": {"a.pem": "no key"}}},
        {"settings": {"HOME": "/"}},
        {"secret": {"name": "palisade", "auditUrl": "mysql://x"}},
    ):
        assert not validator.is_valid(values | wrong), wrong


def test_the_chart_has_the_release_and_the_rules() -> None:
    assert load("helm", "palisade", "Chart.yaml")["appVersion"] == __version__
    assert load("helm", "palisade", "files", "rules.yaml") == objects("base")["PrometheusRule"]["spec"]
    known = {f"PALISADE_{name.upper()}" for name in Settings.model_fields}
    for file in [*(CHART / "templates").iterdir(), *(DEPLOY / "helm" / "cases").iterdir()]:
        assert set(re.findall(SETTING, file.read_text("utf-8"))) <= known, file
