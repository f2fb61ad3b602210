"""Neighbours on points small enough to check by hand, and against expectations for equal distributions."""

import math

import pytest
import torch
from prdc import compute_prdc
from torch import Tensor

from scott.evaluation import coverage
from scott.evaluation.matrices import halves, resamples
from scott.evaluation.neighbours import NAMES, neighbours


def column(*values: float) -> Tensor:
    return torch.tensor(values).unsqueeze(1)


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def expected_coverage(n: int, m: int, k: int = 5) -> float:
    """E[coverage] of n real points by m fakes of the same continuous distribution.

    A real point is left uncovered when its k nearest among the other n − 1 real and the m fake points are all real. All
    orders being equally likely, that has probability C(n − 1, k) / C(n + m − 1, k) in any dimension.
    """
    return 1 - math.comb(n - 1, k) / math.comb(n + m - 1, k)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_as_the_reference_package_computes_them(shift: float) -> None:
    """prdc, of the authors of density and coverage, with the neighbours that each is read at here."""
    real, fake = normal(300, 12, 0), normal(200, 12, 1) * 0.9 + shift
    found = neighbours(real.double(), fake.double(), resamples(200, 0), only=list(NAMES))
    expected = {k: compute_prdc(real.double().numpy(), fake.double().numpy(), k) for k in (3, 5)}
    for name, k in {"precision": 3, "recall": 3, "density": 5, "coverage": 5}.items():
        assert found[name][0].item() == pytest.approx(expected[k][name], abs=1e-9)


def test_by_hand() -> None:
    real = column(0, 1, 3, 10)
    # Distance to the nearest other real point: 1, 1, 2, 7. To the fake at 4: 4, 3, 1, 6.
    assert coverage(real, column(4), k=1) == 0.5
    # To the second nearest: 3, 2, 3, 9. The same fake still reaches only 3 and 10.
    assert coverage(real, column(4), k=2) == 0.5
    # To the third nearest: 10, 9, 7, 10.
    assert coverage(real, column(4), k=3) == 1.0


def test_closer_is_strict() -> None:
    assert coverage(column(0, 2), column(-2, 4), k=1) == 0.0


def test_a_copy_covers_all_but_exact_duplicates() -> None:
    real = normal(100, 8, seed=0)
    assert coverage(real, real) == 1.0
    # A point with k copies of itself has radius 0, and nothing is closer than 0.
    repeated = torch.cat([real, real[:1].expand(5, -1)])
    assert coverage(repeated, repeated) == pytest.approx(99 / 105)


def test_a_dropped_mode_is_not_covered() -> None:
    modes = torch.cat([normal(300, 2, seed=0), normal(100, 2, seed=1) + 100])
    kept = normal(400, 2, seed=2)
    assert coverage(modes, kept) <= 0.75
    assert coverage(modes, kept) > 0.70


@pytest.mark.parametrize("d", [1, 12])
def test_equal_distributions_give_the_expectation(d: int) -> None:
    assert expected_coverage(5000, 5000) == pytest.approx(0.969, abs=5e-4)
    got = coverage(normal(2000, d, seed=0), normal(2000, d, seed=1))
    assert got == pytest.approx(expected_coverage(2000, 2000), abs=0.012), "three deviations of a share of 2,000"


def test_expectation_of_unequal_counts() -> None:
    drawn = [coverage(normal(7, 2, seed=2 * i), normal(4, 2, seed=2 * i + 1), k=3) for i in range(1000)]
    assert sum(drawn) / len(drawn) == pytest.approx(expected_coverage(7, 4, k=3), abs=0.02)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_the_chunk_does_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(150, 5, seed=0), normal(90, 5, seed=1)
    whole = coverage(real, fake)
    monkeypatch.setattr("scott.evaluation.neighbours.CHUNK", chunk)
    assert coverage(real, fake) == whole


@pytest.mark.parametrize("k", [0, 4, -1])
def test_refuses_k(k: int) -> None:
    with pytest.raises(ValueError, match="expected 1 ≤ k < 4"):
        coverage(column(0, 1, 2, 3), column(0, 1), k=k)


