"""Where A1111 and ComfyUI would call a student: the times of their schedulers, rebuilt from their spacing rules.

Both turn a table of noise levels (their σ, λ_t = σ_t / α_t here) into n of them and then call the network at the time
of the table that is nearest in log λ. ComfyUI's table has all N training times, A1111's LCM sampler every 20th
from the last. On a table of N levels, at indices i = 0 .. N − 1 with levels between by linear interpolation of log σ:

    simple          i_k = N − 1 − ⌊k N / n⌋
    sgm_uniform     i_k = (N − 1) (1 − k / n)
    normal          i_k = (N − 1) (1 − k / (n − 1));  A1111's "Automatic", "Uniform" and "Normal" are this one
    karras          σ_k^(1/7) evenly from σ_max to σ_min
    exponential     log σ_k evenly
    kl_optimal      arctan σ_k evenly
    ddim_uniform    i = 1 + k ⌊N / n⌋ as far as the table goes, from the highest down

Of a flow ComfyUI's table is σ(t) = s t / (1 + (s − 1) t) of t = 1/1000, 2/1000 .. 1, with the shift s of a node before
its sampler, and the network is called at the very σ: "simple" at those of t = 1 − k / n. The sampler lcm draws the same
there as diffusers' few-step scheduler: x ← (1 − σ) x̂0 + σ ε. (comfy/samplers.py, comfy/model_sampling.py,
comfy_extras/nodes_model_advanced.py.)
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scott.diffusion.schedule import DiscreteSchedule

Rule = Callable[[Tensor, int], Tensor]
"""(ascending table of levels (N,), number of steps) → levels, descending."""


def simple(table: Tensor, steps: int) -> Tensor:
    return table[[len(table) - 1 - k * len(table) // steps for k in range(steps)]]


def sgm_uniform(table: Tensor, steps: int) -> Tensor:
    return _levels(table, torch.linspace(len(table) - 1, 0, steps + 1, dtype=table.dtype)[:-1])


def normal(table: Tensor, steps: int) -> Tensor:
    return _levels(table, torch.linspace(len(table) - 1, 0, steps, dtype=table.dtype))


def karras(table: Tensor, steps: int) -> Tensor:
    return _evenly(table ** (1 / 7), steps) ** 7


def exponential(table: Tensor, steps: int) -> Tensor:
    return _evenly(table.log(), steps).exp()


def kl_optimal(table: Tensor, steps: int) -> Tensor:
    return _evenly(table.arctan(), steps).tan()


def ddim_uniform(table: Tensor, steps: int) -> Tensor:
    return table[1 :: max(len(table) // steps, 1)].flip(0)


COMFYUI: dict[str, Rule] = {
    rule.__name__: rule for rule in (simple, sgm_uniform, normal, karras, exponential, kl_optimal, ddim_uniform)
}
A1111: dict[str, Rule] = {
    "SGM Uniform": sgm_uniform,
    "Simple": simple,
    "Automatic": normal,
    "Uniform": normal,
    "Normal": normal,
    "Karras": karras,
    "Exponential": exponential,
}
PROGRAMS = {"ComfyUI": (COMFYUI, 1), "A1111": (A1111, 20)}
"""Program → its rules by the names it shows, and every how many-th training time its table has."""


FLOW_NODES = {"StableDiffusion3Pipeline": "ModelSamplingSD3"} | dict.fromkeys(
    ("FluxPipeline", "ChromaPipeline", "Flux2KleinPipeline", "QwenImagePipeline", "ZImagePipeline"),
    "ModelSamplingAuraFlow",
)
"""Pipeline of a flow that ComfyUI reads → its node that sets the shift, and feeds the network 1000 σ (SD3) or σ."""
OWN_SHIFTS = {"FluxPipeline": 3.16}
"""Pipeline → the shift that ComfyUI gives it without a node, where students may have the same: e^1.15 at every size
(ModelSamplingFlux), to two decimals."""


def schedule_of(pipeline: str) -> DiscreteSchedule:
    """The schedule that the programs give every checkpoint of a pipeline's kind."""
    if pipeline.startswith("PixArt"):
        return DiscreteSchedule("linear", 0.0001, 0.02)
    return DiscreteSchedule.stable_diffusion()


def called_times(program: str, name: str, steps: int, pipeline: str = "StableDiffusionPipeline") -> list[int]:
    """The times, descending, at which a program's LCM sampler calls a network that is no flow's."""
    rules, every = PROGRAMS[program]
    schedule = schedule_of(pipeline)
    times = torch.arange(schedule.training_steps - 1, -1, -every).flip(0)
    table = schedule.lam(times)
    levels = rules[name](table, steps)
    apart = (table.log() - levels.log()[:, None]).abs().round(decimals=9)
    if program == "ComfyUI":  # of two times as near, which rounding decides, it was seen to take the later one
        apart, times = apart.flip(1), times.flip(0)
    return times[apart.argmin(1)].tolist()


def nearest(program: str, wanted: Sequence[float], pipeline: str = "StableDiffusionPipeline") -> tuple[str, list[int]]:
    """The scheduler of a program whose times are nearest to those wanted, by the largest difference, and its times."""
    options = {name: called_times(program, name, len(wanted), pipeline) for name in PROGRAMS[program][0]}
    fitting = [name for name, times in options.items() if len(times) == len(wanted)]
    best = min(fitting, key=lambda name: furthest(options[name], wanted))
    return best, options[best]


def furthest(got: Sequence[float], wanted: Sequence[float]) -> float:
    """The largest difference of two lists of times."""
    return max(abs(a - b) for a, b in zip(got, wanted, strict=True))


def flow_shift(sigma: float) -> float:
    """The shift s, to the node's two decimals, at which "simple" calls the second of 2 steps at σ = s / (1 + s)."""
    return round(sigma / (1 - sigma), 2)


def flow_sigmas(shift: float, steps: int) -> list[float]:
    """The σ, descending, at which ComfyUI's "simple" calls a flow behind a node with that shift."""
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    sigmas: list[float] = simple(shift * t / (1 + (shift - 1) * t), steps).tolist()
    return sigmas


def _levels(table: Tensor, index: Tensor) -> Tensor:
    """Levels at fractional indices."""
    low, fraction = index.floor().long(), index.frac()
    log = table.log()
    return ((1 - fraction) * log[low] + fraction * log[(low + 1).clamp(max=len(table) - 1)]).exp()


def _evenly(table: Tensor, steps: int) -> Tensor:
    return torch.linspace(0, 1, steps, dtype=table.dtype) * (table[0] - table[-1]) + table[-1]
