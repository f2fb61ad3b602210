"""λ_adv by how strongly both losses pull at the student: two sets of gradients, kept apart until an update."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from scott.training.parallel import whole


class Balance:
    """λ = s · EMA(‖∂L_CD/∂θ‖) / EMA(‖∂L_adv/∂θ‖) over the student's parameters θ, both means of decay 0.9.

    Each mean begins with the first norm that is not 0: that of L_adv is, while a head that starts at zero stands there.

    Norms at f_θ, where the two gradients meet, would cost less and mislead: what L_adv asks for there moves θ by more.

    Args:
        parameters: θ, whose `grad` holds ∂L_CD/∂θ.
        ratio: s.
        in_buckets: whether `grad` lies where the next backward pass writes, as DDP's does.
    """

    DECAY = 0.9

    def __init__(self, parameters: Iterable[nn.Parameter], ratio: float, *, in_buckets: bool = False) -> None:
        self.parameters, self.ratio, self.in_buckets = [*parameters], ratio, in_buckets
        self.means: list[float] = []
        """Running means of both norms; none before the first update."""
        self._other: list[Tensor | None] = [None] * len(self.parameters)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """`grad` is ∂L_adv/∂θ within: it adds up over a step's passes as that of L_CD does outside."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @property
    def weight(self) -> float:
        """λ; 0 before both norms are known."""
        consistency, adversarial = self.means or (0.0, 0.0)
        return self.ratio * consistency / adversarial if adversarial else 0.0

    def combine(self, scale: float, factor: float, steps: int = 1) -> dict[str, Tensor]:
        """grad ← ∂L_CD/∂θ + factor λ ∂L_adv/∂θ, as both come; the norms, what L_adv was multiplied with, and how much
        of L_CD's norm it then has.

        Norms that are not finite leave the means as they were.

        Args:
            scale: what both losses were multiplied with, which the norms leave out.
            factor: of λ, while L_adv is let in.
            steps: for how many these gradients stand; the means' decay is of one.
        """
        mine = [p.grad for p in self.parameters if p.grad is not None]
        theirs = [grad for grad in self._other if grad is not None]
        norms = [whole(get_total_norm(grads)).item() / scale for grads in (mine, theirs)]
        if all(map(math.isfinite, norms)):
            before = [mean or norm for mean, norm in zip(self.means or norms, norms, strict=True)]
            decay = self.DECAY**steps
            self.means = [decay * mean + (1 - decay) * norm for mean, norm in zip(before, norms, strict=True)]
        weight = factor * self.weight
        torch._foreach_add_(mine, theirs, alpha=weight)
        self._other = [None] * len(self.parameters)
        values = {"consistency_norm": norms[0], "adversarial_norm": norms[1], "adversarial_weight": weight}
        values["adversarial_ratio"] = weight * norms[1] / norms[0] if norms[0] else 0.0
        return {name: torch.tensor(value) for name, value in values.items()}

    def state(self) -> dict[str, Any]:
        return {"balance": self.means}

    def load(self, state: dict[str, Any]) -> None:
        self.means = [*map(float, state["balance"])]

    def _grads(self) -> list[Tensor | None]:
        return [parameter.grad for parameter in self.parameters]

    def _exchange(self) -> None:
        kept = [grad.clone() if grad is not None and self.in_buckets else grad for grad in self._grads()]
        for parameter, grad in zip(self.parameters, self._other, strict=True):
            parameter.grad = grad
        self._other = kept
