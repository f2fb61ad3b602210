"""Training curves of a run, drawn by matplotlib as one SVG."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

PANELS = {
    "Consistency loss": ("consistency",),
    "Adversarial loss": ("adversarial",),
    "Critic": ("critic", "critic_real_accuracy", "critic_fake_accuracy"),
    "Adversarial ratio": ("adversarial_ratio",),
    "Gradient norm": ("student_gradient_norm", "critic_gradient_norm"),
}
"""Title → its metrics."""
SPREADS = {"Spread, log10 of the data's": "spread_", "Spread of drawn samples": "spread_drawn_"}
"""Title → what its metrics' names have before the time that they are of."""


def curves_svg(metrics: Sequence[Mapping[str, Any]]) -> bytes | None:
    """The panels of a run's metrics, the rows of metrics.jsonl, each with an integer "step"; None without any.

    A thin line is the metric, a thick one its exponential average over a twentieth of the run. The value axis leaves
    out half a percent at each end, where the spikes are.
    """
    wanted = PANELS | {title: _at_times(metrics, prefix) for title, prefix in SPREADS.items()}
    panels = {title: {name: finite_points(metrics, name) for name in names} for title, names in wanted.items()}
    shown = {
        title: kept
        for title, series in panels.items()
        if (kept := {name: points for name, points in series.items() if points.shape[1] > 1})
    }
    if not shown:
        return None
    rows = math.ceil(len(shown) / 2)
    figure = Figure(figsize=(9, 3 * rows), layout="constrained")
    for index, (title, series) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(rows, 2, index, title=title)
        for name, (steps, values) in series.items():
            (line,) = axes.plot(steps, values, linewidth=0.7, alpha=0.3)
            axes.plot(steps, smooth(values), color=line.get_color(), label=name)
        low, high = np.percentile(np.concatenate([values for _, values in series.values()]), [0.5, 99.5])
        if high > low:
            axes.set_ylim(low, high)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", frameon=False)
    return as_svg(figure)


def _at_times(metrics: Sequence[Mapping[str, Any]], prefix: str) -> tuple[str, ...]:
    """The metrics named so before a time, from the first time of sampling on."""
    after = {name.removeprefix(prefix) for row in metrics for name in row if name.startswith(prefix)}
    return tuple(prefix + time for time in sorted((one for one in after if "_" not in one), key=float, reverse=True))


def as_svg(figure: Figure) -> bytes:
    """An SVG file; without a date and with a fixed salt the same figure gives the same bytes."""
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "scott"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def finite_points(metrics: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Steps and values, (2, n), of the rows where `name` is a finite number."""
    pairs = [(row["step"], row[name]) for row in metrics if isinstance(row.get(name), int | float)]
    return np.array([pair for pair in pairs if math.isfinite(pair[1])], dtype=np.float64).reshape(-1, 2).T


def smooth(values: np.ndarray) -> np.ndarray:
    """Exponential average with a window of a twentieth of the points, without start-up bias."""
    decay = 1 - 1 / max(1.0, len(values) / 20)
    total, weight, smoothed = 0.0, 0.0, []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        smoothed.append(total / weight)
    return np.array(smoothed)
