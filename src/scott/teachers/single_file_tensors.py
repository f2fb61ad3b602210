"""The tensors of a whole pipeline in one file, or what keeps it from being distilled."""

from pathlib import Path

from diffusers.loaders.single_file_utils import infer_diffusers_model_type, load_single_file_checkpoint
from torch import Tensor

from scott.errors import UserError, first_line

UNET = "model.diffusion_model."
_NETWORK = (UNET, "joint_blocks.", "double_blocks.")
_EDM = "its network is preconditioned as EDM's is, which is not supported"
_REFUSED = {
    "playground-v2-5": _EDM,
    "cosxl": _EDM,
    "flux-schnell": "a FLUX without guidance (schnell) is a few-step student already; distil FLUX.1-dev",
}
"""Kinds that no configs help."""
_SCALES = ("scaled_fp8", ".scale_weight", ".weight_scale", ".comfy_quant", ".absmax")
"""How names of a scaled fp8 or nf4 checkpoint end, whose weights are something else without: diffusers' readers drop
them."""


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, mapped from their file. Raises `UserError` where it cannot be read, or is another
    thing than a pipeline."""
    try:
        tensors: dict[str, Tensor] = load_single_file_checkpoint(str(file))
    except (OSError, ValueError, AttributeError) as error:
        safe = "; of a .ckpt only tensors are read, since a pickle can run code" if file.suffix == ".ckpt" else ""
        reason = first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise UserError(f"{file} cannot be read ({reason}){safe}; expected .safetensors of a whole model") from None
    if not any(name.startswith(_NETWORK) for name in tensors):
        if any("lora" in name for name in tensors):
            raise UserError(f"{file} is a LoRA; give it as --teacher-lora, and as --teacher what it is for")
        first = next(iter(tensors), "none")
        raise UserError(
            f"{file} has no network under the names of an original checkpoint (its first key is {first:.60}); "
            "expected a file with a whole pipeline"
        )
    # CosXL is laid out as SDXL, and marked for ComfyUI alone
    kind = "cosxl" if "edm_vpred.sigma_max" in tensors else infer_diffusers_model_type(tensors)
    if refused := _REFUSED.get(kind):
        raise UserError(f"{file} cannot be distilled: {refused}")
    if scale := next((name for name in tensors if name.endswith(_SCALES)), None):
        raise UserError(
            f"{file} holds quantised weights ({scale:.80}), whose scales would be lost; expected fp32, bf16, fp16 or "
            "plain fp8"
        )
    return tensors
