"""Does once what training would do at every step: resize, encode with the VAE, encode the caption."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from scott.data.batch import Batch
from scott.data.images import CaptionedImages

if TYPE_CHECKING:
    from scott.backbones import Backbone

Progress = Callable[[int, int], None]


def prepare(images: CaptionedImages, backbone: "Backbone", file: Path, progress: Progress, *, chunk: int = 32) -> Batch:
    """The images of a source as one `Batch` in fp16, encoded once and kept in `file` (safetensors).

    Captions longer than the text encoder takes are cut. A file that was made from other images is made again.
    """
    made_from = {"source": images.name, "version": images.version}
    if _metadata(file) != made_from:
        parts: list[dict[str, Tensor]] = []
        size = backbone.resolution
        for start in range(0, len(images), chunk):
            rows = range(start, min(start + chunk, len(images)))
            pairs = [images[i] for i in rows]
            mean, std = backbone.encode_images(torch.stack([to_pixels(image, size) for image, _ in pairs]))
            cond = backbone.encode_prompts([caption for _, caption in pairs], truncate=True)
            encoded = {"mean": mean, "std": std} | {f"cond.{name}": value for name, value in cond.items()}
            parts.append({name: value.half().cpu() for name, value in encoded.items()})
            progress(rows.stop, len(images))
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file(
            {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}, partial, made_from
        )
        partial.rename(file)
    tensors = load_file(file)
    cond = {name.removeprefix("cond."): value for name, value in tensors.items() if name.startswith("cond.")}
    return Batch(tensors["mean"], tensors["std"], cond)


def _metadata(file: Path) -> dict[str, str] | None:
    try:
        with safe_open(file, "pt") as opened:
            return opened.metadata()
    except (OSError, SafetensorError):
        return None


def to_pixels(image: Image.Image, size: int) -> Tensor:
    """(3, size, size) in [0, 1]: shorter side to `size` (Lanczos), centre crop."""
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float() / 255
