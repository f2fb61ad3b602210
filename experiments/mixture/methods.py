"""The methods that are trained: what the teacher walks with, what its student is compared by, and what is added."""

from dataclasses import dataclass
from typing import Any, Literal

SolverOptions = tuple[str, dict[str, Any]]
ODE: SolverOptions = ("dpmpp-sde", {"eta": 0.0, "order": 2})
NOISE: SolverOptions = ("er-sde", {"phi": "5", "order": 2})


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to train a student."""

    solvers: tuple[SolverOptions, ...]
    """One for each phase of the training, which are of one length."""
    loss: Literal["l2", "energy"] = "l2"
    weighting: str = "uniform"
    added: Literal["nothing", "critic", "dmd"] = "nothing"
    """A hinge game with a critic, or the gradient of distribution matching (Yin et al. 2024)."""
    fakes: Literal["noised", "drawn"] = "drawn"
    """What is added sees f of noised data, or what sampling draws: f of noise and of the student's own first step."""
    jump: int = 300
    substeps: int = 3


METHODS = {
    "lcm": Method(solvers=(("ddim", {"eta": 0.0}),), jump=100, substeps=1),
    "ode": Method(solvers=(ODE,)),
    "noise": Method(solvers=(NOISE,)),
    "noise, snr+1": Method(solvers=(NOISE,), weighting="snr+1"),
    "noise annealed": Method(solvers=(NOISE, ODE)),
    "noise, critic of noised fakes": Method(solvers=(NOISE,), added="critic", fakes="noised"),
    "noise, critic of drawn fakes": Method(solvers=(NOISE,), added="critic"),
    "ode, critic of drawn fakes": Method(solvers=(ODE,), added="critic"),
    "noise, dmd of drawn fakes": Method(solvers=(NOISE,), added="dmd"),
    "energy score": Method(solvers=(NOISE,), loss="energy"),
    "energy score, critic of drawn fakes": Method(solvers=(NOISE,), loss="energy", added="critic"),
}


@dataclass(frozen=True)
class Trial:
    """What is chosen on the validation seeds."""

    rate: float
    strength: float
    """Of what is added."""


def trials(method: Method) -> list[Trial]:
    """As many of every method."""
    if method.added == "nothing":
        return [Trial(rate, 0.0) for rate in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)]
    return [Trial(rate, strength) for rate in (3e-3, 1e-2, 3e-2) for strength in (0.03, 0.3)]
