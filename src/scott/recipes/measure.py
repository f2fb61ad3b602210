"""The figures of a run on the embedded teacher's held-out captions: teacher, student, real against real."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from torch import Tensor

from scott.errors import UserError
from scott.evaluation import ClipFeatures, Results, Row, evaluate, real_against_real
from scott.generators import StudentSampler, TeacherSampler
from scott.mini import embedded
from scott.mini.scenes import Scenes, Split

SEED = 1
VALIDATION_SEED = 100
BATCH = 64
Tick = Callable[[str, int, int], None]
EvaluationSplit = Literal["held-out", "validation"]


class Reference:
    """Captions of a split of the embedded data, and the features of as many real pictures that rows are measured on.

    The pictures are of other draws of the split than the captions, so that `floor`, the captions' own real pictures
    against the reference, is what a perfect sampler would get.

    "held-out" holds the (subject, background) pairs that training never shows. Whatever is chosen by its figures is
    chosen on "validation": pairs of the training split, in pictures of a seed that training does not use.
    """

    def __init__(self, samples: int, split: EvaluationSplit = "held-out", features: ClipFeatures | None = None) -> None:
        if samples < 10:
            raise UserError(f"got {samples} samples; expected 10 or more, 1,000 for a figure worth reading")
        self.features = features or embedded.load_features()
        self.split: Split = "held-out" if split == "held-out" else "train"
        self.seed = 0 if split == "held-out" else VALIDATION_SEED
        self.prompts = Scenes(samples, self.split, self.seed + 1).captions()
        self.real = embedded.real_features(self.features, samples, seed=self.seed, split=self.split)

    def floor(self) -> Row:
        """The captions' own real pictures against the reference."""
        return real_against_real(self.real, self.captions_own)

    @cached_property
    def captions_own(self) -> Tensor:
        """Features of the real pictures that the captions were written for."""
        return embedded.real_features(self.features, len(self.prompts), seed=self.seed + 1, split=self.split)

    def row(self, name: str, sampler: TeacherSampler | StudentSampler, tick: Tick) -> Row:
        return evaluate(
            sampler,
            self.prompts,
            self.real,
            self.features,
            seed=SEED,
            batch_size=BATCH,
            name=name,
            steps=sampler.steps,
            network_calls=sampler.network_calls,
            progress=lambda done, total: tick(name, done, total),
        )


def recorded_teacher_row(steps: int, samples: int, guidance: float, file: Path = embedded.RECORDED) -> Row | None:
    """The recorded row of the teacher at these steps, sample size and ω, marked as recorded; None if there is none."""
    if not file.is_file():
        return None
    results = Results.load(file)
    if results.meta["guidance"] != guidance:
        return None
    rows = [row for row in results.rows if row.name == f"teacher-ddim-{steps}" and row.samples == samples]
    return replace(rows[0], recorded=True) if rows else None
