"""Solvers of the reverse process: `make(name, schedule, **options)` gives one by name."""

import inspect
from typing import Any

from scott.choices import unknown
from scott.diffusion import NoiseSchedule
from scott.solvers.base import History, Solver, Span
from scott.solvers.ddim import DDIM
from scott.solvers.dpmpp import DPMPlusPlusSDE
from scott.solvers.er_sde import ERSDE
from scott.solvers.noise_scale import NOISE_SCALES, NoiseScale

SOLVERS: dict[str, type[Solver]] = {"ddim": DDIM, "er-sde": ERSDE, "dpmpp-sde": DPMPlusPlusSDE}


def make(name: str, schedule: NoiseSchedule, **options: Any) -> Solver:
    """The solver called `name` on a schedule.

    Names and options: ddim (eta), er-sde (phi, order), dpmpp-sde (eta, order).

    Raises:
        UserError: an unknown name, an option the solver does not have, or a value it does not take.
    """
    if name not in SOLVERS:
        raise unknown("solver", name, SOLVERS)
    has = [
        parameter.name
        for parameter in inspect.signature(SOLVERS[name]).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for option in options:
        if option not in has:
            raise unknown(f"option of solver {name}", option, has)
    return SOLVERS[name](schedule, **options)


__all__ = [
    "DDIM",
    "ERSDE",
    "NOISE_SCALES",
    "SOLVERS",
    "DPMPlusPlusSDE",
    "History",
    "NoiseScale",
    "Solver",
    "Span",
    "make",
]
