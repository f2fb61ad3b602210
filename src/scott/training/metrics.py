"""What a run says of itself: `metrics.jsonl`, one JSON object a logged step, and the measures that go into it."""

import json
import math
import resource
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scott.errors import UserError
from scott.files import write_atomically
from scott.training.config import DistillConfig

WARNINGS = "warnings.txt"
"""A run's warnings, a line each, in its folder."""


class MetricsLog:
    """Appends records; on opening, drops those of steps after `start`, which a run that resumes there makes again.

    Of `start` itself there may be one without `term`, which is in each that training wrote: what else is written of
    that step goes into it, since a last step that is the last no more was measured as one.
    """

    def __init__(self, file: Path, start: int = 0, term: str = "step") -> None:
        self.file, self.start, self.term = file, start, term
        self._rewrite([record for record in read_metrics(file) if record["step"] <= start])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        record: dict[str, float] = {"step": step, **values}
        if step != self.start:
            with self.file.open("a") as stream:
                stream.write(json.dumps(record) + "\n")
            return
        others = list[dict[str, float]]()
        for other in read_metrics(self.file):
            if other["step"] == step and self.term not in other:
                record = other | record
            else:
                others.append(other)
        self._rewrite([*others, record])

    def _rewrite(self, records: Iterable[Mapping[str, float]]) -> None:
        write_atomically(self.file, "".join(json.dumps(record) + "\n" for record in records))


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The records of a metrics file, oldest first; a last line cut off by a crash is left out.

    Raises `UserError` when it is no file of text, or a line is no record.
    """
    if not file.exists():
        return []
    if not file.is_file():  # a pipe would be waited for
        raise UserError(f"{file} is no file, as a run writes it; move it away")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text, as a run writes it; restore it, or move it away") from None
    records = list[Any]()
    with suppress(ValueError):
        records.extend(map(json.loads, lines))
    if len(records) < len(lines) - 1 or not all(
        isinstance(record, dict) and isinstance(record.get("step"), int) for record in records
    ):
        raise UserError(f"{file} has lines that are no records of steps; restore it, or move it away")
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
    """Says when the critic was right no more often than by chance, or without fail, for `window` steps.

    One that is right of all data and of no sample, or the other way round, has collapsed to a constant: of a rate too
    high, as the gradient of its hinge loss is then small and points nowhere.
    """

    CHANCE, ALWAYS, SAME = 0.55, 0.98, 0.9

    def __init__(self, window: int = 200) -> None:
        self._accuracies: deque[tuple[float, float]] = deque(maxlen=window)

    def see(self, step: int, values: Mapping[str, float]) -> str | None:
        """One more step's terms; a warning, at most one a window."""
        if "critic" not in values:
            return None
        self._accuracies.append((values["critic_real_accuracy"], values["critic_fake_accuracy"]))
        window = len(self._accuracies)
        mean = sum(map(sum, self._accuracies)) / window / 2
        if window < (self._accuracies.maxlen or 0) or self.CHANCE < mean < self.ALWAYS:
            return None
        same = sum(abs(real - fake) for real, fake in self._accuracies) / window
        self._accuracies.clear()
        found, remedy = ("tells nothing", "raise") if mean <= self.CHANCE else ("always wins", "lower")
        if mean <= self.CHANCE and same >= self.SAME:
            found, remedy = "says the same of all", "lower"
        return f"step {step}: the critic {found} (accuracy {mean:.2f} over {window} steps); {remedy} its learning rate"


class Spread:
    """log10 of std(f_θ) over std(x0) at the times at which samples are drawn, over the last `ROWS` rows or so.

    An L2 student of a noisy teacher shrinks towards the mean, and a critic gives the spread back: at 0 it is the
    data's, of which a guided teacher's samples have a little more. Where samples are drawn for the critic, theirs too,
    by the time at which they end.
    """

    ROWS, TOLERANCE, EVERY = 500, 0.02, 200

    def __init__(self, times: Iterable[float], config: DistillConfig) -> None:
        names = [f"spread_{time:.3g}" for time in sorted({*times}, reverse=True)]
        self.rows = [config.batch_size] * len(names)
        if config.draws_fakes:
            self.rows += [config.drawn_rows(config.batch_size)] * len(names)
            names += [name.replace("_", "_drawn_") for name in names]
        self.names, self.sums = names, torch.zeros(len(names), 5, dtype=torch.float64)

    def add(self, moments: Tensor) -> dict[str, float]:
        """Add a step's (names, 5), each row a mean over the batch: rows at the time, and of those f, f², x0, x0².

        There are none of drawn samples before the critic is there.
        """
        new = torch.zeros_like(self.sums)
        new[: len(moments)] = moments.cpu()
        new *= torch.tensor(self.rows)[:, None]
        self.sums = self.sums * (1 - 1 / self.ROWS) ** new[:, :1] + new
        count, f, ff, x, xx = self.sums.unbind(1)
        f_var, x_var = ff / count - (f / count) ** 2, xx / count - (x / count) ** 2
        known = (f_var > 0) & (x_var > 0)
        ratios = ((f_var / x_var).log10() / 2).tolist()
        return {name: ratio for name, ratio, is_known in zip(self.names, ratios, known, strict=True) if is_known}

    def warning(self, step: int, values: Mapping[str, float]) -> str | None:
        """Now and then, of a run with a critic: which time is furthest from balance, if it is out of it."""
        known = {name: 10 ** values[name] for name in self.names if name in values}
        full = dict(zip(self.names, self.sums[:, 0] > self.ROWS / 2, strict=True))
        off = {name: ratio for name, ratio in known.items() if full[name] and abs(ratio - 1) > self.TOLERANCE}
        if step % self.EVERY or "critic" not in values or not off:
            return None
        worst = max(off, key=lambda name: abs(off[name] - 1))
        shrunk, wide = (
            "less noise or more of the critic widens it",
            "if guidance does not ask for it, less of the critic",
        )
        remedy = shrunk if off[worst] < 1 else wide
        return f"step {step}: {worst}: the student's spread is {off[worst]:.2f} of the data's; {remedy}"

    def load(self, state: Mapping[str, Any]) -> None:
        self.sums = torch.tensor(state["spread"], dtype=torch.float64).view_as(self.sums)


def memory_gb(device: torch.device) -> float:
    """The most memory held so far: allocated on a GPU, or resident of the process elsewhere; in 1e9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
