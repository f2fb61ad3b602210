"""The loop around `training.step`: optimizers, EMA, checkpoints, logs, and a run that resumes by the same command."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from scott.backbones import Backbone
from scott.data.batch import BatchSource
from scott.errors import UserError
from scott.files import write_atomically
from scott.rng import generator_for
from scott.training.checkpoint import (
    checkpoint_step,
    latest_checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    prune_checkpoints,
    save_checkpoint,
)
from scott.training.config import DistillConfig
from scott.training.ema import ema_update
from scott.training.metrics import MetricsLog, check_finite
from scott.training.step import Draws, Gradients, distillation_step


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


@dataclass
class Hooks:
    """What the loop calls on its way; each is given the number of steps done."""

    progress: Callable[[int, dict[str, float]], None] = lambda step, terms: None
    sample: Callable[[int], None] = lambda step: None


def open_run(config: DistillConfig) -> int:
    """Prepare `config.out` and return the step to start from: 0, or that of its newest checkpoint.

    Raises `UserError` when the folder is in the way, or holds a run of another config.
    """
    out, file = config.out, config.out / "config.json"
    if file.is_file():
        if differences := DistillConfig.load(file).differences(config):
            raise UserError(f"{out} holds another run ({'; '.join(differences)}); choose another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not a run of scott; choose another --out, nothing was changed")
    latest = latest_checkpoint(out / "checkpoints")
    start = checkpoint_step(latest) if latest else 0
    if start > config.max_steps:
        raise UserError(f"{out} has made {start} steps, more than max_steps {config.max_steps}; choose another --out")
    (out / "samples").mkdir(parents=True, exist_ok=True)
    write_atomically(file, config.to_json())
    return start


def distill(backbone: Backbone, data: BatchSource, config: DistillConfig, hooks: Hooks | None = None) -> int:
    """Train the backbone's student to `config.max_steps` in `config.out`, from its newest checkpoint on.

    The backbone already has its student (and critic, where λ_adv > 0). Returns the number of steps this call made.
    Raises `FloatingPointError` on a loss or gradient that is not finite; what was saved before stays.
    """
    hooks = hooks or Hooks()
    solver, grid = config.make_solver(backbone.schedule), config.make_grid(backbone.schedule)
    start = open_run(config)
    trained = _Trained(backbone, config)
    if start:
        trained.load(config.out / "checkpoints")
    accelerator = Accelerator(log_with="tensorboard", project_dir=config.out, cpu=backbone.device.type == "cpu")
    accelerator.init_trackers("tensorboard")
    log = MetricsLog(config.out / "metrics.jsonl", start)
    uncond = backbone.unconditional()
    began = time.monotonic()
    for step in range(start, config.max_steps):
        batch = data.batch(step, config.batch_size).to(backbone.device)
        draws = Draws.make(batch.mean.shape, grid, config, generator_for(config.seed, step)).to(backbone.device)
        gradients = distillation_step(backbone, solver, grid, batch, uncond, draws, config, trained.loss_scale)
        norms = trained.update(gradients, step)
        done = step + 1
        values = check_finite(step, gradients.terms | norms, draws.t_n)
        del gradients  # or the next step would hold them beside its own
        if done % config.log_every == 0 or done == config.max_steps:
            values["seconds_per_step"] = (time.monotonic() - began) / (done - start)
            log.write(done, values)
            accelerator.log(values, step=done)
            hooks.progress(done, values)
        else:
            hooks.progress(done, {})
        if done % config.checkpoint_every == 0 or done == config.max_steps:
            trained.save(config.out / "checkpoints", done)
        if done % config.sample_every == 0 or done == config.max_steps:
            hooks.sample(done)
    accelerator.end_training()
    return config.max_steps - start


class _Trained:
    """The student and the critic with their optimizers, and the student's EMA."""

    def __init__(self, backbone: Backbone, config: DistillConfig) -> None:
        self.config = config
        self.models: dict[str, dict[str, nn.Parameter]] = {"student": backbone.student_parameters()}
        self.target = backbone.target_parameters()
        rates = {"student": config.learning_rate, "critic": config.critic_learning_rate}
        if config.has_critic:
            self.models["critic"] = backbone.critic_parameters()
        self.rates = {name: rates[name] for name in self.models}
        make = optimizer_class(config.optimizer)
        self.optimizers = {
            name: make(list(parameters.values()), lr=rates[name], weight_decay=config.weight_decay)
            for name, parameters in self.models.items()
        }
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
                group["lr"] = self.rates[name] * min(1.0, (step + 1) / max(1, self.config.warmup_steps))
            optimizer.step()
            optimizer.zero_grad()
        ema_update(self.target.values(), self.models["student"].values(), self.config.ema_decay)
        return norms

    def save(self, folder: Path, step: int) -> None:
        parts: dict[str, dict[str, Tensor]] = {name: dict(parameters) for name, parameters in self.models.items()}
        parts["target"] = dict(self.target)
        parts |= {f"{name}_optimizer": optimizer_tensors(optimizer) for name, optimizer in self.optimizers.items()}
        state = {"seed": self.config.seed, "loss_scale": dataclasses.asdict(self.scale) if self.scale else None}
        save_checkpoint(folder, step, parts, state)
        prune_checkpoints(folder, self.config.keep_checkpoints)

    def load(self, folder: Path) -> None:
        newest = latest_checkpoint(folder)
        assert newest is not None, "open_run found a checkpoint"
        parts, state = load_checkpoint(newest)
        if missing := {*self.models, "target", *(f"{name}_optimizer" for name in self.optimizers)} - parts.keys():
            lacks = ", ".join(sorted(missing))
            raise UserError(f"checkpoint {newest} lacks {lacks}; delete it to resume from the one before")
        for name, parameters in {**self.models, "target": self.target}.items():
            load_parameters(parameters, parts[name], name)
        for name, optimizer in self.optimizers.items():
            load_optimizer_tensors(optimizer, parts[f"{name}_optimizer"])
        if self.scale:
            self.scale = LossScale(**state["loss_scale"])


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
