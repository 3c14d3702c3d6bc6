"""A preprocessing in words, for people."""

from __future__ import annotations

from gateway.core.preprocessing import Normalisation, Preprocessing, Resize


def in_words(found: Preprocessing) -> str:
    """One line: rule, filter and normalisation."""
    return f"{resize_in_words(found.resize, found.side)}; {normalise_in_words(found.normalise)}"


def resize_in_words(resize: Resize, side: int | None) -> str:
    """As `shorter side to 256, crop 224, bicubic`."""
    crop, to = f"{side} x {side}" if side else "the network's size", resize.resize_to
    rule = {
        "stretch": f"both sides to {to}, crop {side}" if to and to != side else f"stretched to {crop}",
        "center_crop": f"the middle, scaled to {crop}",
        "shorter_side": f"shorter side to {to or side}, crop {side}",
        "pad": f"longer side to {to or side}, padded to {crop}",
    }[resize.rule]
    way = " in torch's arithmetic" if resize.arithmetic == "torch" else ""
    return f"{rule}, {resize.filter}{way}{'' if resize.antialias else ' without antialiasing'}"


def normalise_in_words(normalise: Normalisation) -> str:
    """As `RGB of 0..1 less 0.485, 0.456, 0.406, over 0.229, 0.224, 0.225`."""
    scale = "0..255" if normalise.scale == "byte" else "0..1"
    text = f"{normalise.channel_order.upper()} of {scale}"
    if any(normalise.mean) or any(value != 1 for value in normalise.std):
        mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (normalise.mean, normalise.std))
        text += f" less {mean}, over {std}"
    return text
