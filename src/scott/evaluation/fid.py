"""Fréchet distance between two sets of features (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

d² = ‖μ_1 − μ_2‖² + Tr(C_1 + C_2 − 2 (C_1 C_2)^½), the squared 2-Wasserstein distance of two Gaussians with
the features' means and covariances. With Inception features it is FID; with CLIP features, CLIP-FID.
"""

import torch
from torch import Tensor

from scott.evaluation.features import Matrix, feature_pair


def frechet_distance(real: Matrix, fake: Matrix) -> float:
    """d² between samples (N, D) and (M, D) by their means and unbiased covariances; symmetric, in float64.

    The estimate is biased upwards by a term that falls as 1/N: compare only figures of the same N. Raises
    `ValueError` on fewer than two samples, different D, or non-finite features.
    """
    first, second = (matrix.cpu() for matrix in feature_pair(("real", real), ("fake", fake), at_least=2))
    return gaussian_distance(first.mean(dim=0), _covariance(first), second.mean(dim=0), _covariance(second))


def gaussian_distance(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> float:
    """d² between two Gaussians by means (D,) and covariances (D, D), in float64.

    Tr (C_1 C_2)^½ is computed as the nuclear norm ‖C_1^½ C_2^½‖_*, to which it is equal. Unlike the square
    root of the unsymmetric product, that stays accurate when N ≤ D makes a covariance singular.
    """
    cross = torch.linalg.svdvals(_sqrtm(cov_1) @ _sqrtm(cov_2)).sum()
    squared = (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * cross
    return max(0.0, squared.item())  # a squared distance, up to round-off


def _covariance(features: Tensor) -> Tensor:
    return torch.cov(features.T).reshape(features.shape[1], -1)  # for D = 1 torch.cov is a scalar


def _sqrtm(cov: Tensor) -> Tensor:
    """Square root of a symmetric positive semi-definite matrix; round-off eigenvalues count as zero."""
    values, vectors = torch.linalg.eigh(cov)
    round_off = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    values = torch.where(values > round_off, values, 0.0)
    return (vectors * values.sqrt()) @ vectors.T
