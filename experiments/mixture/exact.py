"""What is computed without training: fixed points of solvers, their order in the step size, and their closed form."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from experiments.mixture.closed_form import shrinkage
from experiments.mixture.data import GAUSSIAN, HEAVY_TAILS, THREE_MODES, Mixture
from experiments.mixture.fixed_point import FixedPoint

from scott.diffusion import DiscreteSchedule, FlowSchedule, JumpGrid, NoiseSchedule
from scott.solvers import make

Row = dict[str, Any]
Solvers = dict[str, tuple[str, dict[str, Any]]]
"""Name in the tables → that of `make` and its options."""
SD = DiscreteSchedule.stable_diffusion()
DATA = {"three modes": THREE_MODES, "heavy tails": HEAVY_TAILS}
SCHEDULES: dict[str, NoiseSchedule] = {
    "sd": SD,
    "pixart": DiscreteSchedule("linear", 0.0001, 0.02),
    "flow, shift 3": FlowSchedule(3.0),
}
FIRST_ORDER: Solvers = {
    "ode": ("ddim", {"eta": 0.0}),
    "ddim, η .1": ("ddim", {"eta": 0.1}),
    "ddim, η .2": ("ddim", {"eta": 0.2}),
    "ddim, η .6": ("ddim", {"eta": 0.6}),
    "dpmpp-sde, η .02": ("dpmpp-sde", {"eta": 0.02, "order": 1}),
    "dpmpp-sde, η .2": ("dpmpp-sde", {"eta": 0.2, "order": 1}),
    "er-sde 5": ("er-sde", {"phi": "5", "order": 1}),
}
HIGHER_ORDER: Solvers = {
    "ode, order 2": ("dpmpp-sde", {"eta": 0.0, "order": 2}),
    "dpmpp-sde, η .2, order 2": ("dpmpp-sde", {"eta": 0.2, "order": 2}),
    "er-sde ode, order 2": ("er-sde", {"phi": "ode", "order": 2}),
    "er-sde 5, order 2": ("er-sde", {"phi": "5", "order": 2}),
    "er-sde 5, order 3": ("er-sde", {"phi": "5", "order": 3}),
}
STEPS = (1, 2, 4)
JUMPS = ((8, 1), (24, 3), (24, 2), (24, 1), (20, 1), (60, 3), (100, 1), (300, 3), (250, 1))
GAMMAS = (1.0, 0.7, 0.5, 0.0)
SPACINGS = (10, 20, 40, 50, 100)
THRESHOLDS = torch.linspace(-4, 5, 301, dtype=torch.float64)
LAW_SAMPLES = 20_000


def measured(point: FixedPoint, steps: int, seeds: int, samples: int, gamma: float = 1.0) -> Row:
    """W1 to the data and standard deviation of samples: means over seeds, and the least and the largest W1."""
    w1, std = [], []
    for seed in range(seeds):
        drawn = point.sample(steps, samples, torch.Generator().manual_seed(1000 * seed + steps), gamma)
        w1.append(point.data.wasserstein(drawn))
        std.append(drawn.std().item())
    return {"w1": float(np.mean(w1)), "low": min(w1), "high": max(w1), "std": float(np.mean(std))}


def floor(data: Mixture, seeds: int, samples: int) -> float:
    """W1 of the data's own samples."""
    drawn = (data.sample(samples, torch.Generator().manual_seed(seed))[:, 0] for seed in range(seeds))
    return float(np.mean([data.wasserstein(one) for one in drawn]))


def fixed_points(seeds: int, samples: int, there: list[Row]) -> Iterator[Row]:
    """Data x schedule x solver on the paper's grid, but those that are there; and on three modes energy scores."""
    done = {_key(row) for row in there}
    for data_name, data in DATA.items():
        row: Row = {"data": data_name, "schedule": "–", "solver": "samples of the data"}
        if _key(row) not in done:
            yield row | {"w1": floor(data, seeds, samples)}
        for schedule_name, schedule in SCHEDULES.items():
            for name, (kind, options) in (FIRST_ORDER | {"ode, order 2": HIGHER_ORDER["ode, order 2"]}).items():
                scored = data_name == "three modes" and name in ("ddim, η .2", "er-sde 5")
                for thresholds in (None, THRESHOLDS) if scored else (None,):
                    row = {"data": data_name, "schedule": schedule_name, "solver": name}
                    row["loss"] = "L2" if thresholds is None else "energy score"
                    if _key(row) in done:
                        continue
                    point = FixedPoint(data, make(kind, schedule, **options), JumpGrid(schedule), thresholds)
                    count = samples if thresholds is None else LAW_SAMPLES
                    yield row | {str(steps): measured(point, steps, seeds, count) for steps in STEPS}


def _key(row: Row) -> tuple[str | None, ...]:
    return tuple(row.get(name) for name in ("data", "schedule", "solver", "loss"))


