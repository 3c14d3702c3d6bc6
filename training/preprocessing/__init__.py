"""What a model's file states about its input, as a `gateway.core.preprocessing.Preprocessing`; and how to find it."""

from __future__ import annotations

from training.preprocessing.files import read_preprocessing
from training.preprocessing.huggingface import from_huggingface
from training.preprocessing.onnx_metadata import from_onnx
from training.preprocessing.timm_config import from_timm
from training.preprocessing.torchvision_weights import from_torchvision, of_torchvision_network

__all__ = [
    "from_huggingface",
    "from_onnx",
    "from_timm",
    "from_torchvision",
    "of_torchvision_network",
    "read_preprocessing",
]
