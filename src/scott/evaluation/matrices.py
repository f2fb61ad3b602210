"""Feature matrices (N, D), one row a sample, and resamples of them: what every metric of this room reads."""

import numpy as np
import torch
from torch import Tensor

Matrix = Tensor | np.ndarray


def feature_matrix(name: str, values: Matrix, *, at_least: int = 1) -> Tensor:
    """`values` as a float64 tensor (N, D), detached, on the device it was on.

    `name` is what the messages call it. Raises `ValueError` unless the shape is (N ≥ `at_least`, D ≥ 1) and
    every entry is finite.
    """
    matrix = torch.as_tensor(values).detach().to(torch.float64)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(f"{name} features: got shape {tuple(matrix.shape)}, expected (N, D)")
    if len(matrix) < at_least:
        raise ValueError(f"{name} features: got {len(matrix)} samples, expected at least {at_least}")
    if not torch.isfinite(matrix).all():
        bad = (~torch.isfinite(matrix)).any(dim=1).sum().item()
        raise ValueError(f"{name} features: {bad} of {len(matrix)} samples have a non-finite entry")
    return matrix


def feature_pair(a: tuple[str, Matrix], b: tuple[str, Matrix], *, at_least: int = 1) -> tuple[Tensor, Tensor]:
    """Two named matrices through `feature_matrix`; `ValueError` when they differ in D."""
    first, second = feature_matrix(*a, at_least=at_least), feature_matrix(*b, at_least=at_least)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"{a[0]} features have D = {first.shape[1]}, {b[0]} features D = {second.shape[1]}")
    return first, second


def once(count: int) -> Tensor:
    """The weights (1, `count`) of a sample as it is."""
    return torch.ones(1, count, dtype=torch.float64)


def resamples(count: int, replicates: int) -> Tensor:
    """Weights (1 + `replicates`, `count`): the sample as it is, then bootstrap resamples, as how often each is drawn.

    A metric that takes weights gives a value for each row of them (Efron 1979), and computes distances only once.
    """
    counts = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=replicates)
    return torch.cat([once(count), torch.from_numpy(counts).double()])


def halves(count: int, replicates: int) -> Tensor:
    """Which samples each half has, (1 + `replicates`, `count`): all, then half of them without replacement.

    A figure of N samples scatters as its halves do: one of n drawn out of N has the variance σ² / n (1 − n / N). No
    sample is there twice, which a figure of the distances among them would notice.
    """
    order = np.random.default_rng(1).permuted(np.tile(np.arange(count), (replicates, 1)), axis=1)
    return torch.cat([torch.ones(1, count, dtype=torch.bool), torch.from_numpy(order < count // 2)])
