"""Which preprocessing a wrapped network gets: what its file states, what the user says, or what is found to be best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from gateway.core.preprocessing import Normalisation, Preprocessing
from training.data.dataset import Dataset
from training.errors import PreprocessingError
from training.models import ARCHS
from training.models.forms.opened import OpenedModel
from training.preprocessing import (
    from_huggingface,
    from_onnx,
    from_timm,
    from_torchvision,
    of_torchvision_network,
    read_preprocessing,
)
from training.preprocessing.find import Found, find
from training.preprocessing.options import DEFAULT, Options
from training.recipes.training import DataSpec
from training.util.signatures import StepProgress

AUTO, FIND = "auto", "find"
SIDE = 224  # where neither the model nor the user states one
_TORCHVISION = "torchvision:"


@dataclass(frozen=True)
class Wanted:
    """What the user says: `auto` (what the model's file states), `find`, or a JSON file; and options over it."""

    preprocessing: str = AUTO
    options: Options = Options()

    @property
    def finds(self) -> bool:
        return self.preprocessing == FIND

    def side(self, model: str) -> int:
        """The images' side as far as it is known before the model is opened."""
        stated = self._file()
        if stated is None and model.startswith(_TORCHVISION):
            stated = of_torchvision_network(model.removeprefix(_TORCHVISION))
        return self.options.size or (stated and stated.side) or SIDE

    def of(self, opened: OpenedModel, side: int) -> Preprocessing:
        """That of the opened model, for images of `side` where it leaves that open.

        What the model states and cannot be followed is left aside where it is to be found, or said by the user.
        """
        try:
            stated = self._file() or _stated(opened, side)
        except PreprocessingError:
            if not self.finds and (self._file() is not None or not self.options.complete):
                raise
            stated = _stated(replace(opened, preprocessing=None), side)
        chosen = self.options.over(stated)
        return chosen.model_copy(update={"side": chosen.side or opened.side or side})

    def _file(self) -> Preprocessing | None:
        return None if self.preprocessing in (AUTO, FIND) else read_preprocessing(Path(self.preprocessing))


def read_as(data: DataSpec, chosen: Preprocessing) -> DataSpec:
    """`data`, whose images become the network's as is `chosen`."""
    return data.model_copy(update={"size": chosen.side, "resize": chosen.served})


def found_on(body: nn.Module, chosen: Preprocessing, data: Dataset, progress: StepProgress) -> Found:
    """The best preprocessing for `body` on the select split of `data` (grouped, unread); no other image is used."""
    split = data.select
    if split.files is None:
        raise PreprocessingError("--preprocessing find needs a folder of images")
    assert chosen.side is not None
    stated = None if chosen.source == DEFAULT.source else chosen
    paths = [Path(name) for name in split.files]
    return find(body, paths, np.asarray(split.y), side=chosen.side, stated=stated, progress=progress)


def _stated(opened: OpenedModel, side: int) -> Preprocessing:
    """What the file states; the normalisation in its weights, or that its type of input implies, comes first."""
    found = _read(opened) or DEFAULT
    if opened.arch.startswith(_TORCHVISION) and found.side != side:
        # What torchvision publishes is of its own weights, at their size.
        found = found.model_copy(update={"side": None, "resize": DEFAULT.resize})
    if opened.normalise is None or opened.arch in ARCHS:
        return found
    mean, std = opened.normalise
    return found.model_copy(update={"normalise": Normalisation(mean=mean, std=std)})


def _read(opened: OpenedModel) -> Preprocessing | None:
    stated = opened.preprocessing
    if stated is None:
        return None
    name = opened.name
    if stated.source == "torchvision":
        return from_torchvision(stated.content, source=f"torchvision's weights of {name}")
    if stated.source == "timm":
        return from_timm(stated.content, source=f"timm's configuration of {name}")
    if stated.source == "huggingface":
        return from_huggingface(stated.content, source=f"{name}/preprocessor_config.json")
    return from_onnx(stated.content, side=opened.side, source=f"the metadata of {name}")
