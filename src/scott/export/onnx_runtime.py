"""Drawing with an ONNX export: onnxruntime in the place of each network of a stock pipeline."""

import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from scott.errors import UserError, first_line, require
from scott.teachers import LatentBackbone
from scott.teachers.layout import family_of, model_index

FILE = "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
Call = dict[str, Any]
"""A call's arguments by name."""


def require_onnx(packages: Sequence[str] = PACKAGES) -> None:
    """Raise `UserError` unless the packages can be imported."""
    for package in packages:
        require(package, "ONNX", " ".join(packages))


def load_onnx(folder: Path) -> LatentBackbone:
    """The backbone of an export: it encodes prompts, decodes latents, and its `teacher` is the student.

    Raises `UserError` when the folder holds no such export, a part cannot be loaded, or onnxruntime is missing.
    """
    require_onnx(["onnxruntime"])
    index = model_index(folder)
    pipeline_class, _, backbone = family_of(folder, index)
    parts: dict[str, Any] = {}
    for name, entry in index.items():
        if not isinstance(entry, list):
            continue
        library, class_name = entry
        kind = getattr(importlib.import_module(library), class_name) if library else None
        try:
            if kind is None:
                parts[name] = None
            elif issubclass(kind, nn.Module):
                parts[name] = _Session(folder / ("vae_decoder" if name == "vae" else name), kind)
            else:
                parts[name] = kind.from_pretrained(folder / name)
        except Exception as error:  # onnxruntime's errors have no common base
            raise UserError(f"{folder / name} cannot be loaded ({first_line(error)}); export it again") from None
    options = {name: value for name, value in index.items() if not name.startswith("_") and not isinstance(value, list)}
    return backbone(pipeline_class(**parts, **options))


class _Session(nn.Module):
    """An exported network in the place of the module it was made of: called alike, it answers alike."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, folder: Path, kind: type[nn.Module]) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.empty(0), requires_grad=False)  # a network's dtype is its first parameter's
        self.session = open_session(folder / FILE)
        self.config = FrozenDict(json.loads((folder / "config.json").read_text()))
        self.signature = inspect.signature(kind.forward)
        self.scalars = {entry.name for entry in self.session.get_inputs() if not entry.shape}
        # PixArt's, of which its config is mute
        self.use_additional_conditions = "resolution" in {entry.name for entry in self.session.get_inputs()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(tensors_of(bind(self.signature, None, *args, **kwargs)))

    def decode(self, z: Tensor) -> Any:
        return self.run({"latent_sample": z})

    def run(self, tensors: Mapping[str, Tensor]) -> "_Answer":
        # one time for all pictures
        inputs = {name: value.flatten()[0] if name in self.scalars else value for name, value in tensors.items()}
        return _Answer(run_session(self.session, inputs))


@dataclass
class _Answer:
    """What pipelines take of a network's answer: `[0]`, `.sample` or the last hidden state but one."""

    outputs: list[Tensor]

    def __getitem__(self, index: int) -> Tensor:
        return self.outputs[index]

    @property
    def sample(self) -> Tensor:
        return self.outputs[0]

    @property
    def hidden_states(self) -> tuple[Tensor, None]:
        return self.outputs[-1], None


def open_session(file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def run_session(session: Any, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    inputs = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    return [torch.from_numpy(output) for output in session.run(None, inputs)]


def bind(signature: inspect.Signature, *args: Any, **kwargs: Any) -> Call:
    """Arguments by name, those that fall under `**kwargs` among them."""
    call = dict(signature.bind(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            call |= call.pop(parameter.name, {})
    return call


def tensors_of(call: Call) -> dict[str, Tensor]:
    """The tensors of a call, those in a dictionary by their keys."""
    found: dict[str, Tensor] = {}
    for name, value in call.items():
        entries = value if isinstance(value, dict) else {name: value}
        found |= {key: entry for key, entry in entries.items() if isinstance(entry, Tensor)}
    return found
