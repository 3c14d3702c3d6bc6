"""The shipped saliency map: better than random and edge maps at deletion, and about these weights and this image."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training.imaging.inpaint import inpaint

SHARES = (0.05, 0.1, 0.2, 0.3)


@pytest.fixture(scope="module")
def clean(images, pixels, outputs, defence):
    keep = (images["kind"] == 0) & (outputs.logits.argmax(1) == images["y"])
    return torch.from_numpy(pixels[keep]), torch.from_numpy(outputs.saliency[keep]), torch.from_numpy(images["y"][keep])


def deletion(defence, x, saliency, y):
    """Mean probability of the label, (N,), after the most salient pixels were inpainted away; lower is better."""
    order = saliency.flatten(1).argsort(1, descending=True)
    total = torch.zeros(len(x))
    for share in SHARES:
        mask = torch.zeros(len(x), x.shape[2] * x.shape[3])
        mask.scatter_(1, order[:, : round(share * mask.shape[1])], 1.0)
        with torch.no_grad():
            logits = defence.network(inpaint(x, mask.view(len(x), *x.shape[2:])))
        total += logits.softmax(1).gather(1, y[:, None])[:, 0] / len(SHARES)
    return total.numpy()


def edges(x):
    grey = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    kernels = torch.stack([sobel, sobel.T])[:, None]
    return F.conv2d(grey, kernels).pow(2).sum(1).sqrt()


def lower_by(a, b, *, seed=0, draws=2000):
    """Upper end of the 95 % bootstrap interval of mean(a - b)."""
    difference = a - b
    index = np.random.default_rng(seed).integers(0, len(difference), (draws, len(difference)))
    return np.quantile(difference[index].mean(1), 0.975)


def test_beats_random_and_edge_maps_at_deletion(defence, clean):
    x, saliency, y = clean
    ours = deletion(defence, x, saliency, y)
    random = deletion(defence, x, torch.rand(saliency.shape, generator=torch.Generator().manual_seed(0)), y)
    assert lower_by(ours, random) < 0
    assert lower_by(ours, deletion(defence, x, edges(x), y)) < 0


def test_changes_when_weights_are_randomised(defence, clean):
    """Adebayo et al. 2018 (arXiv 1810.03292): a map that survives random weights does not explain them."""
    x, saliency, _ = clean
    other = copy.deepcopy(defence)
    torch.manual_seed(0)
    for module in other.network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.reset_parameters()
    random = other(x, torch.zeros(len(x), *x.shape[2:])).saliency
    a, b = saliency.flatten(1).numpy(), random.flatten(1).numpy()
    correlation = np.array([np.corrcoef(p, q)[0, 1] for p, q in zip(a, b, strict=True)])
    assert np.nanmedian(correlation) < 0.7


def test_changes_with_the_image(outputs):
    flat = outputs.saliency.reshape(len(outputs.saliency), -1)
    assert np.median([np.corrcoef(flat[i], flat[i + 1])[0, 1] for i in range(0, 100, 2)]) < 0.9
    assert (outputs.saliency >= 0).all()
    assert (outputs.saliency <= 1).all()
