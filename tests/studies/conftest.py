from __future__ import annotations

from tests.training.conftest import defence, exported, test_images, toy, trained

__all__ = ["defence", "exported", "test_images", "toy", "trained"]
