"""The figures of an evaluation: one `Row` a sampler, and `Results`, the file that keeps them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from scott.errors import UserError, first_line
from scott.evaluation.measures import USUAL, Figure
from scott.files import write_atomically

FLOOR = "real-vs-real"
"""The row of real pictures measured against real ones."""

FILES = ("results.json", "evaluation*.json")
"""What results are called in a run's folder."""
KINDS = {"name": str, "steps": int, "network_calls": int, "samples": int, "remark": str, "seeds": list, "method": str}
"""Of a row's fields, as JSON has them."""


@dataclass(frozen=True)
class Row:
    """One sampler's figures. A measure not taken is None or absent; a non-finite one is a `ValueError`."""

    name: str
    steps: int
    """Sampler steps an image; 0 where nothing was sampled."""
    network_calls: int
    """Denoiser evaluations an image: a teacher under classifier-free guidance makes two a step."""
    seconds_per_image: float | None
    fid: float | None = None
    clip_score: float | None = None
    coverage: float | None = None
    samples: int = 0
    recorded: bool = False
    """The measures come from an earlier run of the same sampler, not from this one."""
    remark: str = ""
    guidance: float | None = None
    """ω, in the form uncond + ω (cond − uncond)."""
    seeds: tuple[int, ...] = ()
    metrics: dict[str, Figure] = field(default_factory=dict)
    """Every figure by its metric, with interval, floor and seeds. The three that have fields of their own above stand
    in both, whichever was given."""
    method: str = ""
    """`--method` of the run that a student is of; empty where it is not known."""

    def __post_init__(self) -> None:
        metrics = dict(self.metrics)
        for name in USUAL:
            own = name.replace("-", "_")
            if name in metrics:
                object.__setattr__(self, own, metrics[name].value)
            elif (value := getattr(self, own)) is not None:
                metrics[name] = Figure(value)
        object.__setattr__(self, "metrics", metrics)
        taken = {name: figure.value for name, figure in metrics.items()}
        for name, value in (taken | {"seconds_per_image": self.seconds_per_image}).items():
            if value is not None and not math.isfinite(value):
                raise ValueError(f"row {self.name!r}: {name} is {value}; a measure not taken is None")

    @property
    def label(self) -> str:
        """The name without the folder that `comparison.combined` puts in front."""
        return self.name.rpartition("/")[2]

    @property
    def family(self) -> str:
        """The name without the number of steps."""
        return self.name.removesuffix(f"-{self.steps}")

    def only(self, metrics: Collection[str]) -> Row:
        """With some of its metrics."""
        kept = {name: figure for name, figure in self.metrics.items() if name in metrics}
        return replace(self, fid=None, clip_score=None, coverage=None, metrics=kept)

    @classmethod
    def of(cls, content: dict[str, Any]) -> Row:
        """A row as JSON has it, whose excess follows from its figures. Raises `TypeError` for other fields or types."""
        known = {name: value for name, value in content.items() if name != "excess"}
        for name, kind in KINDS.items():
            if not isinstance(value := known.get(name, kind()), kind):
                raise TypeError(f"{name} {value!r} is no {kind.__name__}")
        if not isinstance(guidance := known.get("guidance"), int | float | None):
            raise TypeError(f"guidance {guidance!r} is no number")
        metrics = {name: _figure(figure) for name, figure in known.pop("metrics", {}).items()}
        return cls(**_tuples(known), metrics=metrics)


def _figure(content: dict[str, Any]) -> Figure:
    """As JSON has it. Raises `TypeError` or `ValueError` for what are no numbers, or no interval."""
    figure = Figure(**_tuples(content))
    interval = [] if figure.interval is None else [*figure.interval]
    numbers = [figure.value, *interval, *figure.seeds, *([] if figure.floor is None else [figure.floor])]
    if len(interval) not in (0, 2) or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise ValueError(f"{content!r:.80} is no figure")
    return figure


def _tuples(content: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}


def _check_there(kind: str, asked: Sequence[int] | Sequence[str], there: Collection[int] | Collection[str]) -> None:
    if unknown := [one for one in asked if one not in there]:
        expected = ", ".join(map(str, sorted(there)))
        raise UserError(f"got {kind} {unknown[0]}, which no row has; expected some of {expected}")


def network_of(description: Any) -> Any:
    """A network's description without the name of the folder that it was read from, where its weights have a digest;
    what is none as it is."""
    there = isinstance(description, str)
    return re.sub(r"^(CLIP|DINOv2) .*?(?=: .*; weights \w+$)", r"\1", description) if there else description


