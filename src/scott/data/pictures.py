"""From the bytes of a picture that nobody vouches for to RGB pixels."""

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features
from torch import Tensor

from scott.data.records import LFS_POINTER, MAX_PICTURE_BYTES, Skip

_AVIF = bool(features.check("avif"))
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(["AVIF"] if _AVIF else []))
"""Others are not opened: some of Pillow's readers call programs."""
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .pjpeg .png .apng .webp .avif .avifs .gif .bmp .dib .tif .tiff".split()  # noqa: SIM905
)
UNREAD_SUFFIXES = frozenset({".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd", ".ico", ".tga"})
"""Of pictures in formats that are not read: they are counted."""
_TIFF_STARTS = (b"II*\0", b"MM\0*")
_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", *_TIFF_STARTS)
_KINDS = (b"WEBP", *([b"avif", b"avis"] if _AVIF else []))
"""Behind eight bytes, of which four are RIFF or ftyp."""
_UNREAD_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL ", b"\0\0\0\x0cjP  ", b"8BPS", b"<svg", b"<?xml", b"\0\0\1\0")
Size = tuple[int, int]
"""Height and width, in pixels."""
MAX_ASPECT = 2
MAX_PIXELS = 1 << 26
"""Above (67 million) a picture counts as a decompression bomb; its header says so before anything is unpacked."""
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ROWS = 258, 262, 128


def named_as_picture(name: str) -> bool:
    ending = f".{name.rpartition('.')[2].lower()}"
    return ending in SUFFIXES or ending in UNREAD_SUFFIXES


def starts_as_picture(data: bytes) -> bool:
    """Whether the first 16 bytes are a picture's."""
    return data.startswith(_STARTS) or (data[8:12] in _KINDS and (data[:4] == b"RIFF" or data[4:8] == b"ftyp"))


def decode(data: bytes, accept: Callable[[Image.Image], None] = lambda image: None) -> Image.Image:
    """A picture as RGB, upright: the first frame, transparency on white, 16 bits a channel as 8.

    `accept` sees size and format before the pixels are unpacked, and raises `Skip` to refuse them.

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
            accept(image)
            _scale_transparency(image)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except Skip:
        raise
    except UnidentifiedImageError:
        if data.startswith(_TIFF_STARTS):  # its directory lies behind the end, or Pillow has no mode for its samples
            directory = int.from_bytes(data[4:8], "little" if data[:1] == b"I" else "big")
            raise Skip("truncated" if directory + 2 > len(data) else "unsupported-mode") from None
        if data.startswith(LFS_POINTER):
            raise Skip("git-lfs-pointer", "run git lfs pull") from None
        if starts_as_picture(data):
            raise Skip("corrupt") from None
        if data.startswith(_UNREAD_STARTS) or data[4:8] == b"ftyp":
            raise Skip("unsupported-format", f"it begins {data[:12]!r}; convert it to PNG or JPEG") from None
        raise Skip("not-a-picture") from None
    except Image.DecompressionBombError:
        raise Skip("too-many-pixels") from None
    except Exception as error:  # Pillow's readers raise all kinds on broken data
        reason = "truncated" if "truncated" in str(error) else "corrupt"
        raise Skip(reason, f"{type(error).__name__}: {error}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB. Raises `Skip` for 32-bit modes, whose range is anyone's guess, and for CIELAB."""
    if image.mode in ("I", "F", "LAB"):
        raise Skip("unsupported-mode", image.mode)
    if image.mode.startswith("I;16"):
        image = _of_8_bits(image)
    return _on_white(image) if image.has_transparency_data else image.convert("RGB")


def _of_8_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits, or of the 12 that a TIFF may say, where its transparent value has become white."""
    tags = getattr(image, "tag_v2", {})
    depth = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    values = np.asarray(image)
    if tags.get(_PHOTOMETRIC) == 0:  # white is 0, which Pillow minds in 8 bits alone
        values = (1 << depth) - 1 - values
    grey = (values >> (depth - 8)).astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _scale_transparency(image: ImageFile.ImageFile) -> None:
    """Say the transparent colour of a PNG, which has the bits of the file, in those of the picture."""
    colour, stored = image.info.get("transparency"), image.tile[0].args if image.tile else None
    if isinstance(colour, int) and stored in ("L;2", "L;4"):
        image.info["transparency"] = colour * 255 // (2 ** int(stored[2:]) - 1)
    elif isinstance(colour, tuple) and stored == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _on_white(image: Image.Image) -> Image.Image:
    """A picture with transparency laid on white, some rows at a time: whole copies of it would take memory."""
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, _ROWS):
        part = image.crop((0, top, image.width, min(image.height, top + _ROWS))).convert("RGBA")
        white = Image.new("RGBA", part.size, "white")
        whole.paste(Image.alpha_composite(white, part).convert("RGB"), (0, top))
    return whole


def cropped(image: Image.Image, sizes: Sequence[Size]) -> Tensor:
    """(3, height, width) uint8 in that of the sizes whose aspect is nearest: scaled to cover it (Lanczos), its centre.

    Nearest is the smallest |log| of the two aspects' ratio.
    """
    aspect = math.log(image.height / image.width)
    height, width = min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - aspect))
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def aspect_buckets(resolution: int, least: int) -> list[Size]:
    """The square of `resolution`, and sizes of up to its area and of aspects up to 2, narrow to wide.

    Sides are multiples of 64 pixels, as U-Nets that halve latents three times want them; below a resolution of 512, of
    an eighth of it (at least of `least`, which the teacher needs). The longer side is the largest that the area allows.
    """
    step = least * max(1, min(64, resolution // 8) // least)
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
