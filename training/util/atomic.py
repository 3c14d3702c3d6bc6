"""Folders that are whole or absent: files are written to a draft beside the folder, which then replaces it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.core.manifest import DRAFT
from training.util.locks import locked


@contextmanager
def draft_of(out: Path, *, copy: bool = False) -> Iterator[Path]:
    """An empty folder (a copy of `out` with `copy`) named `<out>.part`; at the end it replaces `out`.

    If the body fails the draft is deleted and `out` stays as it was. The gateway does not serve `.part` folders. Where
    `out` is a symbolic link, the folder that it points to is replaced.
    `TrainingError` if another process is writing `out`.
    """
    if out.is_symlink():
        out = out.resolve()
    draft, old = out.with_name(out.name + DRAFT), out.with_name(out.name + ".old" + DRAFT)
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.with_name(out.name + ".lock"), out):
        shutil.rmtree(draft, ignore_errors=True)
        try:
            if copy:
                shutil.copytree(out, draft)
            else:
                draft.mkdir(parents=True)
            yield draft
            shutil.rmtree(old, ignore_errors=True)
            if out.exists():
                out.rename(old)
            draft.rename(out)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)
