"""Whether images are prepared as torchvision, timm and Transformers do it: pixels, and answers of EfficientNet-Lite0.

    python -m benchmarks.preprocessing --photos FOLDER --weights weights.safetensors --out FILE.json

Each reference's own description of its preprocessing is read by `training.preprocessing`; the photographs go through
the gateway's decoder and through the reference, and both through the network (`python -m studies.lite0_weights FOLDER`
writes its weights). Then JPEG files of 4000 x 3000 are decoded whole and at a fraction of their size.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console

from benchmarks.record import record
from gateway.core.decode import decode_image
from gateway.core.manifest import InputSpec
from gateway.core.preprocessing import Preprocessing, Resize
from training.imaging.pixels import to_tensor
from training.models.efficientnet_lite import EfficientNetLite0
from training.models.forms.weights import fill
from training.preprocessing import from_huggingface, from_timm, from_torchvision
from training.preprocessing.options import Options

Reference = Callable[[Image.Image], np.ndarray]
"""An image to pixels of 0..255 (H, W, 3)."""

TIMM: dict[str, dict[str, Any]] = {
    "timm: crop_pct 0.875, bicubic (efficientnet_lite0)": {"input_size": (3, 224, 224)},
    "timm: crop_pct 0.95, bicubic (convnext, 288)": {"input_size": (3, 288, 288), "crop_pct": 0.95},
    "timm: squash to 384 (vit)": {"input_size": (3, 384, 384), "crop_pct": 1.0, "crop_mode": "squash"},
    "timm: border at 224": {"input_size": (3, 224, 224), "crop_pct": 0.9, "crop_mode": "border"},
}
ON_PILLOW = Options(arithmetic="pillow")
SMALL = {"height": 224, "width": 224}
HUGGING_FACE: dict[str, dict[str, Any]] = {
    "ViT": {},
    "DeiT": {},
    "ConvNext": {"size": {"shortest_edge": 224}},
    "EfficientNet": {"size": SMALL},
    "MobileNetV2": {},
    "Bit": {},
}
TORCHVISION = ("ResNet50_Weights.IMAGENET1K_V1", "ResNet50_Weights.IMAGENET1K_V2", "EfficientNet_B0_Weights.DEFAULT")


def references() -> dict[str, tuple[Preprocessing, Reference]]:
    """By title: what was read of a reference's description, and the reference without its normalisation."""
    import transformers
    from timm.data import create_transform, resolve_data_config
    from torchvision import models

    made: dict[str, tuple[Preprocessing, Reference]] = {}
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    for name in TORCHVISION:
        weights = models.get_weight(name)
        made[f"torchvision: {name}"] = (from_torchvision(weights.transforms()), _tensors(weights.transforms(**plain)))
    for title, cfg in TIMM.items():
        settings = resolve_data_config({}, pretrained_cfg=cfg) | plain
        made[title] = (from_timm(cfg | plain), _tensors(create_transform(**settings, is_training=False)))
    for kind, options in HUGGING_FACE.items():
        # Two backends of one processor: torch tensors (the default), and Pillow, which no file states.
        for suffix, title, stated in (("", kind, Options()), ("Pil", f"{kind}, Pillow backend", ON_PILLOW)):
            processor = getattr(transformers, f"{kind}ImageProcessor{suffix}")(**options)
            found = stated.over(from_huggingface(processor.to_dict()))
            made[f"transformers: {title}"] = (found, _processed(processor))
    return made


def _tensors(transform: Callable[[Image.Image], torch.Tensor]) -> Reference:
    return lambda image: (transform(image) * 255).permute(1, 2, 0).numpy()


def _processed(processor: Any) -> Reference:
    without = {"do_rescale": False, "do_normalize": False, "include_top": False, "return_tensors": "np"}
    if not hasattr(processor, "include_top"):
        del without["include_top"]
    return lambda image: np.asarray(processor(image, **without)["pixel_values"][0]).transpose(1, 2, 0)


