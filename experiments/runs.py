"""A student trained by scott's own trainer and measured, with what it cost: what trials and comparisons are made of."""

import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, get_type_hints

import torch
from experiments.energy import EnergyDistillation, EnergySampler
from experiments.graphs import record
from experiments.phases import PhasedDistillation, PhasedSampler
from rich.console import Console
from safetensors import SafetensorError
from torch import Tensor

from scott.choices import unknown
from scott.commands.distill import check_config, data_and_models
from scott.commands.initial import check_start, initial_lora
from scott.data.locks import locked
from scott.data.records import chunks
from scott.device import best_device
from scott.errors import Preempted, UserError, one_line, with_way_out
from scott.evaluation import Row, evaluate
from scott.evaluation.measures import USUAL
from scott.evaluation.networks import instruments
from scott.evaluation.references import BATCH
from scott.files import write_atomically
from scott.measured import EvaluationSplit
from scott.mini import embedded
from scott.mini.protocol import MiniReference, mini_reference
from scott.mini.scenes import pictures
from scott.progress import Bars, warn
from scott.samplers import StudentSampler, TeacherSampler
from scott.students import teacher_of
from scott.teachers import LatentBackbone
from scott.training.checkpoint import checkpoint_step, latest_checkpoint
from scott.training.config import DistillConfig
from scott.training.step import Distillation
from scott.training.trainer import Hooks, distill

Report = Callable[[str, int, int, dict[str, float]], None]
STEPS = (1, 2, 4)
KINDS: tuple[Any, ...] = (int, float, bool, tuple[float, float])
"""Types of settings that `parsed` reads; others are text."""
QUIET: dict[str, Any] = {"tracker": "none", "sample_every": 10**9, "keep_checkpoints": 1}
"""What a run is not asked for that is measured here."""


def cpu_seconds() -> float:
    """Of this process and of those it started and that have ended, in user and system mode."""
    return sum(os.times()[:4])


def digest(config: DistillConfig) -> str:
    """Of what decides the weights: results under one name of which it differs are of different recipes."""
    settings = config.decisive() | {"limit": config.limit}
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


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
            expected = (
                "two numbers, as in 0,0.99" if kind == tuple[float, float] else f"a value of type {kind.__name__}"
            )
            raise UserError(f"got --set {setting}; expected {expected}") from None
    return values


def _value(kind: Any, text: str) -> Any:
    if kind == tuple[float, float]:
        one, other = map(float, text.split(","))
        return one, other
    return json.loads(text.lower()) if kind is bool else kind(text)


@dataclass
class Training:
    """One run of the trainer in `config.out`: the same config goes on where it was stopped.

    Args:
        data: the folder that prepared shards are kept in, for all runs on the same data.
        phases: of more than 1, a student of `experiments.phases`, drawn from in as many steps.
        energy: a student of `experiments.energy`.
    """

    config: DistillConfig
    data: Path = Path("runs/data")
    phases: int = 1
    energy: bool = False
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
            if self.phases > 1 or self.energy:
                hooks.distillation = self.variant
            distill(self.backbone, data, config, hooks)
            return spent

    def variant(self, backbone: LatentBackbone, config: DistillConfig) -> Distillation:
        if self.energy:
            return EnergyDistillation.of(backbone, config)
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


@dataclass(frozen=True)
class Kept:
    """A sampler that keeps the latents it drew."""

    sampler: StudentSampler | TeacherSampler
    latents: list[Tensor] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return self.sampler.steps

    @property
    def network_calls(self) -> int:
        return self.sampler.network_calls

    @property
    def guidance(self) -> float:
        return self.sampler.guidance

    def __call__(self, prompts: Sequence[str], seed: int) -> Tensor:
        self.latents.append(self.sampler.latents(prompts, seed))
        return self.sampler.backbone.decode(self.latents[-1])


def reference_by(features: str, samples: int, split: EvaluationSplit = "held-out") -> MiniReference:
    """Captions and real pictures of a split, by the network called `features`."""
    by = instruments(USUAL, features, embedded.NAME, {}, best_device(), embedded.clip_folder)
    return mini_reference(samples, split, by)


def measured(
    samplers: Mapping[int, StudentSampler], reference: MiniReference, report: Report
) -> dict[str, dict[str, float | None]]:
    """Steps → FID, coverage, CLIP score, and the spread of the latents drawn over real ones'."""
    figures, real = {}, None
    for steps, drawn_by in samplers.items():
        real = real_latents(drawn_by.backbone, reference) if real is None else real
        sampler, name = Kept(drawn_by), f"{steps} steps"
        row = evaluate(sampler, reference, name=name, progress=partial(progress, report, name))
        figures[str(steps)] = figures_of(row) | {"spread": spread(torch.cat(sampler.latents), real)}
    return figures


def progress(report: Report, name: str, done: int, total: int) -> None:
    report(name, done, total, {})


def real_latents(backbone: LatentBackbone, reference: MiniReference) -> Tensor:
    """Of the pictures that the reference's captions were written for, (N, C, H, W): the VAE's means, which have
    .4 % less spread than the latents drawn about them that students learn from."""
    return torch.cat([backbone.encode_images(pictures(some))[0] for some in chunks(iter(reference.scenes), BATCH)])


def figures_of(row: Row) -> dict[str, float | None]:
    return {"fid": row.fid, "coverage": row.coverage, "clip_score": row.clip_score}


def spread(drawn: Tensor, real: Tensor) -> float:
    """sqrt of the variance over samples of `drawn` over that of `real`, each (N, C, H, W): a mean over elements."""
    return (drawn.var(0).mean() / real.var(0).mean()).sqrt().item()


def cell(figures: Mapping[str, Any]) -> str:
    """Of a table: FID, coverage and spread."""
    return f"{figures['fid']:.2f}, {figures['coverage']:.3f}, {figures['spread']:.3f}"
