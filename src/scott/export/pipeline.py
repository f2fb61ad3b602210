"""The student as a stock diffusers pipeline folder that older libraries open too, and how what is read back is judged.

Weights are written one tensor at a time, merged and rounded on the way, so that nothing is in memory twice.
"""

import inspect
import json
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from transformers import PreTrainedModel

from scott.diffusion import JumpGrid
from scott.errors import UserError
from scott.evaluation.stock import seeded
from scott.export.trained import (
    PROMPT,
    SEED,
    Expected,
    difference,
    draw_latents,
    few_step_scheduler,
    student_grid,
)
from scott.teachers import LatentBackbone, load_backbone
from scott.teachers.layout import family_class

_STORED = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32"}
_PIPELINE_OPTIONS = ("requires_safety_checker", "force_zeros_for_empty_prompt")


def save_student(backbone: LatentBackbone, folder: Path, grid: JumpGrid, dtype: torch.dtype = torch.float32) -> None:
    """Write the EMA student as a folder of the teacher's own pipeline class with a few-step scheduler."""
    config = backbone.pipeline.config
    options = {name: config[name] for name in _PIPELINE_OPTIONS if name in config}
    parts = {**backbone.pipeline.components, "scheduler": few_step_scheduler(backbone, grid)}
    type(backbone.pipeline)(**parts, **options).save_config(folder)
    for name, part in parts.items():
        if name == backbone.part and backbone.train_mode == "lora":
            plain, merged = backbone.adapters.plain_state(), backbone.adapters.merged_state("target")
            _save_model(part, folder / name, dtype, plain, merged)
        elif isinstance(part, nn.Module):
            model = backbone.copies.get("target", part) if name == backbone.part else part
            _save_model(model, folder / name, dtype, model.state_dict())
        elif part is not None:
            part.save_pretrained(folder / name)
            if name.startswith("tokenizer"):
                _save_for_older(part, folder, name)


@torch.no_grad()
def round_student(backbone: LatentBackbone, dtype: torch.dtype) -> None:
    """Give the EMA student, its adapter merged, and the text encoders the weights that files of a dtype have, in fp32.

    x0 = (x − σ ε) / α multiplies what rounding does by λ: how far it moves a picture depends on the teacher, and says
    nothing of how a file was written.
    """
    for layer in backbone.adapters.layers.values():
        if "target" in layer.lora_A:
            layer.merge(adapter_names=["target"])
    for part in (backbone.copies.get("target", backbone.network), *backbone.text_encoders):
        for value in part.state_dict(keep_vars=True).values():  # SD3's positions too, which are no parameter
            if value.is_floating_point():
                value.data = value.data.to(dtype).float()


def read_student(folder: Path, expected: Expected) -> None:
    """Raise `UserError` when the 2-step latent of what is in the folder, by the stock pipeline or by scott, is off."""
    backbone, info = load_backbone(folder), expected.info
    side = expected.resolution if backbone.own_size else None
    if side:
        backbone.resize(side)
    stock = backbone.from_pipeline(stock_latents(backbone.pipeline, info.guidance_scale, side))
    check_latents("the stock pipeline", folder, expected.latents, stock, expected.tolerance())
    grid = student_grid(backbone.schedule, info.original_inference_steps)
    check_latents("scott", folder, expected.latents, draw_latents(backbone, grid, info.guidance), expected.tolerance())


