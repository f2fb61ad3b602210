"""Fréchet distance and discrepancies against closed forms, and against independent implementations."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scott.evaluation import frechet_distance
from scott.evaluation.distances import cmmd, frechet_distances, kid, spread
from scott.evaluation.matrices import once, resamples


def with_moments(mean: list[float], cov: Tensor, seed: int = 0) -> Tensor:
    """Samples whose mean and covariance are exactly these."""
    drawn = sample(len(mean) + 5, len(mean), seed)
    white = torch.linalg.qr(drawn - drawn.mean(0)).Q * (len(drawn) - 1) ** 0.5
    values, vectors = torch.linalg.eigh(cov.double())
    return white @ ((vectors * values.clamp(min=0).sqrt()) @ vectors.T) + torch.tensor(mean).double()


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance as numpy computes them."""
    samples = features.double().numpy()
    return torch.from_numpy(samples.mean(0)), torch.from_numpy(np.cov(samples, rowvar=False))


def sample(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(d: int) -> Tensor:
    return torch.linalg.qr(sample(d, d, seed=9)).Q


def test_diagonal_gaussians() -> None:
    # Commuting covariances: d² = ‖Δμ‖² + Σ (√a − √b)² = (9 + 16) + (1 − 2)² + (3 − 5)².
    a = with_moments([0, 0], torch.diag(torch.tensor([1.0, 9])))
    b = with_moments([3, 4], torch.diag(torch.tensor([4.0, 25])), seed=1)
    assert frechet_distance(a, b) == pytest.approx(30, rel=1e-12)


@given(st.integers(0, 2**31))
def test_covariances_that_do_not_commute(seed: int) -> None:
    # For 2 × 2 matrices Tr M^½ = (Tr M + 2 (det M)^½)^½.
    first, second = (w @ w.T for w in sample(4, 2, seed).split(2))
    product = first @ second
    root = (product.trace() + 2 * product.det().clamp(min=0).sqrt()).sqrt()
    expected = (first.trace() + second.trace() - 2 * root).item()
    got = frechet_distance(with_moments([0, 0], first), with_moments([0, 0], second, seed=1))
    assert got == pytest.approx(expected, abs=1e-6 * (first.trace() * second.trace()).sqrt().item())


def test_one_dimension_is_the_distance_of_means_and_deviations() -> None:
    x, y = sample(50, 1), 3 * sample(40, 1, seed=1) + 2
    expected = (x.mean() - y.mean()).square() + (x.std() - y.std()).square()
    assert frechet_distance(x, y) == pytest.approx(expected.item(), rel=1e-10)


def test_affine_map_of_one_sample() -> None:
    # y = s x + m has mean s μ + m and covariance s² C, so d² = ‖(s − 1) μ + m‖² + (s − 1)² Tr C.
    x = sample(200, 6) @ sample(6, 6, seed=1)
    expected = (0.5 * x.mean(0) + 2).square().sum() + 0.25 * torch.cov(x.T).trace()
    assert frechet_distance(x, 1.5 * x + 2) == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("n", [300, 10], ids=["full rank", "fewer samples than dimensions"])
def test_invariances(n: int) -> None:
    real, fake = sample(n, 32), 0.8 * sample(n, 32, seed=1) + 0.3
    distance = frechet_distance(real, fake)
    turn, shift = rotation(32), sample(1, 32, seed=2)
    assert frechet_distance(real, real.flip(0)) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(fake, real) == pytest.approx(distance, rel=1e-9)
    assert frechet_distance(real @ turn + shift, fake @ turn + shift) == pytest.approx(distance, rel=1e-9)
    assert frechet_distance(3 * real, 3 * fake) == pytest.approx(9 * distance, rel=1e-9)


def test_disjoint_subspaces_have_no_cross_term() -> None:
    real, fake = torch.zeros(100, 8), torch.zeros(100, 8)
    real[:, :3], fake[:, 3:] = sample(100, 3).float(), sample(100, 5, seed=1).float()
    (mean_1, cov_1), (mean_2, cov_2) = moments(real), moments(fake)
    expected = (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace()
    assert frechet_distance(real, fake) == pytest.approx(expected.item(), rel=1e-12)


def test_agrees_with_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    real, fake = (
        sample(500, 64) @ sample(64, 64, seed=1),
        sample(400, 64, seed=2) @ sample(64, 64, seed=3) + 1,
    )
    expected = fid._compute_fid(*moments(real), *moments(fake)).item()
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        (torch.zeros(1, 3), "fake features: got 1 samples, expected at least 2"),
        (torch.zeros(5, 4), "D = 3, fake features D = 4"),
        (torch.zeros(5), "got shape"),
        (torch.tensor([[0, 0, 0], [0, torch.nan, 0], [0, torch.inf, 0]]), "2 of 3 samples"),
    ],
)
def test_refuses(fake: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(torch.ones(5, 3), fake)


def moved(metric: Callable[..., Tensor], real: Tensor, fake: Tensor) -> list[float]:
    """By what each of the first five samples moves a distance to first order."""
    found = metric(real, fake, torch.cat([once(len(fake)), len(fake) * torch.eye(len(fake), dtype=torch.float64)[:5]]))
    assert found[0] == metric(real, fake)
    return (found[1:] - found[0]).tolist()


@pytest.mark.parametrize("metric", [frechet_distances, cmmd])
@pytest.mark.parametrize("width", [5, 60])
def test_a_resample_moves_a_distance_as_a_sample_more_does(metric: Callable[..., Tensor], width: int) -> None:
    """Of 40 samples, also where they do not fill the covariance: each of them a hundred times, and one once more."""
    real, fake = sample(80, width), sample(40, width, seed=1) + 0.3
    many = fake.repeat(100, 1)
    more = [(metric(real, torch.cat([many, one])) - metric(real, many)).item() * len(many) for one in fake[:5].split(1)]
    assert moved(metric, real, fake) == pytest.approx(more, abs=0.1 * max(map(abs, more)))


@pytest.mark.parametrize("width", [100, 250])
def test_why_a_resample_itself_is_not_taken(width: int) -> None:
    """Of 200 samples, which hardly fill the covariance or do not, its distance scatters two to four times as much as
    that of samples does; the one to first order as much."""
    real, rows = sample(200, width, seed=999), resamples(200, 30)
    sets = [0.9 * sample(200, width, seed) + 0.1 for seed in range(30)]
    truth = torch.tensor([frechet_distance(real, one) for one in sets]).std()
    chosen = [torch.arange(200).repeat_interleave(row.long()) for row in rows[1:]]
    itself = torch.tensor([frechet_distance(real, sets[0][some]) for some in chosen]).std()
    assert 2 < itself / truth < 5
    assert 0.7 < frechet_distances(real, sets[0], rows)[1:].std() / truth < 1.5


def test_a_resample_moves_kid_as_a_sample_less_does() -> None:
    """Of which none is compared with itself, as of one more it would be."""
    real, fake = sample(80, 5), sample(40, 5, seed=1) + 0.3
    others = [torch.cat([fake[:i], fake[i + 1 :]]) for i in range(5)]
    less = [(kid(real, fake) - kid(real, other)).item() * 39 for other in others]
    assert moved(kid, real, fake) == pytest.approx(less, abs=0.05 * max(map(abs, less)))


def test_spread_is_the_ratio_of_widths_wherever_the_samples_lie() -> None:
    real, fake = sample(40, 6), 1e4 + sample(30, 6, seed=1)
    values = spread(real, 0.7 * (real @ rotation(6)) + 1e4)
    assert values.item() == pytest.approx(0.7, rel=1e-9)
    weights = resamples(30, 3)
    again = [spread(real, fake.repeat_interleave(row.long(), dim=0)).item() for row in weights]
    assert spread(real, fake, weights).tolist() == pytest.approx(again, rel=1e-9)


def test_kid_by_hand_and_without_bias() -> None:
    # k(x, y) = (x y + 1)³ in one dimension: k(1, 1) = 8, k(1, 0) = k(0, 0) = 1, k(2, 0) = 1, k(2, 1) = 27.
    real, fake = torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [0.0]])
    # the pairs within: real 1, fake 1; across: (k(1, 2) + k(1, 0) + k(0, 2) + k(0, 0)) / 4 = (27 + 1 + 1 + 1) / 4
    assert kid(real, fake).item() == pytest.approx(1 + 1 - 2 * 30 / 4)
    values = [kid(sample(20, 3, seed=2 * i), sample(20, 3, seed=2 * i + 1)).item() for i in range(400)]
    mean, deviation = np.mean(values), np.std(values) / 20
    assert abs(mean) < 4 * deviation, "equal distributions have 0"


