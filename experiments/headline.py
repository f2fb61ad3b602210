"""The comparison in a few figures, from its results: `python -m experiments.headline --json`.

With FID and coverage in 2 steps at one budget of CPU time, seed by seed,

    gap_closed_equal_…       = (LCM − ours) / (LCM − teacher)           of FID
    coverage_closed_equal_…  = (ours − LCM) / (teacher − LCM)           of coverage
    excess_ratio_n           = (ours in n steps − floor) / (teacher − floor)   of FID
    excess_ratio_instaflow_1, excess_ratio_ufogen_1, …_4     the same of those, where they were trained

where LCM is the better in 2 steps of those with a rate that stays and one that falls, where both were trained, the
teacher makes 50 steps, and the floor is real pictures against real ones, all of as many samples, since their
number biases FID. A figure is the mean over the seeds that all three runs of ours and LCM's have, its interval
Student's t of 95 %, and null of a single seed. `devices` are those that the three runs were trained on.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import tyro
from experiments.comparison.rows import Features, Row, read_rows
from experiments.results import insert, mean_interval, table
from rich.console import Console

from scott.errors import UserError

RESULTS = Path(__file__).parent / "comparison" / "results.jsonl"
LCM = ("lcm", "lcm-settles")
RIVALS = (("instaflow", 1), ("ufogen", 1), ("ufogen", 4))
"""(method, steps) of experiments/baselines, as their papers draw."""
SUMMARY = {
    "gap in FID, equal updates": ("gap_closed_equal_updates", "{:.0%}"),
    "gap in FID, equal time": ("gap_closed_equal_time", "{:.0%}"),
    "gap in coverage, equal updates": ("coverage_closed_equal_updates", "{:.0%}"),
    "excess, 2 steps": ("excess_ratio_2", "{:.2f}"),
    "excess, 4 steps": ("excess_ratio_4", "{:.2f}"),
}
"""Column → figure, and how it is written."""
NETWORKS: dict[Features, str] = {"mini": "Mini-CLIP", "efficientnet": "EfficientNet-Lite0"}
Figures = dict[str, Any]


def headline(
    rows: list[Row], budget: float | None = None, scenes: int | None = None, features: Features = "mini"
) -> Figures:
    """The figures and their intervals, at `budget` or at the largest that has all runs of a seed, of `scenes` or of the
    most that it has them of, and of the most samples, by one network.

    Raises:
        UserError: no seed has all three runs, the teacher or the floor is not there, or there is no gap to close.
    """
    rows = [row for row in rows if row.features == features]
    by_run = {(row.run, row.scenes, row.samples, row.steps): row for row in rows}
    runs = {run for run in _whole(rows) if budget in (None, run[0]) and scenes in (None, run[1])}
    if not runs:
        raise UserError("no seed has ours, lcm and lcm at equal updates; run python -m experiments.comparison")
    at, scenes, samples, _ = max(runs)
    seeds = sorted(seed for *same, seed in runs if same == [at, scenes, samples])
    floor, teacher = _one(rows, "real", 0, samples), _one(rows, "teacher", 50, samples)

    def of(method: str, matched: str, seed: int, steps: int = 2) -> Row:
        return by_run[(method, matched, at, seed), scenes, samples, steps]

    def lcm(matched: str, seed: int) -> Row:
        runs = [((method, matched, at, seed), scenes, samples, 2) for method in LCM]
        return min((by_run[run] for run in runs if run in by_run), key=lambda row: row.fid)

    per_seed: dict[str, list[float]] = {}
    devices: set[str] = set()
    for seed in seeds:
        ours, timed, updated = of("ours", "time", seed), lcm("time", seed), lcm("updates", seed)
        devices |= {row.device for row in (ours, timed, updated)}
        excess = teacher.fid - floor.fid
        if not (min(timed.fid, updated.fid) > teacher.fid > floor.fid and teacher.coverage > updated.coverage):
            raise UserError(f"LCM's or the teacher's figures of seed {seed} leave no gap, of which there were a share")
        for name, value in {
            "gap_closed_equal_updates": (updated.fid - ours.fid) / (updated.fid - teacher.fid),
            "gap_closed_equal_time": (timed.fid - ours.fid) / (timed.fid - teacher.fid),
            "coverage_closed_equal_updates": (ours.coverage - updated.coverage) / (teacher.coverage - updated.coverage),
            "excess_ratio_2": (ours.fid - floor.fid) / excess,
            "excess_ratio_4": (of("ours", "time", seed, 4).fid - floor.fid) / excess,
        }.items():
            per_seed.setdefault(name, []).append(value)
        for method, steps in RIVALS:
            if row := by_run.get(((method, "time", at, seed), scenes, samples, steps)):
                per_seed.setdefault(f"excess_ratio_{method}_{steps}", []).append((row.fid - floor.fid) / excess)
    figures: Figures = {"budget": at, "scenes": scenes, "samples": samples, "seeds": len(seeds)}
    figures["devices"] = ", ".join(sorted(devices))
    for name, values in per_seed.items():
        ends = mean_interval(values) if len(values) > 1 else None
        figures |= {name: mean(values), f"{name}_interval": ends}
    return figures


def summary(rows: list[Row]) -> str:
    """Of each network, budget and number of scenes that has all runs of a seed, a line of a Markdown table, which names
    the devices where its students were not all trained on one."""
    lines = []
    for features, network in NETWORKS.items():
        there = _whole([row for row in rows if row.features == features])
        for budget, scenes in sorted({run[:2] for run in there}, key=lambda run: run[::-1]):
            found = headline(rows, budget, scenes, features)
            mixed = f" ({found['devices']})" if "," in found["devices"] else ""
            trained = [f"{budget:g}{mixed}", f"{scenes:,}", found["seeds"], f"{found['samples']:,}", network]
            lines.append([*trained, *(_shown(found, name, form) for name, form in SUMMARY.values())])
    return table(["core-minutes", "scenes", "seeds", "captions", "features", *SUMMARY], lines)


def _whole(rows: list[Row]) -> set[tuple[float, int, int, int]]:
    """(budget, scenes, samples, seed) of which there are ours and both of LCM's."""
    there = {(row.run, row.scenes, row.samples, row.steps) for row in rows}
    wanted = [("ours", "time", 2), ("ours", "time", 4), ("lcm", "time", 2), ("lcm", "updates", 2)]
    runs = {(row.budget, row.scenes, row.samples, row.seed) for row in rows}
    return {
        (budget, scenes, samples, seed)
        for budget, scenes, samples, seed in runs
        if there.issuperset(((*run, budget, seed), scenes, samples, steps) for *run, steps in wanted)
    }


