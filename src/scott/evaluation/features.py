"""From images and captions to feature vectors.

A feature matrix is (N, D), one row a sample. The metrics of this room read nothing else, so any network that maps
images and captions into one space gives them: a `Features` is that network, with what is done to pictures and
captions before it. `networks` makes those that metrics are defined on.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scott.data.records import chunks
from scott.errors import UserError
from scott.teachers.fingerprint import network_version


class Features:
    """A network of pictures, and of captions where it has a tower for them.

    Args:
        description: the model, and what is done to a picture before it, for whoever reads the figures.
        network: holds the weights, on the device that pictures are brought to.
        encode: images (B, 3, H, W) in [0, 1] → (B, D).
        encode_texts: B captions → (B, D).
        batch_size: bounds memory and does not change the result.
    """

    def __init__(
        self,
        description: str,
        network: nn.Module,
        encode: Callable[[Tensor], Tensor],
        encode_texts: Callable[[list[str]], Tensor] | None = None,
        *,
        batch_size: int = 64,
    ) -> None:
        self.description = f"{description}; weights {network_version(network)[:8]}"
        self.network = network.eval().requires_grad_(False)
        self.batch_size = batch_size
        self._encode, self._encode_texts = encode, encode_texts

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] → (B, D), float32, on the CPU. `ValueError` on tensors of other things."""
        device = next(self.network.parameters()).device
        parts = (check_images(part).to(device, torch.float32) for part in images.split(self.batch_size))
        return torch.cat([self._encode(part).float().cpu() for part in parts])

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """B captions → (B, D), float32, on the CPU. Raises `UserError` where the network reads none."""
        if self._encode_texts is None:
            raise UserError(f"{self.description} reads no captions; name a CLIP for metrics of captions")
        return torch.cat([self._encode_texts(part).float().cpu() for part in chunks(texts, self.batch_size)])


Instruments = Mapping[str, Features]
"""Name → network, as `measures.METRICS` call them; several names may stand for one."""


def features_of(instruments: Instruments, images: Tensor) -> dict[str, Tensor]:
    """Instrument → features of pictures; a network that several names stand for is asked once."""
    found = {one: one.images(images) for one in dict.fromkeys(instruments.values())}
    return {name: found[one] for name, one in instruments.items()}


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialiasing, as Pillow's; it overshoots at edges and is cut to [0, 1]."""
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, size=(height, width), mode="bicubic", antialias=True).clamp(0, 1)


def centred(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) → (B, 3, size, size): shorter side to size, then centre crop."""
    height, width = images.shape[-2:]
    shorter = min(height, width)
    images = resized(images, size * height // shorter, size * width // shorter)
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]


def standardised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x − mean) / std of each of the three channels."""
    of_mean, of_std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    return (images - of_mean) / of_std


def check_images(images: Tensor) -> Tensor:
    """`images` itself; `ValueError` unless it is floating point, (B, 3, H, W), finite and within [0, 1]."""
    if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images: got {images.dtype} {tuple(images.shape)}, expected floats (B, 3, H, W)")
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images: got values in [{low:.3g}, {high:.3g}], expected [0, 1]")
    return images
