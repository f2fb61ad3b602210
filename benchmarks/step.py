"""A LoRA training step against the bare network calls, its adapters against the plain network, and plain LCM."""

import dataclasses
import itertools
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.adapters import adapter_calls, adapter_figures
from benchmarks.bare import TIME, bare_step
from benchmarks.harness import main
from benchmarks.models import Data, Model, random_data
from benchmarks.plain import PlainLCM
from benchmarks.timing import Call, interleaved
from scott.commands.distill import add_models
from scott.rng import generator_for
from scott.teachers import LatentBackbone
from scott.training.config import LCM_SETTINGS, DistillConfig
from scott.training.counting import Calls, counted
from scott.training.draws import Draws
from scott.training.optimization import Optimization
from scott.training.step import Distillation


def measure(model: Model, batch_size: int | None, repeats: int) -> dict[str, Any]:
    """The step's figures of one model (README.md says what each is)."""
    ours, plain = model.teacher(), PlainLCM(model.teacher().pipeline, lcm(model.config))
    data = random_data(ours, batch_size or model.config.batch_size)
    add_models(ours, model.config)
    steps = step_calls(ours, plain, data, model.config)
    times = interleaved(steps, repeats)
    # one pass costs a tenth of a step, and is timed the more often
    passes = interleaved(adapter_calls(ours, plain, data.encoded, model.config), 3 * repeats)
    with counted(ours) as counts:
        steps["step"]()
    calls, flops = network_calls(counts.calls(), len(data.prompts)), forward_equivalents(ours, steps["floor"], data)
    over_plain = times.ratio("step", "plain_step") * calls["plain"]
    return {
        "batch_size": len(data.prompts),
        "step_over_floor": times.ratio("step", "floor"),
        **adapter_figures(passes),
        "per_call_over_plain": over_plain / calls["scott"],
        "per_flop_over_plain": over_plain / flops,
        "network_calls": calls | {"scott_by_flops": flops},
        "resident_weight_ratio": resident_bytes(ours) / plain_bytes(plain),
        "seconds": times.medians() | passes.medians(),
    }


def network_calls(step: tuple[Calls, ...], batch_size: int) -> dict[str, float]:
    """Network calls an image: a forward pass is one, a batch doubled for guidance two, a backward pass two.

    The critic's encoder and decoder count half a network each.
    """
    passes = (
        (call.forward + 2 * call.backward)
        * (0.5 if call.model.startswith("critic ") else 1.0)
        * (call.samples / batch_size)
        for call in step
    )
    teacher, target, student = 1 + 1, 1, 1 + 2
    return {"scott": sum(passes), "plain": float(teacher + target + student)}


def forward_equivalents(backbone: LatentBackbone, floor: Call, data: Data) -> float:
    """The arithmetic of the bare calls in forward passes of the plain network for one image.

    Plain LCM's is 6 by this count too: its backward pass makes the gradients of inputs and of weights. Ours makes
    those of inputs and of thin adapters.
    """
    with FlopCounterMode(display=False) as step:
        floor()
    encoded = data.encoded
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        backbone.teacher(encoded.mean, torch.full((len(encoded),), TIME), encoded.cond)
    return step.get_total_flops() / forward.get_total_flops()


def step_calls(backbone: LatentBackbone, plain: PlainLCM, data: Data, config: DistillConfig) -> dict[str, Call]:
    """The whole step as the loop makes it (draws, gradients, both optimizers, EMA), its floor, and plain LCM's."""
    distillation = Distillation.of(backbone, config)
    plain_grid = plain.config.make_grid(backbone.schedule)
    trained = Optimization(backbone, config)
    encoded, numbers = data.encoded, itertools.count()

    def step() -> None:
        number = next(numbers)
        draws = Draws.make(encoded.mean.shape, distillation.grid, config, generator_for(config.seed, number))
        distillation.step(encoded, draws, trained.engine(number))
        trained.update(number)

    def plain_step() -> None:
        draws = Draws.make(encoded.mean.shape, plain_grid, plain.config, generator_for(config.seed, next(numbers)))
        plain.step(data.pixels, data.prompts, draws)

    def floor() -> None:
        bare_step(backbone, encoded.mean, encoded.cond, distillation.uncond, config.substeps)

    return {"step": step, "floor": floor, "plain_step": plain_step}


def resident_bytes(backbone: LatentBackbone) -> int:
    """Of the weights that a LoRA step on cached latents leaves on its device.

    The frozen network with all adapters and the critic's head; text encoders and VAE are parked.
    """
    assert backbone.critic_model is not None
    return _bytes(backbone.network, backbone.critic_model)


def plain_bytes(plain: PlainLCM) -> int:
    return _bytes(plain.teacher, plain.student, plain.target, plain.vae, plain.text_encoder)


def _bytes(*modules: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for module in modules for weight in module.parameters())


def lcm(config: DistillConfig) -> DistillConfig:
    return dataclasses.replace(config, **LCM_SETTINGS)


if __name__ == "__main__":
    main(measure, __doc__ or "")
