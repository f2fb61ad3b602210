"""The loop around `training.step`: processes, batches, checkpoints, logs, and a run that resumes by the same command.

The batch of a step is one for all processes: each takes its rows of it, in as many passes as
`gradient_accumulation` says, and the gradients are averaged over both. Every draw is made for the whole batch, so the
same run comes out however it is spread, up to the order of sums in fp32.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from scott.data.batch import Batch
from scott.errors import Preempted, UserError
from scott.teachers import Cond, LatentBackbone
from scott.training.checkpoint import (
    Best,
    is_saved,
    latest_checkpoint,
    prune_checkpoints,
    readable,
    save_checkpoint,
)
from scott.training.config import DistillConfig
from scott.training.draws import Draws, sampling_times
from scott.training.jumps import Jumps
from scott.training.launch import check_same_start, init_tracker, open_run, opened_run, sigterm_kept, start_processes
from scott.training.loader import Data, batches, check_batch
from scott.training.metrics import CriticWatch, MetricsLog, Spread, StepTimer, check_finite, memory_gb, read_metrics
from scott.training.optimization import Optimization
from scott.training.parallel import rows_of_pass, without_averaging
from scott.training.step import Distillation


@dataclass
class Hooks:
    """What the loop calls on its way; each is given the number of steps done. All processes call `sample` and
    `validate`, whose figures are logged; only the first one the others."""

    progress: Callable[[int, dict[str, float]], None] = lambda step, terms: None
    sample: Callable[[int], dict[str, float]] = lambda step: {}
    validate: Callable[[int], dict[str, float]] = lambda step: {}
    warn: Callable[[str], None] = lambda message: None
    distillation: Callable[[LatentBackbone, DistillConfig], Distillation] = Distillation.of
    """What makes the steps: of a variant, a class derived from `Distillation`."""


def distill(
    backbone: LatentBackbone,
    data: Data,
    config: DistillConfig,
    hooks: Hooks | None = None,
    accelerator: Accelerator | None = None,
    *,
    opened: bool = False,
) -> int:
    """Train the backbone's student to `config.max_steps` in `config.out`, from its newest checkpoint on.

    The backbone already has its student, and critic where λ_adv > 0; with `opened` the caller holds the folder's lock.
    Returns the number of steps this call made.

    Raises:
        FloatingPointError: a loss or gradient is not finite; what was saved before stays.
        UserError: the backbone has not the models that the config trains, the data do not fit the teacher, or the
            folder is another run's, or being written.
        Preempted: SIGTERM came; the step it came in, or the next where it came between two, was finished and saved, and
            was neither sampled nor validated.
    """
    there = backbone.train_mode if backbone.student_parameters() else None
    if there != config.train or (config.has_critic and backbone.critic_model is None):
        student = f"{'no' if there is None else f'a {there}'} student"
        critic = "no critic" if backbone.critic_model is None else "a critic"
        wanted = f"add_student({config.train!r})" + (" and add_critic" if config.has_critic else "")
        raise UserError(f"got a backbone with {student} and {critic}; expected {wanted} before, as the config says")
    config.make_solver(backbone.schedule), config.make_grid(backbone.schedule)  # raise before a folder is made
    accelerator = accelerator or start_processes(config)
    run = config, backbone.version, backbone.schedule
    with nullcontext() if opened else opened_run(*run, accelerator):
        with accelerator.main_process_first():
            start = open_run(*run, write=accelerator.is_main_process)
        check_same_start(config.out, start)
        return _Run(backbone, data, config, hooks or Hooks(), accelerator, start).train()


class _Run:
    """One process's part of a run."""

    def __init__(
        self,
        backbone: LatentBackbone,
        data: Data,
        config: DistillConfig,
        hooks: Hooks,
        accelerator: Accelerator,
        start: int,
    ) -> None:
        self.backbone, self.data, self.config, self.hooks = backbone, data, config, hooks
        self.accelerator, self.start = accelerator, start
        if config.has_critic and config.critic_r1:  # made of differences smaller than what TF32 rounds by
            torch.backends.cudnn.allow_tf32 = False
        self.distillation = hooks.distillation(backbone, config)
        self.passes = rows_of_pass(config, accelerator.process_index, accelerator.num_processes)
        self.optimization = Optimization(backbone, config)
        self.checkpoints = config.out / "checkpoints"
        self.spread = Spread(sampling_times(self.distillation.grid, config), config)
        if start:
            state = self.optimization.load(self.checkpoints)
            with readable(latest_checkpoint(self.checkpoints) or self.checkpoints):
                self.spread.load(state)
            if (before := state.get("data")) != data.version:
                raise UserError(
                    f"the data of {config.out} are {data.version} and were {before} at step {start}; "
                    "give it those it was begun with, or choose another --out"
                )
        elif config.continue_from:
            self.optimization.load(Path(config.continue_from) / "checkpoints")
        elif backbone.critic_statistics() and backbone.critic_model:
            backbone.critic_model.standardise(self.whole_batch())
        rows = slice(self.passes[0].start, self.passes[-1].stop)
        self.jumps = Jumps(config)
        steps, draws = range(start, config.max_steps), partial(self.jumps.draws, grid=self.distillation.grid)
        self.batches = batches(data, backbone, self.distillation.uncond, config, rows, steps, self.jumps.number, draws)
        self.timer, self.watch = StepTimer(backbone.device), CriticWatch()
        self.log: MetricsLog | None = None

    def train(self) -> int:
        config = self.config
        if self.start == config.max_steps and self.is_sampled():
            return 0
        if self.accelerator.is_main_process:
            self.log = MetricsLog(config.out / "metrics.jsonl", self.start, "consistency")
        init_tracker(self.accelerator, config)
        try:
            if self.start:
                self.sample_and_validate(self.start)  # which may be what the run was stopped in
            with sigterm_kept() as signals:
                for done, (batch, draws) in enumerate(self.batches, self.start + 1):
                    self.timer.mark("data")
                    values, stop = self.step(done - 1, batch, draws, lambda: bool(signals))
                    self.log_step(done, values)
                    if done % config.checkpoint_every == 0 or done == config.max_steps or stop:
                        self.save(done)
                    if stop:
                        raise Preempted(f"stopped by SIGTERM after step {done}, which is saved")
                    self.sample_and_validate(done)
        finally:
            self.accelerator.end_training()
        return config.max_steps - self.start

    def whole_batch(self) -> Iterator[tuple[Tensor, Cond]]:
        """The first batch of all processes, as much at a time as a pass takes."""
        size = self.passes[0].stop - self.passes[0].start
        for first in range(0, self.config.batch_size, size):
            part = self.data.batch(0, self.config.batch_size, slice(first, first + size))
            check_batch(part, self.backbone, self.distillation.uncond, varied=self.data.varied)
            part = part.to(self.backbone.device)
            omega = torch.full((len(part.mean),), self.config.drawn_guidance, device=self.backbone.device)
            yield part.mean, part.cond | {"guidance": omega}

    def is_sampled(self) -> bool:
        """Whether the last step, if it is made, was sampled and validated too: that is logged apart from training."""
        records = [record for record in read_metrics(self.config.out / "metrics.jsonl") if record["step"] == self.start]
        return any("consistency" not in record for record in records)

    def step(self, step: int, batch: Batch, draws: Draws, asked: Callable[[], bool]) -> tuple[dict[str, float], bool]:
        """Make a step of this process's rows; its terms and norms, and whether any process has been asked to stop."""
        optimization, distillation = self.optimization, self.distillation
        engine = optimization.engine(step, self.timer.mark)
        terms: list[dict[str, Tensor]] = []
        for index, rows in enumerate(self.passes):
            first, last = self.passes[0].start, rows is self.passes[-1]
            mine = slice(rows.start - first, rows.stop - first)
            part, drawn = batch[mine], draws[mine].to(self.backbone.device)
            x_m = self.jumps.end(step, index, partial(distillation.walk, part, drawn))
            with nullcontext() if last else without_averaging(*optimization.calls.values()):
                terms.append(distillation.step(part, drawn, engine, x_m))
        norms = optimization.update(step)
        means, stop = self.average(terms, stop=asked())  # after the update, for which a GPU has made the passes
        spread = self.spread.add(means.pop("moments"))
        if not norms:  # fp16 overflowed and a smaller scale will be tried, so the ratio may be infinite
            means.pop("adversarial_ratio", None)
        values = check_finite(step + 1, means | norms, draws.t_n) | spread
        self.timer.mark("update")
        return values, stop

    def average(self, terms: list[dict[str, Tensor]], *, stop: bool) -> tuple[dict[str, Tensor], bool]:
        """The terms' means over passes and processes, and whether any process is to stop."""
        means = {name: torch.stack([made[name] for made in terms]).mean(0) for name in terms[0]}
        if self.accelerator.num_processes == 1:
            return means, stop
        means["stop"] = torch.tensor(float(stop), device=self.backbone.device)
        flat = self.accelerator.reduce(torch.cat([value.flatten() for value in means.values()]), "mean")
        parts = zip(means.items(), flat.split([value.numel() for value in means.values()]), strict=True)
        means = {name: part.view(value.shape) for (name, value), part in parts}
        return means, bool(means.pop("stop") > 0)

    def log_step(self, done: int, values: dict[str, float]) -> None:
        """Report a step, and log it where it is due."""
        config, record = self.config, dict[str, float]()
        for warning in (self.watch.see(done, values), self.spread.warning(done, values)):
            if warning and self.log:
                self.hooks.warn(warning)
        if done % config.log_every == 0 or done == config.max_steps:
            parts = {f"seconds_{part}": seconds for part, seconds in self.timer.read().items()}
            seconds = sum(parts.values())
            record = values | parts | {"seconds_per_step": seconds, "images_per_second": config.batch_size / seconds}
            record |= {"ema_distance": self.optimization.ema_distance(), "memory_gb": memory_gb(self.backbone.device)}
        self.write(done, record)
        if self.log:
            self.hooks.progress(done, record)
        self.timer.skip()

    def sample_and_validate(self, done: int) -> None:
        """Where either is due: after the step's checkpoint, which is not lost if this fails."""
        config, last, record = self.config, done == self.config.max_steps, dict[str, float]()
        if done % config.sample_every == 0 or last:
            record |= self.hooks.sample(done)
        if config.validate_every and (done % config.validate_every == 0 or last):
            record |= self.hooks.validate(done)
        self.write(done, record)
        if config.best_metric in record:
            how = {"features": config.validation_features, "samples": config.validation_samples}
            how |= {"guidance": config.drawn_guidance}
            self.save(done, Best(done, config.best_metric, record[config.best_metric], how))
        self.timer.skip()

    def write(self, done: int, record: dict[str, float]) -> None:
        if self.log and record:
            self.log.write(done, record)
            self.accelerator.log(record, step=done)

    def save(self, done: int, candidate: Best | None = None) -> None:
        """Save this step, or only if it is the best yet. One process decides and writes, the others wait."""
        wanted = candidate is None or candidate.is_best(self.checkpoints)
        due = [wanted and not is_saved(self.checkpoints, done)]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(due)
        if due[0]:
            self.write_checkpoint(done)
        if wanted and self.accelerator.is_main_process:
            if candidate:
                candidate.write(self.checkpoints)
            prune_checkpoints(self.checkpoints, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        self.timer.skip()

    def write_checkpoint(self, done: int) -> None:
        """All gather it, which holds everything once more; the first process writes."""
        parts = self.optimization.parts()
        if self.accelerator.is_main_process:
            state = self.optimization.state() | {"data": self.data.version, "teacher": self.backbone.version}
            state |= {"signs": self.backbone.signs, "schedule": repr(self.backbone.schedule)}
            state |= {"spread": self.spread.sums.tolist()}
            save_checkpoint(self.checkpoints, done, parts, state)
