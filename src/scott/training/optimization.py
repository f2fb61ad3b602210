"""What a step's gradients move: the student and the critic through their optimizers, the target through its EMA."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from scott.device import best_device
from scott.errors import UserError, require
from scott.teachers import LatentBackbone
from scott.training.balance import Balance
from scott.training.checkpoint import Parts, latest_checkpoint, load_checkpoint, readable
from scott.training.config import DistillConfig
from scott.training.parallel import (
    Model,
    averaged,
    load_optimizer_tensors,
    load_parameters,
    local,
    model_tensors,
    optimizer_tensors,
    release,
    whole,
)
from scott.training.step import Engine


class Optimization:
    """The student and the critic with their optimizers and fp16's loss scale, and the student's EMA.

    `calls` has the trained models as a step calls them. Where the parameters are split over the processes, so are the
    gradients and the optimizers' states.
    """

    def __init__(self, backbone: LatentBackbone, config: DistillConfig) -> None:
        self.backbone, self.config = backbone, config
        self.models = {"student": Model(backbone.student_parameters(), backbone.student)}
        if config.has_critic:
            self.models["critic"] = Model(backbone.critic_parameters(), backbone.critic)
        self.target = Model(backbone.target_parameters())
        unused = backbone.has_unused_parameters
        self.calls = {name: averaged(model, config, unused=unused) for name, model in self.models.items()}
        make = optimizer_class(config.optimizer)
        self.rates: dict[str, list[float]] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for name, model in self.models.items():
            groups, betas = _groups(name, model, config)
            self.rates[name] = [group["lr"] for group in groups]
            self.optimizers[name] = make(groups, betas=betas, weight_decay=config.weight_decay)
        ratio = config.adversarial_share if config.has_critic else 0.0
        in_buckets = isinstance(self.calls["student"], DistributedDataParallel)
        student = self.models["student"].parameters()
        self.balance = Balance(student, ratio, in_buckets=in_buckets) if ratio else None
        """Where λ_adv is not fixed."""
        self.scaler = torch.amp.GradScaler(backbone.device.type, enabled=config.precision == "fp16")

    def engine(self, step: int, mark: Callable[[str], None] = lambda part: None) -> Engine:
        """How each pass of step n = 0, 1, ... is made with these models."""
        config, balance = self.config, self.balance
        measured = balance and config.measures_share(step)
        weight = balance.weight if balance else config.adversarial_weight
        return Engine(
            **self.calls,
            has_critic=step >= config.first_with_critic,
            adversarial_weight=1.0 if measured else weight * config.adversarial_factor(step),
            apart=balance.apart if balance and measured else None,
            scale=lambda loss: self.scaler.scale(loss) / config.gradient_accumulation,
            mark=mark,
        )

    def update(self, step: int) -> dict[str, Tensor]:
        """Clip, step the optimizers of what has gradients and move the EMA; the gradients' norms before clipping.

        The gradients are those of the loss times the scaler's scale. Where one is not finite, nothing is moved; there
        are no norms then if a smaller scale may help.
        """
        norms: dict[str, Tensor] = {}
        before = {} if step >= self.config.first_with_critic else {"critic"}
        optimizers = {name: optimizer for name, optimizer in self.optimizers.items() if name not in before}
        if self.balance and not before:
            factor = self.config.adversarial_factor(step)
            if self.config.measures_share(step):
                norms |= self.balance.combine(self.scaler.get_scale(), factor, self.config.share_interval(step))
            else:
                norms["adversarial_weight"] = torch.tensor(factor * self.balance.weight)
        for name, optimizer in optimizers.items():
            self.scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(self.models[name].parameters(), self.config.clip_norm)
            norms[f"{name}_gradient_norm"] = whole(norm)
        finite = all(bool(torch.isfinite(norm)) for norm in norms.values())
        if finite:
            for name, optimizer in optimizers.items():
                for group, rate in zip(optimizer.param_groups, self.rates[name], strict=True):
                    group["lr"] = rate * self.config.rate_factor(step)
                optimizer.step()
            self._move_target()
            release(self.backbone)
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        may_be_lowered = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        self.scaler.update()
        return norms if finite or not may_be_lowered else {}

    def _move_target(self) -> None:
        """θ⁻ ← μ θ⁻ + (1 − μ) θ."""
        target, student = ([local(p) for p in model.parameters()] for model in (self.target, self.models["student"]))
        get_ema_multi_avg_fn(self.config.ema_decay)(target, student, None)

    @torch.no_grad()
    def ema_distance(self) -> float:
        """‖θ − θ⁻‖ / ‖θ⁻‖ of the student and its EMA."""
        both = zip(self.models["student"].parameters(), self.target.parameters(), strict=True)
        pairs = [(local(mine), local(theirs)) for mine, theirs in both]
        squares = torch.stack([torch.stack([(a - b).square().sum(), b.square().sum()]) for a, b in pairs]).sum(0)
        if dist.is_initialized():  # what every process holds counts in both alike
            dist.all_reduce(squares)
        return (squares[0] / squares[1]).sqrt().item()

    def parts(self) -> Parts:
        """All that a checkpoint holds in tensors, in the first process. All call it."""
        parts = {name: model_tensors(model) for name, model in {**self.models, "target": self.target}.items()}
        for name, optimizer in self.optimizers.items():
            parts[f"{name}_optimizer"] = optimizer_tensors(self.models[name], optimizer)
        return parts | ({"critic_statistics": statistics} if (statistics := self.backbone.critic_statistics()) else {})

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors."""
        return {"scaler": self.scaler.state_dict()} | (self.balance.state() if self.balance else {})

    def load(self, folder: Path) -> dict[str, Any]:
        """Take over the newest checkpoint; its state."""
        newest = latest_checkpoint(folder)
        assert newest is not None, "open_run found a checkpoint"
        parts, state = load_checkpoint(newest)
        statistics = self.backbone.critic_statistics()
        needed = {*self.models, "target", *(f"{name}_optimizer" for name in self.optimizers)}
        if missing := (needed | ({"critic_statistics"} if statistics else set())) - parts.keys():
            lacks = ", ".join(sorted(missing))
            raise UserError(f"checkpoint {newest} lacks {lacks}; delete it to resume from the one before")
        for name, model in {**self.models, "target": self.target}.items():
            load_parameters(model.tensors, parts[name], name)
        for name, optimizer in self.optimizers.items():
            load_optimizer_tensors(self.models[name], optimizer, parts[f"{name}_optimizer"])
        for name, statistic in statistics.items():
            statistic.copy_(parts["critic_statistics"][name])
        release(self.backbone)
        with readable(newest):
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
            if self.balance:
                self.balance.load(state)
        return state


def _groups(name: str, model: Model, config: DistillConfig) -> tuple[list[dict[str, Any]], tuple[float, float]]:
    """An optimizer's groups with their rates, the critic's heads apart, and its betas."""
    if name == "student":
        return [{"params": [*model.parameters()], "lr": config.learning_rate}], (0.9, 0.999)
    heads = [parameter for name, parameter in model.tensors.items() if name.startswith("heads.")]
    others = [parameter for name, parameter in model.tensors.items() if not name.startswith("heads.")]
    groups = [(others, config.critic_learning_rate), (heads, config.head_rate)]
    return [{"params": tensors, "lr": rate} for tensors, rate in groups if tensors], config.critic_betas


def optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    """AdamW, or bitsandbytes' 8-bit one. Raises `UserError` when that is not installed, or has no kernels here."""
    if name == "adamw":
        return partial(torch.optim.AdamW, fused=True)
    if best_device().type == "mps":
        raise UserError(f"got --optimizer {name} on MPS, for which bitsandbytes has no such kernels; give adamw")
    return require("bitsandbytes", "adamw8bit").optim.AdamW8bit
