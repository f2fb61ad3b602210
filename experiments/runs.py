"""A student trained by scott's own trainer, with what it cost: what trials and comparisons are made of."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, get_type_hints

import torch
from experiments.energy import EnergyDistillation, EnergySampler
from experiments.graphs import record
from experiments.matching import MatchingDistillation
from experiments.phases import PhasedDistillation, PhasedSampler
from rich.console import Console
from safetensors import SafetensorError

from scott.choices import unknown
from scott.commands.distill import check_config, data_and_models
from scott.commands.initial import check_start, initial_lora
from scott.data.locks import locked
from scott.errors import Preempted, UserError, one_line, with_way_out
from scott.files import write_atomically
from scott.progress import Bars, warn
from scott.samplers import StudentSampler
from scott.students import is_run, teacher_of
from scott.teachers import LatentBackbone
from scott.training.checkpoint import checkpoint_step, latest_checkpoint
from scott.training.config import DistillConfig
from scott.training.step import Distillation
from scott.training.trainer import Hooks, distill

Report = Callable[[str, int, int, dict[str, float]], None]
STEPS = (1, 2, 4)
KINDS: tuple[Any, ...] = (int, float, bool, tuple[float, float], tuple[float, ...])
"""Types of settings that `parsed` reads; others are text."""
EXPECTED: dict[Any, str] = {
    bool: "true or false",
    tuple[float, float]: "two numbers, as in 0,0.99",
    tuple[float, ...]: "numbers, as in 999,599",
}
QUIET: dict[str, Any] = {"tracker": "none", "sample_every": 10**9, "keep_checkpoints": 1}
"""What a run is not asked for that is measured here."""


def cpu_seconds() -> float:
    """Of this process and of those it started and that have ended, in user and system mode."""
    return sum(os.times()[:4])


@contextmanager
def one_thread() -> Iterator[None]:
    """Where CPU seconds are counted: of more threads, those that wait for one another would be counted too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


VARIANTS = ("-energy", "-phases")
"""How folders of trials end whose students draw in another way."""
SINCE = {"adversarial_share_every": 1, "drawn_timesteps": ()}
"""Settings that came after rows had been recorded, as they were until then."""


def digest(config: DistillConfig) -> str:
    """Of what decides the weights: results under one name of which it differs are of different recipes.

    What is in `SINCE` and stands there as it was before does not count, so that rows of that time keep theirs.
    """
    decisive = config.decisive() | {"limit": config.limit}
    settings = {name: value for name, value in decisive.items() if (name, value) not in SINCE.items()}
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def plain_run(run: Path) -> tuple[DistillConfig, dict[str, Any]]:
    """The config of a trial's folder, and what a line of figures says of it. Raises `UserError` for what is none, or of
    a variant whose student draws otherwise."""
    if not is_run(run):
        raise UserError(f"got {run}, which is no run folder; expected one that experiments.trial made")
    if run.name.endswith(VARIANTS):
        raise UserError(f"got {run}, a variant's, whose student draws otherwise; expected a plain run")
    config = replace(DistillConfig.load(run / "config.json"), out=run)
    what = {"run": run.name, "config": digest(config), "method": config.method, "updates": config.max_steps}
    return config, what


def exit_code(run: Callable[[Report], None]) -> int:
    """Of a command: 0; and with a line that says why, 2 where it was given something wrong, diverged or cannot write,
    143 where SIGTERM came."""
    terminal = Console(stderr=True)
    try:
        with Bars(terminal) as bars:
            run(bars.report)
    except (UserError, FloatingPointError, OSError, SafetensorError) as error:  # the last where a disk is full
        terminal.print(one_line(with_way_out(error)), markup=False)
        return 2
    except Preempted as stop:
        terminal.print(f"{stop}; the same command goes on from there", markup=False)
        return 128 + signal.SIGTERM
    return 0


def parsed(settings: Sequence[str]) -> dict[str, Any]:
    """`key=value` as values of `DistillConfig`. Raises `UserError` for a key it lacks, or a value of another type."""
    types, values = get_type_hints(DistillConfig), dict[str, Any]()
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"got --set {setting}; expected key=value")
        if key not in types:
            raise unknown("setting", key, types)
        kind = next((kind for kind in KINDS if types[key] in (kind, kind | None)), str)
        try:
            values[key] = _value(kind, text)
        except ValueError:
            expected = EXPECTED.get(kind, f"a value of type {kind.__name__}")
            raise UserError(f"got --set {setting}; expected {expected}") from None
    return values