def jumps(seeds: int, samples: int) -> Iterator[Row]:
    """Jump x h on SD's schedule, three modes, in 1 and 4 steps."""
    solvers = {name: FIRST_ORDER[name] for name in ("ode", "ddim, η .2", "er-sde 5")}
    solvers |= {name: HIGHER_ORDER[name] for name in ("ode, order 2", "er-sde 5, order 2")}
    for jump, substeps in JUMPS:
        grid = JumpGrid(SD, jump, substeps)
        row: Row = {"jump": jump, "h": substeps, "spacing": grid.spacing}
        for name, (kind, options) in solvers.items():
            point = FixedPoint(THREE_MODES, make(kind, SD, **options), grid)
            row[name] = {str(steps): measured(point, steps, seeds, samples) for steps in (1, 4)}
        yield row


def kept(seeds: int, samples: int) -> Iterator[Row]:
    """Data x solver x γ on SD's schedule, in 2 and 4 steps: on the paper's grid, and the ODE on the recipe `mini`'s."""
    paper, ours = JumpGrid(SD), JumpGrid(SD, 100, 1)
    for data_name, data in DATA.items():
        for name, grid in (("ode", paper), ("ode", ours), ("ddim, η .2", paper), ("er-sde 5", paper)):
            kind, options = FIRST_ORDER[name]
            point = FixedPoint(data, make(kind, SD, **options), grid)
            row: Row = {"data": data_name, "solver": name, "jump": grid.jump, "h": grid.substeps}
            for gamma in GAMMAS:
                figures = {str(steps): measured(point, steps, seeds, samples, gamma) for steps in (2, 4)}
                yield row | {"gamma": gamma} | figures


def orders() -> Iterator[Row]:
    """Theorem 1 for each solver: the error of its student at t = 999 as the step size falls, and its log-log slope.

    sup |f − f*| over the central 99.9 % of p_T, where f* is the exact consistency function: the whole way from clean
    data; and from t = 199 on, f* being given below, which leaves out the step onto clean data that no solver makes to
    a higher order. For some also the W1 of the energy-score student's one-step law on p_T.
    """
    for name, (kind, options) in (FIRST_ORDER | HIGHER_ORDER).items():
        solver = make(kind, SD, **options)
        laws, many_noises = name in ("ode", "ddim, η .2", "er-sde 5"), solver.stochastic and solver.memory > 0
        row: Row = {"solver": name, "spacings": SPACINGS, "whole": [], "above": [], "law": []}
        for spacing in SPACINGS:
            grid = JumpGrid(SD, 3 * spacing, 3)
            row["whole"].append(_error(FixedPoint(THREE_MODES, solver, grid)))
            if not many_noises:  # which takes as long as all the rest
                row["above"].append(_error(FixedPoint(THREE_MODES, solver, grid, anchor=200 // spacing)))
            if laws:
                row["law"].append(_law_error(FixedPoint(THREE_MODES, solver, grid, THRESHOLDS)))
        for part in ("whole", "above", "law"):
            row[f"{part}_slope"] = slope(SPACINGS, row[part]) if row[part] else None
        yield row


def slope(sizes: tuple[int, ...], errors: list[float]) -> float:
    """Of log error over log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def _error(point: FixedPoint) -> float:
    states, exact = point.states[-1], point.exact(len(point.states) - 1)
    return (point.values[-1][:, 0] - exact)[states.abs() < 3.29].abs().max().item()


def _law_error(point: FixedPoint) -> float:
    """∫ |F − F_0| dc for F the law of f(x, ·), x ~ p_T."""
    states, (alpha, sigma) = point.states[-1], point.levels(len(point.states) - 1)
    below, _ = point.data.log_cdf(states, alpha, sigma)
    mass = torch.diff(below.exp(), prepend=torch.zeros(1, dtype=torch.float64))
    middle = (point.values[-1] + point.values[-1].roll(1, 0)) / 2  # at a cell's middle; the first cell has no mass
    law = mass @ middle
    return torch.trapezoid((law - point.data.log_cdf(THRESHOLDS)[0].exp()).abs(), THRESHOLDS).item()


def gaussian() -> Iterator[Row]:
    """The closed form of the shrinkage, on the grid whose lowest sub-steps are 7 → 0 → data and on ours (7 → data), and
    the dynamic programming beside it."""
    solvers: Solvers = {f"ddim, η {eta}": ("ddim", {"eta": eta}) for eta in (0.0, 0.1, 0.2, 0.3, 0.6, 1.0)}
    solvers["er-sde 5"] = FIRST_ORDER["er-sde 5"]
    grid = JumpGrid(SD)
    with_zero = torch.cat([grid.times[:1], torch.zeros(1, dtype=grid.times.dtype), grid.times[1:]])
    for name, (kind, options) in solvers.items():
        solver = make(kind, SD, **options)
        row: Row = {"solver": name}
        for spread in (1.0, 0.5, 0.2):
            row[f"with 0, s = {spread}"] = shrinkage(solver, with_zero, spread)
            row[f"s = {spread}"] = shrinkage(solver, grid.times, spread)
        point = FixedPoint(GAUSSIAN, solver, grid)
        values, states = point.values[-1][:, 0], point.states[-1]
        yield row | {"programmed, s = 1.0": ((values[-1] - values[0]) / (states[-1] - states[0])).item()}
