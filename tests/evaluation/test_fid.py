"""The Fréchet distance against closed forms for Gaussians, and against an independent implementation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scott.errors import UserError
from scott.evaluation import FeatureStatistics, frechet_distance


def statistics(mean: list[float], cov: list[list[float]]) -> FeatureStatistics:
    return FeatureStatistics(torch.tensor(mean).double(), torch.tensor(cov).double(), n=1000)


def sample(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(d: int) -> Tensor:
    return torch.linalg.qr(sample(d, d, seed=9)).Q


def test_diagonal_gaussians() -> None:
    # Commuting covariances: d² = ‖Δμ‖² + Σ (√a − √b)² = (9 + 16) + (1 − 2)² + (3 − 5)².
    a = statistics([0, 0], [[1, 0], [0, 9]])
    b = statistics([3, 4], [[4, 0], [0, 25]])
    assert frechet_distance(a, b) == pytest.approx(30, rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31))
def test_covariances_that_do_not_commute(seed: int) -> None:
    # For 2 × 2 matrices Tr M^½ = (Tr M + 2 (det M)^½)^½.
    first, second = (w @ w.T for w in sample(4, 2, seed).split(2))
    product = first @ second
    root = (product.trace() + 2 * product.det().clamp(min=0).sqrt()).sqrt()
    expected = (first.trace() + second.trace() - 2 * root).item()
    mean = torch.zeros(2, dtype=torch.float64)
    got = frechet_distance(FeatureStatistics(mean, first, 100), FeatureStatistics(mean, second, 100))
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
    a, b = FeatureStatistics.of(real), FeatureStatistics.of(fake)
    expected = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-12)


def test_agrees_with_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    real, fake = (
        sample(500, 64) @ sample(64, 64, seed=1),
        sample(400, 64, seed=2) @ sample(64, 64, seed=3) + 1,
    )
    a, b = FeatureStatistics.of(real), FeatureStatistics.of(fake)
    expected = fid._compute_fid(a.mean, a.cov, b.mean, b.cov).item()
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-9)


def test_statistics_are_those_of_numpy_and_survive_the_file(tmp_path) -> None:
    features = sample(20, 4).numpy().astype(np.float32)
    kept = FeatureStatistics.of(features)
    kept.save(tmp_path / "reference.safetensors")
    loaded = FeatureStatistics.load(tmp_path / "reference.safetensors")
    assert loaded.n == 20
    assert torch.equal(loaded.mean, kept.mean)
    assert torch.equal(loaded.cov, kept.cov)
    np.testing.assert_allclose(loaded.cov, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-12)
    fake = sample(20, 4, seed=1)
    assert frechet_distance(loaded, fake) == frechet_distance(features, fake)


def test_a_file_of_something_else_is_a_user_error(tmp_path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"results\.json"):
        FeatureStatistics.load(tmp_path / "results.json")
    with pytest.raises(UserError, match="absent"):
        FeatureStatistics.load(tmp_path / "absent")


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
