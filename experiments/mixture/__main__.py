"""Fixed points of squared-L2 students of several solvers on several schedules: `python -m experiments.mixture`.

Prints a table and writes results.json: for each data distribution, schedule and solver of first order, Wasserstein-1
distance to the data and standard deviation (the data's is 1) of samples in 1, 2 and 4 steps, mean over seeds.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from experiments.mixture import fixed_point
from experiments.mixture.fixed_point import HEAVY_TAILS, THREE_MODES, FixedPoint, wasserstein

from scott.diffusion import DiscreteSchedule, FlowSchedule, JumpGrid, NoiseSchedule
from scott.solvers import make

DATA = {"three modes": THREE_MODES, "heavy tails": HEAVY_TAILS}
SCHEDULES: dict[str, NoiseSchedule] = {
    "sd": DiscreteSchedule.stable_diffusion(),
    "pixart": DiscreteSchedule("linear", 0.0001, 0.02),
    "flow, shift 3": FlowSchedule(3.0),
}
SOLVERS = {
    "ode": ("ddim", {"eta": 0.0}),
    "ddim, η .1": ("ddim", {"eta": 0.1}),
    "ddim, η .2": ("ddim", {"eta": 0.2}),
    "ddim, η .6": ("ddim", {"eta": 0.6}),
    "dpmpp-sde, η .2": ("dpmpp-sde", {"eta": 0.2, "order": 1}),
    "er-sde 5": ("er-sde", {"phi": "5", "order": 1}),
}
STEPS = (1, 2, 4)
RESULTS = Path(__file__).with_name("results.json")


@dataclass
class Mixture:
    """Compute the fixed points."""

    seeds: int = 10
    samples: int = 100_000
    out: Path = RESULTS

    def run(self) -> None:
        rows = []
        print("| data | schedule | solver | " + " | ".join(f"{n} steps: W1 (std)" for n in STEPS) + " |")  # noqa: T201
        print("|---" * (3 + len(STEPS)) + "|")  # noqa: T201
        for data_name, data in DATA.items():
            for schedule_name, schedule in SCHEDULES.items():
                for solver_name, (name, options) in SOLVERS.items():
                    point = FixedPoint(data, make(name, schedule, **options), JumpGrid(schedule))
                    row = {"data": data_name, "schedule": schedule_name, "solver": solver_name}
                    row |= {str(steps): self._measure(point, steps) for steps in STEPS}
                    rows.append(row)
                    cells = " | ".join(f"{row[str(n)]['w1']:.3f} ({row[str(n)]['std']:.3f})" for n in STEPS)
                    print(f"| {data_name} | {schedule_name} | {solver_name} | {cells} |", flush=True)  # noqa: T201
        floors = {name: self._floor(data) for name, data in DATA.items()}
        print(", ".join(f"{name}: two samples of the data are {w1:.4f} apart" for name, w1 in floors.items()))  # noqa: T201
        results = {"seeds": self.seeds, "samples": self.samples, "floors": floors, "rows": rows}
        self.out.write_text(json.dumps(results, indent=1) + "\n")

    def _floor(self, data: fixed_point.Mixture) -> float:
        rngs = [np.random.default_rng([seed, 0]) for seed in range(self.seeds)]
        return float(np.mean([wasserstein(*(data.sample(self.samples, rng) for _ in range(2))) for rng in rngs]))

    def _measure(self, point: FixedPoint, steps: int) -> dict[str, float]:
        """Means over seeds, and the range of W1."""
        w1, std = [], []
        for seed in range(self.seeds):
            rng = np.random.default_rng([seed, steps])
            samples = point.sample(steps, self.samples, rng)
            w1.append(wasserstein(samples, point.data.sample(self.samples, rng)))
            std.append(float(samples.std()))
        return {"w1": float(np.mean(w1)), "w1_low": min(w1), "w1_high": max(w1), "std": float(np.mean(std))}


if __name__ == "__main__":
    tyro.cli(Mixture).run()
