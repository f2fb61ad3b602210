"""Image grids with a label on every row and column, for a run's samples/ and its report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_INK, _PAPER = (28, 30, 34), (255, 255, 255)
_GAP = 4


def image_grid(
    images: Sequence[Sequence[Image.Image | Tensor]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    scale: int = 1,
) -> Image.Image:
    """A table of images with a label before each row and above each column, wrapped to fit.

    A column is as wide as its images, or as the longest word above them up to half as wide again. `images[i][j]` is a
    PIL image or a tensor (3, H, W) in [0, 1]; all are of one size. `scale` enlarges each by whole pixels, so that small
    images show as they are.
    """
    cells = [[to_pil(image) for image in row] for row in images]
    width, height = (scale * side for side in cells[0][0].size)
    font = ImageFont.load_default(size=min(18, max(11, width // 10)))
    line = math.ceil(font.getbbox("Ág")[3]) + 2
    margin = min(max(math.ceil(font.getlength(label)) for label in row_labels), max(width, 96))
    longest = max((math.ceil(font.getlength(word)) for label in column_labels for word in label.split()), default=0)
    column = max(width, min(longest, 3 * width // 2))
    above = [_wrap(label, font, column) for label in column_labels]
    beside = [_wrap(label, font, margin) for label in row_labels]
    head = line * max(map(len, above)) + 2 * _GAP
    pitch = max(height, line * max(map(len, beside))) + _GAP
    left, step = margin + 3 * _GAP, column + 2 * _GAP

    page = Image.new("RGB", (left + len(above) * step, head + len(beside) * pitch), _PAPER)
    draw = ImageDraw.Draw(page)

    def write(x: int, y: int, lines: Sequence[str]) -> None:
        for index, text in enumerate(lines):
            draw.text((x, y + index * line), text, _INK, font)

    for j, lines in enumerate(above):
        write(left + j * step, head - _GAP - line * len(lines), lines)
    for i, (row, lines) in enumerate(zip(cells, beside, strict=True)):
        top = head + i * pitch
        write(_GAP, top + (pitch - _GAP - line * len(lines)) // 2, lines)
        for j, (cell, _) in enumerate(zip(row, above, strict=True)):
            enlarged = cell.resize((width, height), Image.Resampling.NEAREST)
            page.paste(enlarged, (left + j * step, top))
    return page


def to_pil(image: Image.Image | Tensor) -> Image.Image:
    """An RGB picture from another picture, or from a tensor (3, H, W) in [0, 1]."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    pixels = image.detach().float().cpu().clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _wrap(text: str, font: Font, width: float) -> list[str]:
    """Greedy line breaks at spaces, and within a word that is too wide for a line."""
    lines: list[str] = []
    for part in (part for word in text.split() for part in _parts(word, font, width)):
        if lines and font.getlength(f"{lines[-1]} {part}") <= width:
            lines[-1] += f" {part}"
        else:
            lines.append(part)
    return lines or [""]


def _parts(word: str, font: Font, width: float) -> list[str]:
    """A word in parts that each fit, of a letter or more."""
    parts = [""]
    for letter in word:
        if parts[-1] and font.getlength(parts[-1] + letter) > width:
            parts.append("")
        parts[-1] += letter
    return parts