def _shown(figures: Figures, name: str, form: str) -> str:
    """To hundredths, and no zero below zero."""
    value, *ends = (form.format(round(one, 2) + 0.0) for one in (figures[name], *(figures[f"{name}_interval"] or ())))
    return value + (f" ({ends[0]} to {ends[1]})" if ends else "")


def _one(rows: list[Row], method: str, steps: int, samples: int) -> Row:
    found = [row for row in rows if (row.method, row.steps, row.samples) == (method, steps, samples)]
    if not found:
        raise UserError(f"the results have no {method} of {samples:,} samples; run python -m experiments.comparison")
    return found[0]


@dataclass
class Headline:
    """Print the figures, or write the table of them into pages."""

    json: bool = False
    """As JSON."""
    budget: float | None = None
    """Core-minutes; the largest there is, if left out."""
    scenes: int | None = None
    """That the students learnt from; the most there are, if left out."""
    features: Features = "mini"
    """By which network."""
    results: Path = RESULTS
    update: tuple[Path, ...] = ()
    """Pages with `<!-- headline -->` and `<!-- end of headline -->`, between which the table of all budgets is."""


def main(options: Headline) -> int:
    try:
        if not options.results.is_file():
            raise UserError(f"there are no results at {options.results}; run python -m experiments.comparison")
        rows = read_rows(options.results)
        for page in options.update:
            insert(page, "headline", summary(rows))
        figures = headline(rows, options.budget, options.scenes, options.features)
    except UserError as error:
        Console(stderr=True, soft_wrap=True).print(str(error), markup=False)
        return 2
    console = Console(soft_wrap=True)
    if options.json:
        console.print_json(json.dumps(figures))
    else:
        for name, value in figures.items():
            console.print(f"{name}: {value}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Headline, description=__doc__)))
