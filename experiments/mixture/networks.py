"""Small networks, many of one kind side by side: each trial and seed has its own, and all are trained in one pass."""

from itertools import pairwise

import torch
from experiments.mixture.data import Mixture
from torch import Tensor, nn

from scott.diffusion import ConsistencyFunction, NoiseSchedule

HIDDEN = 2


class Networks(nn.Module):
    """S multilayer perceptrons, (S·B, inputs) → (S·B, outputs): the rows of network k are k·B to (k + 1)·B − 1.

    A weight is W_0 + rate · δ of which δ is trained, so that an Adam of rate 1 moves each network at its own rate (S,).
    The last layer starts at zero, and so does a linear path from inputs to outputs, where there is one (`direct`).
    """

    def __init__(
        self, rates: Tensor, inputs: int, outputs: int, width: int, generator: torch.Generator, direct: bool = False
    ) -> None:
        super().__init__()
        self.direct = nn.Parameter(torch.zeros(len(rates), inputs, outputs)) if direct else None
        self.rates = rates[:, None, None]
        sizes = [inputs, *(width for _ in range(HIDDEN)), outputs]
        self.start = []
        for layer, (before, after) in enumerate(pairwise(sizes)):
            spread = 0.0 if layer == HIDDEN else (2 / before) ** 0.5
            self.start.append(spread * torch.randn(len(rates), before, after, generator=generator))
        self.weights = nn.ParameterList(torch.zeros_like(start) for start in self.start)
        self.biases = nn.ParameterList(torch.zeros(len(rates), 1, after) for after in sizes[1:])

    def forward(self, x: Tensor) -> Tensor:
        count, x = len(x), x.view(len(self.rates), -1, x.shape[1])
        linear = 0.0 if self.direct is None else torch.bmm(x, self.rates * self.direct)
        for index, (start, weight, bias) in enumerate(zip(self.start, self.weights, self.biases, strict=True)):
            x = torch.baddbmm(self.rates * bias, x, start + self.rates * weight)
            if index < HIDDEN:
                x = nn.functional.silu(x)
        return (x + linear).reshape(count, -1)


class Student:
    """f(x, t), or f(x, t, z) with z ~ N(0, I) of `noise` dimensions drawn anew at every call.

    x̂0 is the exact teacher's plus the network's, which is nothing at first: a student starts as its teacher.
    """

    def __init__(self, networks: Networks, data: Mixture, schedule: NoiseSchedule, noise: int) -> None:
        self.networks, self.teacher, self.schedule, self.noise = networks, data.denoiser(schedule), schedule, noise
        self.generator = torch.Generator().manual_seed(0)
        self.consistency = ConsistencyFunction(self._x0, schedule)

    def __call__(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        return self.consistency(x, t, cond)

    def _x0(self, x: Tensor, t: Tensor, cond: None) -> Tensor:
        z = torch.randn(len(x), self.noise, generator=self.generator)
        inputs = torch.cat([x, time_features(self.schedule, t), z], dim=1)
        return self.teacher(x, t, cond) + self.networks(inputs)


FEATURES = 7


def time_features(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """(B, 7): log λ and three frequencies of t / t_max; clean data counts as the first time above it."""
    t = t.clamp(min=0)
    phase = torch.pi * (t / schedule.t_max)[:, None] * torch.tensor([1.0, 2.0, 4.0])
    return torch.cat([schedule.lam(t).log()[:, None].float() / 3, phase.sin(), phase.cos()], dim=1)
