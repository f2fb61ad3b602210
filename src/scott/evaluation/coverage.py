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


def expected_coverage(n_real: int, n_fake: int, k: int = 5) -> float:
    """E[coverage] when real and fake come from one continuous distribution: the value of a perfect sampler.

    A real point is left uncovered when its k nearest among the other N − 1 real and the M fake points are
    all real. All orders being equally likely, that has probability C(N − 1, k) / C(N + M − 1, k) in any
    dimension, so

        E = 1 − Π_{j=1..k} (N − j) / (N + M − j),

    0.969 for N = M = 5,000 and k = 5. Raises `ValueError` unless 1 ≤ k < N and M ≥ 1.
    """
    if not 1 <= k < n_real or n_fake < 1:
        raise ValueError(f"got N = {n_real}, M = {n_fake}, k = {k}, expected 1 ≤ k < N and M ≥ 1")
    uncovered = 1.0
    for j in range(1, k + 1):
        uncovered *= (n_real - j) / (n_real + n_fake - j)
    return 1 - uncovered
