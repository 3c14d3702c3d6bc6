"""The margin, the quantity that attacks and explanations use."""

from __future__ import annotations

import torch
from torch import Tensor


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """Logit of `label` minus the largest other logit, (N,): positive where `label` wins. logits (N, K), label (N,)."""
    own = torch.nn.functional.one_hot(label, logits.shape[1]).to(torch.bool)
    return logits.masked_fill(~own, 0).sum(1) - logits.masked_fill(own, -1e4).amax(1)
