"""Stages of a defence graph as graphs of their own.

Everything after inpainting reads the tensor that the output `neutral_pixels` names, so a stage is cut out between that
tensor and an output: same weights, same operators, nothing else.
"""

from __future__ import annotations

# What a part is cut to (its outputs); the input of each is the image after inpainting.
STAGES = {
    "answering forward": ["logits"],
    "companion forward": ["companion_logits"],
    "forward + saliency": ["logits", "saliency"],
    "forward + region of attack": ["logits", "roa", "roa_score"],
    "forward + views + companion + scores": ["logits", "scores", "layer_deviation"],
}
INPAINTING = "inpainting"
