"""How good an embedded teacher is: what its pictures show, by their pixels, and how far they are from real ones.

    python -m experiments.embedded_teacher.measure --samples 1000 --json

`place`, `size`, `background`, `style_named`: shares of the pictures that show what the caption says
(`scott.mini.reading`). `style_shares_off`: over n captions that leave the style open, the largest difference between a
style's share of the drawn pictures and of the real pictures of the same captions; of two samples of four equal shares
it is .85 / √n in the mean, and below 1.52 / √n in 95 % of draws. `retrieval`, `retrieval_real`:
share of drawn and of real pictures whose own caption Mini-CLIP finds among all of them. `fid_*` and `floor_*`:
Fréchet distance of the drawn pictures, and of the captions' own real pictures, to other real ones, in Mini-CLIP's
features and in EfficientNet-Lite0's. A shard of one style has no figures of style. `--probe` tells instead what a
linear probe finds in the text tower's states, `--reconstructions` how near the VAE's are to pictures.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from experiments.embedded_teacher import decoder
from experiments.embedded_teacher.text import probe
from experiments.runs import exit_code
from torch import Tensor
from torch.nn import functional as F

from scott.errors import UserError
from scott.evaluation import batch_seed, frechet_distance, image_grid
from scott.evaluation.networks import efficientnet
from scott.evaluation.references import check_samples
from scott.mini import embedded, glyphs, scenes
from scott.mini.reading import read
from scott.samplers import TeacherSampler

SEED, BATCH = 1, 64
GRID = 64
Figures = dict[str, float | None]


@dataclass
class Measure:
    """Measure an embedded teacher."""

    teacher: Path = glyphs.ASSETS
    """A folder with teacher/ and clip/."""
    shard: Path = glyphs.SHARD
    """The drawings its captions and pictures are made of."""
    samples: int = 1000
    steps: int = 50
    guidance: float = embedded.GUIDANCE
    split: Literal["held-out", "validation"] = "held-out"
    """Choose by validation; report held-out."""
    named: Literal["half", "all", "none"] = "half"
    """How many of the captions say the style."""
    grid: Path | None = None
    """Write a 64-picture contact sheet of medium and large subjects, in the order of the captions printed beside it."""
    probe: bool = False
    """Draw nothing: `text.probe` of the teacher's text tower."""
    reconstructions: bool = False
    """Draw nothing: `decoder.measure` of the teacher's VAE."""
    json: bool = False

    def run(self) -> None:
        figures: Figures
        if self.grid and self.samples < 2 * GRID:
            raise UserError(
                f"got --grid of {self.samples} samples; expected {2 * GRID} or more, of which a third is small"
            )
        if self.probe or self.reconstructions:
            pipeline = embedded.load_teacher(self.teacher / "teacher").pipeline
            if self.probe:
                figures = dict(probe(pipeline.text_encoder, pipeline.tokenizer, self.shard))
            else:
                figures = dict(decoder.measure(pipeline.vae, self.shard, samples=self.samples))
        else:
            drawn, figures = self.measure()
            if self.grid:
                self._write_grid(self.grid, drawn)
        if self.json:
            print(json.dumps(figures, indent=1))  # noqa: T201
        else:
            for name, value in figures.items():
                print(f"{name:18s} {'-' if value is None else f'{value:.4g}'}")  # noqa: T201

    def _scenes(self, seed: int) -> list[scenes.Scene]:
        named = {"half": None, "all": True, "none": False}[self.named]
        return scenes.Scenes(self.samples, self.split, seed, self.shard, named).scenes()

    def measure(self) -> tuple[Tensor, Figures]:
        """The drawn pictures (N, 3, 64, 64), and the figures."""
        asked, others = self._scenes(1), self._scenes(0)
        captions = [this.caption for this in asked]
        sampler = TeacherSampler(embedded.load_teacher(self.teacher / "teacher"), self.steps, self.guidance)
        check_samples(self.samples)
        chunks = [captions[start : start + BATCH] for start in range(0, self.samples, BATCH)]
        drawn = torch.cat([sampler(chunk, batch_seed(SEED, index)) for index, chunk in enumerate(chunks)])
        real, reference = (scenes.pictures(some, self.shard) for some in (asked, others))

        figures: Figures = {"style_named": None, "style_shares_off": None}
        shares, styles = shares_right(drawn, asked, self.shard)
        figures |= shares
        if len(glyphs.styles(self.shard)) > 1:
            _, shown = shares_right(real, asked, self.shard)
            open_ones = [i for i, this in enumerate(asked) if not this.named]
            figures["style_shares_off"] = _largest_difference(
                [styles[i] for i in open_ones], [shown[i] for i in open_ones]
            )
        clip, lite = embedded.load_features(self.teacher / "clip"), efficientnet(None, "cpu")
        text = clip.texts(captions)
        figures["retrieval"] = retrieval_accuracy(clip.images(drawn), text)
        figures["retrieval_real"] = retrieval_accuracy(clip.images(real), text)
        for name, features in (("clip", clip), ("efficientnet", lite)):
            other = features.images(reference)
            figures[f"fid_{name}"] = float(frechet_distance(other, features.images(drawn)))
            figures[f"floor_{name}"] = float(frechet_distance(other, features.images(real)))
        return drawn, figures

    def _write_grid(self, file: Path, drawn: Tensor) -> None:
        """Medium and large subjects, eight by eight; their captions go to a text file beside it, in the same order."""
        asked = self._scenes(1)
        chosen = [i for i, this in enumerate(asked) if this.size != "small"][:GRID]
        rows = [[drawn[i] for i in chosen[start : start + 8]] for start in range(0, len(chosen), 8)]
        file.parent.mkdir(parents=True, exist_ok=True)
        image_grid(rows, [str(8 * row + 1) for row in range(len(rows))], [""] * 8, scale=2).save(file)
        captions = "".join(f"{number} {asked[i].caption}\n" for number, i in enumerate(chosen, 1))
        file.with_suffix(".txt").write_text(captions, encoding="utf-8")


def retrieval_accuracy(image_features: Tensor, text_features: Tensor) -> float:
    """Part of the images (N, D) whose own caption has the highest cosine among all N (R-precision at 1).

    A repeated caption is no rival: a tie, within 1e-6, counts as found.
    """
    cosine = F.normalize(image_features.double(), dim=1) @ F.normalize(text_features.double(), dim=1).T
    return (cosine.diagonal() >= cosine.amax(dim=1) - 1e-6).double().mean().item()


def shares_right(
    pictures: Tensor, asked: Sequence[scenes.Scene], shard: Path = glyphs.SHARD
) -> tuple[dict[str, float], list[str]]:
    """Share of the pictures that show the scene's size, place, background and, where its caption names it, style; and
    the styles found."""
    found = [read(picture, this, shard) for picture, this in zip(pictures, asked, strict=True)]
    hits = [one.right(this) for one, this in zip(found, asked, strict=True)]
    shares = {name: sum(hit[name] for hit in hits) / len(hits) for name in ("size", "place", "background")}
    if named := [hit["style"] for hit, this in zip(hits, asked, strict=True) if this.named]:
        shares["style_named"] = sum(named) / len(named)
    for size in scenes.SIZES:
        if of_size := [hit["place"] for hit, this in zip(hits, asked, strict=True) if this.size == size]:
            shares[f"place_{size}"] = sum(of_size) / len(of_size)
    return shares, [one.style or "none" for one in found]


def _largest_difference(found: list[str], shown: list[str]) -> float:
    ours, theirs = Counter(found), Counter(shown)
    return max(abs(ours[style] / len(found) - theirs[style] / len(shown)) for style in ours | theirs)


if __name__ == "__main__":
    asked = tyro.cli(Measure)
    sys.exit(exit_code(lambda report: asked.run()))
