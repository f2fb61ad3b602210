"""The form of the comparison's results: results.jsonl holds one `Row` a line, written as it ends."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from experiments.results import read_lines

from scott.errors import UserError

Matched = Literal["time", "updates", "nothing"]
Features = Literal["mini", "efficientnet"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sampler's figures on held-out captions."""

    method: str
    """ours, lcm, lcm-settles (whose rate falls as ours does), scott-paper, scott-clean (whose critic is told time 0
    of data and samples alike, and learns at 2.5 times its student's rate instead of ten), instaflow, ufogen, or another
    student; teacher;
    or real: pictures of the captions, which is the floor."""
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
    try:
        return [Row(**line) for line in read_lines(file)]
    except TypeError as error:
        names = ", ".join(field.name for field in fields(Row))
        raise UserError(f"{file} is no results file of the comparison ({error}); expected lines of {names}") from None
