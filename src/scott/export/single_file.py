"""The student as one file in the names of the original code, for ComfyUI, A1111 and diffusers' `from_single_file`.

    model.diffusion_model.                                  the U-Net
    first_stage_model.                                      the VAE, whose attention has kernels of 1 x 1
    cond_stage_model. (SD1.x, SD2.x), conditioner. (SDXL)   text encoders, CLIP's as they are, OpenCLIP's in its names

No program that reads such a file has an input for ω, so that of a full student is built in: its embedding e(ω) reaches
the time embedding's first layer as W (x + P e) + b, which is W x + b' with b' = b + W P e.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from scott.errors import UserError
from scott.export.info import METADATA, StudentInfo
from scott.export.kohya import base_model, modelspec
from scott.export.ldm import UNET, VAE, open_clip_names, unet_names, vae_names
from scott.export.pipeline import check_latents, stock_latents, write_tensors
from scott.export.trained import Expected, Trained, few_step_scheduler
from scott.teacher_source import TeacherSource
from scott.teachers import LatentBackbone, load_backbone
from scott.teachers.layout import family_class

FILE = "student.safetensors"
ENCODERS = {
    "sd_v1": {"text_encoder": "cond_stage_model.transformer."},
    "sd_v2": {"text_encoder": "cond_stage_model.model."},
    "sdxl_base_v1-0": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}
"""Base model → its text encoders and what their names begin with; OpenCLIP's with `.model.`."""
_COND, _FIRST = "time_embedding.cond_proj.weight", "time_embedding.linear_1"


def require_unet(pipeline: str) -> None:
    """Raise `UserError` unless a pipeline's class is one whose checkpoints are written."""
    if family_class(pipeline).part != "unet":
        raise UserError(
            f"got --to checkpoint for a {pipeline}; expected SD1.x, SD2.x or SDXL; use --to diffusers, or --to lora "
            "of a LoRA student"
        )


def save_checkpoint(trained: Trained, folder: Path, dtype: torch.dtype = torch.float32) -> StudentInfo:
    """Write the EMA student with its VAE and text encoders to one file; what it is, ω built in."""
    backbone, info = trained.backbone, trained.info
    plain, state = original_tensors(backbone, info.guidance)
    title = f"{trained.config.out.name} ({info.updates} updates)"
    said = modelspec(backbone, title) | {METADATA: info.to_json()}
    write_tensors(folder / FILE, dtype, plain, state, said)
    few_step_scheduler(backbone, trained.grid).save_pretrained(folder / "scheduler")
    omega = info.guidance
    return replace(info, takes_guidance=False, guidance_min=omega, guidance_max=omega, drawn_guidance=omega)


def read_checkpoint(folder: Path, expected: Expected, dtype: torch.dtype = torch.float32) -> None:
    """Raise `UserError` where the file, read by diffusers as the teacher is laid out, draws another 2-step latent."""
    teacher = expected.teacher
    place = teacher.teacher_config if teacher.file else teacher.teacher
    source = TeacherSource(teacher=str(folder / FILE), teacher_config=place, prediction=teacher.prediction)
    pipeline = load_backbone(source).pipeline
    pipeline.scheduler = expected.scheduler
    got = stock_latents(pipeline, 1.0, expected.resolution)
    check_latents("from_single_file", folder, expected.latents, got, expected.tolerance(dtype))


Part = tuple[dict[str, Tensor], Iterator[tuple[str, Tensor]]]
"""Tensors of the shapes that are written, which may hold nothing, by their names in the file; and the values."""


def original_tensors(backbone: LatentBackbone, omega: float) -> Part:
    """The EMA student's pipeline, or the teacher's where there is no student."""
    names = vae_names(backbone.vae)
    vae: dict[str, Tensor] = {}
    for name, value in backbone.vae.state_dict().items():
        is_attention = ".attentions." in name and value.ndim == 2
        vae[VAE + names[name]] = value[:, :, None, None] if is_attention else value
    if backbone.prediction == "v_prediction" and base_model(backbone) == "sdxl_base_v1-0":
        vae["v_pred"] = torch.tensor([])  # by which ComfyUI and A1111 tell, and zero terminal SNR by the other
        if backbone.pipeline.scheduler.config.get("rescale_betas_zero_snr"):
            vae["ztsnr"] = torch.tensor([])
    encoders = [_encoder(backbone, *item) for item in ENCODERS[base_model(backbone)].items()]
    parts: list[Part] = [_unet(backbone, omega), (vae, iter(vae.items())), *encoders]
    plain = {name: value for shapes, _ in parts for name, value in shapes.items()}
    return plain, chain.from_iterable(values for _, values in parts)


def _unet(backbone: LatentBackbone, omega: float) -> Part:
    network = backbone.copies.get("target", backbone.network)
    is_lora = backbone.train_mode == "lora"
    plain = backbone.adapters.plain_state() if is_lora else dict(network.state_dict())
    if (projection := plain.pop(_COND, None)) is not None:
        given = {"guidance": torch.tensor([omega]), "text": torch.empty(0)}
        embedding = backbone.guidance_input(network, given)
        assert embedding is not None
        pushed = plain[f"{_FIRST}.weight"] @ projection @ embedding[0]
        plain[f"{_FIRST}.bias"] = plain[f"{_FIRST}.bias"] + pushed
    state = backbone.adapters.merged_state("target") if is_lora else plain.items()
    names = unet_names(network, list(plain))
    return {UNET + names[key]: value for key, value in plain.items()}, ((UNET + names[k], value) for k, value in state)


def _encoder(backbone: LatentBackbone, part: str, prefix: str) -> Part:
    encoder = backbone.pipeline.components[part]
    # transformers 5 names a CLIPTextModel's weights without `text_model.`
    state = {
        name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": value
        for name, value in encoder.state_dict().items()
    }
    if not prefix.endswith(".model."):
        named = {prefix + name: value for name, value in state.items()}
        return named, iter(named.items())
    groups: dict[str, list[str]] = {}
    for name, original in open_clip_names(encoder, list(state)).items():
        groups.setdefault(original, []).append(name)
    shapes = {prefix + original: _joined(original, names, state, "meta") for original, names in groups.items()}
    return shapes, ((prefix + original, _joined(original, names, state)) for original, names in groups.items())


def _joined(original: str, names: list[str], state: Mapping[str, Tensor], device: str = "cpu") -> Tensor:
    """OpenCLIP's tensor: q, k and v of a layer in this order, and the projection the other way round."""
    ordered = sorted(names, key=lambda name: "qkv".find(name.split(".")[-2][0]))
    tensors = [state[name].to(device) for name in ordered]
    tensor = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
    return tensor.T if original == "text_projection" else tensor