def test_refuses_features() -> None:
    with pytest.raises(ValueError, match="fake features D = 2"):
        coverage(torch.zeros(9, 3), torch.zeros(9, 2))
    with pytest.raises(ValueError, match="non-finite"):
        coverage(torch.full((9, 3), torch.nan), torch.zeros(9, 3))
    with pytest.raises(ValueError, match="got 0 samples"):
        coverage(torch.zeros(9, 3), torch.zeros(0, 3))


def test_the_four_by_hand() -> None:
    real, fake = column(0, 1, 2, 3, 4, 5, 100), column(2.5, 2.6, 3, 3.4, 60)
    found = {name: values.item() for name, values in neighbours(real, fake).items()}
    # Radii to the third neighbour: of real points 3 2 2 2 2 3 97, of fakes 0.9 0.8 0.5 0.9 57.4.
    # Of real points to the fifth: 5 4 3 3 4 5 99.
    assert found["precision"] == 1.0  # 60 is in the ball of 100
    assert found["recall"] == pytest.approx(5 / 7)  # 60 reaches 3, 4, 5 and 100; 2.5 and 2.6 reach 2 as well
    # the first six balls hold the first four fakes each, the last all five
    assert found["density"] == pytest.approx((4 * 6 + 5) / (5 * 5))
    assert found["coverage"] == 1.0


def test_equal_distributions_have_density_1_and_equal_precision_and_recall() -> None:
    found = neighbours(normal(1500, 4, seed=0), normal(1500, 4, seed=1))
    assert found["density"].item() == pytest.approx(1, abs=0.05)
    assert found["precision"].item() == pytest.approx(found["recall"].item(), abs=0.03)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_copies_and_ties_count_as_exact_distances_have_them(offset: float) -> None:
    # on a lattice many distances are equal, and half of the fakes are real points
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randint(0, 3, (120, 6), generator=generator).double() for _ in range(2))
    fake[:60] = real[:60]
    exact = torch.tensor([[float((a - b).square().sum()) for b in fake] for a in real])
    own = torch.tensor([[float((a - b).square().sum()) for b in real] for a in real]).fill_diagonal_(torch.inf)
    fifth, third = (own.sort(1).values[:, k - 1, None] for k in (5, 3))
    found = neighbours(real + offset, fake + offset, only=("precision", "density", "coverage"))
    assert found["coverage"].item() == pytest.approx((exact < fifth).any(1).double().mean().item())
    assert found["density"].item() == pytest.approx((exact < fifth).sum().item() / (5 * 120))
    assert found["precision"].item() == pytest.approx((exact <= third).any(0).double().mean().item())


def test_a_narrow_sampler_has_precision_and_a_wide_one_recall() -> None:
    real = normal(500, 2, seed=0)
    narrow, wide = (neighbours(real, factor * normal(500, 2, seed=1)) for factor in (0.3, 3.0))
    assert narrow["precision"] > 0.95 > wide["precision"]
    assert wide["recall"] > narrow["recall"] + 0.3


def test_a_resample_keeps_the_balls_and_counts_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(60, 3, seed=0), normal(50, 3, seed=1)
    weights = resamples(50, 4)
    monkeypatch.setattr("scott.evaluation.neighbours.CHUNK", 13)
    found = neighbours(real, fake, weights)
    assert [values.shape for values in found.values()] == [(5,)] * 4
    once = neighbours(real, fake)
    for name in NAMES:
        assert found[name][0] == once[name].item()
    for index, row in enumerate(weights[1:], 1):
        there = fake[row > 0]
        assert found["coverage"][index] == coverage(real, there)
        half = neighbours(real, fake[halves(50, 4)[index]], only=["recall"])
        assert found["recall"][index] == half["recall"].item()
        repeated = fake.repeat_interleave(row.long(), dim=0)
        assert found["precision"][index] == pytest.approx(
            neighbours(real, repeated, only=["precision"])["precision"].item()
        )
