"""Distances between two sets of features (N, D) and (M, D): Fréchet, maximum mean discrepancies, and the ratio of
their spreads.

    FID, FD-DINOv2    ‖μ_1 − μ_2‖² + Tr(C_1 + C_2 − 2 (C_1 C_2)^½)       Heusel et al. 2017, arXiv 1706.08500, eq. 6
    KID               MMD² of k(x, y) = (x·y / D + 1)³, unbiased            Bińkowski et al. 2018, arXiv 1801.01401
    CMMD              1000 MMD² of k(x, y) = exp(−‖x − y‖² / 2σ²), σ = 10,
                      of unit vectors, biased                               Jayasumana et al. 2024, arXiv 2401.09603

    MMD² = E k(x, x') + E k(y, y') − 2 E k(x, y);  unbiased leaves each sample's k with itself out.

The Fréchet distance is biased upwards by a term that falls as 1/N: compare figures of the same N. `weights` (R, M) say
how often each fake counts (`matrices.resamples`); the first row, of ones, gives the distance, and each other one

    T + Σ_i w_i ψ_i / M,    ψ_i = ∂T / ∂w_i at ones, up to a constant and terms of 1/M

the distance to first order in its weights (the infinitesimal jackknife: Efron 1982, ch. 6). Of the resample itself it
scatters by too much: samples that are repeated are neighbours of themselves to a kernel, and make a covariance of N
samples and D features nearly singular, which is two to four times too much where N is of the order of D.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from scott.evaluation.matrices import Matrix, feature_pair, once

CHUNK = 1024
"""Rows of a kernel's matrix that are held at a time."""
SINGULAR = 1e-10
"""Eigenvalues below so much of the largest are round-off."""
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
Kernel = Callable[[Tensor, Tensor], Tensor]


def frechet_distance(real: Matrix, fake: Matrix) -> float:
    """The squared 2-Wasserstein distance of two Gaussians with the features' means and unbiased covariances.

    Symmetric, in float64. Raises `ValueError` on fewer than two samples, different D, or non-finite features.
    """
    return frechet_distances(real, fake).item()


def frechet_distances(real: Matrix, fake: Matrix, weights: Tensor | None = None) -> Tensor:
    """`frechet_distance`, and what it is to first order for each further row of weights, (R,).

    With C_i = R_iᵀ R_i, Tr (C_1 C_2)^½ is the nuclear norm of R_1 R_2ᵀ, which stays accurate, and small, where N ≤ D
    makes a covariance singular. Its derivative by C_2 is ½ R_1ᵀ A^(−½) R_1 with A = R_1 C_2 R_1ᵀ, on whose range
    A^(−½) is taken; so of a sample that lies d off the mean μ_2

        ψ = 2 d·(μ_2 − μ_1) + |d|² − |A^(−¼) R_1 d|²
    """
    x, y = (matrix.cpu() for matrix in feature_pair(("real", real), ("fake", fake), at_least=2))
    weights = once(len(y)) if weights is None else weights
    apart, root, off = y.mean(dim=0) - x.mean(dim=0), _factor(x - x.mean(dim=0)), y - y.mean(dim=0)
    factor = _factor(off)
    squared = apart.square().sum() + root.square().sum() + factor.square().sum()
    squared -= 2 * torch.linalg.svdvals(root @ factor.T).sum()
    value = squared.clamp(min=0)  # a squared distance, up to round-off
    if len(weights) == 1:
        return value.view(1)
    across = root @ off.T / (len(y) - 1) ** 0.5
    eigenvalues, vectors = torch.linalg.eigh(across @ across.T)
    there = eigenvalues > SINGULAR * eigenvalues[-1]
    shares = (vectors[:, there].T @ across).square() / eigenvalues[there, None].sqrt()
    influence = 2 * off @ apart + off.square().sum(dim=1) - (len(y) - 1) * shares.sum(dim=0)
    return _to_first_order(value, influence, weights)


def _to_first_order(value: Tensor, influence: Tensor, weights: Tensor) -> Tensor:
    """The value for the first row of weights, and moved by the influences (M,) as each further row counts them."""
    moved = weights[1:] @ (influence - influence.mean()) / len(influence)
    return torch.cat([value.view(1), value + moved])


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
    """MMD² (R,), with ψ_i = 2 (E k(y_i, y') − E k(y_i, x)). Raises `ValueError` on fewer than two samples, different D,
    or non-finite features."""
    x, y = (matrix.cpu() for matrix in feature_pair(("real", real), ("fake", fake), at_least=2))

    def within(points: Tensor) -> Tensor:
        """Mean of k over each point's others, (N,)."""
        if not unbiased:
            return _mean_kernel(kernel, points, points)
        own = torch.cat([kernel(some, some).diagonal() for some in points.split(CHUNK)])
        return (len(points) * _mean_kernel(kernel, points, points) - own) / (len(points) - 1)

    near, across = within(y), _mean_kernel(kernel, y, x)
    value = within(x).mean() + near.mean() - 2 * across.mean()
    return _to_first_order(value, 2 * (near - across), once(len(y)) if weights is None else weights)


def _mean_kernel(kernel: Kernel, x: Tensor, y: Tensor) -> Tensor:
    """Mean of k(x_i, y_j) over j, (N,)."""
    return torch.cat([kernel(rows, y).mean(dim=1) for rows in x.split(CHUNK)])


def _factor(centred: Tensor) -> Tensor:
    """R (min(N, D), D) with Rᵀ R the unbiased covariance of centred features (N, D)."""
    return torch.linalg.qr(centred, mode="r").R / (len(centred) - 1) ** 0.5
