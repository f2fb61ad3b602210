"""One resumable training stage of the embedded teacher: AdamW, warm-up and decay, EMA, checkpoints, a log.

Every draw of a step comes from a generator seeded with (seed, step), so a resumed stage repeats what an uninterrupted
one would have done without any generator state being stored.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

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

Losses = dict[str, Tensor]


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


def run_stage(
    name: str,
    module: nn.Module,
    losses: Callable[[range, torch.Generator], Losses],
    config: StageConfig,
    folder: Path,
    *,
    seed: int,
) -> dict[str, Tensor]:
    """Minimise the sum of `losses(indices, generator)` and return the EMA of the module's state.

    `indices` counts samples from 0, a new range each step; the terms are logged by name to `folder/log.jsonl`.

    Raises:
        FloatingPointError: the loss is not finite.
        UserError: the folder is of another stage, seed or number of steps.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
    )
    average = {key: value.detach().clone() for key, value in module.state_dict().items()}
    start = 0
    whose = {"stage": name, "seed": seed, "steps": config.steps}
    if latest := latest_checkpoint(folder):
        parts, state = load_checkpoint(latest)
        if found := {key: state.get(key) for key, value in whose.items() if state.get(key) != value}:
            raise UserError(f"{folder} holds another stage: {found} instead of {whose}; choose another --work")
        module.load_state_dict(parts["model"])
        average, start = parts["average"], state["step"]
    if config.as_is or start == config.steps:
        return average
    if latest:
        load_optimizer_tensors(module, optimizer, parts["optimizer"])
    floats = [key for key, value in average.items() if value.is_floating_point()]
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    log = MetricsLog(folder / "log.jsonl", start)
    for step in range(start, config.steps):
        done = step + 1
        rate = config.learning_rate * _schedule(step, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        terms = losses(range(step * config.batch_size, done * config.batch_size), generator_for(seed, step))
        loss = torch.stack(list(terms.values())).sum()
        values = {key: value.item() for key, value in terms.items()}
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{name}: step {step}: {values}")
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        current = module.state_dict()
        # the average forgets its start: early on it is the mean over the last tenth of the steps so far
        decay = min(config.ema_decay, (1 + step) / (10 + step))
        ema_update([average[key] for key in floats], [current[key] for key in floats], decay)
        if done % config.log_every == 0 or done == config.steps:
            seconds = (time.monotonic() - began) / (done - start)
            pace = {"seconds_per_step": seconds, "eta_minutes": (config.steps - done) * seconds / 60}
            log.write(done, {"lr": rate, "gradient_norm": norm.item(), **values, **pace})
        if done % config.checkpoint_every == 0 or done == config.steps:
            parts = {"model": current, "average": average, "optimizer": optimizer_tensors(module, optimizer)}
            save_checkpoint(folder, done, parts, whose)
            prune_checkpoints(folder, keep=2)
    return average


def _schedule(step: int, config: StageConfig) -> float:
    """The rate of a step over its peak."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.decay == "last fifth":
        return min(1.0, (config.steps - step) / (0.2 * config.steps))
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
