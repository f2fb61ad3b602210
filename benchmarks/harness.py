"""The command line of the step's and the sampler's benchmarks: options, one JSON object a model, or a table."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.models import MODELS, Model
from scott.choices import unknown
from scott.teachers.load import hide_loading_bars


@dataclass(frozen=True)
class Options:
    model: str = "all"
    """mini (the embedded teacher), sd50m (SD1.5 at a quarter of its width), or all."""
    repeats: int = 7
    """Rounds that are timed; the figures are medians over them."""
    batch_size: int | None = None
    """Instead of the model's own."""
    threads: int | None = None
    """Of torch; as many as it takes by itself if left out."""
    json: bool = False
    """One JSON object a model and line, instead of a table."""


Measure = Callable[[Model, int | None, int], Mapping[str, Any]]
"""(model, batch size or None, repeats) → figures by name; absolute seconds stand together under `seconds`."""


def main(measure: Measure, description: str, arguments: Sequence[str] | None = None) -> None:
    options = tyro.cli(Options, description=description, args=arguments)
    if options.model != "all" and options.model not in MODELS:
        raise SystemExit(str(unknown("model", options.model, [*MODELS, "all"])))
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    hide_loading_bars()
    names = list(MODELS) if options.model == "all" else [options.model]
    for name in names:
        settings = {"model": name, "repeats": options.repeats, "threads": torch.get_num_threads()}
        figures = measure(MODELS[name], options.batch_size, options.repeats)
        if options.json:
            sys.stdout.write(json.dumps(_rounded(settings | dict(figures))) + "\n")
            sys.stdout.flush()
        else:
            Console().print(_table(settings, figures))


def _rounded(value: Any) -> Any:
    """Floats to four significant digits."""
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _table(settings: Mapping[str, Any], figures: Mapping[str, Any]) -> Table:
    table = Table(title=", ".join(f"{name} {value}" for name, value in settings.items()), title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in _flat(figures):
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table


def _flat(figures: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in figures.items():
        rows += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
    return rows
