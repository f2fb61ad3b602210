"""The student as ONNX: text encoders, network, VAE encoder and decoder, each `<part>/model.onnx`, weights beside it.

An export is the stock pipeline's folder in which every network is an ONNX graph instead of weights, under the names
that optimum's ORT pipelines expect. What is exported of a network is the call that drawing makes, so no family needs
code of its own here: a graph's inputs are named after the call's arguments. Batch, height and width are free (a
transformer's height and width are the teacher's), the number of tokens is the teacher's.
"""

import gc
import inspect
import logging
import shutil
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scott.errors import UserError
from scott.export.info import StudentInfo
from scott.export.onnx_runtime import FILE, Call, bind, load_onnx, open_session, run_session, tensors_of
from scott.export.pipeline import check_latents
from scott.export.trained import PROMPT, difference, draw_latents, student_grid
from scott.teachers import LatentBackbone, load_backbone
from scott.teachers.layout import family_class

TOLERANCE = 1e-3
"""Largest difference of any part's output, and of the 2-step latent, over its standard deviation."""

SMALL = 1024
"""Elements below which weights stay as they are: casting them would save nothing."""


def require_exportable(pipeline: str) -> None:
    """Raise `UserError` for a pipeline's class whose parts torch cannot export (`Family.exports_onnx`)."""
    if not family_class(pipeline).exports_onnx:
        raise UserError(f"got --to onnx for a {pipeline}, which cannot be exported; use --to diffusers")


def write_onnx(student: Path, folder: Path, dtype: torch.dtype = torch.float32) -> StudentInfo:
    """Export the student whose stock pipeline is in the folder `student` to `folder`; what it was made for.

    Weights that `dtype` holds exactly, as those of a pipeline saved in it, are stored in it.

    Raises `UserError` when onnxruntime's output of a part, or the 2-step latent, is off by more than `TOLERANCE` of its
    spread, for one picture, for two, or for two of another height.
    """
    info = StudentInfo.read(student)
    assert info is not None
    answers, latents = _write_parts(student, info, folder, dtype)  # torch's networks are gone when onnxruntime's come
    gc.collect()
    for name, pairs in answers.items():
        _check_part(folder / name / FILE, pairs, name)
    backbone = load_onnx(folder)
    grid = student_grid(backbone.schedule, info.original_inference_steps)
    check_latents("onnxruntime", folder, latents, draw_latents(backbone, grid, info.guidance), TOLERANCE)
    return info


