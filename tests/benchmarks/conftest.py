from __future__ import annotations

from tests.training.conftest import defence, exported, toy

__all__ = ["defence", "exported", "toy"]
