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
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from scott.errors import UserError
from scott.rng import generator_for
from scott.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from scott.training.ema import ema_update
from scott.training.metrics import MetricsLog
from scott.training.parallel import load_optimizer_tensors, optimizer_tensors

Tensors = dict[str, Tensor]
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


def ahead(dataset: Dataset[Tensors], indices: range, config: StageConfig) -> DataLoader[Tensors]:
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


class Launched:
    """A function of tensors whose later calls are one launch on a GPU: `WARMUP` calls are made as they are, and what
    the next one does is recorded as a CUDA graph, which is replayed from then on. On a CPU it is only called."""

    WARMUP = 3

    def __init__(self, function: Callable[[Tensors], Tensor], device: str) -> None:
        self.function, self.device, self.calls = function, torch.device(device), 0
        self.given: Tensors = {}
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, given: Tensors) -> Tensor:
        if self.device.type != "cuda":
            return self.function(given)
        if not self.given:
            self.given = {name: torch.empty_like(value, device=self.device) for name, value in given.items()}
        for name, value in given.items():
            self.given[name].copy_(value, non_blocking=True)
        self.calls += 1
        if self.graph is None and self.calls <= self.WARMUP:
            side = torch.cuda.Stream()  # a graph is recorded on another stream than the default, and warmed up on one
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                made = self.function(self.given)
            torch.cuda.current_stream().wait_stream(side)
            return made
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # a loader pins memory beside it
                self.made = self.function(self.given)
        self.graph.replay()
        return self.made


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
    graphed = torch.device(config.device).type == "cuda"
    optimizer = torch.optim.AdamW(
        groups or [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=config.weight_decay,
        fused=True,
        capturable=graphed,
    )
    current = module.state_dict()
    average = {key: value.detach().clone() for key, value in current.items()}
    start = 0
    whose = {"stage": name, "seed": seed, "steps": config.steps}
    if latest := latest_checkpoint(folder):
        parts, state = load_checkpoint(latest)
        if found := {key: state.get(key) for key, value in whose.items() if state.get(key) != value}:
            raise UserError(f"{folder} holds another stage: {found} instead of {whose}; choose another --work")
        module.load_state_dict(parts["model"])
        average = {key: value.to(config.device) for key, value in parts["average"].items()}
        start = state["step"]
    if config.as_is or start == config.steps:
        return _on_cpu(module, average)
    if latest:
        load_optimizer_tensors(module, optimizer, parts["optimizer"])
    if graphed:  # a recorded step reads its rate from memory
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(config.learning_rate, device=config.device)
    floats = [key for key, value in average.items() if value.is_floating_point()]
    names: list[str] = []

    def update(drawn: Tensors) -> Tensor:
        terms = losses(drawn)
        names[:] = terms
        values = torch.stack(list(terms.values()))
        optimizer.zero_grad()
        values.sum().backward()
        norms = [nn.utils.clip_grad_norm_(group["params"], config.clip_norm) for group in optimizer.param_groups]
        optimizer.step()
        return torch.cat([values.detach(), nn.utils.get_total_norm(norms).detach()[None]])

    launched = Launched(update, config.device)
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    log = MetricsLog(folder / "log.jsonl", start)
    steps = range(start, config.steps)
    for step, drawn in zip(steps, ahead(_Steps(draw, config.batch_size, seed), steps, config), strict=True):
        done = step + 1
        rate = config.learning_rate * _schedule(step, config)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"].fill_(rate) if graphed else rate
        *terms, norm = launched(drawn).tolist()
        values = dict(zip(names, terms, strict=True))
        if not math.isfinite(sum(terms)):
            raise FloatingPointError(f"{name}: step {step}: {values}")
        # the average forgets its start: early on it is the mean over the last tenth of the steps so far
        decay = min(config.ema_decay, (1 + step) / (10 + step))
        ema_update([average[key] for key in floats], [current[key] for key in floats], decay)
        if done % config.log_every == 0 or done == config.steps:
            seconds = (time.monotonic() - began) / (done - start)
            pace = {"seconds_per_step": seconds, "eta_minutes": (config.steps - done) * seconds / 60}
            log.write(done, {"lr": rate, "gradient_norm": norm, **values, **pace})
        if done % config.checkpoint_every == 0 or done == config.steps:
            saved = {"model": current, "average": average, "optimizer": optimizer_tensors(module, optimizer)}
            save_checkpoint(folder, done, saved, whose)
            prune_checkpoints(folder, keep=2)
    return _on_cpu(module, average)


def _on_cpu(module: nn.Module, average: Tensors) -> Tensors:
    module.cpu()
    return {key: value.cpu() for key, value in average.items()}


def _schedule(step: int, config: StageConfig) -> float:
    """The rate of a step over its peak."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.decay == "last fifth":
        return min(1.0, (config.steps - step) / (0.2 * config.steps))
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
