"""A training step, and pictures encoded and drawn, on the meta device: what would they hold, and the step compute?"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from scott.data.batch import Batch
from scott.diffusion import Denoiser
from scott.solvers import Solver
from scott.teachers import Cond, LatentBackbone
from scott.training.config import PROMPTS, DistillConfig
from scott.training.counting import Counts, counted, storage_bytes
from scott.training.draws import Draws, sampling_times
from scott.training.meta_device import Cost, gpu_kernels
from scott.training.step import Distillation, Engine


@dataclass(frozen=True)
class StepCost:
    """Operations: in all, of the teacher's walk, and of the passes that the student makes to have the gradient of L_adv
    by itself. Bytes at the highest: of the walk, of one whose two calls come one after the other (`low_memory`), and of
    all that follows."""

    flops: int
    walk_flops: int
    measuring_flops: int
    walk: int
    walk_apart: int
    update: int

    @property
    def peak(self) -> int:
        return max(self.walk, self.update)

    @property
    def peak_apart(self) -> int:
        """With `low_memory`."""
        return max(self.walk_apart, self.update)


def step_cost(
    backbone: LatentBackbone, config: DistillConfig, uncond: Cond, *, gradients_stay: bool = False
) -> tuple[StepCost, Counts]:
    """Of one step, its batch and its gradients included, on a skeleton that has its student and critic.

    `uncond` is the backbone's `unconditional()`. Times of drawn fakes are spread as their draws are on average. With
    `adversarial_share` the step is one that measures both gradients; where not each does, the counts are of the others.
    `gradients_stay`: those of an earlier pass are there from its beginning on, or DDP's buckets, in which they lie.
    """
    shape = torch.Size((config.batch_size, *backbone.latent_shape))
    grid = config.make_grid(backbone.schedule)
    drawn = Draws.make(shape, grid, config, torch.Generator())
    latents = partial(torch.empty, shape, device="meta")
    solver = cast(Solver, _Calls())
    stops = torch.tensor(sampling_times(grid, config)).to(drawn.drawn_t)
    drawn = replace(drawn, drawn_t=stops.sort().values[torch.arange(len(drawn.t_n)) * len(stops) // len(drawn.t_n)])
    trained = [*backbone.student_parameters().values(), *backbone.critic_parameters().values()]
    with Cost() as cost, gpu_kernels():
        for parameter in trained if gradients_stay else ():
            parameter.grad = torch.empty_like(parameter)
        draws = drawn.to("meta")
        batch = Batch(latents(), latents(), _blank(uncond, config.batch_size))
        made = Distillation(backbone, config, solver, grid, uncond)
        if not config.low_memory:  # two sub-steps hold as much as any number
            apart = replace(made, config=replace(config, low_memory=True))
            apart.walk(batch, replace(draws, walk=draws.walk[:2]))
        walk_apart, cost.flops = cost.take_peak(), 0
        with counted(backbone) as counts:
            x_m = made.walk(batch, draws)
            walk, walk_flops = cost.take_peak(), cost.flops
            measuring = _Measuring(cost, counts, pause=config.measures_seldom)
            by_itself = nullcontext if config.draws_fakes else measuring.apart
            engine = Engine(apart=by_itself, mark=measuring.mark) if config.adversarial_share else Engine()
            made.step(batch, draws, engine, x_m)
        walk_apart = walk if config.low_memory else walk_apart
        for parameter in trained:
            parameter.grad = None
    return StepCost(cost.flops, walk_flops, measuring.flops, walk, walk_apart, cost.peak), counts


@torch.no_grad()
def encoding_peak(backbone: LatentBackbone, batch: int) -> int:
    """Bytes at the highest while so many pictures of the backbone's size go through its VAE's encoder."""
    pixels = torch.empty(batch, 3, backbone.resolution, backbone.resolution, device="meta")
    with Cost() as cost, gpu_kernels():
        backbone.encode_images(pixels)
    return cost.peak


@torch.no_grad()
def drawing_peak(backbone: LatentBackbone, config: DistillConfig, uncond: Cond) -> int:
    """Bytes at the highest while a run draws: of the guided teacher's calls, or of the VAE, which comes, with its
    weights, as it decodes."""
    x, t = torch.empty(PROMPTS, *backbone.latent_shape, device="meta"), config.make_grid(backbone.schedule).times[-1:]
    with Cost() as cost, gpu_kernels():
        backbone.guided_teacher(uncond, config.drawn_guidance)(x, t.expand(PROMPTS), _blank(uncond, PROMPTS))
        calls = cost.take_peak()
        backbone.decode(x)
    return max(calls, cost.peak + storage_bytes([*backbone.vae.parameters(), *backbone.vae.buffers()]))


def _blank(uncond: Cond, batch: int) -> Cond:
    """Conditions of the shape of this one, of so many samples."""
    return {name: torch.empty(batch, *value.shape[1:], device="meta") for name, value in uncond.items()}


class _Calls:
    """Stands for the run's solver: the teacher is called once a sub-step, and the state stays where it is."""

    def walk(self, denoiser: Denoiser, x: Tensor, times: list[Tensor], cond: Any, noises: list[Tensor]) -> Tensor:
        x0 = x
        for _ in noises:
            x0 = denoiser(x, times[0], cond)
        return x0


class _Measuring:
    """The operations that a step makes to have the gradient of L_adv by itself: of `Engine.apart` all but the critic's,
    which are from the mark "student" to the mark "critic". They may be left out of the counts of calls."""

    def __init__(self, cost: Cost, counts: Counts, *, pause: bool) -> None:
        self.cost, self.counts, self.pause = cost, counts, pause
        self.flops, self._inside = 0, False

    @contextmanager
    def apart(self) -> Iterator[None]:
        self._inside = True
        self._begin()
        yield
        self._end()
        self._inside = False

    def mark(self, part: str) -> None:
        if self._inside:
            self._end() if part == "student" else self._begin()

    def _begin(self) -> None:
        self.flops, self.counts.paused = self.flops - self.cost.flops, self.pause

    def _end(self) -> None:
        self.flops, self.counts.paused = self.flops + self.cost.flops, False
