"""From images and captions to feature vectors.

A feature matrix is (N, D), one row a sample. The metrics of this room read nothing else, so any network
that maps images and captions into one space can stand where `ClipFeatures` stands: it need only satisfy
`Features`.

Image features are CLIP's projected embeddings *before* L2 normalisation, the convention of CLIP-FID
(Kynkäänniemi et al. 2023, arXiv 2203.06026; clean-fid's `clip_vit_b_32`). The CLIP score normalises for
itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from scott.errors import UserError

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

Matrix = Tensor | np.ndarray
Images = Tensor | Sequence[Image.Image]


def feature_matrix(name: str, values: Matrix, *, at_least: int = 1) -> Tensor:
    """`values` as a float64 tensor (N, D), detached, on the device it was on.

    `name` is what the messages call it. Raises `ValueError` unless the shape is (N ≥ `at_least`, D ≥ 1) and
    every entry is finite.
    """
    matrix = torch.as_tensor(values).detach().to(torch.float64)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(f"{name} features: got shape {tuple(matrix.shape)}, expected (N, D)")
    if len(matrix) < at_least:
        raise ValueError(f"{name} features: got {len(matrix)} samples, expected at least {at_least}")
    if not torch.isfinite(matrix).all():
        bad = (~torch.isfinite(matrix)).any(dim=1).sum().item()
        raise ValueError(f"{name} features: {bad} of {len(matrix)} samples have a non-finite entry")
    return matrix


def feature_pair(a: tuple[str, Matrix], b: tuple[str, Matrix], *, at_least: int = 1) -> tuple[Tensor, Tensor]:
    """Two named matrices through `feature_matrix`; `ValueError` when they differ in D."""
    first, second = feature_matrix(*a, at_least=at_least), feature_matrix(*b, at_least=at_least)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"{a[0]} features have D = {first.shape[1]}, {b[0]} features D = {second.shape[1]}")
    return first, second


class Features(Protocol):
    """Maps images and captions into one D-dimensional space."""

    def images(self, images: Images) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], or B PIL images → (B, D), float32, on the CPU."""

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
        batch_size: int = 64,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.image_size: int = model.config.vision_config.image_size
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
        return cls(model.to(device), tokenizer, mean, std, batch_size=batch_size)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.no_grad()
    def images(self, images: Images) -> Tensor:
        """`image_embeds` before normalisation, (B, D). `ValueError` on tensors not RGB in [0, 1]."""
        batches = [self._image_batch(images, start) for start in range(0, len(images), self.batch_size)]
        return torch.cat(batches)

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

    def _image_batch(self, images: Images, start: int) -> Tensor:
        batch = images[start : start + self.batch_size]
        if isinstance(batch, Tensor):
            pixels = self._fit(check_images(batch).to(self.device, torch.float32))
        else:
            pixels = torch.cat([self._fit(_from_pil(image).to(self.device)) for image in batch])
        pixels = (pixels - self._mean.to(self.device)) / self._std.to(self.device)
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return self.model.visual_projection(pooled).float().cpu()

    def _fit(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 3, image_size, image_size): shorter side to size, then centre crop."""
        height, width = images.shape[-2:]
        size = self.image_size
        shorter = min(height, width)
        if shorter != size:
            shape = [size * height // shorter, size * width // shorter]
            resized = F.interpolate(images, size=shape, mode="bicubic", antialias=True)
            images = resized.clamp(0, 1)  # bicubic overshoots at edges
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


def _from_pil(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32) / 255)
    return pixels.permute(2, 0, 1).unsqueeze(0)
