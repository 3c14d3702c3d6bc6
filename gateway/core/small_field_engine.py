"""The session of a bundle's network of small fields (`gateway.core.small_field`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gateway.core.engine import open_session
from gateway.core.manifest import InputSpec
from gateway.core.small_field import (
    OUTPUTS,
    SMALL_FIELD,
    SmallFieldFound,
    SmallFieldSpec,
    Windows,
    check_fields,
    found_in,
    windows_for,
)
from gateway.errors import BundleError, EngineError

_CHECKED = 16
"""Places at which a patch is tried when the graph is opened."""


class SmallFieldEngine:
    """Runs the graph; safe to call from several threads."""

    def __init__(
        self, folder: Path, spec: SmallFieldSpec, size: InputSpec, classes: int, *, provider: str, threads: int
    ) -> None:
        """Open the graph in `folder`; `BundleError` unless it gives what it should and sees no more than it states."""
        self.path, self.spec, self.size = folder / SMALL_FIELD, spec, size
        self._session = open_session(self.path, provider, threads)
        given = {node.name for node in self._session.get_inputs()}
        made = {node.name: node.shape for node in self._session.get_outputs()}
        if given != {"pixels", "windows", "kept"} or not {*OUTPUTS, "cells"} <= set(made):
            raise BundleError(f"{self.path}: takes {sorted(given)} and gives {sorted(made)}")
        if list(made["cells"])[1:] != [classes, spec.height, spec.width]:
            raise BundleError(f"{self.path}: evidence of shape {made['cells']} for {classes} classes")
        self._check()

    def windows(self, patch: int) -> int:
        """Windows of cells for squares of side `patch`."""
        return self.windows_for(patch).count

    def windows_for(self, patch: int) -> Windows:
        """Those windows."""
        return windows_for(self.spec, self.size.height, self.size.width, patch)

    def evidence(self, pixels: np.ndarray) -> np.ndarray:
        """Evidence (N, K, h, w) of `pixels` float32 (N, C, H, W); raises `EngineError`."""
        (cells,) = self._run(pixels, 1, ["cells"])
        return cells

    def prove(self, pixels: np.ndarray, patch: int) -> list[SmallFieldFound]:
        """What is found of each of `pixels` float32 (N, C, H, W), against squares of side `patch`; `EngineError`."""
        logits, one, two, others = self._run(pixels, patch, list(OUTPUTS))
        if not np.isfinite(logits).all():
            raise EngineError(f"{self.path.name} gave logits that are not finite")
        return found_in(logits, one, two, others)

    def _run(self, pixels: np.ndarray, patch: int, outputs: list[str]) -> list[np.ndarray]:
        windows = self.windows_for(patch)
        inputs = {"pixels": pixels, "windows": windows.windows, "kept": windows.kept}
        try:
            found: list[np.ndarray] = self._session.run(outputs, inputs)
        except Exception as error:
            raise EngineError(f"{self.path.name}: {' '.join(str(error).split())[:300]}") from error
        return found

    def _check(self) -> None:
        """`BundleError` unless patches change the evidence of those cells alone that are stated to see them."""
        generator, size = np.random.default_rng(0), self.size
        patch = min(5, size.height, size.width)
        places = [size.height - patch, size.width - patch]
        boxes = [(0, 0), (0, places[1]), (places[0], 0), (places[0], places[1])]
        boxes += [tuple(int(generator.integers(0, place + 1)) for place in places) for _ in range(_CHECKED - 4)]  # type: ignore[misc]
        before = generator.random((1, size.channels, size.height, size.width), np.float32)
        pixels = np.repeat(before, len(boxes), 0)
        for i, (top, left) in enumerate(boxes):
            pixels[i, :, top : top + patch, left : left + patch] = generator.random(
                (size.channels, patch, patch), np.float32
            )
        try:
            # In one batch, since batches of other sizes may be added up in another order.
            cells, *_ = self._run(np.concatenate([before, pixels]), patch, ["cells"])
        except EngineError as error:
            raise BundleError(f"{self.path}: {error.detail}") from None
        if not check_fields(self.spec, cells[:1], cells[1:], boxes, patch):
            raise BundleError(f"{self.path}: its cells see more than the manifest states, so that it proves nothing")
