"""What a run folder says of its run so far; nothing of it is written, or waits for the run."""

from dataclasses import dataclass
from pathlib import Path

from scott.evaluation.curves import curves_svg
from scott.training.checkpoint import Best
from scott.training.config import DistillConfig
from scott.training.metrics import WARNINGS, read_metrics


@dataclass(frozen=True)
class RunState:
    """A run as far as it has come."""

    step: int
    max_steps: int
    seconds_left: float | None
    """At the pace of the newest logged step; None before the first one."""
    latest: dict[str, float]
    """The newest value of each metric."""
    best: Best | None
    warnings: list[str]
    curves: bytes | None
    """An SVG; None before there are two points."""

    @classmethod
    def read(cls, run: Path) -> "RunState":
        """Raises `UserError` when the folder's files are none of a run's."""
        config, records = DistillConfig.load(run / "config.json"), read_metrics(run / "metrics.jsonl")
        latest = {name: value for record in records for name, value in record.items()}
        step = int(latest.pop("step", 0))
        pace = latest.get("seconds_per_step")
        warnings = run / WARNINGS
        return cls(
            step=step,
            max_steps=config.max_steps,
            seconds_left=None if pace is None else pace * (config.max_steps - step),
            latest=latest,
            best=Best.read(run / "checkpoints"),
            warnings=warnings.read_text(encoding="utf-8").splitlines() if warnings.is_file() else [],
            curves=curves_svg(records),
        )


def validation_grids(run: Path) -> list[Path]:
    """The run's sample grids, oldest first."""
    return sorted((run / "samples").glob("step-*.png"))
