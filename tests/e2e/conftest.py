"""Images of traffic signs as uploads, for tests that drive the shipped bundle; an empty PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.audit_postgres import Postgres
from tests.gateway.server import ROOT
from tests.gateway.tiny import encode

DATA = ROOT / "tests" / "data"


def tiles(mosaic: np.ndarray, side: int = 32) -> Iterator[np.ndarray]:
    """The images (side, side, 3) of a mosaic, row by row."""
    for row in np.split(mosaic, len(mosaic) // side):
        yield from np.split(row, row.shape[1] // side, axis=1)


@pytest.fixture(scope="session")
def benign() -> list[bytes]:
    """2,000 images that nothing was trained or calibrated on (tests/data/make_benign.py), as PNG."""
    with Image.open(DATA / "gtsrb-benign.webp") as mosaic:
        return [encode(image) for image in tiles(np.asarray(mosaic.convert("RGB")))]


@pytest.fixture(scope="session")
def attacked() -> list[bytes]:
    """60 images under PGD and 40 with a patch, against the shipped networks (tests/data/make.py), as PNG."""
    with np.load(DATA / "gtsrb.npz", allow_pickle=False) as file:
        return [encode(image) for image in file["x"][file["kind"] > 0]]


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A server of its own, empty; the test is skipped where PostgreSQL is not installed."""
    if not any(Path("/usr/lib/postgresql").glob("*/bin")):
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    server = Postgres()
    yield server
    server.close()
