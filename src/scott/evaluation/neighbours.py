"""Metrics of nearest neighbours: how much of the real data the fakes reach, and how many of them lie within it.

    coverage     share of the real points whose nearest fake is closer than their k-th other real point
    density      mean over the fakes of (real balls that hold it) / k
    precision    share of the fakes that lie in a real ball
    recall       share of the real points that lie in a fake's ball

A ball reaches to a point's k-th nearest other point of its own set. Coverage and density: k = 5, strictly inside (Naeem
et al. 2020, arXiv 2002.09797); precision and recall: k = 3, border included (Kynkäänniemi et al. 2019, arXiv
1904.06991). A sampler that drops modes leaves the real points there uncovered, whatever the quality of the rest.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from scott.evaluation.matrices import Matrix, feature_pair, once

NEAREST, BALL = 5, 3
"""k of coverage and density, and of precision and recall."""
NAMES = ("precision", "recall", "density", "coverage")


def coverage(real: Matrix, fake: Matrix, k: int = NEAREST, *, chunk_size: int = 1024) -> float:
    """Share of the real points (N, D) that the fakes (M, D) cover, in [0, 1]; see `neighbours`.

    Raises `ValueError` unless 1 ≤ k < N, and on different D or non-finite features.
    """
    return neighbours(real, fake, only=("coverage",), k=k, chunk_size=chunk_size)["coverage"].item()


def neighbours(
    real: Matrix,
    fake: Matrix,
    weights: Tensor | None = None,
    *,
    only: Collection[str] = NAMES,
    k: int = NEAREST,
    chunk_size: int = 1024,
) -> dict[str, Tensor]:
    """Each metric of `only`, (R,), for R rows of weights of the fakes (`matrices.resamples`); Euclidean, in float64.

    A resample keeps the balls of the sample. `chunk_size` real points are compared at a time, which bounds memory.
    Raises `ValueError` unless k < N and 3 < N, M where it counts, and on different D or non-finite features.
    """
    x, y = feature_pair(("real", real), ("fake", fake))
    counts = (once(len(y)) if weights is None else weights).to(x)
    near = _radii("real", x, k, chunk_size) if {"coverage", "density"} & set(only) else None
    ball = _radii("real", x, BALL, chunk_size) if "precision" in only else None
    theirs = _radii("fake", y, BALL, chunk_size) if "recall" in only else None
    covered, recalled = (torch.zeros(len(counts), device=x.device, dtype=x.dtype) for _ in range(2))
    holding, inside = torch.zeros_like(y[:, 0]), torch.zeros_like(y[:, 0], dtype=torch.bool)
    for start in range(0, len(x), chunk_size):
        rows = slice(start, start + chunk_size)
        distance = _distances(x[rows], y)
        if near is not None:
            closer = (distance < near[rows, None]).to(x)
            covered += (closer @ counts.T > 0).sum(dim=0)
            holding += closer.sum(dim=0)
        if ball is not None:
            inside |= (distance <= ball[rows, None]).any(dim=0)
        if theirs is not None:
            recalled += ((distance <= theirs).to(x) @ counts.T > 0).sum(dim=0)
    found = {
        "precision": counts @ inside.to(x) / len(y),
        "recall": recalled / len(x),
        "density": counts @ holding / (k * len(y)),
        "coverage": covered / len(x),
    }
    return {name: found[name].cpu() for name in only}


def _radii(name: str, points: Tensor, k: int, chunk_size: int) -> Tensor:
    """Distance of each point to its k-th nearest other point, (N,)."""
    n = len(points)
    if not 1 <= k < n:
        raise ValueError(f"got k = {k} with {n} {name} points, expected 1 ≤ k < {n}")
    parts = []
    for start in range(0, n, chunk_size):
        distance = _distances(points[start : start + chunk_size], points)
        distance.diagonal(start).fill_(torch.inf)
        parts.append(distance.kthvalue(k, dim=1).values)
    return torch.cat(parts)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """The matrix-product form of cdist loses the exact zeros and ties on which "closer than" turns."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
