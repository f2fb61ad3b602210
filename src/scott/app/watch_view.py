"""The view that follows a run: curves, warnings, the time left, and what it drew on its way."""

from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from scott.app.figures import image, message, problem, table
from scott.app.models import Models
from scott.evaluation.curves import curves_svg
from scott.training.checkpoint import Best
from scott.training.config import DistillConfig
from scott.training.metrics import WARNINGS, read_metrics

NO_RUN = "There is no run folder. `scott app RUN` follows one, also while it is being made."
SECONDS = 10
"""Between two readings of the run's files."""
SHOWN = {
    "consistency": "consistency loss",
    "adversarial": "adversarial loss",
    "adversarial_ratio": "adversarial ratio",
    "critic_real_accuracy": "critic: data called real",
    "critic_fake_accuracy": "critic: fakes called fake",
    "student_change": "the student's change from its teacher",
    "ema_distance": "distance of the EMA",
    "fid": "FID",
    "clip_score": "CLIP score",
    "coverage": "coverage",
    "seconds_per_step": "seconds a step",
    "memory_gb": "memory, GB",
}
"""Metric → its name on the page."""


def watch_view(models: Models, page: gr.Blocks) -> None:
    """One run's state, read again every few seconds while the page is open."""
    runs = models.runs
    none = gr.Markdown(NO_RUN, visible=not runs)
    run = gr.Dropdown(runs, value=runs[0] if runs else None, label="Run", visible=bool(runs))
    summary = gr.HTML()
    slider = gr.Slider(0, 1, value=0, step=1, label="Validation", info="Which of the run's grids", visible=False)
    grid = gr.HTML()

    def show(run: str | None, number: float) -> tuple[Any, Any, Any]:
        if not run:
            return gr.skip(), gr.skip(), gr.skip()
        grids = validation_grids(Path(run))
        last = max(len(grids) - 1, 0)
        # where it is beyond the last, gradio would take no more of its events
        value = {"value": last} if number > last else {}
        chosen = gr.Slider(maximum=max(last, 1), visible=last > 0, **value)
        try:
            return _summary(Path(run)), chosen, _grid(grids, min(int(number), last))
        except Exception as error:
            return problem(error), chosen, ""

    def newest(run: str | None) -> Any:
        last = max(len(validation_grids(Path(run))) - 1, 0) if run else 0
        return gr.Slider(value=last, maximum=max(last, 1), visible=last > 0)

    def there(run: str | None) -> tuple[Any, Any]:
        runs = models.runs
        chosen = run if run in runs else next(iter(runs), None)
        return gr.Markdown(visible=not runs), gr.Dropdown(choices=runs, value=chosen, visible=bool(runs))

    parts: dict[str, Any] = {"inputs": [run, slider], "outputs": [summary, slider, grid], "show_progress": "hidden"}
    quiet: dict[str, Any] = {"show_progress": "hidden"}
    page.load(there, run, [none, run], **quiet).then(newest, run, slider, **quiet).then(show, **parts)
    run.input(newest, run, slider, **quiet).then(show, **parts)
    slider.input(show, trigger_mode="always_last", **parts)
    gr.Timer(SECONDS).tick(show, **parts)


def validation_grids(run: Path) -> list[Path]:
    """The run's sample grids, oldest first."""
    return sorted(file for file in (run / "samples").glob("step-*.png") if file.stem[5:].isdecimal())


def _summary(run: Path) -> str:
    """What the folder says of its run so far. Raises `UserError` where its files are none of a run's."""
    config, log = DistillConfig.load(run / "config.json"), run / "metrics.jsonl"
    version = (log.stat().st_mtime_ns, log.stat().st_size) if log.is_file() else None
    records, curves = _read(log, version)
    latest = {name: value for record in records for name, value in record.items()}
    step, pace = int(latest.get("step", 0)), latest.get("seconds_per_step")
    left = "unknown" if pace is None else str(timedelta(seconds=round(pace * max(config.max_steps - step, 0))))
    rows = [("step", f"{step:,}", f"of {config.max_steps:,}"), ("time left", left, "at the newest pace")]
    if best := Best.read(run / "checkpoints"):
        rows.append(("best checkpoint", f"step {best.step:,}", f"{best.metric} {best.value:.4g}"))
    rows += [(name, f"{latest[key]:.4g}", "") for key, name in SHOWN.items() if key in latest]
    file = run / WARNINGS
    warnings = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    text = "".join(map(message, warnings)) + table(rows, "Where the run is")
    if curves is None:
        return text
    _, svg, drawn = curves.decode().partition("<svg")
    return f'{text}<div class="scott-wide" role="img" aria-label="Curves of the losses">{svg}{drawn}</div>'


@lru_cache(maxsize=2)
def _read(log: Path, version: tuple[int, int] | None) -> tuple[list[dict[str, float]], bytes | None]:
    """Records and their curves, which of thousands take a second: once of a log's time of change and size."""
    records = read_metrics(log)
    return records, curves_svg(records)


def _grid(grids: list[Path], number: int) -> str:
    if not grids:
        return "<p>The run has drawn no grid yet.</p>"
    file = grids[number]
    step = int(file.stem.removeprefix("step-"))
    with Image.open(file) as picture:
        text = f"The run's student in few steps over its teacher, after step {step}"
        return f"<h2>After step {step:,}</h2>" + image(picture, text)
