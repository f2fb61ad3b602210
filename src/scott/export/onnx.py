"""The student as ONNX: text encoders, backbone and VAE decoder, each `<part>/model.onnx` with its weights beside it.

An export is the stock pipeline's folder in which every network is an ONNX graph instead of weights. What is exported of
a network is the call that drawing makes, so no family needs code of its own here: a graph's inputs are named after the
call's arguments (`added_cond_kwargs.time_ids`), and `load_onnx` puts onnxruntime in the place of each module of the
pipeline. The batch is dynamic; size and token count are the teacher's.
"""

import contextlib
import importlib
import inspect
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from scott.diffusion import JumpGrid
from scott.errors import UserError
from scott.export.pipeline import check
from scott.export.trained import PROMPT, StudentInfo, difference, draw_latents
from scott.samplers import StudentSampler
from scott.teachers import LatentBackbone
from scott.teachers.load import family_of, model_index

TOLERANCE = 1e-3
"""Largest difference of any part's output, and of the 2-step latent, over its standard deviation."""
FILE = "model.onnx"
VAE = "vae_decoder"
Call = dict[str, Any]
"""A call's arguments by name."""


PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_onnx(packages: Sequence[str] = PACKAGES) -> None:
    """Raise `UserError` unless the packages can be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(f"ONNX needs {package}; pip install 'scott-diffusion[onnx]'") from None


def write_onnx(student: Path, backbone: LatentBackbone, grid: JumpGrid, info: StudentInfo, folder: Path) -> None:
    """Export the student whose stock pipeline is in the folder `student`, and as `backbone`, to `folder`.

    Raises `UserError` when onnxruntime's output of a part, or the 2-step latent, is off by more than `TOLERANCE` of its
    spread, for one picture or for two.
    """
    require_onnx()
    _copy_the_rest(student, folder)
    for name, (module, call) in _record_calls(backbone, grid, info).items():
        graph = _Graph(module, call).eval()
        (folder / name).mkdir(exist_ok=True)
        _export(graph, graph.names, folder / name / FILE)
        _check_part(graph, folder / name / FILE, name)
    expected, got = (draw_latents(either, grid, info.guidance) for either in (backbone, load_onnx(folder)))
    check("onnxruntime", folder, expected, got, TOLERANCE)


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
                parts[name] = _Session(folder / (VAE if name == "vae" else name), kind)
            else:
                parts[name] = kind.from_pretrained(folder / name)
        except Exception as error:  # onnxruntime's errors have no common base
            raise UserError(
                f"{folder / name} cannot be loaded ({str(error).splitlines()[0]}); export it again"
            ) from None
    options = {name: value for name, value in index.items() if not name.startswith("_") and not isinstance(value, list)}
    return backbone(pipeline_class(**parts, **options))


class _Graph(nn.Module):
    """One call of a module as a function of its tensors alone, which is what ONNX knows."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        super().__init__()
        self.module = module
        self.call = call
        self.names = list(_tensors(call))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        for tensor in tensors[1:]:
            torch._check(tensor.shape[0] == tensors[0].shape[0])  # one batch, which the exporter has to be told
        output = self.module(**_with_tensors(self.call, dict(zip(self.names, tensors, strict=True))))
        if self.call.get("output_hidden_states"):
            return output[0], output.hidden_states[-2]  # what SDXL and SD3 take of CLIP
        return (output[0],)


class _Session(nn.Module):
    """An exported network in the place of the module it was made of: called alike, it answers alike."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, folder: Path, kind: type[nn.Module]) -> None:
        import onnxruntime

        super().__init__()
        self.anchor = nn.Parameter(torch.empty(0), requires_grad=False)  # a network's dtype is its first parameter's
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
        self.config = SimpleNamespace(**json.loads((folder / "config.json").read_text()))
        self.signature = inspect.signature(kind.forward)
        inputs = [entry.name for entry in self.session.get_inputs()]
        self.use_additional_conditions = (
            "added_cond_kwargs.resolution" in inputs
        )  # PixArt's, of which its config is mute

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _Answer(*self.run(_tensors(_bind(self.signature, None, *args, **kwargs))))

    def decode(self, z: Tensor) -> Any:
        return _Answer(*self.run({"z": z}))

    def run(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        inputs = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        return [torch.from_numpy(output) for output in self.session.run(None, inputs)]


@dataclass
class _Answer:
    """What pipelines take of a network's answer: `[0]`, `.sample` or the last hidden state but one."""

    sample: Tensor
    penultimate: Tensor | None = None

    def __getitem__(self, index: int) -> Tensor:
        return (self.sample,)[index]

    @property
    def hidden_states(self) -> tuple[Tensor | None, None]:
        return self.penultimate, None


