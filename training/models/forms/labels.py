"""Names of classes in a file: one on each line, or JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.errors import TrainingError


def read_labels(path: Path) -> list[str]:
    """Names in the order of the logits; a JSON object has them by index. `TrainingError` if it is neither."""
    try:
        text = path.read_text("utf-8-sig")
        names = _from_json(json.loads(text)) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise TrainingError(f"{path}: no labels can be read from it ({' '.join(str(error).split())[:150]})") from None
    names = [name.strip() for name in names]
    while names and not names[-1]:
        names.pop()
    if len(names) < 2 or not all(names):
        raise TrainingError(f"{path}: expected the name of one class on each line, or a JSON list of names")
    return distinct(names)


def distinct(names: list[str]) -> list[str]:
    """`names`, where those that appear again are told apart by their index (ImageNet has two cranes)."""
    seen: set[str] = set()
    made = []
    for index, name in enumerate(names):
        made.append(f"{name} ({index})" if name in seen else name)
        seen.add(name)
    return made


def _from_json(found: Any) -> list[str]:
    if isinstance(found, dict):
        found = found.get("id2label", found)
        found = [found[key] for key in sorted(found, key=int)]
    if not isinstance(found, list):
        raise ValueError("neither a list nor names by index")  # noqa: TRY004  # a file's content
    return [str(name[-1] if isinstance(name, list) else name) for name in found]
