"""The shape of the code: no import circles between files or folders, and no arrow against the layers."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gateway", "training", "studies", "benchmarks")
# No module of a folder on the left imports what is on the right, at the top of a file or inside a function.
FORBIDDEN = [
    ("gateway", ("torch", "torchvision", "training", "studies", "benchmarks", "onnx")),
    ("training", ("studies", "benchmarks", "bentoml", "fastapi", "starlette", "uvicorn")),
    ("gateway.core", ("fastapi", "starlette", "bentoml", "uvicorn", "gateway.http", "gateway.answers", "asyncio")),
    ("gateway.inference", ("fastapi", "starlette", "bentoml", "uvicorn", "gateway.http", "gateway.answers")),
]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imported(path: Path) -> Iterator[str]:
    """Every module, or name of a module, that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str) -> str | None:
    """The module of ours that `name` is, or is a name of."""
    if name in MODULES:
        return name
    parent = name.rpartition(".")[0]
    return parent if parent in MODULES else None


GRAPH = {
    module: {found for name in imported(path) if (found := module_of(name)) and found != module}
    for module, path in MODULES.items()
}


def room_of(module: str) -> str:
    """The folder of a module; a module that lies directly in a package stands for itself."""
    path = MODULES[module]
    folder = name_of(path.parent / "__init__.py")
    return module if folder in PACKAGES else folder


def circle(graph: Mapping[str, set[str]]) -> list[str] | None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_no_circle_between_files() -> None:
    assert circle(GRAPH) is None


def test_no_circle_between_folders() -> None:
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, found in GRAPH.items():
        if module not in PACKAGES:  # a package's own names (its version, its lazy interface) are no room
            rooms[room_of(module)] |= {room_of(other) for other in found} - {room_of(module)} - set(PACKAGES)
    assert circle(rooms) is None


def test_a_circle_would_be_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) is not None


@pytest.mark.parametrize(("folder", "others"), FORBIDDEN)
def test_arrows_point_one_way(folder: str, others: tuple[str, ...]) -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        if module == folder or module.startswith(f"{folder}.")
        for name in imported(path)
        for other in others
        if name == other or name.startswith(f"{other}.")
    ]
    assert not wrong