class _Decoder(nn.Module):
    vae: Any

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> tuple[Tensor]:
        return self.vae.decode(z, return_dict=False)


def _record_calls(backbone: LatentBackbone, grid: JumpGrid, info: StudentInfo) -> dict[str, tuple[nn.Module, Call]]:
    """Part → its module, and the arguments of its first call when two pictures are drawn."""
    calls: dict[str, tuple[nn.Module, Call]] = {}
    handles = []
    for name, module in backbone.pipeline.components.items():
        if not (isinstance(module, nn.Module) and (name == backbone.part or name.startswith("text_encoder"))):
            continue

        def record(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            calls.setdefault(name, (module, _bind(inspect.signature(module.forward), *args, **kwargs)))

        handles.append(module.register_forward_pre_hook(record, with_kwargs=True))
    latents = StudentSampler(backbone, backbone.teacher, grid, 1, info.guidance).latents([PROMPT, ""], 0)
    for handle in handles:
        handle.remove()
    return calls | {VAE: (_Decoder(backbone.vae), {"z": latents})}


def _export(graph: _Graph, names: list[str], file: Path) -> None:
    batch = torch.export.Dim("batch")
    with _quiet():
        torch.onnx.export(
            graph,
            tuple(_tensors(graph.call).values()),
            file,
            input_names=names,
            dynamic_shapes=(tuple({0: batch} for _ in names),),
            dynamo=True,
            external_data=True,
            verbose=False,
            custom_translation_table={torch.ops.aten.squeeze.dim: _squeeze()},
        )


def _squeeze() -> Any:
    """torch's squeeze, which leaves a dimension that is not 1 (as PixArt's may not be); ONNX's refuses it."""
    from onnxscript import opset18

    def squeeze(x: Any, dim: int) -> Any:
        dims: Any = opset18.Constant(value_ints=[dim])
        return opset18.Squeeze(x, dims) if x.shape[dim] == 1 else opset18.Identity(x)

    return squeeze


@torch.no_grad()
def _check_part(graph: _Graph, file: Path, name: str) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch in (1, 2):
        tensors = {key: tensor[:batch] for key, tensor in _tensors(graph.call).items()}
        got = session.run(None, {key: tensor.numpy() for key, tensor in tensors.items()})
        for mine, theirs in zip(graph(*tensors.values()), got, strict=True):
            if not (off := difference(mine, torch.from_numpy(theirs))) <= TOLERANCE:
                raise UserError(f"{name} under onnxruntime is off by {off:.2g} of a spread; expected {TOLERANCE}")


def _copy_the_rest(student: Path, folder: Path) -> None:
    """Everything of a stock pipeline's folder but the networks' weights."""
    for file in student.rglob("*"):
        where = folder / (VAE if (part := file.relative_to(student)).parts[0] == "vae" else part.parts[0])
        if file.is_file() and not file.name.endswith((".safetensors", ".safetensors.index.json", "card.md")):
            target = where.joinpath(*part.parts[1:])
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)


def _bind(signature: inspect.Signature, *args: Any, **kwargs: Any) -> Call:
    """Arguments by name, those that fall under `**kwargs` among them."""
    call = dict(signature.bind(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            call |= call.pop(parameter.name, {})
    return call


def _tensors(call: Call) -> dict[str, Tensor]:
    """The tensors of a call, those in a dictionary as `argument.key`."""
    found: dict[str, Tensor] = {}
    for name, value in call.items():
        entries = {f"{name}.{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
        found |= {key: entry for key, entry in entries.items() if isinstance(entry, Tensor)}
    return found


def _with_tensors(call: Call, tensors: Mapping[str, Tensor]) -> Call:
    """The call with other tensors in their places."""
    return {
        name: {key: tensors.get(f"{name}.{key}", entry) for key, entry in value.items()}
        if isinstance(value, dict)
        else tensors.get(name, value)
        for name, value in call.items()
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from warning of what its user cannot change."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
