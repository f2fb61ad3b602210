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

from scott.evaluation.matrices import Matrix, feature_pair, halves, once

NEAREST, BALL = 5, 3
"""k of coverage and density, and of precision and recall."""
NAMES = ("precision", "recall", "density", "coverage")
CHUNK = 1024
"""Points that are compared with all others at a time, which bounds memory."""
NEAR = 40
"""Neighbours of which three are in a half, but for one point in 10^9."""
TIE, EQUAL = 1e-9, 1e-12
"""Relative, of squared distances in float64: within `TIE` two are the same, and below `EQUAL` of both lengths two
points are. What a copy of a real point counts for turns on ties."""


def coverage(real: Matrix, fake: Matrix, k: int = NEAREST) -> float:
    """Share of the real points (N, D) that the fakes (M, D) cover, in [0, 1]; see `neighbours`.

    Raises `ValueError` unless 1 ≤ k < N, and on different D or non-finite features.
    """
    return neighbours(real, fake, only=("coverage",), k=k)["coverage"].item()


def neighbours(
    real: Matrix,
    fake: Matrix,
    weights: Tensor | None = None,
    *,
    only: Collection[str] = NAMES,
    k: int = NEAREST,
) -> dict[str, Tensor]:
    """Each metric of `only`, (R,), for R rows of weights of the fakes (`matrices.resamples`); Euclidean, in float64.

    A resample keeps the balls, which are real points'. Recall's are the fakes' own, and scatter with them: its further
    values are of halves of the fakes (`matrices.halves`), with balls within each; NaN where those are of three or
    fewer.
    Raises `ValueError` unless k < N and 3 < N, M where it counts, and on different D or non-finite features.
    """
    x, y = feature_pair(("real", real), ("fake", fake))
    counts = (once(len(y)) if weights is None else weights).to(x)
    centre = x.mean(dim=0)
    x, y = x - centre, y - centre  # so that the product in `_squared` cancels little
    of_real = [*([k] if {"coverage", "density"} & set(only) else []), *([BALL] if "precision" in only else [])]
    balls = _radii(x, of_real)
    theirs = _balls_of_halves(y, len(counts) - 1) if "recall" in only else y[:0]
    covered, recalled = (torch.zeros(len(counts), device=x.device, dtype=x.dtype) for _ in range(2))
    holding, inside = torch.zeros_like(y[:, 0]), torch.zeros_like(y[:, 0], dtype=torch.bool)
    for start in range(0, len(x), CHUNK):
        rows = slice(start, start + CHUNK)
        squared = _squared(x[rows], y)
        if {"coverage", "density"} & set(only):
            closer = (squared < balls[k][rows, None] * (1 - TIE)).to(x)
            covered += (closer @ counts.T > 0).sum(dim=0)
            holding += closer.sum(dim=0)
        if "precision" in only:
            inside |= (squared <= balls[BALL][rows, None] * (1 + TIE)).any(dim=0)
        for index, reach in enumerate(theirs):
            recalled[index] += (squared <= reach * (1 + TIE)).any(dim=1).sum()
    if "recall" in only:
        recalled[theirs.isnan().any(dim=1)] = torch.nan
    found = {
        "precision": counts @ inside.to(x) / len(y),
        "recall": recalled / len(x),
        "density": counts @ holding / (k * len(y)),
        "coverage": covered / len(x),
    }
    return {name: found[name].cpu() for name in only}


def _balls_of_halves(y: Tensor, replicates: int) -> Tensor:
    """Squared radii (1 + R, M) of the balls of all fakes and of those of each half, −1 where a fake is not in it.

    A half has about every other of a point's neighbours: of more than `NEAR` none is needed.
    """
    _check_k(BALL, "fake", len(y))
    parts = [_nearest(y, start, min(NEAR, len(y) - 1)) for start in range(0, len(y), CHUNK)]
    squared, order = (torch.cat(part) for part in zip(*parts, strict=True))
    reach = []
    for half in halves(len(y), replicates).to(y.device):
        place = (half[order].cumsum(dim=1) < BALL).sum(dim=1, keepdim=True)  # of the third that is in the half
        found = squared.gather(1, place.clamp(max=squared.shape[1] - 1)).squeeze(1)
        reach.append(torch.where(half, found, -1.0) if half.sum() > BALL else torch.full_like(found, torch.nan))
    return torch.stack(reach)


def _check_k(k: int, name: str, n: int) -> None:
    if not 1 <= k < n:
        raise ValueError(f"got k = {k} with {n} {name} points, expected 1 ≤ k < {n}")


def _nearest(points: Tensor, start: int, k: int) -> tuple[Tensor, Tensor]:
    """Of `CHUNK` points from `start` on: squared distances (n, k) to their nearest others, ascending, and which
    these are."""
    squared = _squared(points[start : start + CHUNK], points)
    squared.diagonal(start).fill_(torch.inf)
    found = squared.topk(k, largest=False)
    return found.values, found.indices


def _radii(points: Tensor, ks: Collection[int]) -> dict[int, Tensor]:
    """k → squared distance of each point to its k-th nearest other point, (N,)."""
    for k in ks:
        _check_k(k, "real", len(points))
    starts = range(0, len(points) if ks else 0, CHUNK)
    parts = [_nearest(points, start, max(ks))[0] for start in starts]
    return {k: torch.cat(parts)[:, k - 1] for k in ks}


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """‖a_i − b_j‖², by a matrix product; 0 of equal points, which round-off would leave a little beside it."""
    lengths = a.square().sum(1, keepdim=True) + b.square().sum(1)
    squared = torch.addmm(lengths, a, b.T, alpha=-2)
    return squared.masked_fill_(squared < EQUAL * lengths, 0)
