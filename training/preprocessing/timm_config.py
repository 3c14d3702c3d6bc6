"""timm's `pretrained_cfg`, or a `config.json` that holds it, as timm.data's `transforms_imagenet_eval` follows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gateway.core.preprocessing import Preprocessing
from training.errors import PreprocessingError
from training.preprocessing.values import IMAGENET, channels_of, filter_of, fraction_of, side_of, stated

CROP = 0.875


def from_timm(config: Mapping[str, Any], *, source: str = "timm's pretrained_cfg") -> Preprocessing:
    """The evaluation transform that timm makes of the configuration; what it leaves out has timm's defaults."""
    inner = config.get("pretrained_cfg")
    cfg = {**config, **inner} if isinstance(inner, Mapping) else config
    size = cfg.get("input_size") or (3, 224, 224)
    if not isinstance(size, (list, tuple)) or len(size) != 3:
        raise PreprocessingError(f"{source}: input_size {size!r} is not [channels, height, width]")
    side = side_of(size[1:], f"{source}: input_size")
    mean = channels_of(cfg.get("mean") or IMAGENET[0], f"{source}: mean")
    share = fraction_of(cfg.get("crop_pct") or CROP, f"{source}: crop_pct")
    mode = cfg.get("crop_mode") or "center"
    resize: dict[str, Any] = {
        "filter": filter_of(cfg.get("interpolation") or "bicubic", f"{source}: interpolation"),
        "resize_to": math.floor(side / share),
    }
    if mode == "center":
        resize["rule"] = "shorter_side"
    elif mode == "squash":
        resize["rule"] = "stretch"
    elif mode == "border":
        resize |= {"rule": "pad", "fill": (*(round(255 * value) for value in mean),)}
    else:
        raise PreprocessingError(f"{source}: crop_mode {mode!r} is not known; there are center, squash and border")
    std = channels_of(cfg.get("std") or IMAGENET[1], f"{source}: std")
    return stated(source, side=side, resize=resize, normalise={"mean": mean, "std": std})