def test_kid_agrees_with_torchmetrics() -> None:
    reference = pytest.importorskip("torchmetrics.image.kid")
    real, fake = sample(50, 16), sample(50, 16, seed=1) + 0.5
    expected = reference.poly_mmd(real, fake).item()
    assert kid(real, fake).item() == pytest.approx(expected, rel=1e-9)


def test_cmmd_of_two_directions() -> None:
    # unit vectors at an angle a: MMD² = 2 − 2 exp(−(1 − cos a) / σ²), a thousand times
    angle, sigma = 1.0, 10.0
    a = torch.tensor([[3.0, 0.0]] * 4)
    b = 5 * torch.tensor([[np.cos(angle), np.sin(angle)]] * 6).float()
    expected = 1000 * (2 - 2 * np.exp(-(1 - np.cos(angle)) / sigma**2))
    assert cmmd(a, b).item() == pytest.approx(expected, rel=1e-6)
    assert cmmd(a, a).item() == pytest.approx(0, abs=1e-9)


def test_kernels_in_pieces(monkeypatch) -> None:
    real, fake = sample(50, 4), sample(30, 4, seed=1)
    whole = kid(real, fake).item()
    monkeypatch.setattr("scott.evaluation.distances.CHUNK", 7)
    assert kid(real, fake).item() == pytest.approx(whole, rel=1e-12)
