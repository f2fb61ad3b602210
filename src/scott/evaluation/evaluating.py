"""How a sampler is measured: the same prompts, the same seeds and the same real features for every row."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scott.data.records import slices
from scott.errors import UserError
from scott.evaluation.measures import (
    FEATURES,
    METRICS,
    SPREAD_CAPTIONS,
    Figure,
    Resampled,
    few,
    means,
    over_seeds,
    resampled,
    too_small,
)
from scott.evaluation.pictures import (
    Batches,
    Generate,
    Progress,
    Sampler,
    batch_seed,
    write_captions,
)
from scott.evaluation.references import Reference
from scott.evaluation.results import Row
from scott.evaluation.stored import StoredPictures
from scott.measured import Measured

Cost = tuple[float | None, int]
"""Seconds that a batch took, None where they are not known, and its pictures."""


def evaluate(
    sampler: Sampler,
    reference: Reference,
    *,
    name: str,
    batch_size: int = 64,
    seeds: Sequence[int] = (1,),
    images: Path | None = None,
    made: Mapping[str, Any] | None = None,
    process: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> Row:
    """Draw one image a prompt and seed, and measure each seed's against the reference.

    `seconds_per_image` is the time inside the sampler over the images it made; the first batch that a process draws
    warms up and is left out, unless it is the only one. With a folder `images`, pictures are kept in NAME/seed-N of it
    (see `Batches`).

    Of several processes, the first measures; the row of the others has no figures.

    Raises `ValueError` on fewer than two prompts, a batch size below 1, images that are not (B, 3, H, W) in
    [0, 1], and on features that do not match the reference; `UserError` on an unknown metric, and on a sampler that
    does not say what it costs.
    """
    if unknown := [name for name in reference.metrics if name not in METRICS]:
        raise UserError(f"got the metric {unknown[0]}; expected some of {', '.join(METRICS)}")
    if lacking := [name for name in ("steps", "network_calls", "guidance") if not hasattr(sampler, name)]:
        raise UserError(f"got a sampler without {', '.join(lacking)}; expected a `Sampler`, which says what it costs")
    samples = len(reference.prompts)
    if samples < 2 or batch_size < 1:
        raise ValueError(f"got {samples} prompts, batch size {batch_size}; expected at least 2 and 1")
    each: list[dict[str, Resampled]] = []
    costs: list[Cost] = []
    warm = False
    for seed in seeds:
        folder = None if images is None else images / name / f"seed-{seed}"
        batches = Batches(sampler, reference.prompts, seed, batch_size, folder, made or {}, process, warm)
        if folder is not None:
            batches.draw_own(progress)
        if process[0] == 0:
            each.append(_measured(batches, reference, costs, progress))
        warm = batches.warm
    if process[0] > 0:
        return Row(name, sampler.steps, sampler.network_calls, None, samples=samples)
    row, calls = _row(name, each, costs, reference), batches.calls()
    return replace(row, steps=sampler.steps, network_calls=calls, guidance=sampler.guidance, seeds=tuple(seeds))


def evaluate_stored(
    pictures: StoredPictures, reference: Reference, *, batch_size: int = 64, progress: Progress | None = None
) -> Row:
    """The row of pictures that are there already, those of the reference's prompts, in their order. How they were drawn
    is what all of them say, and seconds are of the batches that say them."""
    costs: list[Cost] = []
    batches = pictures.batches(len(reference.prompts), batch_size)
    row = _row(pictures.name, [_measured(batches, reference, costs, progress)], costs, reference)
    return replace(row, **pictures.drawn)


def _row(name: str, each: Sequence[Mapping[str, Resampled]], costs: Sequence[Cost], reference: Reference) -> Row:
    """Of the metrics of each seed and of the seconds and pictures of each batch, the first of which warms up; others
    whose seconds are not known are passed over too."""
    samples, metrics = len(reference.prompts), over_seeds(each, reference.floors)
    remarks = [few(samples)]
    remarks += [too_small(one, figure, samples, _width(one, reference)) for one, figure in metrics.items()]
    known = [(seconds, count) for seconds, count in costs[1:] or costs if seconds is not None]
    seconds, counts = zip(*known, strict=True) if known else ((), ())
    cost, remark = sum(seconds) / sum(counts) if counts else None, " ".join(one for one in remarks if one)
    return Row(name, 0, 0, cost, samples=samples, metrics=metrics, remark=remark)


def _measured(
    batches: Iterable[tuple[Tensor, float | None]],
    reference: Reference,
    costs: list[Cost],
    progress: Progress | None,
) -> dict[str, Resampled]:
    """Of one seed's pictures; adds seconds and pictures of each batch to `costs`."""
    parts, shown = defaultdict(list), defaultdict(list)
    done = 0
    for drawn, seconds in batches:
        for instrument, features in reference.features(drawn).items():
            parts[instrument].append(features)
        captions = reference.prompts[done : done + len(drawn)]
        for attribute, values in (reference.reading(drawn, captions) if reference.reading else {}).items():
            shown[attribute].append(values)
        costs.append((seconds, len(drawn)))
        done += len(drawn)
        if progress is not None:
            progress(done, len(reference.prompts))
    fake = {instrument: torch.cat(some) for instrument, some in parts.items()}
    found = resampled(reference.metrics, reference.real, reference.texts, fake, reference.replicates)
    return found | means(shown, reference.replicates)


