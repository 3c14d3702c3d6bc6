from __future__ import annotations

from tests.gateway.audit.conftest import store

__all__ = ["store"]
