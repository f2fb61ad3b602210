"""The comparison's results: results.jsonl holds one `Row` a line, written as it ends, and its page their table."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from experiments.results import read_lines, table

from scott.errors import UserError

Matched = Literal["time", "updates", "nothing"]
Features = Literal["mini", "efficientnet"]
KINDS: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", float | None: "a number or null"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sampler's figures on held-out captions."""

    method: str
    """ours, lcm, lcm-settles (whose rate falls as ours does), scott-paper, scott-clean (whose critic is told time 0
    of data and samples alike, and learns at 2.5 times its student's rate instead of ten), scott-share (the same, held
    to a share of gradients instead of λ_adv), instaflow, ufogen, or another student; teacher; or real: pictures of the
    captions, which is the floor."""
    matched: Matched
    """What its budget is: CPU time; as many updates as ours made in it; or nothing, of what is not trained."""
    budget: float
    """Core-minutes; 0 of what is not trained."""
    seed: int
    updates: int
    cpu_minutes: float
    """What the training took, the teacher's walks counted."""
    steps: int
    guidance: float | None
    """ω drawn at; None of real pictures."""
    fid: float
    coverage: float
    clip_score: float | None
    spread: float | None
    """sqrt of the variance of the latents drawn over that of real ones."""
    samples: int
    scenes: int
    """Of the embedded data, that it was trained on; 0 of what is not."""
    device: str = "cpu"
    """Where it was trained; of a GPU, `cpu_minutes` are those of the process that launches its work."""
    features: Features = "mini"
    """Whose FID and coverage are of: the teacher's own Mini-CLIP, or EfficientNet-Lite0, which knows nothing of it."""
    config: str = ""
    """`experiments.runs.digest` of what trained it; of baselines, which have no such config, and of what is not trained
    nothing."""

    @property
    def run(self) -> tuple[str, str, float, int]:
        """What was trained; its rows differ in steps."""
        return self.method, self.matched, self.budget, self.seed


def read_rows(file: Path) -> list[Row]:
    """All rows of a results file. Raises `UserError` for a line of another form."""
    return [_row(line, f"{file}, line {number}") for number, line in enumerate(read_lines(file), 1)]


def _row(line: dict[str, Any], where: str) -> Row:
    try:
        row = Row(**line)
    except TypeError as error:
        names = ", ".join(field.name for field in fields(Row))
        raise UserError(f"{where} is no row of the comparison ({error}); expected {names}") from None
    for name, kind in get_type_hints(Row).items():
        if not _fits(value := getattr(row, name), kind):
            expected = " or ".join(map(repr, get_args(kind))) if get_origin(kind) is Literal else KINDS[kind]
            raise UserError(f"{where}: got {name} {value!r}; expected {expected}")
    return row


def _fits(value: object, kind: Any) -> bool:
    """As JSON has it, where a float may be written as an int."""
    kinds = get_args(kind) or (kind,)
    if get_origin(kind) is Literal:
        return value in kinds
    return type(value) in kinds or (float in kinds and type(value) is int)


CELLS: dict[str, Callable[[Row], object]] = {
    "method": lambda row: row.method,
    "matched": lambda row: row.matched,
    "budget": lambda row: f"{row.budget:g}",
    "seed": lambda row: row.seed,
    "scenes": lambda row: row.scenes,
    "updates": lambda row: row.updates,
    "CPU min": lambda row: f"{row.cpu_minutes:.1f}",
    "device": lambda row: row.device,
    "steps": lambda row: row.steps,
    "ω": lambda row: None if row.guidance is None else f"{row.guidance:g}",
    "FID": lambda row: row.fid,
    "coverage": lambda row: row.coverage,
    "spread": lambda row: row.spread,
    "n": lambda row: row.samples,
    "features": lambda row: row.features,
}
"""Of the table, by their titles."""


def markdown(rows: list[Row]) -> str:
    return table([*CELLS], [[cell(row) for cell in CELLS.values()] for row in rows])
