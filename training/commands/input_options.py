"""The options of a command that state what a network's input is, and what is printed of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import typer
from rich.table import Table

from training.preprocessing.find import Found

Filters = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Size = Annotated[int | None, typer.Option(min=8, max=1024, help="Side of the network's images in pixels.")]
Rule = Annotated[
    str | None,
    typer.Option(
        metavar="RULE[:PIXELS]",
        help="How an image of another shape becomes square: shorter_side:256 (then the middle is cropped), exact, pad, "
        "or center_crop.",
    ),
]
Filter = Annotated[Filters | None, typer.Option("--filter", help="Interpolation.")]
Antialias = Annotated[
    bool | None, typer.Option("--antialias/--no-antialias", help="Whether the filter widens as images shrink.")
]
Arithmetic = Annotated[
    Literal["pillow", "torch"] | None,
    typer.Option(help="Whose rounding a resize has: that of images in Pillow, or of tensors of bytes in torch."),
]
Channels = Annotated[Literal["rgb", "bgr"] | None, typer.Option(help="Order of the channels.")]
Scale = Annotated[Literal["unit", "byte"] | None, typer.Option(help="Pixels of 0 to 1 (unit) or of 0 to 255 (byte).")]
Normalise = Annotated[
    str | None,
    typer.Option(help="Mean and deviation, of that scale and order: imagenet, half, none or m,m,m/s,s,s."),
]
Preprocessing = Annotated[
    str,
    typer.Option(
        help="How images become the network's input: auto (as its file states), find (the usual ways are tried on the "
        "labelled images of the select split), or a JSON file such as preprocessor_config.json. Options go before it."
    ),
]


def show_found(found: Found, show: Callable[[object], None]) -> None:
    """The table of what was tried."""
    table = Table("stage", "preprocessing", "accuracy", "mean confidence", box=None)
    for each in found.tried:
        table.add_row(each.stage, each.words, f"{each.accuracy:.4f}", f"{each.confidence:.4f}")
    show(table)
    error = (found.tried[0].accuracy * (1 - found.tried[0].accuracy) / found.n) ** 0.5
    show(f"on {found.n} images of the select split; a standard error of about {error:.3f}, ties go to the first")