def write_tensors(
    file: Path,
    dtype: torch.dtype,
    plain: Mapping[str, Tensor],
    state: Iterable[tuple[str, Tensor]] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """A safetensors file of tensors, floats in `dtype`; with `state`, of its values, shaped as those of `plain` are.

    The format: the header's length in 8 bytes, a JSON header of dtypes, shapes and offsets, then the values.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, tensor in plain.items():
        kept = _kept(tensor, dtype)
        start, end = end, end + tensor.numel() * kept.itemsize
        header[name] = {"dtype": _STORED[kept], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in state or plain.items():
            values = tensor.detach().to("cpu", _kept(tensor, dtype)).contiguous()
            out.write(values.flatten().view(torch.uint8).numpy().data)


def _kept(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.is_floating_point() else tensor.dtype


def _save_model(
    model: Any,
    folder: Path,
    dtype: torch.dtype,
    plain: Mapping[str, Tensor],
    state: Iterable[tuple[str, Tensor]] | None = None,
) -> None:
    """Config and weights of a diffusers or transformers model."""
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(model, PreTrainedModel):
        model.save_config(folder)
        # without the place that the teacher was read from
        _edit_json(folder / "config.json", lambda config: {k: v for k, v in config.items() if k != "_name_or_path"})
        write_tensors(folder / "diffusion_pytorch_model.safetensors", dtype, plain, state)
        return
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    _edit_json(folder / "config.json", _with_rope_for_older)
    # T5 has its embedding under two names
    once = {value.data_ptr(): name for name, value in reversed([*plain.items()])}
    plain = {name: plain[name] for name in plain if name in once.values()}
    # transformers 5 reads its names with this prefix and without, 4 only with
    if type(model).__name__ == "CLIPTextModel":
        plain = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in plain.items()}
    write_tensors(folder / "model.safetensors", dtype, plain)


def _save_for_older(tokenizer: Any, folder: Path, name: str) -> None:
    """What transformers 4 needs beside the `tokenizer.json` that 5 writes."""
    kind = type(tokenizer).__name__
    if kind.startswith(("T5", "Gemma")):  # there "fast" ones, 5's only ones, need no sentencepiece file
        _edit_json(folder / "model_index.json", lambda index: index | {name: ["transformers", f"{kind}Fast"]})
    else:
        tokenizer.backend_tokenizer.model.save(str(folder / name))  # vocab.json and merges.txt
    _edit_json(folder / name / "tokenizer_config.json", _with_tokens_for_older)


def _with_tokens_for_older(config: dict[str, Any]) -> dict[str, Any]:
    """transformers 4 has `additional_special_tokens` for 5's list, and names for what is in a dictionary."""
    if isinstance(tokens := config.get("extra_special_tokens"), list):
        config = config | {"extra_special_tokens": {}, "additional_special_tokens": tokens}
    return config


def _with_rope_for_older(config: dict[str, Any]) -> dict[str, Any]:
    """transformers 4 has `rope_theta` and `rope_scaling` for 5's `rope_parameters`; without, it takes its defaults."""
    made = {name: _with_rope_for_older(value) if isinstance(value, dict) else value for name, value in config.items()}
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        made["rope_theta"] = rope["rope_theta"]
        if scaling := {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type")}:
            made["rope_scaling"] = {"rope_type": rope["rope_type"], **scaling}
    return made


def _edit_json(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text(encoding="utf-8"))), indent=2), encoding="utf-8")


def stock_latents(pipeline: DiffusionPipeline, guidance_scale: float, side: int | None = None) -> Tensor:
    """The 2-step latent of `PROMPT` as anyone draws it with a pipeline, without scott, in the pipeline's own layout; of
    a square of `side` pixels, or as it comes."""
    pipeline.set_progress_bar_config(disable=True)
    with seeded(SEED, pipeline.device) as generator:
        latents: Tensor = pipeline(
            prompt=PROMPT,
            num_inference_steps=2,
            height=side,
            width=side,
            generator=generator,
            output_type="latent",
            **{"guidance_scale": guidance_scale} | call_options(type(pipeline).__name__),
        ).images
    return latents


def call_options(pipeline: str) -> dict[str, Any]:
    """What the call of a stock pipeline class has to say besides so as to draw the prompt and the size it is given; and
    without guidance, where another word than `guidance_scale=1` stands for that."""
    accepted = inspect.signature(getattr(diffusers, pipeline).__call__).parameters
    options = {name: False for name in ("use_resolution_binning", "clean_caption") if name in accepted}
    unguided = family_class(pipeline).guidance_options(1.0)
    return options if unguided == {"guidance_scale": 1.0} else options | {"guidance_scale": None} | unguided


def check_latents(what: str, folder: Path, expected: Tensor, got: Tensor, tolerance: float) -> None:
    """Raise `UserError` unless the latents differ by at most `tolerance` of their spread."""
    if not (off := difference(expected, got)) <= tolerance:
        raise UserError(
            f"the student read back from {folder} by {what} draws {off:.2g} of a spread off; expected {tolerance}"
        )
