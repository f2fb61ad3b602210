"""Fréchet distance between two sets of features (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

d² = ‖μ_1 − μ_2‖² + Tr(C_1 + C_2 − 2 (C_1 C_2)^½), the squared 2-Wasserstein distance of two Gaussians with
the features' means and covariances. With Inception features it is FID; with CLIP features, CLIP-FID.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scott.errors import UserError
from scott.evaluation.features import Matrix, feature_matrix


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """What the Fréchet distance reads of n samples: mean (D,) and unbiased covariance (D, D), float64."""

    mean: Tensor
    cov: Tensor
    n: int

    @classmethod
    def of(cls, features: Matrix, name: str = "sample") -> FeatureStatistics:
        """Statistics of features (N, D). `ValueError` on N < 2, a wrong shape or a non-finite entry."""
        matrix = feature_matrix(name, features, at_least=2).cpu()
        cov = torch.cov(matrix.T).reshape(matrix.shape[1], -1)  # for D = 1 torch.cov is a scalar
        return cls(mean=matrix.mean(dim=0), cov=cov, n=len(matrix))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with `mean` and `cov`; n stands in its metadata."""
        tensors = {"mean": self.mean.contiguous(), "cov": self.cov.contiguous()}
        save_file(tensors, path, metadata={"n": str(self.n)})

    @classmethod
    def load(cls, path: str | Path) -> FeatureStatistics:
        """Read what `save` wrote. Raises `UserError` when the file is missing or is something else."""
        try:
            with safe_open(path, framework="pt") as file:
                n = int(file.metadata()["n"])
                return cls(mean=file.get_tensor("mean"), cov=file.get_tensor("cov"), n=n)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{str(path)!r} does not hold feature statistics: expected a safetensors file with mean, cov "
                f"and n, as FeatureStatistics.save writes ({error})"
            ) from error


def frechet_distance(real: Matrix | FeatureStatistics, fake: Matrix | FeatureStatistics) -> float:
    """d² between samples (N, D) and (M, D), or their statistics; symmetric, in float64.

    Tr (C_1 C_2)^½ is computed as the nuclear norm ‖C_1^½ C_2^½‖_*, to which it is equal. Unlike the square
    root of the unsymmetric product, that stays accurate when N ≤ D makes a covariance singular.

    The estimate is biased upwards by a term that falls as 1/N: compare only figures of the same N. Raises
    `ValueError` on fewer than two samples, different D, or non-finite features.
    """
    a = real if isinstance(real, FeatureStatistics) else FeatureStatistics.of(real, "real")
    b = fake if isinstance(fake, FeatureStatistics) else FeatureStatistics.of(fake, "fake")
    if len(a.mean) != len(b.mean):
        raise ValueError(f"real features have D = {len(a.mean)}, fake features D = {len(b.mean)}")
    cross = torch.linalg.svdvals(_sqrtm(a.cov) @ _sqrtm(b.cov)).sum()
    squared = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross
    return max(0.0, squared.item())  # a squared distance, up to round-off


def _sqrtm(cov: Tensor) -> Tensor:
    """Square root of a symmetric positive semi-definite matrix; round-off eigenvalues count as zero."""
    values, vectors = torch.linalg.eigh(cov)
    round_off = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    values = torch.where(values > round_off, values, 0.0)
    return (vectors * values.sqrt()) @ vectors.T
