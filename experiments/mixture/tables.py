"""The README's tables, made of the rows in results/."""

from collections.abc import Callable
from typing import Any

import numpy as np
from experiments.mixture.methods import METHODS
from experiments.results import table

Made = dict[str, Any]


def fixed_points(made: Made) -> str:
    rows = []
    for row in made["rows"]:
        cells = [_w1(row[n]) for n in ("1", "2", "4")] if "1" in row else [f"{row['w1']:.4f}"] * 3
        rows.append([row["data"], row["schedule"], row["solver"], row.get("loss", "–"), *cells])
    return table(["data", "schedule", "solver", "loss", "1 step: W1 (std)", "2 steps", "4 steps"], rows)


def jumps(made: Made) -> str:
    solvers = [name for name in made["rows"][0] if name not in ("jump", "h", "spacing")]
    rows = [
        [r["jump"], r["h"], r["spacing"], *(f"{_w1(r[s]['1'])} / {_w1(r[s]['4'])}" for s in solvers)]
        for r in made["rows"]
    ]
    return table(["jump", "h", "sub-step", *(f"{s}: 1 / 4 steps" for s in solvers)], rows)


def kept(made: Made) -> str:
    names = ["data", "solver", "jump", "h"]
    rows = [[*(row[name] for name in names), f"{row['gamma']:g}", _w1(row["2"]), _w1(row["4"])] for row in made["rows"]]
    return table([*names, "γ", "2 steps: W1 (std)", "4 steps"], rows)


def orders(made: Made) -> str:
    spacings = made["rows"][0]["spacings"]
    rows: list[list[object]] = []
    for row in made["rows"]:
        rows += [
            [row["solver"], name, *row[part], f"**{row[f'{part}_slope']:.2f}**"]
            for part, name in (
                ("whole", "L2, from data up"),
                ("above", "L2, above t = 199"),
                ("law", "energy score, W1"),
            )
            if row[part]
        ]
    return table(["solver", "error", *(f"Δt = {spacing}" for spacing in spacings), "slope"], rows)


def gaussian(made: Made) -> str:
    names = [name for name in made["rows"][0] if name != "solver"]
    return table(["solver", *names], [[row["solver"], *(row[name] for name in names)] for row in made["rows"]])


def trained(made: Made) -> str:
    """Figures after all updates, and W1 of 2 steps after as much CPU time as the cheapest method took."""
    floor, *rows = made["rows"]
    time = min((row["quarters"][-1]["cpu_seconds"] for row in rows), default=0.0)
    cells: list[list[object]] = [[floor["method"], None, None, *[_mean(floor)] * 4]]
    for row in rows:
        last, trial = row["quarters"][-1], f"{row['rate']:g}"
        trial += f", {row['strength']:g}" if row["strength"] else ""
        steps = [_mean(last[n]) for n in ("1", "2", "4")]
        cells.append([row["method"], trial, f"{last['cpu_seconds'] / time:.1f}", *steps, _at(time, row)])
    header = ["method", "rate, strength", "cost", "1 step: W1 (spread)", "2 steps", "4 steps", "2 steps, equal time"]
    return table(header, cells)


def _at(seconds: float, row: dict[str, Any]) -> str | None:
    """W1 of 2 steps between the quarters that end before and after, on a line; None of a method in phases, whose first
    part is no shorter training of it."""
    if len(METHODS[row["method"]].solvers) > 1:
        return None
    spent = [quarter["cpu_seconds"] for quarter in row["quarters"]]
    found = [np.interp(seconds, spent, values) for values in zip(*(q["2"]["w1"] for q in row["quarters"]), strict=True)]
    return "{:.3f} ± {:.3f}".format(*found)


def _mean(figures: dict[str, list[float]]) -> str:
    return f"{figures['w1'][0]:.3f} ± {figures['w1'][1]:.3f} ({figures['spread'][0]:.3f})"


def _w1(measured: dict[str, float]) -> str:
    return f"{measured['w1']:.3f} ({measured['std']:.3f})"


TABLES: dict[str, Callable[[Made], str]] = {
    "fixed-points": fixed_points,
    "jumps": jumps,
    "kept": kept,
    "orders": orders,
    "gaussian": gaussian,
    "2-d": trained,
    "64-d": trained,
}
