"""What samplers are measured on: captions and the features of real pictures, of the embedded data or of any source."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from scott.commands.measured import EvaluationSplit
from scott.data.loading import Sample, read_samples
from scott.data.records import Rejected, Source, chunks
from scott.errors import UserError
from scott.evaluation import ClipFeatures, Features, Results, Row, evaluate, real_against_real
from scott.mini import embedded
from scott.mini.scenes import Scenes, Split
from scott.samplers import StudentSampler, TeacherSampler

SEED = 1
VALIDATION_SEED = 100
BATCH = 64
SMALLEST = 10
"""Samples that a row is measured on at least."""
Tick = Callable[[str, int, int], None]


class Reference:
    """Captions to draw, and features (N, D) of the real pictures that what is drawn of them is measured against."""

    def __init__(
        self, prompts: list[str], real: Tensor, features: Features, skipped: Counter[str] | None = None
    ) -> None:
        self.prompts, self.real, self.features = prompts, real, features
        self.skipped: Counter[str] = skipped or Counter()
        """Reason → how many pictures were left out on the way."""

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


def source_reference(source: Source, samples: int, size: int, features: Features, tick: Tick) -> Reference:
    """The first pictures of a source that can be read, up to `samples`, each with its first caption.

    A picture is cropped at its centre to size x size, as it is for training. COCO's 5,000 captions of val2017 against
    their own pictures are measured this way (SCott, AAAI 2025).

    Raises:
        UserError: fewer than 10 can be read; see `open_source`.
    """
    check_samples(samples)
    prompts: list[str] = []
    parts: list[Tensor] = []
    skipped: Counter[str] = Counter()

    def readable(found: Iterator[Sample | Rejected]) -> Iterator[Sample]:
        for entry in found:
            if isinstance(entry, Sample):
                yield entry
            else:
                skipped[entry.reason] += 1

    with closing(read_samples(source, size)) as found:
        for chunk in chunks(islice(readable(found), samples), BATCH):
            parts.append(features.images(torch.stack([sample.pixels for sample in chunk]).float() / 255))
            prompts += [sample.captions[0] for sample in chunk]
            tick("the real pictures", len(prompts), samples)
    if len(prompts) < SMALLEST:
        skips = f" ({reasons(skipped)})" if skipped else ""
        raise UserError(f"got {len(prompts)} readable pictures with captions{skips}; expected {SMALLEST} or more")
    return Reference(prompts, torch.cat(parts), features, skipped)


def reasons(skipped: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in skipped.most_common())


def check_samples(samples: int) -> None:
    if samples < SMALLEST:
        raise UserError(f"got {samples} samples; expected {SMALLEST} or more, 1,000 for a figure worth reading")


class MiniReference(Reference):
    """Captions of a split of the embedded data, and the features of as many real pictures that rows are measured on.

    The pictures are of other draws of the split than the captions, so that `floor`, the captions' own real pictures
    against the reference, is what a perfect sampler would get.

    "held-out" holds the (subject, background) pairs that training never shows. Whatever is chosen by its figures is
    chosen on "validation": pairs of the training split, in pictures of a seed that training does not use.
    """

    def __init__(self, samples: int, split: EvaluationSplit = "held-out", features: ClipFeatures | None = None) -> None:
        check_samples(samples)
        self.clip = features or embedded.load_features()
        self.split: Split = "held-out" if split == "held-out" else "train"
        self.seed = 0 if split == "held-out" else VALIDATION_SEED
        prompts = Scenes(samples, self.split, self.seed + 1).captions()
        super().__init__(
            prompts, embedded.real_features(self.clip, samples, seed=self.seed, split=self.split), self.clip
        )

    def floor(self) -> Row:
        """The captions' own real pictures against the reference."""
        return real_against_real(self.real, self.captions_own)

    @cached_property
    def captions_own(self) -> Tensor:
        """Features of the real pictures that the captions were written for."""
        return embedded.real_features(self.clip, len(self.prompts), seed=self.seed + 1, split=self.split)


def recorded_teacher_row(steps: int, samples: int, guidance: float, file: Path = embedded.RECORDED) -> Row | None:
    """The recorded row of the teacher at these steps, sample size and ω, marked as recorded; None if there is none."""
    if not file.is_file():
        return None
    results = Results.load(file)
    if results.meta["guidance"] != guidance:
        return None
    rows = [row for row in results.rows if row.name == f"teacher-ddim-{steps}" and row.samples == samples]
    return replace(rows[0], recorded=True) if rows else None
