"""Training curves as inline SVG that takes its colours from the page it stands in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

PANELS = (
    ("Consistency loss", "consistency"),
    ("Adversarial loss", "adversarial"),
    ("Critic", "critic"),
    ("Gradient norm", "grad"),
)
"""(title, word): a metric belongs to the last panel whose word is part of its name, or to none."""

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 460, 230, 52, 10, 8, 26
_POINTS = 400


def curves_svg(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The panels (title, HTML) of a run's metrics: the rows of metrics.jsonl, each with an integer "step".

    A panel is an SVG and its legend. The thin line is the metric, neighbours averaged to at most 400
    points; the thick one its exponential average over a twentieth of the run. The page's style sheet gives
    the classes s1…s6, thin, thick, rule and legend their looks.
    """
    groups: dict[str, dict[str, np.ndarray]] = {title: {} for title, _ in PANELS}
    for name in sorted({name for row in metrics for name in row}):
        title = next((title for title, word in reversed(PANELS) if word in name), None)
        if title is not None and len(points := _points(metrics, name)) > 1:
            groups[title][name] = points
    return [(title, _panel(title, series)) for title, series in groups.items() if series]


def _points(metrics: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Step and value, (n ≤ `_POINTS`, 2), neighbours averaged; rows without a finite number are skipped."""
    pairs = [(row["step"], row[name]) for row in metrics if isinstance(row.get(name), int | float)]
    finite = [pair for pair in pairs if math.isfinite(pair[1])]
    if not finite:
        return np.empty((0, 2))
    points = np.array(finite, dtype=np.float64)
    size = math.ceil(len(points) / _POINTS)
    return np.array([points[i : i + size].mean(axis=0) for i in range(0, len(points), size)])


def _smooth(values: np.ndarray) -> np.ndarray:
    """Exponential average with a window of a twentieth of the points, without start-up bias."""
    decay = 1 - 1 / max(1.0, len(values) / 20)
    total, weight, smoothed = 0.0, 0.0, []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        smoothed.append(total / weight)
    return np.array(smoothed)


def _panel(title: str, series: Mapping[str, np.ndarray]) -> str:
    """One SVG and its legend. The value axis leaves out half a percent at each end, where the spikes are."""
    points = np.concatenate(list(series.values()))
    low, high = np.percentile(points[:, 1], [0.5, 99.5])
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    last = max(points[:, 0].max(), 1.0)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(step: float) -> str:
        return f"{_LEFT + step / last * width:.1f}"

    def y(value: float) -> str:
        return f"{_TOP + (high - value) / (high - low) * height:.1f}"

    clip = f"clip-{title.lower().replace(' ', '-')}"
    box = f'<rect x="{_LEFT}" y="{_TOP - 3}" width="{width}" height="{height + 6}"/>'
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<clipPath id="{clip}">{box}</clipPath>',
    ]
    for tick in _ticks(low, high, 4):
        parts.append(f'<path class="rule" d="M{_LEFT} {y(tick)}h{width}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(tick)}" dy=".32em" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(0, last, 5):
        parts.append(f'<text x="{x(tick)}" y="{_HEIGHT - 6}" text-anchor="middle">{_count(tick)}</text>')
    parts.append(f'<g clip-path="url(#{clip})">')
    for colour, (steps, values) in enumerate((curve.T for curve in series.values()), start=1):
        for weight, ordinates in (("thin", values), ("thick", _smooth(values))):
            line = " ".join(f"{x(s)},{y(v)}" for s, v in zip(steps, ordinates, strict=True))
            parts.append(f'<polyline class="s{colour} {weight}" points="{line}"/>')
    names = "".join(f'<li class="s{colour}">{escape(name)}</li>' for colour, name in enumerate(series, start=1))
    return f'{"".join(parts)}</g></svg><ul class="legend">{names}</ul>'


def _ticks(low: float, high: float, count: int) -> list[float]:
    """At most about `count` multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    pitch = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return [float(f"{n * pitch:.12g}") for n in range(math.ceil(low / pitch), math.floor(high / pitch) + 1)]


def _count(step: float) -> str:
    return f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}"
