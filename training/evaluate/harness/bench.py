"""Shared state of measurements: the open bundle, the test images, and what has been attacked and answered already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gateway.core.loading import Bundle
from gateway.core.pipeline import Pipeline
from training.bundling.networks import NETWORKS, load_defence, networks_sha256
from training.data.dataset import Dataset, Split
from training.defence.graph import DefenceGraph
from training.evaluate.harness.store import Arrays, Store, digest
from training.evaluate.harness.tracks import inferred_tracks
from training.imaging.pixels import to_tensor
from training.recipes.evaluation import Evaluation
from training.served.answers import Served, open_pipeline, serve
from training.served.scoring import to_uint8
from training.util.module_modes import seeded
from training.util.signatures import StepProgress, silent

ANSWER_CHUNK = 1024
# Files that evaluation itself writes, and what does not bear on an answer.
_UNSERVED = ("card.json", "card.md", "report.html", "samples/")


@dataclass
class Bench:
    """The state of one evaluation.

    `settings` are those of this run, `asked` those of a whole evaluation, which a quick look stays below. `device` is
    where attacks run; answers always come from the CPU's calibration.
    """

    bundle: Bundle
    data: Dataset
    settings: Evaluation
    store: Store
    progress: StepProgress = silent
    asked: Evaluation | None = None
    device: str = "cpu"
    photos: Path | None = None
    """A folder of photos that are none of the classes."""
    registration: dict[str, Any] | None = None
    """What the card is held to (`training.evaluate.registration`), as JSON content."""
    ablation: dict[str, Any] | None = None
    """An ablation's table, for the report (`studies.ablation`)."""

    @cached_property
    def pipeline(self) -> Pipeline:
        return open_pipeline(self.bundle)

    @cached_property
    def defence(self) -> DefenceGraph:
        return load_defence(self.bundle).to(self.device)

    @cached_property
    def networks(self) -> dict[str, nn.Module]:
        """By role: the one that answers, and its companion where there is one."""
        found: dict[str, nn.Module] = {"answering": self.defence.network}
        return found if self.defence.companion is None else found | {"companion": self.defence.companion}

    @cached_property
    def networks_key(self) -> str:
        """What an attack depends on: the networks and the test images."""
        return digest([networks_sha256(self.bundle.path / NETWORKS), self._test_key])

    @cached_property
    def served_key(self) -> str:
        """What an answer depends on: graphs, weights, calibration and policy, and the test images."""
        manifest = self.bundle.manifest
        files = {name: sha for name, sha in manifest.files.items() if not name.startswith(_UNSERVED)}
        stated = manifest.model_dump(mode="json", include={"classes", "input", "scores", "screen_scores", "policy"})
        beside = {"evaluated", "kinds", "votes", "pool"}
        calibrations = [each.model_dump(mode="json", exclude=beside) for each in manifest.calibrations]
        return digest([files, stated, calibrations, self._test_key])

    @cached_property
    def _test_key(self) -> str:
        stated: Any = self.data.describe()["test"]
        return str(stated["sha256"])

    @cached_property
    def test(self) -> Split:
        """The test images in groups that intervals resample: the data set's, else inferred ones, else each image."""
        test, frames = self.data.test, self.settings.track_frames
        if frames is None or len(np.unique(test.group)) < len(test):
            return test
        return replace(test, group=inferred_tracks(test.x, test.y, frames=frames))

    def first(self, count: int | None) -> Split:
        """The first `count` test images; None: all."""
        n = len(self.test)
        return self.test.take(np.arange(n if count is None else min(count, n)))

    def right_first(self, count: int) -> np.ndarray:
        """Indices of the first `count` test images that the answering network gets right."""
        return np.flatnonzero(self.labels["answering"] == self.data.test.y)[:count]

    @cached_property
    def labels(self) -> Arrays:
        """Labels (N,) that both networks give all clean test images, in float32."""

        def make(start: int, stop: int) -> Arrays:
            x = self.pixels(self.data.test.x[start:stop])
            return {name: labels(network, x) for name, network in self.networks.items()}

        return self.store.rows("labels", self.networks_key, len(self.data.test), 2048, make)

    @cached_property
    def clean(self) -> Served:
        """The gateway's answers to all test images."""
        return self.answers("clean test images", "clean", self.data.test.x, {})

    @cached_property
    def clean_cascade(self) -> Served:
        """The same behind the cascade's screen."""
        return self.answers("clean test images, cascade", "clean", self.data.test.x, {}, cascade=True)

    def answers(
        self, title: str, name: str, images: np.ndarray, depends: dict[str, Any], *, cascade: bool = False
    ) -> Served:
        """The gateway's answers to uint8 images (N, H, W, C) known as `name`, which depend on `depends`."""

        def make(start: int, stop: int) -> Arrays:
            served = serve(self.pipeline, images[start:stop], cascade=cascade)
            return {each.name: getattr(served, each.name) for each in fields(Served)}

        kind = "answers-cascade" if cascade else "answers"
        key = digest([self.served_key, self.networks_key, depends])
        rows = self.store.rows(f"{kind}-{name}", key, len(images), ANSWER_CHUNK, make, partial(self.progress, title))
        return Served(**rows)

    def rows(
        self,
        title: str,
        name: str,
        depends: dict[str, Any],
        count: int,
        size: int,
        make: Callable[[int, int, torch.Generator], Arrays],
        *,
        served: bool = False,
    ) -> Arrays:
        """Rows of an attack, `make(start, stop, generator)` by chunk; each chunk has its own seed.

        With `served`, what it makes depends on the calibration too.
        """
        key = digest([self.served_key if served else self.networks_key, depends, self.settings.seed])
        tag = int(digest(name), 16) % 2**31
        return self.store.rows(
            name,
            key,
            count,
            size,
            lambda a, b: make(a, b, seeded(self.settings.seed, tag, a)),
            partial(self.progress, title),
        )

    def pixels(self, images: np.ndarray) -> Tensor:
        """uint8 (N, H, W, C) as float32 (N, C, H, W) in [0, 1] where attacks run."""
        return to_tensor(images).to(self.device)

    def targets(self, labels_: np.ndarray) -> Tensor:
        """Labels (N,) where attacks run."""
        return torch.from_numpy(np.ascontiguousarray(labels_)).to(self.device)


@torch.no_grad()
def labels(network: nn.Module, x: Tensor) -> np.ndarray:
    """Labels (N,) of pixels x (N, C, H, W), in float32."""
    return torch.cat([network(part).argmax(1) for part in x.split(512)]).cpu().numpy()


def as_images(pixels: Tensor) -> np.ndarray:
    """Pixels (N, C, H, W) in [0, 1], wherever they are, rounded to the uint8 (N, H, W, C) that a file can carry."""
    return to_uint8(pixels.detach().float().cpu().numpy())
