"""One resumable training stage of the embedded teacher: AdamW, warm-up and decay, EMA, checkpoints, a log.

Every draw of a step comes from a CPU generator seeded with (seed, step), so a resumed stage repeats what an
uninterrupted one would have done without any generator state being stored, and a stage sees the same data on every
device. On a GPU a step is launched as one CUDA graph: the networks are so small that launching their kernels one by
one would take most of the time.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from experiments.graphs import Launched, Tensors
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from scott.errors import UserError
from scott.rng import generator_for
from scott.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from scott.training.metrics import MetricsLog
from scott.training.parallel import load_optimizer_tensors, optimizer_tensors

T = TypeVar("T")
Draw = Callable[[range, torch.Generator], Tensors]
"""(samples of a step, counted from 0, and its generator) → what the step's losses are made of, on the CPU."""
Losses = Callable[[Tensors], Tensors]
"""(what was drawn, on the stage's device) → terms of the loss by name."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    warmup: int = 100
    decay: Literal["cosine", "last fifth"] = "cosine"
    """How the rate falls after the warm-up: half a cosine down to 2 %, or in a line to 0 over the last fifth."""
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    checkpoint_every: int = 250
    as_is: bool = False
    """Train nothing: take the newest checkpoint's average, however far it got; without one, what would be trained."""
    log_every: int = 25
    device: str = "cpu"
    workers: int = 0
    """Processes that draw ahead of the training; 0 draws in its own."""


class _Steps(Dataset[Tensors]):
    def __init__(self, draw: Draw, batch_size: int, seed: int) -> None:
        self.draw, self.batch_size, self.seed = draw, batch_size, seed

    def __getitem__(self, step: int) -> Tensors:
        first = step * self.batch_size
        return self.draw(range(first, first + self.batch_size), generator_for(self.seed, step))


def ahead(dataset: Dataset[T], indices: range, config: StageConfig) -> DataLoader[T]:
    """The dataset's items at `indices` in order, made by the stage's workers."""
    pinned = torch.device(config.device).type == "cuda"
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=indices,
        num_workers=config.workers,
        pin_memory=pinned,
        generator=torch.Generator(),  # or starting it would take a number from torch's own
    )


def run_stage(
    name: str,
    module: nn.Module,
    draw: Draw,
    losses: Losses,
    config: StageConfig,
    folder: Path,
    *,
    seed: int,
    groups: Sequence[dict[str, Any]] | None = None,
) -> Tensors:
    """Minimise the sum of `losses(draw(samples, generator))` and return the EMA of the module's state, on the CPU.

    The terms are logged by name to `folder/log.jsonl`. `groups` are the optimizer's groups of parameters, each clipped
    alone; by default one of all that are trained.

    Raises:
        FloatingPointError: the loss is not finite.
        UserError: the folder is of another stage, seed or number of steps.
    """
    module.to(config.device)
    stage = _Stage(name, module, losses, config, folder, seed, groups)
    if not config.as_is:
        stage.train(draw)
    module.cpu()
    return {key: value.cpu() for key, value in stage.average.items()}


class _Stage:
    """A module, its optimizer and its average, at the newest checkpoint of the folder."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        losses: Losses,
        config: StageConfig,
        folder: Path,
        seed: int,
        groups: Sequence[dict[str, Any]] | None,
    ) -> None:
        self.name, self.module, self.losses, self.config, self.folder = name, module, losses, config, folder
        self.seed, self.whose = seed, {"stage": name, "seed": seed, "steps": config.steps}
        self.graphed = torch.device(config.device).type == "cuda"
        self.optimizer = torch.optim.AdamW(
            groups or [{"params": [parameter for parameter in module.parameters() if parameter.requires_grad]}],
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=True,
            capturable=self.graphed,
        )
        self.current = module.state_dict()
        self.average = {key: value.detach().clone() for key, value in self.current.items()}
        self.start = 0
        self.terms: list[str] = []
        """Names of the loss's, once it was computed."""
        if latest := latest_checkpoint(folder):
            self._load(latest)
        if self.graphed:  # a recorded step reads its rate from memory
            for group in self.optimizer.param_groups:
                group["lr"] = torch.tensor(config.learning_rate, device=config.device)

    def _load(self, checkpoint: Path) -> None:
        parts, state = load_checkpoint(checkpoint)
        if found := {key: state.get(key) for key, value in self.whose.items() if state.get(key) != value}:
            raise UserError(
                f"{self.folder} holds another stage: {found} instead of {self.whose}; choose another --work"
            )
        self.module.load_state_dict(parts["model"])
        self.average = {key: value.to(self.config.device) for key, value in parts["average"].items()}
        self.start = state["step"]
        load_optimizer_tensors(self.module, self.optimizer, parts["optimizer"])

    def train(self, draw: Draw) -> None:
        """Make the steps that are left."""
        config, launched = self.config, Launched(self._update, self.config.device)
        steps = range(self.start, config.steps)
        if not steps:
            return
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        log = MetricsLog(self.folder / "log.jsonl", self.start)
        data = ahead(_Steps(draw, config.batch_size, self.seed), steps, config)
        for step, drawn in zip(steps, data, strict=True):
            done, rate = step + 1, config.learning_rate * _schedule(step, config)
            for group in self.optimizer.param_groups:
                group["lr"] = group["lr"].fill_(rate) if self.graphed else rate
            *terms, norm = launched(drawn).tolist()
            values = dict(zip(self.terms, terms, strict=True))
            if not math.isfinite(sum(terms)):
                raise FloatingPointError(f"{self.name}: step {step}: {values}")
            self._move_average(step)
            if done % config.log_every == 0 or done == config.steps:
                seconds = (time.monotonic() - began) / (done - self.start)
                pace = {"seconds_per_step": seconds, "eta_minutes": (config.steps - done) * seconds / 60}
                log.write(done, {"lr": rate, "gradient_norm": norm, **values, **pace})
            if done % config.checkpoint_every == 0 or done == config.steps:
                self._save(done)

    def _update(self, drawn: Tensors) -> Tensor:
        """One step of the optimizer: the loss's terms, and the norm of the gradient before it is clipped."""
        terms = self.losses(drawn)
        self.terms[:] = terms
        values = torch.stack(list(terms.values()))
        self.optimizer.zero_grad()
        values.sum().backward()
        groups = self.optimizer.param_groups
        norms = [nn.utils.clip_grad_norm_(group["params"], self.config.clip_norm) for group in groups]
        self.optimizer.step()
        return torch.cat([values.detach(), nn.utils.get_total_norm(norms).detach()[None]])

    def _move_average(self, step: int) -> None:
        """It forgets its start: early on it is the mean over the last tenth of the steps so far."""
        decay = min(self.config.ema_decay, (1 + step) / (10 + step))
        floats = [key for key, value in self.average.items() if value.is_floating_point()]
        average, current = ([state[key] for key in floats] for state in (self.average, self.current))
        get_ema_multi_avg_fn(decay)(average, current, None)

    def _save(self, done: int) -> None:
        optimizer = optimizer_tensors(self.module, self.optimizer)
        parts = {"model": self.current, "average": self.average, "optimizer": optimizer}
        save_checkpoint(self.folder, done, parts, self.whose)
        prune_checkpoints(self.folder, keep=2)


def _schedule(step: int, config: StageConfig) -> float:
    """The rate of a step over its peak."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.decay == "last fifth":
        return min(1.0, (config.steps - step) / (0.2 * config.steps))
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
