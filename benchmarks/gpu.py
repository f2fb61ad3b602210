"""A real teacher's training step on a GPU: what it holds against what `--dry-run` says, and its time against LCM's.

    python -m benchmarks.gpu FOLDER sdxl pixart --steps 10 --json

FOLDER has a folder of each recipe's name with the config files of its published pipeline; weights are random, since
neither memory nor time depends on them. VAE and text encoders are parked in training, and left out here.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import tyro
from experiments.runs import exit_code
from torch import Tensor, nn

from scott.choices import unknown
from scott.commands.distill import add_models
from scott.data.batch import Batch
from scott.recipes import RECIPES
from scott.rng import generator_for
from scott.teachers import LatentBackbone
from scott.teachers.skeleton import skeleton
from scott.training.budget import budget_of
from scott.training.config import DistillConfig
from scott.training.draws import Draws
from scott.training.optimization import Optimization
from scott.training.step import Distillation


@dataclass(frozen=True)
class Options:
    folder: tyro.conf.Positional[Path]
    recipes: tyro.conf.Positional[tuple[str, ...]]
    methods: tuple[str, ...] = ("scott", "lcm")
    batch_size: int | None = None
    """Instead of the recipe's, of a pass."""
    train: str = "lora"
    compile: bool = False
    adversarial_share: float | None = None
    """Of SCott, instead of the recipe's; 0 is a fixed λ_adv. With a share each of these steps measures it, as a run's
    first ones do and later each tenth: they take longer, by passes that tflop_a_second does not count."""
    steps: int = 8
    """That are timed, after two that are not."""
    device: str = "cuda"
    json: bool = False


def main(options: Options) -> None:
    """Raises `UserError` for a recipe that there is not, before any is measured."""
    for recipe in options.recipes:
        if recipe not in RECIPES:
            raise unknown("recipe", recipe, RECIPES)
    for recipe in options.recipes:
        for method in options.methods:
            figures = {"recipe": recipe, "method": method} | measure(options, recipe, method)
            line = json.dumps(figures) if options.json else ", ".join(f"{k} {v}" for k, v in figures.items())
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


def measure(options: Options, recipe: str, method: str) -> dict[str, Any]:
    given: dict[str, Any] = {"teacher": str(options.folder / recipe), "data": "none", "train": options.train}
    given |= {"compile": options.compile} | ({} if method == "scott" else {"method": method})
    if options.batch_size:
        given["batch_size"] = options.batch_size
    if options.adversarial_share is not None and method == "scott":
        given["adversarial_share"] = options.adversarial_share
    config = RECIPES[recipe](**given)
    cuda = torch.device(options.device).type == "cuda"
    planned = skeleton(config.teacher, config.dtype)
    blank = planned.unconditional()
    add_models(planned, replace(config, compile=False))  # compiling needs weights
    budget = budget_of(planned, config)
    backbone = materialised(skeleton(config.teacher, config.dtype), options.device)
    add_models(backbone, config)
    seconds, finite = timed(backbone, config, blank, options)
    found: dict[str, Any] = {
        "train": config.train,
        "precision": config.precision,
        "batch_size": config.batch_size,
        "planned_gb": round(budget.total / 1e9, 3),
        "seconds_a_step": round(seconds, 4),
        "tflop_a_second": round(budget.flops / 1e12 / seconds, 1),
        "finite": finite,
    }
    if cuda:
        held = torch.cuda.max_memory_allocated()
        found |= {"held_gb": round(held / 1e9, 3), "held_over_planned": round(held / budget.total, 4)}
        found |= {"reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 3)}
        found |= {"device": torch.cuda.get_device_name()}
        del backbone
        torch.cuda.empty_cache()
    return found


def materialised(backbone: LatentBackbone, device: str) -> LatentBackbone:
    """The skeleton with a network of random weights on a device."""
    network: nn.Module = backbone.network.to_empty(device=device)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(std=0.02)
            else:
                tensor.zero_()
    return backbone


def timed(
    backbone: LatentBackbone, config: DistillConfig, blank: Mapping[str, Tensor], options: Options
) -> tuple[float, bool]:
    """Seconds of a step, the median; and whether the last one's terms were all finite. `blank` has a condition's
    shapes."""
    device, shape = backbone.device, torch.Size((config.batch_size, *backbone.latent_shape))
    solver, grid = config.make_solver(backbone.schedule), config.make_grid(backbone.schedule)

    def condition(batch: int) -> dict[str, Tensor]:
        return {name: torch.randn(batch, *value.shape[1:], device=device) for name, value in blank.items()}

    mean, std = torch.randn(shape, device=device), torch.rand(shape, device=device)
    batch, trained = Batch(mean, std, condition(shape[0])), Optimization(backbone, config)
    distillation = Distillation(backbone, config, solver, grid, condition(1))
    seconds, terms = [], {}
    for number in range(options.steps + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
            if number == 2:
                torch.cuda.reset_peak_memory_stats()
        began = perf_counter()
        draws = Draws.make(shape, grid, config, generator_for(config.seed, number)).to(device)
        terms = distillation.step(batch, draws, trained.engine(number))
        trained.update(number)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(perf_counter() - began)
    return median(seconds[2:]), all(bool(torch.isfinite(value).all()) for value in terms.values())


if __name__ == "__main__":
    asked = tyro.cli(Options, description=__doc__)
    sys.exit(exit_code(lambda report: main(asked)))
