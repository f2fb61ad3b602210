"""Distances between two sets of features (N, D) and (M, D): Fréchet, maximum mean discrepancies, and the ratio of
their spreads.

    FID, FD-DINOv2    ‖μ_1 − μ_2‖² + Tr(C_1 + C_2 − 2 (C_1 C_2)^½)       Heusel et al. 2017, arXiv 1706.08500, eq. 6
    KID               MMD² of k(x, y) = (x·y / D + 1)³, unbiased            Bińkowski et al. 2018, arXiv 1801.01401
    CMMD              1000 MMD² of k(x, y) = exp(−‖x − y‖² / 2σ²), σ = 10,
                      of unit vectors, biased                               Jayasumana et al. 2024, arXiv 2401.09603

    MMD² = E k(x, x') + E k(y, y') − 2 E k(x, y);  unbiased leaves each sample's k with itself out.

The Fréchet distance is biased upwards by a term that falls as 1/N: compare figures of the same N. `weights` (R, M) say
how often each fake counts (`matrices.resamples`); a row of them sums to M and gives one of the R values.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from scott.evaluation.matrices import Matrix, feature_pair, once

CHUNK = 1024
"""Rows of a kernel's matrix that are held at a time."""
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
Kernel = Callable[[Tensor, Tensor], Tensor]


def frechet_distance(real: Matrix, fake: Matrix) -> float:
    """The squared 2-Wasserstein distance of two Gaussians with the features' means and unbiased covariances.

    Symmetric, in float64. Raises `ValueError` on fewer than two samples, different D, or non-finite features.
    """
    return frechet_distances(real, fake).item()


def frechet_distances(real: Matrix, fake: Matrix, weights: Tensor | None = None) -> Tensor:
    """`frechet_distance` for each row of weights, (R,).

    With C_i = R_iᵀ R_i, Tr (C_1 C_2)^½ is the nuclear norm of R_1 R_2ᵀ, which stays accurate, and small, where N ≤ D
    makes a covariance singular. Of a resample it is the sum of √λ over the eigenvalues of R_1 C_2 R_1ᵀ: faster, and
    exact to about 1e-7 of Tr C.
    """
    x, y = (matrix.cpu() for matrix in feature_pair(("real", real), ("fake", fake), at_least=2))
    weights = once(len(y)) if weights is None else weights
    mean, root = x.mean(dim=0), _factor(x - x.mean(dim=0))
    values = []
    for index, row in enumerate(weights):
        centre = row @ y / len(y)
        scaled = (y - centre) * row.sqrt()[:, None]
        if index == 0:
            cross = torch.linalg.svdvals(root @ _factor(scaled).T).sum()
        else:
            across = root @ scaled.T / (len(y) - 1) ** 0.5
            cross = torch.linalg.eigvalsh(across @ across.T).clamp(min=0).sqrt().sum()
        trace = root.square().sum() + scaled.square().sum() / (len(y) - 1)
        squared = (mean - centre).square().sum() + trace - 2 * cross
        values.append(max(0.0, squared.item()))  # a squared distance, up to round-off
    return torch.tensor(values, dtype=torch.float64)


def kid(real: Matrix, fake: Matrix, weights: Tensor | None = None) -> Tensor:
    """Kernel inception distance, (R,), over all pairs: what the usual mean over 100 random subsets estimates."""
    return _mmd(real, fake, weights, lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3, unbiased=True)


def cmmd(real: Matrix, fake: Matrix, weights: Tensor | None = None) -> Tensor:
    """CMMD, (R,), of CLIP embeddings, which are normalised here."""

    def gaussian(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp((x @ y.T - 1) / CMMD_SIGMA**2)  # ‖x − y‖² = 2 − 2 x·y of unit vectors

    x, y = feature_pair(("real", real), ("fake", fake))
    return CMMD_SCALE * _mmd(F.normalize(x, dim=1), F.normalize(y, dim=1), weights, gaussian, unbiased=False)


def spread(real: Matrix, fake: Matrix, weights: Tensor | None = None) -> Tensor:
    """√(Tr C_fake / Tr C_real), (R,): 1 is as wide as the data, and a student of means shrinks."""
    x, y = (matrix.cpu() for matrix in feature_pair(("real", real), ("fake", fake), at_least=2))
    shares = (once(len(y)) if weights is None else weights) / len(y)
    centred = y - y.mean(dim=0)  # or the difference of the two moments would lose digits
    drawn = shares @ centred.square().sum(dim=1) - (shares @ centred).square().sum(dim=1)
    return (drawn * len(y) / (len(y) - 1) / x.var(dim=0).sum()).sqrt()


def _mmd(real: Matrix, fake: Matrix, weights: Tensor | None, kernel: Kernel, *, unbiased: bool) -> Tensor:
    """MMD² (R,). Raises `ValueError` on fewer than two samples, different D, or non-finite features."""
    x, y = (matrix.cpu() for matrix in feature_pair(("real", real), ("fake", fake), at_least=2))
    ones, weights = once(len(x)), once(len(y)) if weights is None else weights

    def within(points: Tensor, counts: Tensor) -> Tensor:
        total, n = _pairs(kernel, points, points, counts, counts), len(points)
        if not unbiased:
            return total / n**2
        self_pairs = counts @ torch.cat([kernel(p, p).diagonal() for p in points.split(CHUNK)])
        return (total - self_pairs) / (n * (n - 1))

    across = _pairs(kernel, x, y, ones.expand(len(weights), -1), weights) / (len(x) * len(y))
    return within(x, ones) + within(y, weights) - 2 * across


def _pairs(kernel: Kernel, x: Tensor, y: Tensor, weights_x: Tensor, weights_y: Tensor) -> Tensor:
    """Σ_ij w_i v_j k(x_i, y_j) for each row of the weights, (R,)."""
    pieces = zip(x.split(CHUNK), weights_x.split(CHUNK, dim=1), strict=True)
    return torch.stack([((kernel(rows, y) @ weights_y.T) * w.T).sum(dim=0) for rows, w in pieces]).sum(dim=0)


def _factor(centred: Tensor) -> Tensor:
    """R (min(N, D), D) with Rᵀ R the unbiased covariance of centred features (N, D)."""
    return torch.linalg.qr(centred, mode="r").R / (len(centred) - 1) ** 0.5
