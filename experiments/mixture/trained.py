"""Methods against one another on clusters in 2 and 64 dimensions: chosen on validation seeds, measured on others."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from experiments.mixture.data import Mixture, clusters
from experiments.mixture.methods import METHODS, Method, Trial, trials
from experiments.mixture.training import BATCH, SD, Training, strides
from experiments.results import mean_interval
from torch import Tensor

from scott.sampling import sample

Row = dict[str, Any]
DATA: dict[str, tuple[Mixture, int]] = {"2-d": (clusters(2, 6, 0.15), 64), "64-d": (clusters(64, 8, 0.3), 64)}
"""And the width of the networks."""
FLOOR = "samples of the data"
STEPS = (1, 2, 4)
UPDATES = 600
SAMPLES, DIRECTIONS = 1000, 64
VALIDATION_SEEDS = 2


def compared(name: str, methods: Sequence[str], seeds: int, updates: int, there: list[Row]) -> Iterator[Row]:
    """A row for each method that has none there: the trial that was best on validation, and its figures over `seeds`
    others after each quarter of the updates."""
    data, width = DATA[name]
    done = {row["method"] for row in there}
    if FLOOR not in done:
        yield {"method": FLOOR} | _floor(data, seeds)
    for method_name in methods:
        if method_name in done:
            continue
        method = METHODS[method_name]
        tried = trials(method)
        training = Training(method, data, [trial for trial in tried for _ in range(VALIDATION_SEEDS)], width, seed=1)
        training.train(updates, updates)
        w1 = _measured(training, data, seed=2)["2"]["w1"].view(len(tried), -1).mean(1)
        best = tried[int(w1.nan_to_num(math.inf).argmin())]
        yield {"method": method_name} | _tested(method, data, best, width, seeds, updates)


def _tested(method: Method, data: Mixture, trial: Trial, width: int, seeds: int, updates: int) -> Row:
    training = Training(method, data, [trial] * seeds, width, seed=3)
    quarters = []
    for part in strides(updates):
        training.train(part, updates)
        figures = _measured(training, data, seed=4)
        summary = {n: {name: interval(values) for name, values in made.items()} for n, made in figures.items()}
        quarters.append({"updates": training.done, "cpu_seconds": training.cpu_seconds / seeds} | summary)
    return {"rate": trial.rate, "strength": trial.strength, "quarters": quarters}


def _measured(training: Training, data: Mixture, seed: int) -> dict[str, dict[str, Tensor]]:
    """Steps → figure → (S,), of the EMA's samples, each seed's against real ones of its own."""
    generator = torch.Generator().manual_seed(seed)
    count = len(training.strength) // BATCH
    references = [data.sample(4 * SAMPLES, generator) for _ in range(count)]
    figures = {}
    for steps in STEPS:
        noise = torch.randn(count * SAMPLES, data.means.shape[1], generator=generator)
        times = training.grid.inference_times(steps)
        drawn = sample(training.target, SD, noise, None, generator=generator, times=times).double()
        seeds = zip(drawn.view(count, SAMPLES, -1), references, strict=True)
        pairs = [distances(one, reference) for one, reference in seeds]
        figures[str(steps)] = {
            name: torch.tensor(values) for name, values in zip(("w1", "spread"), zip(*pairs, strict=True), strict=True)
        }
    return figures


def distances(drawn: Tensor, reference: Tensor) -> tuple[float, float]:
    """Sliced W1 of drawn (N, D) to reference (4 N, D), and the mean over the reference's principal directions of the
    ratio of their standard deviations."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(reference.shape[1], DIRECTIONS, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=0)
    there = (reference @ directions).sort(0).values.view(len(drawn), 4, -1)
    w1 = ((drawn @ directions).sort(0).values[:, None] - there).abs().mean()
    principal = torch.linalg.svd(reference - reference.mean(0), full_matrices=False).Vh.T
    spread = ((drawn @ principal).std(0) / (reference @ principal).std(0)).mean()
    return w1.item(), spread.item()


def interval(values: Tensor) -> list[float]:
    """Mean and half width of its 95 % interval over seeds."""
    low, high = mean_interval(values.tolist())
    return [values.mean().item(), (high - low) / 2]


def _floor(data: Mixture, seeds: int) -> Row:
    pairs = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        pairs.append(distances(data.sample(SAMPLES, generator), data.sample(4 * SAMPLES, generator)))
    w1, spread = torch.tensor(pairs).T
    return {"w1": interval(w1), "spread": interval(spread)}
