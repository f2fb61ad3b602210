"""What a LoRA file is by the names of its tensors, and what diffusers does not read of it: the α of some layers.

unet.down_blocks….lora_A.weight, lora_unet_…     of a pipeline; diffusers brings them to the names of the first
down_blocks….lora_A.weight                       of its network alone, as `save_lora_adapter` writes it
base_model.model.down_blocks….lora_A.weight      the same by peft, whose scale is in adapter_config.json beside
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from scott.errors import UserError, first_line
from scott.files import read_object

PEFT = "base_model.model."
PEFT_CONFIG = "adapter_config.json"
_SCALES = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "target_modules", "lora_bias")
_PIPELINES = ("unet.", "transformer.", "text_encoder", "diffusion_model.", "model.", "lora_")
_ORIGINAL = (f"{PEFT}double_blocks.", f"{PEFT}single_blocks.")
"""peft's names of FLUX's own code, which diffusers brings to its pipelines'."""
_PROGRAMS = ("transformer.", "lora_unet_", "diffusion_model.")
"""Of a network in the names of several programs, of which diffusers would read one."""
_WHOLE = (".diff", ".diff_b", ".w_norm", ".b_norm", ".set_weight")
"""Ends of tensors that are added as they are, most of them to biases and norms, or put in their place: ComfyUI's, of
which diffusers reads few."""
_OTHERS = {".lokr_": "LoKr", ".hada_": "LoHa", ".lora_mid.": "LoCon of three factors", ".dora_scale": "DoRA of kohya's"}


def form_of(file: Path) -> str:
    """Whose names a file has: "peft", "network" or "pipeline". Raises `UserError` where it is no LoRA file."""
    names = _names(file)
    first = next((name for name in names if not name.endswith(".alpha")), names[0])
    if first.startswith(PEFT):
        original = any(name.startswith(_ORIGINAL) for name in names)
        return "pipeline" if original and not file.with_name(PEFT_CONFIG).is_file() else "peft"
    of_network = ".lora_A." in first and ".default." not in first  # the name of an adapter, which converters leave out
    return "network" if of_network and not first.startswith(_PIPELINES) else "pipeline"


def alpha_names(file: Path, part: str) -> tuple[str, str] | None:
    """What A and B are called in a file of whose layers' α diffusers would miss some: that of a U-Net in kohya's names
    where they differ (in attention it does not find them), of a transformer's `lora_down` in diffusers' (FLUX's
    converter drops it), and any beside other names. None elsewhere."""
    names, _ = header(file)
    alphas = [name for name in names if name.endswith(".alpha")]
    if alphas and any(name.endswith(".lora_A.weight") for name in names):
        return "lora_A", "lora_B"
    if alphas and any(name.startswith("transformer.") and name.endswith(".lora_down.weight") for name in names):
        return "lora_down", "lora_up"
    if not alphas or part != "unet":  # converters of transformers fold them
        return None
    if any(name.endswith(".lora.down.weight") for name in names):
        return "lora.down", "lora.up"
    with safe_open(file, "pt") as opened:
        differ = len({opened.get_tensor(name).item() for name in alphas}) > 1
    return ("lora_down", "lora_up") if differ else None


def folded(file: Path, part: str) -> dict[str, Tensor] | None:
    """A file's tensors in fp32, with α / r in B, where diffusers would miss some α; None where it reads the file."""
    if (names := alpha_names(file, part)) is None:
        return None
    a, b = names
    tensors = {name: value.float() for name, value in load_file(file).items()}
    for name in [name for name in tensors if name.endswith(".alpha")]:
        layer = name.removesuffix("alpha")
        tensors[f"{layer}{b}.weight"] *= tensors.pop(name).item() / len(tensors[f"{layer}{a}.weight"])
    return tensors


def header(file: Path) -> tuple[list[str], dict[str, str]]:
    """Names of a LoRA file's tensors, and its metadata. Raises `UserError` where it cannot be read."""
    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys()), opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}); expected a LoRA file") from None


def _names(file: Path) -> list[str]:
    """Of a file's tensors. Raises `UserError` where it cannot be read, or is of another kind of adapter."""
    names, _ = header(file)
    for mark, kind in _OTHERS.items():
        if any(mark in name for name in names):
            raise UserError(f"{file} is a {kind}, which is not read; give a LoRA, or a teacher that it is merged into")
    if not names:
        raise UserError(f"{file} has no tensors; expected a LoRA file")
    several = [start for start in _PROGRAMS if any(name.startswith(start) for name in names)]
    if len(several) > 1:
        raise UserError(
            f"{file} names layers as {several[0]}… and as {several[1]}…, of which diffusers reads some; give a LoRA of "
            "one program, or a teacher that it is merged into"
        )
    with safe_open(file, "pt") as opened:  # those that change nothing stand in many files
        if whole := next((name for name in names if name.endswith(_WHOLE) and opened.get_tensor(name).any()), None):
            raise UserError(
                f"{file} has {whole}, which is no product of factors and is not read; give a LoRA without, or a "
                "teacher that it is merged into"
            )
    return names


def peft_config(file: Path) -> dict[str, Any]:
    """The scale of a file in peft's names, which is beside it. Raises `UserError` where it is not."""
    beside = file.with_name(PEFT_CONFIG)
    if not beside.is_file():
        raise UserError(f"{file} is peft's, and its scale is in {PEFT_CONFIG}, which is not beside it; put it there")
    config = read_object(beside)
    return {name: config[name] for name in _SCALES if name in config}
