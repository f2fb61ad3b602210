"""`metrics.jsonl`: one JSON object a logged step, in order, without repeats after a resume."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from scott.files import write_atomically


class MetricsLog:
    """Appends records; on opening, drops those after step `start`, which a resumed run will write again."""

    def __init__(self, file: Path, start: int = 0) -> None:
        self.file = file
        kept = [record for record in read_metrics(file) if record["step"] <= start]
        write_atomically(file, "".join(json.dumps(record) + "\n" for record in kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps({"step": step, **values}) + "\n")


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The records of a metrics file, oldest first; a last line cut off by a crash is left out."""
    if not file.is_file():
        return []
    records = []
    for line in file.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def check_finite(step: int, terms: Mapping[str, Tensor | float], t_n: Tensor) -> dict[str, float]:
    """The terms as floats. Raises `FloatingPointError` naming the step, the term and the range of t_n otherwise."""
    values = {name: float(value) for name, value in terms.items()}
    bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise FloatingPointError(
            f"step {step}: {', '.join(bad)} (t_n from {t_n.min().item()} to {t_n.max().item()}); "
            "lower the learning rate or the guidance, or look at the data of this step"
        )
    return values
