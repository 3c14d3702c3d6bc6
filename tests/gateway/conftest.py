from __future__ import annotations

from pathlib import Path

import pytest

from gateway.core.pipeline import Pipeline
from gateway.settings import Settings
from gateway.versions.registry import load_pipeline
from tests.gateway.tiny import write_bundle


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def pipeline(bundle_folder: Path) -> Pipeline:
    return load_pipeline(bundle_folder, Settings(threads=1))
