"""What `kubectl kustomize FOLDER` prints, where it is not at hand: `python deploy/kubernetes/render.py FOLDER`.

Knows the part of kustomize that these manifests use: resources, namespace, labels, images and JSON patches. Anything
else is an error, and so is a patch whose target or path does not exist.
"""  # noqa: INP001

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
_KNOWN = {"apiVersion", "kind", "namespace", "labels", "resources", "images", "patches"}
_CLUSTER_WIDE = {"Namespace"}


def render(folder: Path) -> list[Object]:
    """The objects of a folder with a kustomization.yaml, in order."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    unknown = kustomization.keys() - _KNOWN
    if unknown:
        raise ValueError(f"{folder}: this stand-in does not know {', '.join(sorted(unknown))}")
    objects: list[Object] = []
    for resource in kustomization["resources"]:
        path = folder / resource
        objects += render(path) if path.is_dir() else _documents(path)
    for patch in kustomization.get("patches", []):
        target = _target(objects, patch["target"], folder)
        for operation in yaml.safe_load((folder / patch["path"]).read_text("utf-8")):
            _apply(target, operation)
    for obj in objects:
        if "namespace" in kustomization and obj["kind"] not in _CLUSTER_WIDE:
            obj["metadata"]["namespace"] = kustomization["namespace"]
        for label in kustomization.get("labels", []):
            obj["metadata"].setdefault("labels", {}).update(label["pairs"])
        for image in kustomization.get("images", []):
            _set_image(obj, image)
    return objects


def _documents(path: Path) -> list[Object]:
    return [document for document in yaml.safe_load_all(path.read_text("utf-8")) if document]


def _target(objects: list[Object], target: dict[str, str], folder: Path) -> Object:
    found = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (target["kind"], target["name"])]
    if len(found) != 1:
        raise ValueError(f"{folder}: a patch is for {target}, {len(found)} of which exist")
    return found[0]


def _apply(target: Object, operation: dict[str, Any]) -> None:
    *path, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    parent: Any = target
    for part in path:
        parent = parent[int(part)] if isinstance(parent, list) else parent[part]
    if operation["op"] == "replace" and last not in parent:
        raise ValueError(f"nothing to replace at {operation['path']}")
    if operation["op"] not in ("add", "replace"):
        raise ValueError(f"this stand-in does not know the operation {operation['op']}")
    parent[last] = operation["value"]


def _set_image(node: Any, image: dict[str, str]) -> None:
    if isinstance(node, list):
        for item in node:
            _set_image(item, image)
    elif isinstance(node, dict):
        for container in node.get("containers") or []:
            if container.get("image", "").partition(":")[0] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
        for value in node.values():
            _set_image(value, image)


if __name__ == "__main__":
    yaml.safe_dump_all(render(Path(sys.argv[1])), sys.stdout, sort_keys=False)
