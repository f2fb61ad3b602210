"""How a sampler is measured: the same prompts, the same seeds and the same real features for every row."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from scott.evaluation.clip_score import clip_score
from scott.evaluation.coverage import coverage
from scott.evaluation.features import Features, Matrix, check_images
from scott.evaluation.fid import frechet_distance
from scott.evaluation.results import Row

Generate = Callable[[Sequence[str], int], Tensor]
"""(B prompts, seed) → images (B, 3, H, W) in [0, 1]; the same prompts and seed give the same images."""

Progress = Callable[[int, int], None]
"""Called after each batch with (images done, images in all)."""


def batch_seed(seed: int, batch: int) -> int:
    """Seed of the `batch`-th batch, in [0, 2³²); neither batches nor runs of near seeds share noise.

    The first word of `numpy.random.SeedSequence([seed, batch])`, whose output numpy keeps stable between
    versions.
    """
    return int(np.random.SeedSequence([seed, batch]).generate_state(1)[0])


def evaluate(
    generate: Generate,
    prompts: Sequence[str],
    reference_features: Matrix,
    features: Features,
    *,
    seed: int,
    batch_size: int,
    name: str,
    steps: int,
    network_calls: int,
    progress: Progress | None = None,
) -> Row:
    """Draw one image for each prompt and measure them against the real images' features (N, D).

    Batch i is `generate(prompts[i·batch_size : (i+1)·batch_size], batch_seed(seed, i))`, so samplers
    compared at one seed and one batch size start from the same noise. `seconds_per_image` is the time
    inside `generate` over the images it made; the first batch warms up and is left out, unless it is the
    only one.

    Raises `ValueError` on fewer than two prompts, a batch size below 1, images that are not (B, 3, H, W) in
    [0, 1], and on features that do not match the reference.
    """
    if len(prompts) < 2 or batch_size < 1:
        raise ValueError(f"got {len(prompts)} prompts, batch size {batch_size}; expected at least 2 and 1")
    image_features, text_features, seconds, counts = [], [], [], []
    for index, start in enumerate(range(0, len(prompts), batch_size)):
        batch = prompts[start : start + batch_size]
        images, taken = timed(generate, batch, batch_seed(seed, index))
        seconds.append(taken)
        counts.append(len(batch))
        if len(check_images(images)) != len(batch):
            raise ValueError(f"{name}: got {len(images)} images for {len(batch)} prompts")
        image_features.append(features.images(images))
        text_features.append(features.texts(batch))
        if progress is not None:
            progress(start + len(batch), len(prompts))
    fakes = torch.cat(image_features)
    warm_up = 1 if len(seconds) > 1 else 0
    return Row(
        name=name,
        steps=steps,
        network_calls=network_calls,
        seconds_per_image=sum(seconds[warm_up:]) / sum(counts[warm_up:]),
        fid=frechet_distance(reference_features, fakes),
        clip_score=clip_score(fakes, torch.cat(text_features)),
        coverage=coverage(reference_features, fakes),
        samples=len(prompts),
    )


def timed(generate: Generate, prompts: Sequence[str], seed: int) -> tuple[Tensor, float]:
    """`generate(prompts, seed)` and the seconds it took, its device's queue emptied."""
    begin = time.perf_counter()
    images = generate(prompts, seed)
    if images.device.type in ("cuda", "mps"):
        torch.accelerator.synchronize(images.device)
    return images, time.perf_counter() - begin


def real_against_real(features_a: Matrix, features_b: Matrix) -> Row:
    """The floor: one set of real images measured against another, features (N, D) and (M, D).

    What finite samples cost even a perfect sampler. Let M be the number of images a sampler is measured with.
    """
    return Row(
        name="real-vs-real",
        steps=0,
        network_calls=0,
        seconds_per_image=None,
        fid=frechet_distance(features_a, features_b),
        clip_score=None,
        coverage=coverage(features_a, features_b),
        samples=len(features_b),
    )
