"""Teachers: how each family of diffusers pipelines becomes what the rest of scott asks of a model.

A teacher is a `LatentBackbone`: one frozen network with its text encoders and VAE, on which stand up to four models,
the teacher (the plain network), the student, its EMA target and the critic. diffusers is loaded when the first of the
functions and classes below is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from scott.teachers.load import load_backbone
    from scott.teachers.network import LatentBackbone

__all__ = ["Cond", "LatentBackbone", "load_backbone"]

Cond = dict[str, Tensor]
"""Conditioning by name, every value (B, ...). `guidance` (B,) is ω, the classifier-free guidance scale a student
imitates, in the form uncond + ω (cond − uncond); a network that takes none ignores it."""


_LATER = {"load_backbone": "load", "LatentBackbone": "network"}
"""Name → the file here that has it."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"scott.teachers.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
