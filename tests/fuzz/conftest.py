"""Hostile inputs: a few hundred in every test run, PALISADE_FUZZ_CASES of them in `make fuzz`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

CASES = int(os.environ.get("PALISADE_FUZZ_CASES", "0"))

settings.register_profile(
    "fuzz",
    max_examples=max(1, CASES or 60),
    deadline=None,
    derandomize=not CASES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
settings.load_profile("fuzz")
