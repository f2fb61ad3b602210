"""The figures of an evaluation: one `Row` a sampler, and `Results`, the file that keeps them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from scott.errors import UserError
from scott.files import write_atomically


@dataclass(frozen=True)
class Row:
    """One sampler's figures. A measure not taken is None; a non-finite one is a `ValueError`."""

    name: str
    steps: int
    """Sampler steps an image; 0 where nothing was sampled."""
    network_calls: int
    """Denoiser evaluations an image: a teacher under classifier-free guidance makes two a step."""
    seconds_per_image: float | None
    fid: float | None
    clip_score: float | None
    coverage: float | None
    samples: int
    recorded: bool = False
    """The measures come from an earlier run of the same sampler, not from this one."""
    note: str = ""

    def __post_init__(self) -> None:
        for measure in ("seconds_per_image", "fid", "clip_score", "coverage"):
            value = getattr(self, measure)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"row {self.name!r}: {measure} is {value}; a measure not taken is None")


@dataclass
class Results:
    """Rows in the order they are shown, and what they were measured under.

    `meta` is free-form JSON: samples, guidance, seed, teacher, features, versions of the libraries. It is the
    caller's to keep it the same for the same run, so that two files can be compared byte by byte.
    """

    rows: list[Row] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    def baseline(self) -> Row | None:
        """What FID ratios are taken against: of the rows named "teacher…" with an FID, the most steps."""
        teachers = [row for row in self.rows if row.name.startswith("teacher") and row.fid is not None]
        return max(teachers, key=lambda row: row.steps, default=None)

    def fid_ratio(self, row: Row) -> float | None:
        """FID over the baseline's, the figure that travels between scales; None where it has no value."""
        baseline = self.baseline()
        if baseline is None or row.fid is None or not baseline.fid:
            return None
        return row.fid / baseline.fid

    def save(self, path: str | Path) -> None:
        """Write `{"rows": [...], "meta": {...}}`, whole or not at all; `ValueError` on a non-finite meta."""
        content = {"rows": [asdict(row) for row in self.rows], "meta": self.meta}
        write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def check_path(cls, path: Path) -> None:
        """Raise `UserError` unless `save` may write there: into a folder that exists, over no file but results.

        To be asked before figures are taken that `save` would then lose.
        """
        if not path.parent.is_dir():
            raise UserError(f"got {path} for the results, whose folder does not exist; make it, or choose another")
        if path.exists():
            cls.load(path)

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read what `save` wrote. Raises `UserError` on a missing file, invalid JSON or other fields."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(rows=[Row(**row) for row in content["rows"]], meta=content["meta"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            names = ", ".join(f.name for f in fields(Row))
            raise UserError(
                f'{str(path)!r} is not a results file: expected {{"rows": [...], "meta": {{...}}}} '
                f"with rows of {names} ({type(error).__name__}: {error})"
            ) from error