def _value(kind: Any, text: str) -> Any:
    if kind in (tuple[float, float], tuple[float, ...]):
        numbers = tuple(map(float, text.split(",")))
        if kind == tuple[float, float] and len(numbers) != 2:
            raise ValueError
        return numbers
    if kind is bool and text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true" if kind is bool else kind(text)


@dataclass
class Training:
    """One run of the trainer in `config.out`: the same config goes on where it was stopped.

    Args:
        data: the folder that prepared shards are kept in, for all runs on the same data.
        phases: of more than 1, a student of `experiments.phases`, drawn from in as many steps.
        energy: a student of `experiments.energy`.
        matching: a student of `experiments.matching`.
    """

    config: DistillConfig
    data: Path = Path("runs/data")
    phases: int = 1
    energy: bool = False
    matching: bool = False
    backbone: LatentBackbone = field(init=False)

    def train(self, report: Report) -> float:
        """Make the updates that are left; CPU seconds of all that were made, without those a crash lost.

        Raises `UserError` where another command writes the run, or where it does not say what it cost.
        """
        return self.finished(report).total(self.config.max_steps)

    def finished(self, report: Report) -> "Spent":
        """What the run cost, with the updates made that were left and the student loaded."""
        config = self.config
        self.backbone = teacher_of(config.teacher, config.dtype, config.quantize)
        check_config(self.backbone, config)
        check_start(self.backbone, config)
        lora = initial_lora(self.backbone, config, warn)
        config.out.mkdir(parents=True, exist_ok=True)
        with locked(config.out):
            data = data_and_models(self.backbone, config, lora, self.data, report, warn)
            if self.backbone.device.type == "cuda":
                record(self.backbone)
            spent = Spent(config.out, config.out / "checkpoints", config.checkpoint_every)

            def progress(done: int, terms: dict[str, float]) -> None:
                spent.write(done)  # of each update, as SIGTERM has any of them saved
                report("distil", done, config.max_steps, terms)

            hooks = Hooks(progress=progress)
            if self.phases > 1 or self.energy or self.matching:
                hooks.distillation = self.variant
            with one_thread():
                distill(self.backbone, data, config, hooks, opened=True)
            return spent

    def variant(self, backbone: LatentBackbone, config: DistillConfig) -> Distillation:
        if self.energy:
            return EnergyDistillation.of(backbone, config)
        if self.matching:
            return MatchingDistillation.of(backbone, config)
        plain = Distillation.of(backbone, config)
        return PhasedDistillation(*(getattr(plain, field.name) for field in fields(plain)), phases=self.phases)

    def samplers(self, omega: float | None = None) -> dict[int, StudentSampler]:
        """Of the student's EMA, by steps, at ω, or at that which its config draws at."""
        backbone, grid = self.backbone, self.config.make_grid(self.backbone.schedule)
        backbone.place_encoders(backbone.device)  # training sent them away
        omega = self.config.drawn_guidance if omega is None else omega
        if self.phases > 1:
            return {self.phases: PhasedSampler(backbone, backbone.target, grid, self.phases, omega)}
        kind = EnergySampler if self.energy else StudentSampler
        return {n: kind(backbone, backbone.target, grid, n, omega) for n in STEPS}


class Spent:
    """CPU seconds by the step they had been spent at, kept in a run's folder; those that a crash lost are forgotten.

    Args:
        every: the steps from one checkpoint to the next.
    """

    def __init__(self, out: Path, checkpoints: Path, every: int) -> None:
        self.file, self.every = out / "cpu_seconds.json", every
        there = json.loads(self.file.read_text()) if self.file.is_file() else {}
        newest = latest_checkpoint(checkpoints)
        self.start = checkpoint_step(newest) if newest else 0
        self.steps = {int(step): seconds for step, seconds in there.items() if int(step) <= self.start}
        self.before = max(self.steps.values(), default=0.0)
        self.began = cpu_seconds()

    def write(self, done: int) -> None:
        """After a step; of those before it, what a checkpoint may be of stays."""
        kept = {step: spent for step, spent in self.steps.items() if step % self.every == 0 or step == self.start}
        self.steps = kept | {done: self.before + cpu_seconds() - self.began}
        write_atomically(self.file, json.dumps(self.steps))

    def total(self, done: int) -> float:
        """Raises `UserError` where it is not known, as of a run that another command made."""
        if done not in self.steps:
            raise UserError(
                f"{self.file.parent} does not say what its {done} steps cost, as a run of `scott distill` does not; "
                "move it away, and it is made anew"
            )
        return self.steps[done]
