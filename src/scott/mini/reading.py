"""What a picture of the embedded data shows, read off its pixels: background, size, place and style.

The border's median is the background; what differs from it by more than `DIFFERS` is the subject, whose box gives size
and place. The style is that whose drawing of the subject, laid over the box, is nearest. No network is asked.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scott.mini import glyphs, scenes
from scott.mini.scenes import BACKGROUNDS, MARGIN, PLACES, PLACES_OF_SIZE, RESOLUTION, SIZES, Scene

DIFFERS = 26.0
"""Euclidean distance in 8-bit RGB; the two nearest backgrounds are more than 40 apart."""


@dataclass(frozen=True)
class Read:
    """What was found; None where there is no subject."""

    background: str
    size: str | None
    place: str | None
    style: str | None

    def right(self, asked: Scene) -> dict[str, bool]:
        """Attribute → whether the picture shows what the scene has."""
        names = ("background", "size", "place", "style")
        return {name: getattr(self, name) == getattr(asked, name) for name in names}


def read(picture: Tensor, asked: Scene, shard: Path = glyphs.SHARD) -> Read:
    """Read a picture (3, 64, 64) in [0, 1]. `asked` gives the subject, whose styles are compared; the place is one of
    those that the size found can have."""
    pixels = (255 * picture).cpu().permute(1, 2, 0).double().numpy()
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    behind = np.median(border, axis=0)
    background = min(BACKGROUNDS, key=lambda name: float(np.linalg.norm(behind - BACKGROUNDS[name])))
    mask = np.linalg.norm(pixels - behind, axis=2) > DIFFERS
    rows, columns = _extent(mask.sum(1)), _extent(mask.sum(0))
    if rows is None or columns is None:
        return Read(background, None, None, None)
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    longer = max(height, width)
    size = next((name for name, (_, high) in SIZES.items() if longer < high + 4), "large")
    centre = ((columns[0] + columns[1]) / 2, (rows[0] + rows[1]) / 2)
    room = (RESOLUTION - 2 * MARGIN - width, RESOLUTION - 2 * MARGIN - height)

    def off(place: str) -> float:
        """Distance of the centre to where it is at a place, in pixels."""
        fractions, extents = PLACES[place][:2], (width, height)
        there = (MARGIN + part * free + extent / 2 for part, free, extent in zip(fractions, room, extents, strict=True))
        return math.hypot(*(c - at for c, at in zip(centre, there, strict=True)))

    place = min(PLACES_OF_SIZE[size], key=off)
    return Read(background, size, place, _style(pixels, behind, asked.subject, longer, centre, shard))


def _extent(counts: np.ndarray) -> tuple[int, int] | None:
    """First and one past the last line with two or more pixels of the subject: one alone is a decoder's speck."""
    lines = np.flatnonzero(counts >= 2)
    return (int(lines[0]), int(lines[-1]) + 1) if len(lines) else None


def _style(
    pixels: np.ndarray, behind: np.ndarray, subject: str, longer: int, centre: tuple[float, float], shard: Path
) -> str:
    """The style whose drawing, at the found size (within a pixel) and place (within a pixel), differs least."""
    best, found = np.inf, ""
    for style in glyphs.styles(shard):
        for pixels_wide in range(longer - 1, longer + 2):
            layer = scenes.layer(subject, style, min(max(pixels_wide, 2), RESOLUTION), shard)
            height, width = layer.shape[:2]
            for across, down in product((-1, 0, 1), repeat=2):
                left = int(np.clip(round(centre[0] - width / 2) + across, 0, RESOLUTION - width))
                top = int(np.clip(round(centre[1] - height / 2) + down, 0, RESOLUTION - height))
                canvas = np.broadcast_to(behind, pixels.shape).copy()
                box = canvas[top : top + height, left : left + width]
                box[:] = layer[..., :3] + box * (1 - layer[..., 3:] / 255)
                if (error := float(np.square(canvas - pixels).mean())) < best:
                    best, found = error, style
    return found


def styles(pictures: Tensor, asked: Scene, shard: Path = glyphs.SHARD) -> dict[str, Tensor]:
    """Of a shard of several styles: "style NAME" → 1 where a picture (of B) is in it, (B,); NaN if it is named."""
    names = glyphs.styles(shard)
    if len(names) == 1:
        return {}
    found = [None if asked.named else read(picture, asked, shard).style for picture in pictures]
    return {
        f"style {name}": torch.tensor([torch.nan if style is None else float(style == name) for style in found])
        for name in names
    }


def shown(pictures: Tensor, asked: Sequence[Scene], names: Sequence[str]) -> dict[str, Tensor]:
    """Name ("place", "size", "background") → 1 where a picture (of B) shows what its scene has, else 0: (B,)."""
    hits = [read(picture, this).right(this) for picture, this in zip(pictures, asked, strict=True)]
    return {name: torch.tensor([float(hit[name]) for hit in hits]) for name in names}
