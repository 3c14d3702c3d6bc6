from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.core.decode import to_pixels
from gateway.core.engine import Engine
from gateway.core.loading import load_bundle
from gateway.core.verdict import Judge
from training.bundling.networks import load_defence

ROOT = Path(__file__).resolve().parents[2]


# Bundles that have images in tests/data; what all shipped ones keep is tested in `test_size`.
BUNDLES = [ROOT / "models" / path.stem for path in sorted((ROOT / "tests" / "data").glob("*.npz"))]
BUNDLES = [path for path in BUNDLES if (path / "manifest.json").is_file()]


@pytest.fixture(scope="session", params=BUNDLES, ids=lambda path: path.name)
def bundle(request):
    return load_bundle(request.param)


@pytest.fixture(scope="session")
def images(bundle):
    """The committed images: x uint8 (240, 32, 32, 3), y, kind (0 clean, 1 PGD, 2 patched)."""
    with np.load(ROOT / "tests" / "data" / f"{bundle.path.name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="session")
def pixels(images):
    return to_pixels(images["x"])


@pytest.fixture(scope="session")
def engine(bundle):
    return Engine.open(bundle, device="cpu")


@pytest.fixture(scope="session")
def judge(bundle):
    return Judge(bundle, bundle.calibration("cpu"))


@pytest.fixture(scope="session")
def defence(bundle):
    return load_defence(bundle)


@pytest.fixture(scope="session")
def outputs(engine, pixels):
    return engine.run(pixels)