class _Graph(nn.Module):
    """One call of a module as a function of its tensors alone, which is what ONNX knows."""

    def __init__(self, module: Any, call: Call, outputs: Sequence[str], step: int = 0) -> None:
        super().__init__()
        self.module, self.call, self.step = module, call, step
        self.inputs, self.outputs = list(tensors_of(call)), list(outputs)
        if call.get("output_hidden_states"):
            self.outputs += [f"hidden_states.{index}" for index in range(module.config.num_hidden_layers)]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        for tensor in tensors[1:]:
            if tensor.ndim:
                torch._check(tensor.shape[0] == tensors[0].shape[0])  # one batch, which the exporter cannot know
        output = self.module(**_with_tensors(self.call, dict(zip(self.inputs, tensors, strict=True))))
        if self.call.get("output_hidden_states"):
            return (
                output[0],
                *([output.last_hidden_state] if len(self.outputs) > len(output.hidden_states) else []),
                *output.hidden_states[:-1],
            )
        return tuple(output[: len(self.outputs)])

    def dimensions(self) -> tuple[dict[int, Any], ...]:
        """The free ones of each input: the batch, and with `step` a picture's height and width in multiples of it."""
        batch, *size = (torch.export.Dim(name) for name in ("batch", "rows", "columns"))
        free = {2: self.step * size[0], 3: self.step * size[1]} if self.step else {}
        shapes = (tensor.ndim for tensor in tensors_of(self.call).values())
        return tuple({} if ndim == 0 else {0: batch, **(free if ndim == 4 else {})} for ndim in shapes)

    @torch.no_grad()
    def answers(self) -> list[tuple[dict[str, Tensor], tuple[Tensor, ...]]]:
        """Inputs and torch's outputs: of two pictures, one, and, where sizes are free, two of half the height."""
        whole = tensors_of(self.call)
        inputs = [whole, {name: tensor[:1] if tensor.ndim else tensor for name, tensor in whole.items()}]
        if self.step:
            inputs.append({name: t[:, :, : t.shape[2] // 2] if t.ndim == 4 else t for name, t in whole.items()})
        return [(tensors, self(*tensors.values())) for tensors in inputs]


class _Decoder(nn.Module):
    """A VAE's decoder."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: Tensor) -> tuple[Tensor, ...]:
        return self.vae.decode(latent_sample, return_dict=False)


class _Encoder(nn.Module):
    """A VAE's encoder: the mean (B, C, H, W), and the parameters (B, 2 C, H, W), mean and logarithm of the variance."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, sample: Tensor) -> tuple[Tensor, ...]:
        parameters = self.vae.encode(sample).latent_dist.parameters
        return parameters.chunk(2, 1)[0], parameters


def _write_parts(student: Path, info: StudentInfo, folder: Path, dtype: torch.dtype) -> tuple[dict[str, Any], Tensor]:
    """Export each part; part → inputs and outputs to check it by, and the 2-step latent."""
    _copy_the_rest(student, folder)
    backbone = load_backbone(student)
    answers = {}
    for name, graph in _record_calls(backbone, info).items():
        answers[name] = graph.answers()
        (folder / name).mkdir(exist_ok=True)
        _export(graph, folder / name / FILE, dtype)
    grid = student_grid(backbone.schedule, info.original_inference_steps)
    return answers, draw_latents(backbone, grid, info.guidance)


def _record_calls(backbone: LatentBackbone, info: StudentInfo) -> dict[str, _Graph]:
    """Part → the graph of its first call when two pictures are drawn."""
    parts = backbone.pipeline.components
    calls: dict[str, tuple[Any, Call]] = {}
    handles = []
    for name, module in parts.items():
        if not (isinstance(module, nn.Module) and (name == backbone.part or name.startswith("text_encoder"))):
            continue

        def record(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            calls.setdefault(name, (module, bind(inspect.signature(module.forward), *args, **kwargs)))

        handles.append(module.register_forward_pre_hook(record, with_kwargs=True))
    latents = torch.randn(2, *backbone.latent_shape)
    cond = backbone.encode_prompts([PROMPT, ""]) | {"guidance": torch.full((2,), info.guidance)}
    with torch.no_grad():
        backbone.teacher(latents, backbone.schedule.last_time.repeat(2), cond)
    for handle in handles:
        handle.remove()
    graphs = {}
    for name, (module, call) in calls.items():
        pooled = type(module).__name__.endswith("WithProjection")
        outputs, step = (["text_embeds"] if pooled else []) + ["last_hidden_state"], 0
        if name == backbone.part:
            outputs = ["out_sample" if name == "unet" else "out_hidden_states"]
        if name == "unet":  # optimum gives one time for all pictures
            step, call["timestep"] = 2 ** (len(module.config.block_out_channels) - 1), call["timestep"][0]
        graphs[name] = _Graph(module, call, outputs, step).eval()
    pixels, outputs = torch.rand(2, 3, *[backbone.resolution] * 2), ["latent_sample", "latent_parameters"]
    graphs["vae_encoder"] = _Graph(_Encoder(backbone.vae), {"sample": pixels}, outputs, backbone.factor).eval()
    graphs["vae_decoder"] = _Graph(_Decoder(backbone.vae), {"latent_sample": latents}, ["sample"], 1).eval()
    return graphs


def _export(graph: _Graph, file: Path, dtype: torch.dtype = torch.float32) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of what its user cannot change
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            graph,
            tuple(tensors_of(graph.call).values()),
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes=(graph.dimensions(),),
            dynamo=True,
            verbose=False,
            custom_translation_table={torch.ops.aten.squeeze.dim: _squeeze()},
        )
    assert program is not None
    model: Any = program.model
    for part in (model.graph, *model.functions.values()):
        for node in part.all_nodes():
            node.metadata_props.clear()  # lines of source by this machine's paths
    if dtype != torch.float32:
        _store_weights(model, dtype)
    program.save(file, external_data=True)


def _store_weights(model: Any, dtype: torch.dtype) -> None:
    """Store in `dtype` the weights of an fp32 graph that it holds exactly, with a cast to fp32 behind each: the graph
    computes what it did. Each is rounded as it is written."""
    import onnx_ir as ir
    from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype

    def rounded(weights: Any) -> TorchTensor:
        return TorchTensor(torch.from_numpy(weights.numpy()).to(dtype))

    kind = from_torch_dtype(dtype)
    for value in [*model.graph.initializers.values()]:
        if value.dtype != ir.DataType.FLOAT:
            continue
        whole = torch.from_numpy(value.const_value.numpy())
        if whole.numel() < SMALL or not torch.equal(whole.to(dtype).float(), whole):
            continue
        name, later = value.name, partial(rounded, value.const_value)
        stored = ir.LazyTensor(later, kind, value.shape, name=f"{name}.stored")
        source = ir.Value(name=stored.name, shape=value.shape, type=ir.TensorType(kind), const_value=stored)
        cast = ir.node("Cast", [source], {"to": ir.DataType.FLOAT})
        model.graph.insert_before(model.graph[0], cast)
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        del model.graph.initializers[name]
        cast.outputs[0].name = name
        model.graph.register_initializer(source)


def _squeeze() -> Any:
    """torch's squeeze, which leaves a dimension that is not 1 (as PixArt's may not be); ONNX's refuses it."""
    from onnxscript import opset18

    def squeeze(x: Any, dim: int) -> Any:
        dims: Any = opset18.Constant(value_ints=[dim])
        return opset18.Squeeze(x, dims) if x.shape[dim] == 1 else opset18.Identity(x)

    return squeeze


def _check_part(file: Path, answers: Sequence[tuple[dict[str, Tensor], tuple[Tensor, ...]]], name: str) -> None:
    session = open_session(file)
    for tensors, outputs in answers:
        for mine, theirs in zip(outputs, run_session(session, tensors), strict=True):
            if not (off := difference(mine, theirs)) <= TOLERANCE:
                raise UserError(f"{name} under onnxruntime is off by {off:.2g} of a spread; expected {TOLERANCE}")


def _copy_the_rest(student: Path, folder: Path) -> None:
    """Everything of a stock pipeline's folder but the networks' weights."""
    for file in student.rglob("*"):
        part = file.relative_to(student)
        if file.is_file() and not file.name.endswith((".safetensors", ".safetensors.index.json", ".md")):
            for top in ("vae_encoder", "vae_decoder") if part.parts[0] == "vae" else part.parts[:1]:
                target = folder.joinpath(top, *part.parts[1:])
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)


def _with_tensors(call: Call, tensors: Mapping[str, Tensor]) -> Call:
    """The call with other tensors in their places."""
    return {
        name: {key: tensors.get(key, entry) for key, entry in value.items()}
        if isinstance(value, dict)
        else tensors.get(name, value)
        for name, value in call.items()
    }
