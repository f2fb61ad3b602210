"""Python that merges a LoRA file into a teacher's pipeline."""

import json
from collections.abc import Callable
from pathlib import Path

from scott.teachers.lora_files import lora_path
from scott.teachers.lora_names import alpha_names, form_of


def merging(file: Path, scale: float, part: str, fused: str, place: Callable[[str | Path], str]) -> list[str]:
    """Lines that merge a LoRA file, which need not be there any more, into the network `part` of a `pipe`.

    `fused` is what `fuse_lora` of the pipeline is given besides the scale; `place` says where the file is.
    """
    file = lora_path(file) if file.exists() else file
    form = form_of(file) if file.exists() else "pipeline"
    if form == "peft":
        lines = ["from peft import PeftModel"]
        lines += [f"lora = PeftModel.from_pretrained(pipe.{part}, {quoted(place(file.parent))})"]
        if scale != 1:
            lines += ["for layer in lora.modules():", "    if hasattr(layer, 'scale_layer'):"]
            lines += [f"        layer.scale_layer({scale:g})"]
        return [*lines, f"pipe.{part} = lora.merge_and_unload()"]
    lines, lora = _with_alpha(file, part, quoted(place(file)))
    load = f"pipe.load_lora_weights({lora})"
    if form == "network":
        load = f"pipe.{part}.load_lora_adapter({lora}, prefix=None)"
    return [*lines, load, f"pipe.fuse_lora({fused}lora_scale={scale:g})", "pipe.unload_lora_weights()"]


def _with_alpha(file: Path, part: str, lora: str) -> tuple[list[str], str]:
    """Lines that multiply α / r into a file's B, of which diffusers misses some, and what then stands for the file."""
    names = alpha_names(file, part) if file.exists() else None
    if not names:
        return [], lora
    a, b = names
    lines = [
        "from safetensors.torch import load_file",
        f"lora = {{name: value.float() for name, value in load_file({lora}).items()}}",
        "for name in [name for name in lora if name.endswith('.alpha')]:  # of which diffusers misses some",
        "    layer = name.removesuffix('alpha')",
        f"    lora[layer + '{b}.weight'] *= lora.pop(name).item() / len(lora[layer + '{a}.weight'])",
    ]
    return lines, "lora"


def quoted(text: object) -> str:
    return json.dumps(str(text), ensure_ascii=False)