@dataclass
class Diversity:
    """The metric diversity: the mean distance of two pictures of one caption from different noise, over captions.

    Euclidean, between features of `count` pictures of each of the reference's first captions, beside that of real
    pictures where the data can be drawn again.
    """

    reference: Reference
    count: int
    seed: int
    batch_size: int = 64

    def of(self, generate: Generate) -> dict[str, Figure]:
        """What `reading_variants` reads off the pictures is averaged beside it."""
        found = self._measured(generate, self.reference.replicates)
        floors = {name: figure.value for name, figure in self.real.items()}
        return {name: replace(figure, floor=floors.get(name)) for name, figure in found.items()}

    @cached_property
    def real(self) -> dict[str, Figure]:
        """Of the data's own pictures; empty where they cannot be drawn again."""
        redrawn = self.reference.redrawn
        return self._measured(redrawn, self.reference.replicates) if redrawn else {}

    def _measured(self, generate: Generate, replicates: int) -> dict[str, Figure]:
        distances, shown = [], defaultdict(list)
        read, instrument = self.reference.reading_variants, self.reference.instruments[FEATURES]
        for index, prompt in enumerate(self.reference.prompts[:SPREAD_CAPTIONS]):
            sizes = [len(part) for part in slices(self.count, self.batch_size)]
            seeds = [batch_seed(self.seed, index + SPREAD_CAPTIONS * batch) for batch in range(len(sizes))]
            drawn = [generate([prompt] * size, seed) for size, seed in zip(sizes, seeds, strict=True)]
            images = torch.cat(drawn).float()
            distances.append(torch.pdist(instrument.images(self.reference.sized(images)).double()).mean())
            for name, values in (read(images, [prompt] * self.count) if read else {}).items():
                shown[name].append(values.nanmean())
        return over_seeds([means({"diversity": distances, **shown}, replicates)])


def evaluate_all(
    samplers: Mapping[str, Sampler],
    reference: Reference,
    measured: Measured,
    *,
    made: Callable[[Sampler], Mapping[str, Any]],
    process: tuple[int, int],
    tick: Callable[[str, int, int], None],
) -> Iterator[Row]:
    """The floor's row, where there is one, and each sampler's as it is measured; none but of the first process."""
    count = measured.diversity
    diversity = Diversity(reference, count, measured.seeds[0], measured.batch_size) if count else None
    real = diversity.real if diversity is not None and process[0] == 0 else {}
    if reference.floors or real:
        floor = reference.floor()
        yield replace(floor, metrics=floor.metrics | real)
    for name, sampler in samplers.items():
        row = evaluate(
            sampler,
            reference,
            name=name,
            batch_size=measured.batch_size,
            seeds=measured.seeds,
            images=measured.images,
            made=made(sampler),
            process=process,
            progress=partial(tick, name),
        )
        if process[0] > 0:
            continue
        if diversity is not None:
            row = replace(row, metrics=row.metrics | diversity.of(sampler))
        if measured.images is not None:
            for seed in measured.seeds:
                write_captions(measured.images / name / f"seed-{seed}", reference.prompts)
        yield row


def _width(metric: str, reference: Reference) -> int:
    features = reference.real.get(METRICS[metric].instrument) if metric in METRICS else None
    return 0 if features is None else features.shape[1]