@dataclass
class Results:
    """Rows in the order they are shown, and what they were measured under.

    `meta` is free-form JSON: samples, guidance, seed, teacher, features, versions of the libraries. It is the
    caller's to keep it the same for the same run, so that two files can be compared byte by byte.
    """

    rows: list[Row] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    def baseline(self, metric: str = "fid") -> Row | None:
        """What ratios and gaps are taken against: of the rows named "teacher…" with this metric, the most steps."""
        teachers = [row for row in self.rows if row.label.startswith("teacher") and metric in row.metrics]
        return max(teachers, key=lambda row: row.steps, default=None)

    def fid_ratio(self, row: Row) -> float | None:
        """FID over the baseline's; None where it has no value, as between figures of different sample sizes."""
        baseline = self.baseline()
        if baseline is None or row.fid is None or not baseline.fid or row.samples != baseline.samples:
            return None
        return row.fid / baseline.fid

    def figure(self, row: Row, metric: str) -> Figure | None:
        """A row's, beside the floor: its own, or that of a row of as many real pictures."""
        figure = row.metrics.get(metric)
        if figure is None or figure.floor is not None or row.label == FLOOR:
            return figure
        rows = (one.metrics for one in self.rows if one.label == FLOOR and one.samples == row.samples)
        floor = next(rows, {}).get(metric)
        return replace(figure, floor=floor.value) if floor else figure

    def excess(self, row: Row) -> dict[str, float]:
        """Metric → what is left over the floor, of a row's figures that have one."""
        shown = {name: self.figure(row, name) for name in row.metrics}
        return {name: one.excess for name, one in shown.items() if one and one.excess is not None}

    def only(self, steps: Sequence[int] = (), metrics: Sequence[str] = ()) -> Results:
        """Rows of some numbers of steps, with some metrics; all of either, if none is named.

        Real pictures and the baselines stay. Raises `UserError` for what no row has.
        """
        _check_there("steps", steps, {row.steps for row in self.rows} - {0})
        _check_there("metrics", metrics, {name for row in self.rows for name in row.metrics})
        always = {row.name for metric in USUAL if (row := self.baseline(metric))}
        kept = [row.label == FLOOR or row.name in always or row.steps in steps for row in self.rows]
        rows = [row for row, keeps in zip(self.rows, kept, strict=True) if keeps or not steps]
        return Results([row.only(metrics) for row in rows] if metrics else rows, self.meta)

    def to_json(self, **more: Any) -> str:
        """`{"rows": [...], "meta": {...}}` and what else is given, each row with its excess; `ValueError` on a
        non-finite number."""
        rows = [asdict(row) | {"excess": self.excess(row)} for row in self.rows]
        content = {"rows": rows, **more, "meta": self.meta}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write `to_json`, whole or not at all."""
        write_atomically(path, self.to_json())

    @classmethod
    def check_path(cls, path: Path) -> None:
        """Raise `UserError` unless `save` may write there: into a folder that exists, over no file but results.

        To be asked before figures are taken that `save` would then lose.
        """
        if path.is_dir():
            raise UserError(f"got {path} for the results, which is a folder; name a file in it")
        if not path.parent.is_dir():
            raise UserError(f"got {path} for the results, whose folder does not exist; make it, or choose another")
        if path.exists():
            cls.load(path)
        try:
            with TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise UserError(
                f"nothing can be written into {path.parent} ({first_line(error)}); name another place"
            ) from None

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read what `save` wrote. Raises `UserError` on a missing file, a folder, invalid JSON or other fields."""
        path = Path(path)
        if path.is_dir():
            there = " or ".join(file.name for pattern in FILES for file in sorted(path.glob(pattern)))
            named = f"its {there}" if there else "a file that `scott evaluate` wrote, of which it has none"
            raise UserError(f"{path} is a folder; name {named}")
        if not path.exists():
            raise UserError(f"there is no {path}; name a file that `scott evaluate` wrote")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(networks := content["meta"].get("networks") or {}, dict):
                raise TypeError(f"networks {networks!r} are no names and versions")
            return cls(rows=[Row.of(row) for row in content["rows"]], meta=dict(**content["meta"]))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path} is not what `scott evaluate` wrote ({type(error).__name__}: {first_line(error)}); name another"
            ) from error
