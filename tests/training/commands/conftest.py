from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gateway.core.loading import Bundle
from tests.training.evaluate.conftest import bundle, data, fresh, shared, work

__all__ = ["bundle", "data", "fresh", "shared", "work"]


@pytest.fixture
def own(bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the bundle that may be written to."""
    return Path(shutil.copytree(bundle.path, tmp_path / "own"))
