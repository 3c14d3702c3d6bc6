"""One picture of a decision: the input, where the label comes from, the regions, and what was neutralised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from gateway.answers.colours import SCALE, colourise
from gateway.answers.render import png, to_pil
from gateway.core.decision import Decision

_TILE = 256
_GAP = 20
_HEADER = 62
_CAPTION = 74
_PAPER, _INK, _FAINT = (250, 250, 248), (28, 30, 36), (110, 114, 124)
_ALERT, _SUSPECT, _CALM = (186, 32, 44), (133, 80, 0), (24, 110, 82)
_ROI, _ROA = (0, 190, 220), (240, 50, 60)
# Every image has a most patch-like window; one that is not suspected is drawn without alarm.
_UNSUSPECTED = (150, 154, 164)
# Opacity of the map where it is 0 and where it is 1: what does not matter stays visible.
_OVERLAY = (0.25, 0.85)


@dataclass(frozen=True)
class _Tile:
    image: Image.Image
    title: str
    note: str
    legend: str = ""


def panel_png(decision: Decision) -> bytes:
    """PNG with three tiles, or four where a region was neutralised; small images are enlarged."""
    return png(_compose(decision, _tiles(decision)))


def _tiles(decision: Decision) -> list[_Tile]:
    source = _enlarged(to_pil(decision.pixels), smooth=False)
    done, outputs = decision.neutralized, decision.explained
    shown = source
    if done is not None and outputs.neutral is not None:
        neutral = _enlarged(to_pil(outputs.neutral.neutral_pixels), smooth=False)
        shown = neutral if decision.serve_neutralized else source
    raw, explained = decision.raw.prediction, decision.shown.prediction
    where = "on the neutralised image" if decision.serve_neutralized else "on the input"
    regions = _outlined(source, outputs.raw.roi, _ROI)
    regions = _outlined(regions, outputs.raw.roa, _roa_key(decision)[0])
    tiles = [
        _Tile(source, "Input", f"{raw.probability:.1%} {raw.label}"),
        _Tile(_overlaid(shown, outputs.served.saliency), f"Why {explained.label}", where, "scale"),
        _Tile(regions, "Regions", "", "regions"),
    ]
    if done is not None:
        after = done.result.prediction
        note = f"{after.probability:.1%} {after.label}"
        tiles.append(_Tile(neutral, f"Neutralised ({done.area:.1%} of the image)", note))
    return tiles


def _compose(decision: Decision, tiles: list[_Tile]) -> Image.Image:
    width, height = tiles[0].image.size
    column = max(width, _TILE)
    canvas = Image.new("RGB", (_GAP + len(tiles) * (column + _GAP), _HEADER + height + _CAPTION), _PAPER)
    draw = ImageDraw.Draw(canvas)
    _header(draw, decision, canvas.width)
    for i, tile in enumerate(tiles):
        x = _GAP + i * (column + _GAP)
        y = _HEADER + height + 8
        canvas.paste(tile.image, (x, _HEADER))
        _text(draw, (x, y), tile.title, column, size=15)
        if tile.note:
            _text(draw, (x, y + 20), tile.note, column, size=13, fill=_FAINT)
        if tile.legend == "scale":
            _scale_legend(canvas, draw, (x, y + 42), column)
        elif tile.legend == "regions":
            _key(draw, (x, y + 22), _ROI, "region of importance (RoI)")
            _key(draw, (x, y + 40), *_roa_key(decision))
    return canvas


def _roa_key(decision: Decision) -> tuple[tuple[int, int, int], str]:
    """Colour and words for the region of attack: suspected, or only the likeliest place for a patch."""
    if not (decision.explained.raw.roa > 0.5).any():
        return _UNSUSPECTED, "region of attack (RoA): none"
    if decision.neutralized is None:
        return _UNSUSPECTED, "likeliest RoA, not suspected"
    return _ROA, "region of attack (RoA)"


def _header(draw: ImageDraw.ImageDraw, decision: Decision, width: int) -> None:
    verdict, served = decision.raw.verdict, decision.served.prediction
    _text(draw, (_GAP, 10), f"{served.label}  {served.probability:.1%}", width - 2 * _GAP, size=20)
    state, colour = ("flagged as anomalous", _ALERT) if verdict.flagged else ("not flagged", _CALM)
    if verdict.level == "suspect":
        state, colour = "suspect, not flagged", _SUSPECT
    relation = "<=" if verdict.flagged else ">"
    detail = (
        f"{state}: p = {verdict.p_value:.4f} {relation} {verdict.p_cutoff:.4f}, the cutoff at alpha = {verdict.alpha:g}"
    )
    if decision.serve_neutralized:
        detail += "; served from the neutralised image"
    if decision.pooled is not None:
        detail += f"; the pool's answer in place of {decision.raw.prediction.label}"
    _text(draw, (_GAP, 36), detail, width - 2 * _GAP, size=14, fill=colour)


def _enlarged(image: Image.Image, *, smooth: bool) -> Image.Image:
    longest = max(image.size)
    factor = float(max(1, round(_TILE / longest))) if longest <= 2 * _TILE else 2 * _TILE / longest
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    if smooth or factor < 1.0:
        return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST)


def _overlaid(image: Image.Image, saliency: np.ndarray) -> Image.Image:
    values = Image.fromarray(np.rint(np.clip(saliency, 0.0, 1.0) * 255.0).astype(np.uint8))
    fine = np.asarray(values.resize(image.size, Image.Resampling.BICUBIC), np.float32) / 255.0
    low, high = _OVERLAY
    weight = (low + (high - low) * fine)[..., None]
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    return Image.fromarray(np.rint(grey * (1.0 - weight) + colourise(fine) * weight).astype(np.uint8))


def _outlined(image: Image.Image, region: np.ndarray, colour: tuple[int, int, int]) -> Image.Image:
    """`image` with the inner border of `region` (H, W) in {0, 1} drawn in `colour`."""
    inside = Image.fromarray(((region > 0.5) * 255).astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    # Outside the picture counts as outside the region, so that the border closes at the edges.
    padded = Image.new("L", (image.width + 6, image.height + 6), 0)
    padded.paste(inside, (3, 3))
    core = padded.filter(ImageFilter.MinFilter(7)).crop((3, 3, image.width + 3, image.height + 3))
    border = (np.asarray(inside) > 0) & (np.asarray(core) == 0)
    result = np.array(image)
    result[border] = colour
    return Image.fromarray(result)


def _scale_legend(canvas: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], width: int) -> None:
    x, y = at
    bar = Image.fromarray(np.repeat(SCALE[None], 10, axis=0)).resize((width - 130, 10))
    canvas.paste(bar, (x + 28, y + 3))
    _text(draw, (x, y), "low", 28, size=12, fill=_FAINT)
    _text(draw, (x + width - 96, y), "high saliency", 96, size=12, fill=_FAINT)


def _key(draw: ImageDraw.ImageDraw, at: tuple[int, int], colour: tuple[int, int, int], text: str) -> None:
    x, y = at
    draw.rectangle((x, y + 2, x + 12, y + 12), outline=colour, width=3)
    _text(draw, (x + 20, y - 1), text, 236, size=13, fill=_FAINT)


def _text(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    width: int,
    *,
    size: int,
    fill: tuple[int, int, int] = _INK,
) -> None:
    """Draw `text` in at most `width` pixels, shortened with an ellipsis."""
    font = ImageFont.load_default(size)
    shown = text
    while len(shown) > 1 and font.getlength(shown) > width:
        shown = shown[:-2].rstrip() + "…"
    draw.text(at, shown, font=font, fill=fill)
