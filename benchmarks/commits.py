"""`python -m benchmarks.commits OLD`: the training step of this checkout beside that of another one, OLD, by turns.

A process each holds its checkout's own network, batch and optimizers (its `benchmarks.step.step_calls`), and makes one
step when it is asked to. They are asked in turns, so that whatever else the machine does falls on both alike.
"""

import os
import statistics
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import tyro
from experiments.runs import exit_code

from scott.errors import UserError

WORKER = """
import dataclasses, sys, time
import torch
from benchmarks.models import MODELS, random_data
from benchmarks.plain import PlainLCM
from benchmarks.step import lcm, step_calls
from scott.commands.distill import add_models

name, train, batch, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model = MODELS[name]
config = dataclasses.replace(model.config, train=train)
backbone = model.teacher()
data = random_data(backbone, int(batch) or config.batch_size)
add_models(backbone, config)
step = step_calls(backbone, PlainLCM(model.teacher().pipeline, lcm(config)), data, config)["step"]
for line in sys.stdin:
    began = time.perf_counter()
    step()
    print(time.perf_counter() - began, flush=True)
"""


@dataclass(frozen=True)
class Options:
    old: Annotated[Path, tyro.conf.Positional]
    """The other checkout: `git worktree add OLD COMMIT`."""
    model: str = "mini"
    """mini (the embedded teacher), or sd50m (SD1.5 at a quarter of its width)."""
    train: str = "lora"
    """lora or full."""
    repeats: int = 15
    """Rounds that are timed."""
    batch_size: int = 0
    """0 is the model's own."""
    threads: int = 2
    """Of torch, in the process whose turn it is; the other one waits."""


class Checkout:
    """A process that makes steps of one checkout."""

    def __init__(self, folder: Path, options: Options) -> None:
        if not (folder / "benchmarks" / "step.py").is_file():
            raise UserError(f"got {folder}, which has no benchmarks/step.py; give a checkout of scott")
        self.folder, path = folder, os.pathsep.join(map(str, (folder / "src", folder)))
        command = [sys.executable, "-c", WORKER, options.model, options.train, options.batch_size, options.threads]
        self.process = subprocess.Popen(
            [*map(str, command)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step(self) -> float:
        """Seconds of one step. Raises `UserError` where the process has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended, and there is no line
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise UserError(f"the steps of {self.folder} ended with code {self.process.wait()}; it said why above")
        return float(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()


def measure(options: Options) -> dict[str, float]:
    """Medians over rounds: seconds of each step, and the new one's over the old one's in the same round."""
    here = Path(__file__).parents[1]
    with Checkout(here, options) as new, Checkout(options.old.resolve(), options) as old:
        for checkout in (new, old):
            checkout.step()  # not counted
        rounds = []
        for number in range(options.repeats):
            order = (new, old) if number % 2 else (old, new)
            seconds = {checkout: checkout.step() for checkout in order}
            rounds.append((seconds[new], seconds[old]))
    new_seconds, old_seconds = (statistics.median(values) for values in zip(*rounds, strict=True))
    ratio = statistics.median(new / old for new, old in rounds)
    return {"new_over_old": ratio, "new_seconds": new_seconds, "old_seconds": old_seconds}


def main(options: Options) -> None:
    figures = measure(options)
    sys.stdout.write(", ".join(f"{name} {value:.4g}" for name, value in figures.items()) + "\n")


if __name__ == "__main__":
    asked = tyro.cli(Options, description=__doc__)
    sys.exit(exit_code(lambda report: main(asked)))