def compared(found: Preprocessing, reference: Reference, paths: list[Path], network: torch.nn.Module) -> dict[str, Any]:
    """Mean absolute difference of the pixels, of 255, and the share of equal answers; equal pixels are not answered."""
    assert found.side is not None
    spec = InputSpec(height=found.side, width=found.side, resize=found.served)
    differences, same, equal = [], 0, 0
    for path in paths:
        data = path.read_bytes()
        ours = decode_image(data, spec)
        theirs = reference(Image.open(io.BytesIO(data)).convert("RGB"))
        differences.append(float(np.abs(ours.astype(float) - theirs).mean()))
        exact = np.rint(theirs).clip(0, 255).astype(np.uint8)
        if np.array_equal(ours, exact):
            equal += 1
            same += 1
            continue
        with torch.inference_mode():
            answers = network(to_tensor(np.stack([ours, exact]))).argmax(1)
        same += int(answers[0] == answers[1])
    n = len(paths)
    return {
        "n": n,
        "side": found.side,
        "resize": found.resize.model_dump(mode="json"),
        "mean_absolute_difference_of_255": float(np.mean(differences)),
        "largest_of_an_image": float(max(differences)),
        "images_of_equal_pixels": equal / n,
        "same_top1": same / n,
    }


def at_a_fraction(paths: list[Path], seed: int) -> dict[str, Any]:
    """Decoding of 4000 x 3000 JPEG files to 224 pixels: whole and at a fraction; time and difference.

    Photographs enlarged are smoother than a camera's, those with noise (deviation 8) about alike, and a mosaic of whole
    photographs of 250 pixels a side is sharper than any.
    """
    rng = np.random.default_rng(seed)
    large = [Image.open(path).convert("RGB").resize((4000, 3000), Image.Resampling.LANCZOS) for path in paths[:4]]
    noisy = [
        Image.fromarray((np.asarray(i) + rng.normal(0, 8, (3000, 4000, 1))).clip(0, 255).astype(np.uint8))
        for i in large
    ]
    mosaic = Image.new("RGB", (4000, 3000))
    for i in range(16 * 12):
        tile = Image.open(paths[i % len(paths)]).convert("RGB").resize((250, 250), Image.Resampling.LANCZOS)
        mosaic.paste(tile, (i % 16 * 250, i // 16 * 250))
    whole = InputSpec(height=224, width=224, resize=Resize(rule="shorter_side", resize_to=256, filter="bicubic"))
    reduced = whole.model_copy(update={"resize": whole.resize.model_copy(update={"reduced": True})})
    found: dict[str, Any] = {}
    for title, images in (("enlarged photographs", large), ("with noise", noisy), ("mosaic", [mosaic])):
        rows = []
        for image in images:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=90)
            times, pixels = [], []
            for spec in (whole, reduced):
                took = []
                for _ in range(3):
                    start = time.perf_counter()
                    made = decode_image(buffer.getvalue(), spec)
                    took.append(time.perf_counter() - start)
                times.append(min(took) * 1000)
                pixels.append(made.astype(float))
            rows.append([*times, float(np.abs(pixels[0] - pixels[1]).mean())])
        before, after, difference = np.mean(rows, axis=0)
        found[title] = {
            "n": len(rows),
            "whole_ms": round(float(before), 1),
            "reduced_ms": round(float(after), 1),
            "mean_absolute_difference_of_255": round(float(difference), 3),
        }
    return found


def main(
    photos: Annotated[Path, typer.Option(help="Folder of photographs (.jpg).")],
    weights: Annotated[Path, typer.Option(help="Weights that `python -m studies.lite0_weights` writes.")],
    n: Annotated[int | None, typer.Option(min=1, help="Photographs; default: all.")] = None,
    only: Annotated[str, typer.Option(help="Compare only references whose title contains this.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """Compare the gateway's pixels with those of the reference implementations."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    paths = sorted(photos.glob("*.jpg"))[:n]
    network = EfficientNetLite0(classes=1000, mean=[0.0] * 3, std=[1.0] * 3).eval()
    fill(network, weights, classes=1000)
    figures: dict[str, Any] = {"seed": seed, "jpeg_4000x3000": at_a_fraction(paths, seed), "references": {}}
    console.print_json(data=figures["jpeg_4000x3000"])
    for title, (found, reference) in references().items():
        if only in title:
            row = figures["references"][title] = compared(found, reference, paths, network)
            console.print(
                f"{title}: {row['mean_absolute_difference_of_255']:.3f} of 255, same top-1 {row['same_top1']:.4f}",
                highlight=False,
            )
            if out is not None:  # as far as it is; the last one takes long
                record(out, "preprocessing beside torchvision, timm and Transformers", figures)


if __name__ == "__main__":
    typer.run(main)
