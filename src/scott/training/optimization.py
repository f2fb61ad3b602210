"""What a step's gradients move: the student and the critic through their optimizers, the target through its EMA."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scott.errors import UserError
from scott.teachers import Backbone
from scott.training.checkpoint import (
    Parts,
    latest_checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
)
from scott.training.config import DistillConfig
from scott.training.ema import ema_update
from scott.training.spread import collect, owners, share
from scott.training.step import Gradients


@dataclass
class LossScale:
    """The factor that keeps fp16 gradients from underflow: halved when one overflows, doubled after 2,000 good steps.

    torch's GradScaler follows the same rule, but only for gradients that `backward` made.
    """

    value: float = 2.0**16
    good_steps: int = 0

    def lower(self) -> bool:
        """Halve it; False when it is 1 already, so that too large a scale is not what is wrong."""
        if self.value <= 1:
            return False
        self.value, self.good_steps = self.value / 2, 0
        return True

    def count(self) -> None:
        """One more good step."""
        self.good_steps += 1
        if self.good_steps == 2000:
            self.value, self.good_steps = 2 * self.value, 0


class Optimization:
    """The student and the critic with their optimizers, and the student's EMA.

    With `shard` optimizers or both, a process keeps the states of its share of the parameters, makes their update, and
    gets the others' values from the processes that made theirs (ZeRO, Rajbhandari et al. 2020, stage 1).
    """

    def __init__(self, backbone: Backbone, config: DistillConfig) -> None:
        self.config = config
        self.models: dict[str, dict[str, nn.Parameter]] = {"student": backbone.student_parameters()}
        self.target = backbone.target_parameters()
        rates = {"student": config.learning_rate, "critic": config.critic_learning_rate}
        if config.has_critic:
            self.models["critic"] = backbone.critic_parameters()
        self.rates = {name: rates[name] for name in self.models}
        make = optimizer_class(config.optimizer)
        self.split = config.shards_optimizers and dist.is_initialized()
        processes, me = (dist.get_world_size(), dist.get_rank()) if self.split else (1, 0)
        self.owners = {name: owners([*model.values()], processes) for name, model in self.models.items()}
        self.mine = {name: [i for i, owner in enumerate(self.owners[name]) if owner == me] for name in self.models}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for name, model in self.models.items():
            parameters = [*model.values()]
            own = [{"params": [parameters[i] for i in self.mine[name]]}]  # of many processes, one may have none
            self.optimizers[name] = make(own, lr=rates[name], weight_decay=config.weight_decay)
        self.scale = LossScale() if config.precision == "fp16" else None

    @property
    def loss_scale(self) -> float:
        return self.scale.value if self.scale else 1.0

    def update(self, gradients: Gradients, step: int) -> dict[str, Tensor]:
        """Clip, step both optimizers and move the EMA; the gradients' norms before clipping.

        The gradients are those of the loss times `loss_scale`. Where one is not finite, nothing is moved; there are no
        norms then if a smaller scale may help.
        """
        by_model = {"student": gradients.student, "critic": gradients.critic}
        norms = {}
        for name, parameters in self.models.items():
            for parameter, gradient in zip(parameters.values(), by_model[name], strict=True):
                parameter.grad = gradient / self.loss_scale if self.scale else gradient
            norms[f"{name}_gradient_norm"] = nn.utils.clip_grad_norm_(parameters.values(), self.config.clip_norm)
        if not all(bool(torch.isfinite(norm)) for norm in norms.values()):
            return {} if self.scale and self.scale.lower() else norms
        if self.scale:
            self.scale.count()
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rates[name] * self.config.rate_factor(step)
            optimizer.step()
            model = [*self.models[name].values()]
            for parameter in model:
                parameter.grad = None
            if self.split:
                share(model, self.owners[name])
        ema_update(self.target.values(), self.models["student"].values(), self.config.ema_decay)
        return norms

    def ema_distance(self) -> float:
        """‖θ − θ⁻‖ / ‖θ⁻‖ of the student and its EMA."""
        pairs = zip(self.models["student"].values(), self.target.values(), strict=True)
        squares = [((mine - theirs).square().sum(), theirs.square().sum()) for mine, theirs in pairs]
        moved, size = (torch.stack(values).sum() for values in zip(*squares, strict=True))
        return (moved / size).sqrt().item()

    def parts(self) -> Parts:
        """All that a checkpoint holds in tensors, in the first process. All call it, to send what they keep."""
        parts: Parts = {name: dict(parameters) for name, parameters in self.models.items()}
        parts["target"] = dict(self.target)
        for name, optimizer in self.optimizers.items():
            states = optimizer_tensors(optimizer, self.mine[name])
            device = next(iter(self.models[name].values())).device
            parts[f"{name}_optimizer"] = collect(states, device) if self.split else states
        return parts

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors."""
        return {"seed": self.config.seed, "loss_scale": dataclasses.asdict(self.scale) if self.scale else None}

    def load(self, folder: Path) -> dict[str, Any]:
        """Take over the newest checkpoint; its state."""
        newest = latest_checkpoint(folder)
        assert newest is not None, "open_run found a checkpoint"
        parts, state = load_checkpoint(newest)
        if missing := {*self.models, "target", *(f"{name}_optimizer" for name in self.optimizers)} - parts.keys():
            lacks = ", ".join(sorted(missing))
            raise UserError(f"checkpoint {newest} lacks {lacks}; delete it to resume from the one before")
        for name, parameters in {**self.models, "target": self.target}.items():
            load_parameters(parameters, parts[name], name)
        for name, optimizer in self.optimizers.items():
            load_optimizer_tensors(optimizer, parts[f"{name}_optimizer"], self.mine[name])
        if self.scale:
            self.scale = LossScale(**state["loss_scale"])
        return state


@torch.no_grad()
def load_parameters(parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor], name: str) -> None:
    """Copy checkpointed tensors into parameters; `UserError` unless names and shapes agree."""
    shapes = {key: value.shape for key, value in parameters.items()}
    if shapes != {key: value.shape for key, value in tensors.items()}:
        raise UserError(
            f"the checkpoint's {name} does not fit this teacher and config; resume with those it was made with"
        )
    for key, parameter in parameters.items():
        parameter.copy_(tensors[key])


def optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    """AdamW, or bitsandbytes' 8-bit one. Raises `UserError` when that is not installed."""
    if name == "adamw":
        return partial(torch.optim.AdamW, fused=True)
    try:
        import bitsandbytes
    except ImportError:
        raise UserError("got optimizer adamw8bit without bitsandbytes; pip install bitsandbytes") from None
    return bitsandbytes.optim.AdamW8bit
