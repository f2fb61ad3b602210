"""How a sampler is measured: the same prompts, the same seeds and the same real features for every row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from scott.data.pictures import cropped
from scott.evaluation.features import Features
from scott.evaluation.grids import to_pil
from scott.evaluation.measures import METRICS, USUAL, Figure, figures, mean_figures, over_seeds, too_small
from scott.evaluation.pictures import Batches, Generate, Progress, batch_seed
from scott.evaluation.results import FLOOR, Row

Reading = Callable[[Tensor, int], Mapping[str, Tensor]]
"""(pictures, the number of the first) → name → what each shows, (B,), NaN where it does not apply."""


class Sampler(Protocol):
    """`Generate`, and what an image costs."""

    def __call__(self, prompts: Sequence[str], seed: int) -> Tensor: ...

    @property
    def steps(self) -> int: ...

    @property
    def network_calls(self) -> int: ...

    @property
    def guidance(self) -> float | None: ...


@dataclass
class Reference:
    """Captions to draw, and features of the real pictures that what is drawn of them is measured against."""

    prompts: list[str]
    instruments: Mapping[str, Features]
    """Name → network, as `measures.METRICS` call them."""
    real: Mapping[str, Tensor]
    """Instrument → features (N, D) of real pictures."""
    metrics: Sequence[str] = USUAL
    others: Mapping[str, Tensor] = field(default_factory=dict)
    """Of as many other real pictures as there are captions: what a perfect sampler would draw. Empty where there are
    none."""
    replicates: int = 0
    """Bootstrap resamples behind an interval."""
    reading: Reading | None = None
    """What else is read off each picture."""
    size: int | None = None
    """Pixels a side that drawn pictures are brought to, by Lanczos, before they are measured; None leaves them."""

    @cached_property
    def texts(self) -> dict[str, Tensor]:
        """Instrument → features of the captions, for the metrics that compare pictures with them."""
        names = {METRICS[name].instrument for name in self.metrics if METRICS[name].captions}
        return {name: self.instruments[name].texts(self.prompts) for name in names}

    @cached_property
    def floors(self) -> dict[str, Figure]:
        compared = [name for name in self.metrics if not METRICS[name].captions]
        return figures(compared, self.real, {}, self.others, self.replicates) if self.others else {}

    def floor(self) -> Row:
        """Other real pictures in a sampler's place: what finite samples cost even a perfect one."""
        count = len(next(iter(self.others.values())))
        return Row(FLOOR, 0, 0, None, samples=count, metrics=self.floors)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Instrument → features of pictures; a network that several names stand for is asked once."""
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            fitted = [cropped(to_pil(image), [(self.size, self.size)]) for image in images]
            images = torch.stack(fitted).float() / 255
        found = {id(one): one.images(images) for one in {id(one): one for one in self.instruments.values()}.values()}
        return {name: found[id(one)] for name, one in self.instruments.items()}


def evaluate(
    sampler: Sampler,
    reference: Reference,
    *,
    name: str,
    batch_size: int,
    seeds: Sequence[int] = (1,),
    images: Path | None = None,
    made: Mapping[str, Any] | None = None,
    process: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> Row:
    """Draw one image a prompt and seed, and measure each seed's against the reference.

    `seconds_per_image` is the time inside the sampler over the images it made; the first batch warms up and is left
    out, unless it is the only one. With a folder `images`, pictures are kept in NAME/seed-N of it (see `Batches`).

    Of several processes, the first measures; the row of the others has no figures.

    Raises `ValueError` on fewer than two prompts, a batch size below 1, images that are not (B, 3, H, W) in
    [0, 1], and on features that do not match the reference.
    """
    if len(reference.prompts) < 2 or batch_size < 1:
        raise ValueError(f"got {len(reference.prompts)} prompts, batch size {batch_size}; expected at least 2 and 1")
    each: list[dict[str, Figure]] = []
    seconds, counts = [], []
    fake: dict[str, Tensor] = {}
    for seed in seeds:
        folder = None if images is None else images / name / f"seed-{seed}"
        batches = Batches(sampler, reference.prompts, seed, batch_size, folder, made or {}, process)
        if folder is not None:
            batches.draw_own(progress)
        if process[0] > 0:
            continue
        parts, shown = defaultdict(list), defaultdict(list)
        for index in range(len(batches)):
            drawn, taken = batches.read(index)
            seconds.append(taken)
            counts.append(len(drawn))
            for instrument, features in reference.features(drawn).items():
                parts[instrument].append(features)
            if reference.reading is not None:
                for attribute, values in reference.reading(drawn, index * batch_size).items():
                    shown[attribute].append(values)
            if progress is not None:
                progress(min((index + 1) * batch_size, len(reference.prompts)), len(reference.prompts))
        fake = {instrument: torch.cat(some) for instrument, some in parts.items()}
        replicates = reference.replicates if not each else 0
        found = figures(reference.metrics, reference.real, reference.texts, fake, replicates)
        each.append(found | mean_figures(shown, replicates))
    if process[0] > 0:
        return Row(name, sampler.steps, sampler.network_calls, None, samples=len(reference.prompts))
    warm_up = 1 if len(seconds) > 1 else 0
    metrics = over_seeds(each, reference.floors)
    remarks = [too_small(one, figure, len(reference.prompts), _width(one, fake)) for one, figure in metrics.items()]
    return Row(
        name,
        sampler.steps,
        sampler.network_calls,
        sum(seconds[warm_up:]) / sum(counts[warm_up:]),
        samples=len(reference.prompts),
        metrics=metrics,
        guidance=sampler.guidance,
        seeds=tuple(seeds),
        remark=" ".join(remark for remark in remarks if remark),
    )


def spread(
    generate: Generate,
    prompts: Sequence[str],
    instrument: Features,
    pictures_each: int,
    seed: int,
    replicates: int = 0,
    reading: Reading | None = None,
) -> dict[str, Figure]:
    """ "diversity": the mean distance of two pictures of one caption from different noise, over captions.

    Euclidean, between features of `pictures_each` pictures of each caption. What `reading` reads off the pictures of
    the caption of its number is averaged beside it.
    """
    distances, shown = [], defaultdict(list)
    for index, prompt in enumerate(prompts):
        images = generate([prompt] * pictures_each, batch_seed(seed, index)).float()
        distances.append(torch.pdist(instrument.images(images).double()).mean())
        for name, values in (reading(images, index) if reading else {}).items():
            shown[name].append(values.nanmean())
    return mean_figures({"diversity": distances, **shown}, replicates)


def _width(metric: str, fake: Mapping[str, Tensor]) -> int:
    return fake[METRICS[metric].instrument].shape[1] if metric in METRICS else 0
