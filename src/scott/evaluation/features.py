"""From images and captions to feature vectors.

A feature matrix is (N, D), one row a sample. The metrics of this room read nothing else, so any network that maps
images and captions into one space can stand where `ClipFeatures` stands: it need only satisfy `Features`. `networks`
has the others.

Image features are CLIP's projected embeddings *before* L2 normalisation, the convention of CLIP-FID
(Kynkäänniemi et al. 2023, arXiv 2203.06026; clean-fid's `clip_vit_b_32`). The CLIP score and CMMD normalise for
themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scott.errors import UserError

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase


class Features(Protocol):
    """Maps images and captions into one D-dimensional space."""

    @property
    def description(self) -> str:
        """The very model, and what is done to a picture before it: for whoever reads the figures."""

    def images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] → (B, D), float32, on the CPU."""

    def texts(self, texts: Sequence[str]) -> Tensor:
        """B captions → (B, D), float32, on the CPU."""


class ClipFeatures:
    """CLIP's projected image and text embeddings, not normalised (module docstring).

    Preprocessing is CLIP's own, done in torch: bicubic with antialiasing until the shorter side is the
    model's `image_size`, a centre crop, then the mean and standard deviation (each (3,)) the weights were
    trained with. `batch_size` bounds memory and does not change the result. The device is that of `model`.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        name: str = "",
        batch_size: int = 64,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.image_size: int = model.config.vision_config.image_size
        fitted = f"shorter side to {self.image_size} (bicubic, antialiased), centre, not normalised"
        self.description = f"CLIP {name}: {fitted}; weights {weights_digest(model)}"
        self._mean = torch.tensor(mean, dtype=torch.float32).view(3, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(3, 1, 1)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, device: str | torch.device = "cpu", batch_size: int = 64
    ) -> ClipFeatures:
        """A transformers folder or hub id: a CLIPModel, its tokenizer and `preprocessor_config.json`.

        Raises `UserError` when one of the three is missing. The paper's CLIP score uses
        `laion/CLIP-ViT-g-14-laion2B-s12B-b42K`.
        """
        # transformers takes seconds to import, and the metrics do not need it.
        from transformers import AutoTokenizer, CLIPModel
        from transformers.image_processing_base import ImageProcessingMixin

        try:
            model = CLIPModel.from_pretrained(name_or_path, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(name_or_path)
            preprocessor: dict[str, Any]
            preprocessor, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
            mean, std = preprocessor["image_mean"], preprocessor["image_std"]
            # Where its files are missing, transformers makes up an empty tokenizer without a word.
            tokens, rows = len(tokenizer), model.config.text_config.vocab_size
            if tokens != rows:
                raise ValueError(f"the tokenizer has {tokens} tokens, the model {rows}")
        except (OSError, KeyError, ValueError) as error:
            raise UserError(
                f"{str(name_or_path)!r} is not a CLIP model: expected a transformers folder or hub id "
                "with the model, its tokenizer and preprocessor_config.json with image_mean and image_std "
                f"({error})"
            ) from error
        return cls(model.to(device), tokenizer, mean, std, name=Path(name_or_path).name, batch_size=batch_size)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """`image_embeds` before normalisation, (B, D). `ValueError` on tensors not RGB in [0, 1]."""
        return torch.cat([self._embed(check_images(chunk)) for chunk in images.split(self.batch_size)])

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """`text_embeds` before normalisation, (B, D); captions are cut at the model's context length."""
        length = self.model.config.text_config.max_position_embeddings
        batches = []
        for start in range(0, len(texts), self.batch_size):
            tokens = self.tokenizer(
                list(texts[start : start + self.batch_size]),
                padding=True,
                truncation=True,
                max_length=length,
                return_tensors="pt",
            ).to(self.device)
            encoded = self.model.text_model(tokens.input_ids, attention_mask=tokens.attention_mask)
            batches.append(self.model.text_projection(encoded.pooler_output).float().cpu())
        return torch.cat(batches)

    def _embed(self, images: Tensor) -> Tensor:
        pixels = centred(images.to(self.device, torch.float32), self.image_size)
        pixels = (pixels - self._mean.to(self.device)) / self._std.to(self.device)
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return self.model.visual_projection(pooled).float().cpu()


def weights_digest(network: nn.Module) -> str:
    """Eight hexadecimal digits of a network's weights: of parameters' names, and up to 64 values of each in fp32."""
    found = hashlib.sha256()
    for name, parameter in network.named_parameters():
        values = parameter.detach().flatten()
        sample = values[:: max(1, len(values) // 64)][:64].float().cpu()
        found.update(name.encode() + sample.numpy().tobytes())
    return found.hexdigest()[:8]


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


def check_images(images: Tensor) -> Tensor:
    """`images` itself; `ValueError` unless it is floating point, (B, 3, H, W), finite and within [0, 1]."""
    if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images: got {images.dtype} {tuple(images.shape)}, expected floats (B, 3, H, W)")
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images: got values in [{low:.3g}, {high:.3g}], expected [0, 1]")
    return images
