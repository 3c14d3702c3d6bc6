"""Hugging Face's `preprocessor_config.json`, as Transformers' image processors follow it.

Files leave out what is the default of the processor's class, and older ones have a number in place of a size, whose
meaning depends on the class, too. `PROCESSORS` has the defaults of those that classifiers use. Whether a processor
resizes with torch or with Pillow is not in its file; from version 5 on `AutoImageProcessor` takes torch for every name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.core.preprocessing import Preprocessing, has_torch_arithmetic
from training.errors import PreprocessingError
from training.preprocessing.timm_config import from_timm
from training.preprocessing.values import (
    CLIP,
    HALF,
    IMAGENET,
    REMEDY,
    channels_of,
    filter_of,
    fraction_of,
    side_of,
    stated,
)

_LARGE = 384  # from this side on ConvNeXT's processor does not crop


@dataclass(frozen=True)
class Processor:
    """The defaults of a class; `shorter`: a plain number as size is that of the shorter side."""

    size: int
    statistics: tuple[list[float], list[float]] = HALF
    crop: int | None = None
    shorter: bool = False
    resample: int = 3
    crop_pct: float | None = None
    normalise: bool = True
    flip: bool = False


_CROPPED = Processor(224, CLIP, crop=224, shorter=True)
PROCESSORS: dict[str, Processor] = {
    "ViT": Processor(224, resample=2),
    "DINOv3ViT": Processor(224, IMAGENET, resample=2),
    "Deit": Processor(256, crop=224),
    "DeiT": Processor(256, crop=224),
    "Beit": Processor(224),
    "Siglip": Processor(224),
    "Pvt": Processor(224, IMAGENET),
    "Segformer": Processor(512, IMAGENET, resample=2),
    "Bit": _CROPPED,
    "CLIP": _CROPPED,
    "ChineseCLIP": _CROPPED,
    "ConvNext": Processor(384, shorter=True, crop_pct=224 / 256),
    "EfficientNet": Processor(346),
    "Levit": Processor(224, IMAGENET, crop=224, shorter=True),
    "PoolFormer": Processor(224, IMAGENET, crop=224, shorter=True, crop_pct=0.9),
    "MobileNetV1": Processor(256, crop=224, shorter=True, resample=2),
    "MobileNetV2": Processor(256, crop=224, shorter=True, resample=2),
    "MobileViT": Processor(224, crop=256, shorter=True, normalise=False, flip=True),
}
_SUFFIXES = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")


def from_huggingface(config: Mapping[str, Any], *, source: str = "preprocessor_config.json") -> Preprocessing:
    """What the image processor of a `preprocessor_config.json` does; `PreprocessingError` names what it cannot."""
    if "pretrained_cfg" in config:  # TimmWrapperImageProcessor
        return from_timm(config, source=source)
    name = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    kind = next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)
    known = PROCESSORS.get(kind)
    if known is None and ("size" not in config or "image_mean" not in config):
        raise PreprocessingError(f"{source}: the processor {name or 'without a name'} is not known; {REMEDY}")
    if config.get("do_resize", True) is False or config.get("do_pad"):
        raise PreprocessingError(f"{source}: do_resize: false and do_pad: true give images of many sizes; {REMEDY}")
    known = known or Processor(224)
    side, resize = _geometry(kind, config, known, source)
    resize["filter"] = filter_of(config.get("resample", known.resample), f"{source}: resample")
    if has_torch_arithmetic(resize["rule"], resize["filter"], antialias=True):
        resize["arithmetic"] = "torch"
    return stated(source, side=side, resize=resize, normalise=_normalise(kind, config, known, source))


def _geometry(kind: str, config: Mapping[str, Any], known: Processor, source: str) -> tuple[int, dict[str, Any]]:
    size = config.get("size", {"shortest_edge": known.size} if known.shorter else known.size)
    pair = isinstance(size, (list, tuple))  # [height, width]
    shorter = "shortest_edge" in size if isinstance(size, Mapping) else known.shorter and not pair
    if isinstance(size, Mapping) and "longest_edge" in size:
        raise PreprocessingError(f"{source}: the size {dict(size)} is not of one shape; {REMEDY}")
    side = scaled = side_of(size, f"{source}: size")
    rule = "shorter_side" if shorter else "stretch"
    share = config.get("crop_pct", known.crop_pct)
    if kind == "ConvNext":
        if side >= _LARGE:
            rule = "stretch"
        else:
            scaled = int(side / fraction_of(share, f"{source}: crop_pct"))
    elif kind == "PoolFormer" and share is not None:
        rule, scaled = "shorter_side", int(side / fraction_of(share, f"{source}: crop_pct"))
    elif kind == "Levit" and shorter:
        scaled = int(256 / 224 * side)
    if config.get("do_center_crop", known.crop is not None):
        side = side_of(config.get("crop_size", known.crop), f"{source}: crop_size")
    elif rule == "shorter_side" and kind != "ConvNext":  # which crops by itself
        raise PreprocessingError(f"{source}: the shorter side becomes {side}, and no crop makes a square; {REMEDY}")
    return side, {"rule": rule, "resize_to": scaled, "crop_offset": "floor"}


def _normalise(kind: str, config: Mapping[str, Any], known: Processor, source: str) -> dict[str, Any]:
    """(x * factor - offset - mean) / std of x in 0..255, as one mean and deviation."""
    mean, std, again = [0.0] * 3, [1.0] * 3, [1.0] * 3
    given = channels_of(config.get("image_std") or known.statistics[1], f"{source}: image_std")
    if config.get("do_normalize", known.normalise):
        mean = channels_of(config.get("image_mean") or known.statistics[0], f"{source}: image_mean")
        std = given
    if kind == "EfficientNet" and config.get("include_top", True):
        again = given  # its processor divides by the deviation a second time
    factor, offset = 1.0, 0.0
    if config.get("do_rescale", True):
        factor = fraction_of(config.get("rescale_factor", 1 / 255), f"{source}: rescale_factor")
        offset = 1.0 if kind == "EfficientNet" and config.get("rescale_offset", False) else 0.0
    unit = abs(factor * 255 - 1) < 1e-6
    by = 1.0 if unit else factor
    flipped = config.get("do_flip_channel_order", known.flip)
    return {
        "channel_order": "bgr" if flipped else "rgb",
        "scale": "unit" if unit else "byte",
        "mean": [(m + offset) / by for m in mean],
        "std": [s * a / by for s, a in zip(std, again, strict=True)],
    }
