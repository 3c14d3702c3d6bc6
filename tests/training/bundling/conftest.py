from __future__ import annotations

from tests.training.evaluate.conftest import bundle

__all__ = ["bundle"]
