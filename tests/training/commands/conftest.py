from __future__ import annotations

from tests.training.evaluate.conftest import bundle, data, fresh, shared, work

__all__ = ["bundle", "data", "fresh", "shared", "work"]
