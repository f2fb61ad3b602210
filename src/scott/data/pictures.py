"""From the bytes of a picture that nobody vouches for to RGB pixels."""

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from scott.data.records import MAX_PICTURE_BYTES, Skip

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Others are not opened: some of Pillow's readers call programs."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
Size = tuple[int, int]
"""Height and width, in pixels."""
MAX_ASPECT = 2
MAX_PIXELS = 1 << 26
"""Above (67 million) a picture counts as a decompression bomb; its header says so before anything is unpacked."""


def decode(data: bytes, accept: Callable[[int, int], None] = lambda width, height: None) -> Image.Image:
    """A picture as RGB, upright: the first frame, transparency on white, 16 bits a channel as 8.

    `accept` sees width and height before the pixels are unpacked, and raises `Skip` to refuse them.

    Raises:
        Skip: empty, too large, of no known format, truncated or otherwise corrupt.
    """
    if not data:
        raise Skip("empty-file")
    if len(data) > MAX_PICTURE_BYTES:
        raise Skip("too-large", f"{len(data)} bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Skip("too-many-pixels", f"{image.width}x{image.height}")
            accept(image.width, image.height)
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except Skip:
        raise
    except UnidentifiedImageError:
        raise Skip("not-a-picture") from None
    except Image.DecompressionBombError:
        raise Skip("too-many-pixels") from None
    except Exception as error:  # Pillow's readers raise all kinds on broken data
        reason = "truncated" if "truncated" in str(error) else "corrupt"
        raise Skip(reason, f"{type(error).__name__}: {error}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB. Raises `Skip` for 32-bit modes, whose range is anyone's guess."""
    if image.mode in ("I", "F"):
        raise Skip("unsupported-mode", image.mode)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def cropped(image: Image.Image, sizes: Sequence[Size]) -> Tensor:
    """(3, height, width) uint8 in that of the sizes whose aspect is nearest: scaled to cover it (Lanczos), its centre.

    Nearest is the smallest |log| of the two aspects' ratio.
    """
    aspect = math.log(image.height / image.width)
    height, width = min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - aspect))
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def aspect_buckets(resolution: int, factor: int) -> list[Size]:
    """The square of `resolution`, and sizes of up to its area and of aspects up to 2, narrow to wide.

    Sides are multiples of 64 pixels, as U-Nets that halve latents three times want them; below a resolution of 512, of
    an eighth of it (at least of the VAE's `factor`). The longer side is the largest that the area allows.
    """
    step = factor * max(1, min(64, resolution // 8) // factor)
    sides = [(short, resolution**2 // short // step * step) for short in range(step, resolution, step)]
    sizes = [(short, long) for short, long in sides if short < long <= MAX_ASPECT * short]
    tall = [(long, short) for short, long in sizes]
    return [*sorted(tall, reverse=True), (resolution, resolution), *sorted(sizes, reverse=True)]


@contextmanager
def quietly() -> Iterator[None]:
    """Without Pillow's warnings of what `decode` checks and counts anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield
