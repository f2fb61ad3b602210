"""How samplers are measured on the embedded data: `scott evaluate --protocol mini`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scott.errors import UserError
from scott.evaluation import Instruments, Reference, Results, Row
from scott.evaluation.measures import SHOWN
from scott.evaluation.protocols import Protocol
from scott.evaluation.references import BATCH, Tick, check_samples
from scott.measured import Measured
from scott.mini import embedded, reading
from scott.mini.embedded import NAME
from scott.mini.scenes import RESOLUTION, Scene, Scenes, Split, pictures, variant

REAL, ASKED = 0, 1
"""Seeds of the scenes that are the real pictures, and of those whose captions are drawn."""


@dataclass
class MiniReference(Reference):
    """A reference of the embedded data."""

    scenes: list[Scene] = field(default_factory=list)
    """What its captions ask for."""


class MiniProtocol(Protocol):
    """Its pictures are drawn here, at one size."""

    def reference(
        self, measured: Measured, samples: int, drawn: int | None, instruments: Instruments, tick: Tick
    ) -> Reference:
        if drawn not in (None, RESOLUTION):
            raise UserError(
                f"the target draws {drawn} px pictures and the embedded data has {RESOLUTION}; "
                "name pictures to measure it on with --data"
            )
        reference = mini_reference(samples, measured.split, instruments)
        if wanted := [name for name in measured.metrics if name in SHOWN]:
            scenes = Scenes(self.samples_of(measured), measured.split, ASKED).scenes()
            asked = {this.caption: this for this in scenes}

            def read(images: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
                if other := [caption for caption in captions if caption not in asked]:
                    raise UserError(
                        f"got a picture of {other[0]!r} for the metric {wanted[0]}; expected one of the {len(asked):,} "
                        f"captions of mini's {measured.split} scenes (--samples, --split), or other metrics"
                    )
                return reading.shown(images, [asked[caption] for caption in captions], wanted)

            reference.reading = read
        return reference

    def conditions(self, measured: Measured, reference: Reference) -> dict[str, Any]:
        return {"split": measured.split}


MINI = MiniProtocol(
    name=NAME,
    data=f"--data {NAME}",
    samples=1000,
    features=NAME,
    clip=NAME,
    shown=SHOWN,
    embedded=(NAME,),
    unread=("image_column", "caption_column", "data_split", "floor_data", "names", "size"),
)


def mini_reference(
    samples: int,
    split: Split = "held-out",
    instruments: Instruments | None = None,
    seeds: tuple[int, int] = (REAL, ASKED),
) -> MiniReference:
    """Captions of a split of the embedded data, and the features of as many real pictures that rows are measured on.

    The pictures are of other draws of the split than the captions, by the two `seeds`, so that the floor, the captions'
    own real pictures against the reference, is what a perfect sampler would get.

    "held-out" and "validation" ask for (subject, background) pairs that no student's training shows, of different
    subjects. Whatever is chosen by its figures is chosen on "validation".
    """
    check_samples(samples)
    if instruments is None:
        clip = embedded.load_features()
        instruments = {"features": clip, "clip": clip}
    real, asked = (Scenes(samples, split, seed).scenes() for seed in seeds)
    found = {this.caption: this for this in asked}

    def redrawn(prompts: Sequence[str], seed: int) -> Tensor:
        rng = np.random.default_rng(seed)
        return pictures([variant(found[prompt], rng) for prompt in prompts])

    reference = MiniReference(
        [this.caption for this in asked],
        instruments,
        {},
        size=RESOLUTION,
        redrawn=redrawn,
        reading_variants=lambda images, captions: reading.styles(images, found[captions[0]]),
        scenes=asked,
    )

    def features(drawn: list[Scene]) -> dict[str, Tensor]:
        parts = [reference.features(pictures(drawn[start : start + BATCH])) for start in range(0, samples, BATCH)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return replace(reference, real=features(real), others=features(asked))


def recorded_teacher_row(steps: int, samples: int, guidance: float, file: Path = embedded.RECORDED) -> Row | None:
    """The recorded row of the teacher at these steps, sample size and ω, marked as recorded; None if there is none."""
    if not file.is_file():
        return None
    results = Results.load(file)
    if results.meta["guidance"] != guidance:
        return None
    rows = [row for row in results.rows if row.name == f"teacher-ddim-{steps}" and row.samples == samples]
    return replace(rows[0], recorded=True) if rows else None
