"""Quality against calls and against budget, from the comparison's results: `python -m experiments.comparison.figure`.

Quality is the excess of FID over the floor, as a multiple of the teacher's in 50 steps, of as many samples: the most
that there are at a budget. A bar is what seeds range over.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import tyro
from experiments.comparison.rows import Row, read_rows
from experiments.runs import Report, exit_code
from matplotlib.figure import Figure

from scott.errors import UserError
from scott.evaluation.curves import as_svg
from scott.files import write_atomically

HERE = Path(__file__).parent
STUDENTS = {
    ("ours", "time"): ("ours", "C0", "o"),
    ("lcm", "time"): ("LCM, as much time", "C1", "s"),
    ("lcm", "updates"): ("LCM, as many updates", "C3", "^"),
    ("lcm-settles", "time"): ("LCM of a falling rate, as much time", "C6", "<"),
    ("lcm-settles", "updates"): ("LCM of a falling rate, as many updates", "C7", ">"),
    ("scott-paper", "time"): ("SCott as the paper has it", "C4", "D"),
    ("scott-clean", "time"): ("the paper's, its critic told time 0 of all", "C8", "X"),
    ("scott-share", "time"): ("the same, held to a share of gradients", "C9", "d"),
    ("instaflow", "time"): ("InstaFlow", "C2", "v"),
    ("ufogen", "time"): ("UFOGen", "C5", "P"),
}
"""(method, what its budget is) → name, colour, marker."""
HIGHEST = 6.0
"""What stands above is left out: one step of UFOGen, and of scott-clean."""
Kind = tuple[str, str, int]
"""Method, what its budget is, scenes."""
Point = tuple[float, list[float]]
"""Where it stands, and each seed's quality there."""


def ratios(rows: list[Row]) -> list[tuple[Row, float]]:
    """Each row with its quality, where there are the floor and a teacher above it of as many samples."""
    fid = {(row.method, row.steps, row.samples, row.features): row.fid for row in rows if row.matched == "nothing"}
    found = []
    for row in rows:
        floor, teacher = (fid.get((*one, row.samples, row.features)) for one in (("real", 0), ("teacher", 50)))
        if floor is not None and teacher is not None and teacher > floor and row.method != "real":
            found.append((row, (row.fid - floor) / (teacher - floor)))
    return found


def points(rows: Iterable[tuple[Row, float]], at: str) -> dict[Kind, list[Point]]:
    """Of each student its points by the row's field `at`, ascending, of the most samples that there are at each."""
    found: dict[Kind, dict[float, dict[int, list[float]]]] = {}
    for row, quality in rows:
        by_samples = found.setdefault((row.method, row.matched, row.scenes), {}).setdefault(getattr(row, at), {})
        by_samples.setdefault(row.samples, []).append(quality)
    return {kind: [(x, each[x][max(each[x])]) for x in sorted(each)] for kind, each in found.items()}


def draw(rows: list[Row]) -> Figure:
    """Two panels: by network calls at each student's largest budget of the most scenes, and in 2 steps by budget.

    Hollow and dashed are those of fewer scenes than the most that any has.
    """
    rows = [row for row in rows if row.features == "mini"]
    figure = Figure(figsize=(9, 4.9), layout="constrained")
    by_calls, by_budget = figure.subplots(1, 2, sharey=True)
    known, most = ratios(rows), max((row.scenes for row in rows), default=0)
    best = dict[tuple[str, str], tuple[int, float]]()
    for row, _ in known:
        kind = row.method, row.matched
        best[kind] = max((row.scenes, row.budget), best.get(kind, (0, 0)))
    at_best = [(row, q) for row, q in known if (row.scenes, row.budget) == best[row.method, row.matched]]
    _lines(by_calls, points(at_best, "steps"), most, {kind: budget for kind, (_, budget) in best.items()})
    _lines(by_budget, points([(row, q) for row, q in known if row.steps == 2], "budget"), most)
    calls = points([(row, q) for row, q in known if row.method == "teacher"], "steps")
    teacher = [(2 * steps, mean(q)) for steps, q in calls.get(("teacher", "nothing", 0), [])]  # two calls guide it
    by_calls.plot([x for x, _ in teacher], [y for _, y in teacher], "k*--", label="teacher")
    by_calls.set(xlabel="network calls", ylabel="excess of FID, teacher's 50 steps = 1", xscale="log", yscale="log")
    by_budget.set(xlabel="core-minutes of training, 2 steps", xscale="log")
    for panel, ticks in ((by_calls, (1, 2, 4, 50, 100)), (by_budget, sorted({row.budget for row in rows} - {0}))):
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.set_xticks([], minor=True)
        panel.axhline(1, color="0.8", zorder=0)
    by_calls.set_ylim(top=HIGHEST)
    by_calls.set_yticks([1, 1.5, 2, 3, 4, 6], ["1", "1.5", "2", "3", "4", "6"])
    by_calls.set_yticks([], minor=True)
    figure.legend(*by_calls.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    if any(0 < row.scenes < most for row, _ in known):
        label = f"on fewer than {most:,} scenes"
        by_budget.plot([], [], color="0.5", linestyle="--", marker="o", markerfacecolor="w", label=label)
        by_budget.legend(fontsize="small")
    return figure


def _lines(
    panel: Any,
    drawn: Mapping[Kind, list[Point]],
    most: int,
    budgets: Mapping[tuple[str, str], float] | None = None,
) -> None:
    """Means over seeds, and what they range over."""
    known = [kind for kind in drawn if kind[:2] in STUDENTS]
    for kind in sorted(known, key=lambda kind: (-kind[2], [*STUDENTS].index(kind[:2]))):
        (method, matched, scenes), found = kind, drawn[kind]
        shown = [(x, mean(q), q) for x, q in found if mean(q) < HIGHEST]
        if not shown:
            continue
        name, colour, marker = STUDENTS[method, matched]
        below, above = [m - min(q) for _, m, q in shown], [max(q) - m for _, m, q in shown]
        label = f"{name}, {budgets[method, matched]:g} min" if budgets else None
        style = {} if scenes == most else {"linestyle": "--", "markerfacecolor": "w"}
        xs, means = [x for x, _, _ in shown], [m for _, m, _ in shown]
        panel.errorbar(xs, means, yerr=[below, above], color=colour, marker=marker, capsize=3, label=label, **style)


def main(out: Path = HERE / "quality.svg", results: Path = HERE / "results.jsonl") -> int:
    """Draw it again."""

    def run(report: Report) -> None:
        if not (rows := read_rows(results)):
            raise UserError(f"there are no results at {results}; run python -m experiments.comparison")
        write_atomically(out, as_svg(draw(rows)).decode())

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
