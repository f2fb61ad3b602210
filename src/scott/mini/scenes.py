"""Captioned pictures made from the glyphs: one subject, at a size and a place, on a plain background.

Scene i of a split and seed is a pure function of (shard, split, seed, i): nothing is stored, and a run that resumes
sees the pictures it would have seen. One background a subject is left out of training: evaluation asks for that pair of
subject and background, "held-out" of every second subject, and "validation", by which all is chosen, of the others.
Where the shard has its subjects in several styles, a scene is in one of them, drawn uniformly, and half of the captions
name it; the other half leave it open.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scott.data.records import Record, Unit, units_of_rows
from scott.mini import glyphs

Split = Literal["train", "held-out", "validation"]
RESOLUTION = 64

BACKGROUNDS = {
    "white": (246, 246, 246),
    "black": (24, 24, 28),
    "gray": (150, 152, 156),
    "red": (205, 92, 92),
    "yellow": (250, 226, 128),
    "green": (140, 200, 150),
    "blue": (128, 184, 240),
    "pink": (244, 178, 202),
}
SIZES = {"small": (26, 31), "medium": (38, 43), "large": (53, 58)}  # longer side in pixels, ends included
SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized", "mid-sized"),
    "large": ("large", "big", "huge"),
}
# place → (horizontal, vertical) fraction of the free room, and the ways to say it
PLACES: dict[str, tuple[float, float, tuple[str, ...]]] = {
    "center": (0.5, 0.5, ("in the middle", "in the center", "at the center")),
    "left": (0.0, 0.5, ("on the left", "at the left side", "to the left")),
    "right": (1.0, 0.5, ("on the right", "at the right side", "to the right")),
    "top": (0.5, 0.0, ("at the top", "in the upper part", "near the top")),
    "bottom": (0.5, 1.0, ("at the bottom", "in the lower part", "near the bottom")),
    "top left": (0.0, 0.0, ("at the top left", "in the top left corner", "in the upper left")),
    "top right": (1.0, 0.0, ("at the top right", "in the top right corner", "in the upper right")),
    "bottom left": (0.0, 1.0, ("at the bottom left", "in the bottom left corner", "in the lower left")),
    "bottom right": (1.0, 1.0, ("at the bottom right", "in the bottom right corner", "in the lower right")),
}
# the larger the subject, the fewer places can be distinguished
PLACES_OF_SIZE = {"small": tuple(PLACES), "medium": tuple(PLACES)[:5], "large": ("center",)}
MARGIN, JITTER = 2, 1  # pixels
BACKGROUND_PHRASES = (
    "on a {} background",
    "on {}",
    "against a {} background",
    "in front of a {} backdrop",
    "over a {} backdrop",
)
WITHOUT_ARTICLE = (
    "bacon, baguette bread, ballet shoes, blueberries, bread, broccoli, butter, cherries, dna, fire, "
    "french fries, glasses, grapes, green salad, high voltage, ice, jeans, leafy green, musical notes, pancakes, "
    "paw prints, popcorn, scissors, shorts, socks, sushi, thread, wood, yarn"
)


@dataclass(frozen=True)
class Scene:
    subject: str
    style: str
    named: bool
    """Whether the caption says the style."""
    background: str
    size: str
    place: str
    pixels: int
    """Longer side of the subject."""
    left: int
    top: int
    caption: str


@cache
def unseen_backgrounds(shard: Path = glyphs.SHARD) -> dict[str, str]:
    """Subject → the background on which training never shows it.

    A subject of the shipped shard has one in all shards: weights that start from those of another shard are to have
    seen none of these pairs either.
    """
    places = {subject: i for one in (shard, glyphs.SHARD) for i, subject in enumerate(glyphs.load(one))}
    return {subject: list(BACKGROUNDS)[(3 * i + i // 8) % len(BACKGROUNDS)] for subject, i in places.items()}


def scene(index: int, *, split: Split, seed: int, shard: Path = glyphs.SHARD, named: bool | None = None) -> Scene:
    """Scene `index` of a split: subject, style, size, place, and background uniform over what the split allows.

    `named` has every caption name the style, or none; the rest of the scene is the same either way.

    Held-out and validation take their subjects in turn, so that any whole number of rounds covers each equally.
    """
    rng = np.random.default_rng([seed, index, get_args(Split).index(split)])
    drawings, styles, unseen = glyphs.load(shard), glyphs.styles(shard), unseen_backgrounds(shard)
    subjects = list(drawings)
    if split == "train":
        which = int(rng.integers(len(subjects)))
        allowed = [name for name in BACKGROUNDS if name != unseen[subjects[which]]]
    else:
        turns = range(split == "held-out", len(subjects), 2)
        which = turns[index % len(turns)]
        allowed = [unseen[subjects[which]]]
    subject, background = subjects[which], allowed[rng.integers(len(allowed))]
    size = list(SIZES)[rng.integers(len(SIZES))]
    place = PLACES_OF_SIZE[size][rng.integers(len(PLACES_OF_SIZE[size]))]
    pixels = int(rng.integers(SIZES[size][0], SIZES[size][1] + 1))
    style, says = styles[0], False
    if len(styles) > 1:
        style, says = styles[rng.integers(len(styles))], bool(rng.integers(2))
        says = says if named is None else named
    left, top = _corner(drawings[subject][style], pixels, place, rng)
    caption = _caption(f"{style} {subject.lower()}" if says else subject.lower(), subject, background, size, place, rng)
    return Scene(subject, style, says, background, size, place, pixels, left, top, caption)


def variant(this: Scene, rng: np.random.Generator, shard: Path = glyphs.SHARD) -> Scene:
    """Another scene of the same caption: what it leaves open is drawn again, as `scene` draws it."""
    styles = glyphs.styles(shard)
    style = this.style if this.named else styles[rng.integers(len(styles))]
    low, high = SIZES[this.size]
    pixels = int(rng.integers(low, high + 1))
    left, top = _corner(glyphs.load(shard)[this.subject][style], pixels, this.place, rng)
    return replace(this, style=style, pixels=pixels, left=left, top=top)


def _corner(drawing: Image.Image, pixels: int, place: str, rng: np.random.Generator) -> tuple[int, int]:
    """Left and top of a subject, within a pixel of its place."""
    right, down, _ = PLACES[place]
    left, top = (
        round(MARGIN + fraction * (RESOLUTION - 2 * MARGIN - extent)) + int(rng.integers(-JITTER, JITTER + 1))
        for fraction, extent in zip((right, down), _fit(drawing, pixels), strict=True)
    )
    return left, top


def _fit(drawing: Image.Image, pixels: int) -> tuple[int, int]:
    longer = max(drawing.size)
    return max(1, round(drawing.width * pixels / longer)), max(1, round(drawing.height * pixels / longer))


def _caption(name: str, subject: str, background: str, size: str, place: str, rng: np.random.Generator) -> str:
    size_word = SIZE_WORDS[size][rng.integers(3)]
    thing = f"{size_word} {name}"
    if subject not in WITHOUT_ARTICLE.split(", "):
        thing = f"a {thing}"
    where = PLACES[place][2][rng.integers(3)]
    behind = BACKGROUND_PHRASES[rng.integers(len(BACKGROUND_PHRASES))].format(background)
    orders = (f"{thing} {where} {behind}", f"{behind}, {thing} {where}", f"{thing} {behind}, {where}")
    return orders[rng.integers(3)]


@cache
def layer(subject: str, style: str, pixels: int, shard: Path) -> np.ndarray:
    """The subject at its size, premultiplied RGBA (h, w, 4) in 0..255; all there are take 60 MB a style."""
    drawing = glyphs.load(shard)[subject][style]
    small = drawing.resize(_fit(drawing, pixels), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(small).astype(np.float32)


def render(scene: Scene, shard: Path = glyphs.SHARD) -> Image.Image:
    """The 64x64 RGB picture of a scene."""
    drawn = layer(scene.subject, scene.style, scene.pixels, shard)
    canvas = Image.new("RGB", (RESOLUTION, RESOLUTION), BACKGROUNDS[scene.background])
    box = (scene.left, scene.top, scene.left + drawn.shape[1], scene.top + drawn.shape[0])
    below = np.asarray(canvas.crop(box)).astype(np.float32)
    # premultiplied: the composite is layer + (1 - alpha) * background
    mixed = drawn[..., :3] + below * (1 - drawn[..., 3:] / 255)
    canvas.paste(Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8)), box)
    return canvas


def pictures(scenes: Sequence[Scene], shard: Path = glyphs.SHARD) -> Tensor:
    """Pictures (B, 3, 64, 64) in [0, 1]."""
    pixels = torch.from_numpy(np.stack([np.asarray(render(s, shard)) for s in scenes]))
    return pixels.permute(0, 3, 1, 2).float() / 255


class Scenes:
    """The first `count` scenes of a split as captioned images, and as `scott.data` prepares them."""

    kind = "mini"
    columns: Sequence[str] = ()

    def __init__(
        self,
        count: int,
        split: Split = "train",
        seed: int = 0,
        shard: Path = glyphs.SHARD,
        named: bool | None = None,
    ) -> None:
        self.count, self.shard, self.version = count, shard, f"{count} of {split}, seed {seed}"
        self._scene = partial(scene, split=split, seed=seed, shard=shard, named=named)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        this = self._scene(index)
        return render(this, self.shard), this.caption

    def scenes(self) -> list[Scene]:
        return [self._scene(i) for i in range(self.count)]

    def captions(self) -> list[str]:
        return [this.caption for this in self.scenes()]

    def units(self, size: int) -> list[Unit]:
        return units_of_rows(self.count, size, self._records)

    def _records(self, rows: range) -> Iterator[Record]:
        for index in rows:
            this = self._scene(index)
            yield Record(f"scene {index}", partial(render, this, self.shard), this.caption)
