"""In which precision networks are computed: bfloat16 where the machine has instructions for it, else float32.

Where it has none, bfloat16 is emulated and slower than float32. Environment variables that cap the instructions of
oneDNN (ONEDNN_MAX_CPU_ISA) and of torch's own kernels (ATEN_CPU_CAPABILITY) count as the machine's limit.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
WantedPrecision = Literal["auto", "fp32", "bf16", "fp16"]

logger = logging.getLogger(__name__)
# Words in the names of oneDNN's instruction sets that have products of bfloat16.
_WITH_BF16 = ("BF16", "FP16", "AMX", "AVX10", "ALL", "DEFAULT")


@dataclass(frozen=True)
class Choice:
    """A precision, and why it was chosen, as a phrase."""

    precision: Literal["fp32", "bf16"]
    why: str


def machine_precision(device: str) -> Choice:
    """bf16 if `device` (cpu or cuda) multiplies in bfloat16, else fp32."""
    if device == "cuda":
        if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice("bf16", "the GPU has bfloat16")
        return Choice("fp32", "the GPU has no bfloat16")
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return Choice("fp32", f"torch uses {torch.backends.cpu.get_cpu_capability()}, which has no bfloat16")
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT"
    if not any(word in cap.upper() for word in _WITH_BF16):
        return Choice("fp32", f"ONEDNN_MAX_CPU_ISA={cap} has no bfloat16")
    # Releases of torch without this function: float32, which is never wrong.
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512_BF16")):
        if known.get(flag):
            return Choice("bf16", f"the processor has {name}")
    return Choice("fp32", "the processor has neither AMX nor AVX512_BF16")


@cache
def say_once(text: str) -> None:
    """Log `text`, once in a process (attacks make many copies of a network), and in the first of several alone."""
    if os.environ.get("RANK", "0") == "0":
        logger.info(text)
