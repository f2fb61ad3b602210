"""Coverage: how much of the real data the fakes reach (Naeem et al. 2020, arXiv 2002.09797).

A real point is covered when its nearest fake is closer than its k-th nearest other real point. A sampler
that drops modes leaves the real points there uncovered, whatever the quality of the rest.
"""

import torch

from scott.evaluation.features import Matrix, feature_pair


def coverage(real: Matrix, fake: Matrix, k: int = 5, *, chunk_size: int = 1024) -> float:
    """Share of the real points (N, D) that the fakes (M, D) cover, in [0, 1]; Euclidean distances in float64.

    `chunk_size` real points are compared at a time, which bounds memory and does not change the result.
    Raises `ValueError` unless 1 ≤ k < N, and on different D or non-finite features.
    """
    real_points, fake_points = feature_pair(("real", real), ("fake", fake))
    n = len(real_points)
    if not 1 <= k < n:
        raise ValueError(f"got k = {k} with {n} real points, expected 1 ≤ k < {n}")
    # The matrix-product form of cdist loses the exact zeros and ties on which "closer than" turns.
    exact = "donot_use_mm_for_euclid_dist"
    covered = 0
    for start in range(0, n, chunk_size):
        points = real_points[start : start + chunk_size]
        to_real = torch.cdist(points, real_points, compute_mode=exact)
        to_real.diagonal(start).fill_(torch.inf)
        radius = to_real.kthvalue(k, dim=1).values
        nearest_fake = torch.cdist(points, fake_points, compute_mode=exact).amin(dim=1)
        covered += int((nearest_fake < radius).sum())
    return covered / n
