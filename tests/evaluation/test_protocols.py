"""The protocol on a sampler and features small enough to know the answer."""

import time
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from scott.evaluation import (
    batch_seed,
    coverage,
    evaluate,
    frechet_distance,
    real_against_real,
)


class MeanColour:
    """An image's feature is its mean colour, a caption's the colour it names."""

    colours = {"red": [1.0, 0.0, 0.0], "green": [0.0, 1.0, 0.0], "blue": [0.0, 0.0, 1.0]}  # noqa: RUF012

    def images(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))

    def texts(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([self.colours[text] for text in texts])


def paint(prompts: Sequence[str], seed: int) -> Tensor:
    noise = torch.rand(len(prompts), 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return 0.5 * MeanColour().texts(prompts)[:, :, None, None] + 0.5 * noise


PROMPTS = ["red", "green", "blue", "red", "green", "blue", "blue"]
REFERENCE = torch.rand(20, 3, generator=torch.Generator().manual_seed(5))


def run(generate=paint, **changed):
    options = {"seed": 3, "batch_size": 3, "name": "student", "steps": 2, "network_calls": 2} | changed
    return evaluate(generate, PROMPTS, REFERENCE, MeanColour(), **options)


def test_measures_are_those_of_the_images_the_seeds_give() -> None:
    batches = [PROMPTS[:3], PROMPTS[3:6], PROMPTS[6:]]
    images = torch.cat([paint(batch, batch_seed(3, i)) for i, batch in enumerate(batches)])
    fakes, texts = images.mean(dim=(2, 3)), MeanColour().texts(PROMPTS)
    row = run()
    assert (row.name, row.steps, row.network_calls, row.samples) == ("student", 2, 2, 7)
    assert row.fid == frechet_distance(REFERENCE, fakes)
    assert row.coverage == coverage(REFERENCE, fakes)
    assert row.clip_score == pytest.approx(torch.cosine_similarity(fakes, texts).mean().item())
    assert not row.recorded


def test_same_seed_same_row_other_seed_other_row() -> None:
    assert run().fid == run().fid
    assert run().fid != run(seed=4).fid


def test_batch_seeds_are_fixed_and_distinct() -> None:
    seeds = {batch_seed(seed, batch) for seed in range(50) for batch in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert batch_seed(0, 0) == 2968811710  # results already published hang on this


@pytest.mark.parametrize(("batch_size", "expected"), [(3, (2.0 + 1.0) / 4), (7, 9.0 / 7)])
def test_the_first_of_several_batches_is_warm_up(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, expected: float
) -> None:
    now, durations = [0.0], iter([9.0, 2.0, 1.0])

    def slow(prompts: Sequence[str], seed: int) -> Tensor:
        now[0] += next(durations)
        return paint(prompts, seed)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert run(slow, batch_size=batch_size).seconds_per_image == expected


def test_progress_counts_images() -> None:
    seen = []
    run(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize(
    ("generate", "message"),
    [
        (lambda prompts, seed: paint(prompts, seed) * 3, r"expected \[0, 1\]"),
        (lambda prompts, seed: paint(prompts, seed)[:1], "got 1 images for 3 prompts"),
        (lambda prompts, seed: paint(prompts, seed)[0], r"expected floats \(B, 3, H, W\)"),
    ],
)
def test_refuses_what_is_not_an_image_for_each_prompt(generate, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(generate)


def test_refuses_an_empty_batch() -> None:
    with pytest.raises(ValueError, match="batch size 0"):
        run(batch_size=0)


def test_the_floor() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(500, 4, generator=generator), torch.randn(400, 4, generator=generator)
    row = real_against_real(a, b)
    assert (row.name, row.samples, row.network_calls) == ("real-vs-real", 400, 0)
    assert row.clip_score is row.seconds_per_image is None
    assert row.fid == frechet_distance(a, b)
    assert row.coverage == coverage(a, b)
