"""Compose file, Kubernetes manifests and bentos: what they name exists, and nothing runs with more than it needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway import NO_TELEMETRY
from gateway.settings import Settings
from tests.deploy.deployment import DEPLOY, ROOT, SETTING, load, script

COMPOSE = load("compose.yaml")
RENDER = script("kubernetes", "render.py").render
FOLDERS = ["base", "overlays/gpu", "overlays/kserve"]
UID = 1034


def objects(folder: str) -> dict[str, Any]:
    """What a folder renders to, by kind (each occurs once)."""
    rendered = RENDER(DEPLOY / "kubernetes" / folder)
    by_kind = {obj["kind"]: obj for obj in rendered}
    assert len(by_kind) == len(rendered)
    return by_kind


def gateway_pod(folder: str) -> dict[str, Any]:
    found = objects(folder)
    pod: dict[str, Any] = (
        found["Deployment"]["spec"]["template"]["spec"] if "Deployment" in found else found["ServingRuntime"]["spec"]
    )
    return pod


@pytest.mark.parametrize("service", COMPOSE["services"].values(), ids=list(COMPOSE["services"]))
def test_service_of_compose_is_confined(service: dict[str, Any]) -> None:
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["healthcheck"]["test"]
    name, _, tag = service["image"].partition(":")
    assert tag not in ({""} if name == "palisade" else {"", "latest"})
    assert set(service["networks"]) <= COMPOSE["networks"].keys()
    assert set(service.get("secrets", ())) <= COMPOSE["secrets"].keys()
    for volume in service.get("volumes", ()):
        source = volume.partition(":")[0]
        made = source == "./secrets/keys" or (DEPLOY / source).exists()
        assert made if source.startswith(".") else source in COMPOSE["volumes"]


def test_compose_publishes_what_asks_for_a_key() -> None:
    published = {name: service["ports"] for name, service in COMPOSE["services"].items() if "ports" in service}
    assert published.keys() == {"gateway", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    gateway = COMPOSE["services"]["gateway"]
    # `palisade keys` replaces the file: mounted alone, the old one would stay, with keys that were revoked.
    assert gateway["environment"]["PALISADE_KEYS_FILE"] == "/run/palisade/keys.json"
    assert "./secrets/keys:/run/palisade:ro" in gateway["volumes"]
    assert "secrets/keys/keys.json" in (DEPLOY / "compose-secrets.sh").read_text("utf-8")
    assert "GF_SECURITY_ADMIN_PASSWORD__FILE" in COMPOSE["services"]["grafana"]["environment"]


def test_secrets_are_made_and_not_committed() -> None:
    files = {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()}
    made = (DEPLOY / "compose-secrets.sh").read_text("utf-8")
    assert all(f"secrets/{file}" in made for file in files)
    assert "/secrets/" in (DEPLOY / ".gitignore").read_text("utf-8").splitlines()


@pytest.mark.parametrize("folder", FOLDERS)
def test_pod_is_confined(folder: str) -> None:
    pod = gateway_pod(folder)
    (container,) = pod["containers"]
    context = pod.get("securityContext", {}) | container["securityContext"]
    assert context["runAsNonRoot"]
    assert context["runAsUser"] == UID
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["resources"]["limits"]["memory"]
    assert container["resources"]["requests"]["cpu"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("folder", ["base", "overlays/gpu"])
def test_names_in_manifests_meet(folder: str) -> None:
    found = objects(folder)
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert (
        found["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items()
        <= found["Service"]["metadata"]["labels"].items()
    )
    # The job of the rules is the Service's name.
    assert found["Service"]["metadata"]["name"] == "palisade"
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", found["Deployment"]["metadata"]["name"])
    container = gateway_pod(folder)["containers"][0]
    assert container["startupProbe"]["httpGet"]["path"] == "/readyz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert all(obj["metadata"].get("namespace") == "palisade" for kind, obj in found.items() if kind != "Namespace")
    # Links would set PALISADE_PORT to the Service's address.
    assert gateway_pod(folder)["enableServiceLinks"] is False


@pytest.mark.parametrize("folder", FOLDERS)
def test_secrets_of_pods_are_those_of_the_example(folder: str) -> None:
    example = yaml.safe_load((DEPLOY / "kubernetes" / "secret.example.yaml").read_text("utf-8"))
    pod = gateway_pod(folder)
    keys = {
        entry["valueFrom"]["secretKeyRef"]["key"]
        for entry in pod["containers"][0].get("env", ())
        if "valueFrom" in entry
    }
    for volume in pod["volumes"]:
        if "secret" in volume:
            assert volume["secret"]["secretName"] == example["metadata"]["name"]
            keys |= {item["key"] for item in volume["secret"]["items"]}
    assert keys <= example["stringData"].keys()


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_disk_of_a_pod_holds_what_the_settings_allow(folder: str) -> None:
    """A pod that writes beyond the limit is evicted."""
    pod = gateway_pod(folder)
    env = {entry["name"] for entry in pod["containers"][0]["env"]}
    (data,) = (volume for volume in pod["volumes"] if volume["name"] == "data")
    gib = int(data["emptyDir"]["sizeLimit"].removesuffix("Gi"))
    here = 0 if "PALISADE_AUDIT_URL" in env else Settings.model_fields["audit_max_bytes"].default
    assert gib << 30 > 1.5 * here + 2 * Settings.model_fields["audit_spool_bytes"].default


def test_gpu_overlay() -> None:
    container = gateway_pod("overlays/gpu")["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"].startswith("palisade-cuda:")
    assert objects("overlays/gpu")["ConfigMap"]["data"]["PALISADE_DEVICE"] == "cuda"


def test_kserve_speaks_protocol_v2() -> None:
    found = objects("overlays/kserve")
    service, runtime = found["InferenceService"], found["ServingRuntime"]
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    assert runtime["apiVersion"] == "serving.kserve.io/v1alpha1"
    model = service["spec"]["predictor"]["model"]
    assert model["protocolVersion"] == "v2"
    assert "v2" in runtime["spec"]["protocolVersions"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in {known["name"] for known in runtime["spec"]["supportedModelFormats"]}


def test_patch_without_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text(
        "resources: [a.yaml]\npatches: [{path: p.yaml, target: {kind: Pod, name: b}}]\n"
    )
    (tmp_path / "a.yaml").write_text("{kind: Pod, metadata: {name: a}}\n")
    with pytest.raises(ValueError, match="0 of which exist"):
        RENDER(tmp_path)


def test_settings_that_are_set_exist() -> None:
    known = {f"PALISADE_{name.upper()}" for name in Settings.model_fields}
    files = [ROOT / "bentofile.yaml", DEPLOY / "bentofile.cuda.yaml", DEPLOY / "Containerfile", DEPLOY / "compose.yaml"]
    for file in [*files, *(DEPLOY / "kubernetes").rglob("*.yaml"), ROOT / "docs" / "operations.md"]:
        assert set(re.findall(SETTING, file.read_text("utf-8"))) <= known, file


def test_telemetry_is_off_wherever_the_gateway_is_deployed() -> None:
    assert COMPOSE["services"]["gateway"]["environment"].items() >= NO_TELEMETRY.items()
    for folder in FOLDERS:
        assert objects(folder)["ConfigMap"]["data"].items() >= NO_TELEMETRY.items()
    for name in ("bentofile.yaml", "deploy/bentofile.cuda.yaml"):
        envs = yaml.safe_load((ROOT / name).read_text("utf-8"))["envs"]
        assert {env["name"]: env["value"] for env in envs}.items() >= NO_TELEMETRY.items()
    files = {DEPLOY / "Containerfile": "{}={}", ROOT / "Makefile": "export {} := {}"}
    for file, form in files.items():
        assert all(form.format(*pair) in file.read_text("utf-8") for pair in NO_TELEMETRY.items()), file


@pytest.mark.parametrize("name", ["bentofile.yaml", "deploy/bentofile.cuda.yaml"])
def test_bento(name: str) -> None:
    bento = yaml.safe_load((ROOT / name).read_text("utf-8"))
    # Without the slash a pattern takes any folder of that name: training/models, tests/gateway.
    assert all(pattern.startswith("/") and (ROOT / pattern.strip("/")).exists() for pattern in bento["include"])
    pins = (ROOT / bento["python"]["requirements_txt"]).read_text("utf-8").splitlines()
    assert all("==" in pin or "platform_machine !=" in pin for pin in pins)
    names = {_name(pin) for pin in pins}
    assert not names & {"torch", "torchvision", "lightning", "onnx"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["postgres"]
    assert {_name(need) for need in needed} - names <= {"onnxruntime"}


def _name(requirement: str) -> str:
    """The name of a package, as the index compares names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def test_requirements_of_cuda_are_those_of_the_cpu_and_its_wheels() -> None:
    cpu, cuda = (
        {
            line.partition(";")[0]
            for line in (DEPLOY / name).read_text("utf-8").splitlines()
            if "!= 'x86_64'" not in line
        }
        for name in ("requirements.txt", "requirements-cuda.txt")
    )
    assert cpu <= cuda, "run make cuda-requirements"
    assert all(line.startswith("nvidia-") for line in cuda - cpu)


def test_image_has_the_user_of_the_manifests() -> None:
    containerfile = (DEPLOY / "Containerfile").read_text("utf-8")
    assert f"USER {UID}:{UID}" in containerfile
    assert COMPOSE["services"]["gateway"]["user"] == f"{UID}:{UID}"
