"""What a run says of itself: `metrics.jsonl`, one JSON object a logged step, and the measures that go into it."""

import json
import math
import resource
import sys
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scott.errors import UserError
from scott.files import write_atomically


class MetricsLog:
    """Appends records; on opening, drops what a run that resumes at `start` will write again: the records of later
    steps, and of those of `start` itself the ones without `term`, which is in each that training wrote."""

    def __init__(self, file: Path, start: int = 0, term: str = "step") -> None:
        self.file = file
        kept = [r for r in read_metrics(file) if r["step"] < start or (r["step"] == start and term in r)]
        write_atomically(file, "".join(json.dumps(record) + "\n" for record in kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps({"step": step, **values}) + "\n")


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The records of a metrics file, oldest first; a last line cut off by a crash is left out.

    Raises `UserError` when it is no text.
    """
    if not file.is_file():
        return []
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text, as a run writes it; restore it, or move it away") from None
    records = []
    for line in text.splitlines():
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


class StepTimer:
    """Seconds of each part of a step, which is marked as it ends. Nothing waits for a GPU before `read`.

    `seconds_per_step` is the sum of the parts: data (waiting for the batch), teacher (the walk), student and critic
    (forward and backward), update (averaging, clipping, optimizers, EMA). Logs, hooks, samples, validation and
    checkpoints lie between steps and are left out.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks = [("", self._now())]

    def mark(self, part: str) -> None:
        self._marks.append((part, self._now()))

    def skip(self) -> None:
        """Count what was done since the last part ended to none."""
        self.mark("")

    def read(self) -> dict[str, float]:
        """Mean seconds a step by part since the last reading; a step ends with its part "update"."""
        if self._on_gpu:
            torch.cuda.synchronize()
        steps = sum(part == "update" for part, _ in self._marks)
        seconds: dict[str, float] = defaultdict(float)
        for (_, began), (part, ended) in pairwise(self._marks):
            if part:
                seconds[part] += (began.elapsed_time(ended) / 1000 if self._on_gpu else ended - began) / steps
        self._marks = [("", self._marks[-1][1])]  # its step is counted
        return dict(seconds)

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class CriticWatch:
    """Says when the critic was right no more often than by chance, or without fail, for `window` steps."""

    CHANCE, ALWAYS = 0.55, 0.98

    def __init__(self, window: int = 200) -> None:
        self._accuracies: deque[float] = deque(maxlen=window)

    def see(self, step: int, values: Mapping[str, float]) -> str | None:
        """One more step's terms; a warning, at most one a window."""
        if "critic" not in values:
            return None
        self._accuracies.append((values["critic_real_accuracy"] + values["critic_fake_accuracy"]) / 2)
        window = len(self._accuracies)
        mean = sum(self._accuracies) / window
        if window < (self._accuracies.maxlen or 0) or self.CHANCE < mean < self.ALWAYS:
            return None
        self._accuracies.clear()
        found, remedy = ("tells nothing", "raise") if mean <= self.CHANCE else ("always wins", "lower")
        return f"step {step}: the critic {found} (accuracy {mean:.2f} over {window} steps); {remedy} its learning rate"


def memory_gb(device: torch.device) -> float:
    """The most memory held so far: allocated on a GPU, or resident of the process elsewhere; in 1e9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
