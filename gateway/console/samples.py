"""The sample images of a bundle: only files that its manifest lists, always re-encoded."""

from __future__ import annotations

import io
import json
from pathlib import PurePosixPath

from PIL import Image

from gateway.answers.render import png
from gateway.answers.schemas import Sample
from gateway.core.loading import Bundle
from gateway.errors import NotFound
from gateway.versions.replay import ANSWERS, FOLDER

_ANSWERS = f"{FOLDER}/{ANSWERS}"


def samples_of(bundle: Bundle) -> list[Sample]:
    """The samples by file name; `kind` is the first word of a file's name."""
    files = sorted(name for name in bundle.manifest.files if _is_sample(name))
    answers = _answers(bundle)
    samples = []
    for name in files:
        path = PurePosixPath(name)
        answer = answers.get(path.name, {})
        samples.append(
            Sample(
                file=path.name,
                kind=path.stem.partition("_")[0],
                truth=answer.get("truth"),
                flagged=answer.get("flagged"),
            )
        )
    return samples


def sample_png(bundle: Bundle, file: str) -> bytes:
    """PNG of the pixels of one sample; `NotFound` for any name that the manifest does not list as one."""
    name = f"{FOLDER}/{file}"
    if not _is_sample(name) or name not in bundle.manifest.files:
        raise NotFound(f"model {bundle.name!r} has no sample {file[:80]!r}")
    with Image.open(io.BytesIO((bundle.path / name).read_bytes()), formats=["PNG"]) as image:
        return png(image.convert("L" if image.mode in {"1", "L"} else "RGB"))


def _is_sample(name: str) -> bool:
    path = PurePosixPath(name)
    return path.parent.as_posix() == FOLDER and path.suffix == ".png"


def _answers(bundle: Bundle) -> dict[str, dict[str, object]]:
    if _ANSWERS not in bundle.manifest.files:
        return {}
    answers = json.loads((bundle.path / _ANSWERS).read_text("utf-8"))
    return answers if isinstance(answers, dict) else {}
