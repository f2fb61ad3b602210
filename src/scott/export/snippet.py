"""Python that draws with an export: in its card, and beside a picture that was drawn."""

import json
from pathlib import Path

from scott.export.lora import lora_file
from scott.export.pipeline import call_options
from scott.export.single_file import FILE as CHECKPOINT
from scott.export.trained import StudentInfo, needs_size
from scott.mini import embedded
from scott.teacher_source import SINGLE_FILE
from scott.training.config import DistillConfig

EXAMPLE = "a small red apple on a blue background"


def snippet(config: DistillConfig, info: StudentInfo, kind: str, folder: Path, *, hub: bool = False) -> str:
    """Python that draws a picture with the export in `folder`, or in a repository of that name, as it stands."""
    if kind == "onnx":
        place = _quoted(shown(folder))
        lines = [
            *(["from huggingface_hub import snapshot_download"] if hub else []),
            "from scott.evaluation import to_pil",
            "from scott.students import load_student",
            "",
            f'student = load_student({f"snapshot_download({place})" if hub else place}, engine="onnx")',
            f"(pixels,) = student.sampler(steps=2, guidance={info.guidance:g})([{_quoted(EXAMPLE)}], seed=0)",
            'to_pil(pixels).save("picture.png")',
        ]
        return "\n".join(lines)
    imports = ["import torch", "from diffusers import DiffusionPipeline"]
    load = [f"pipe = DiffusionPipeline.from_pretrained({_quoted(shown(folder))})"]
    if kind != "diffusers":
        loader = info.pipeline if kind == "checkpoint" or config.file else "DiffusionPipeline"
        imports[1] = f"from diffusers import {loader}, {info.scheduler}"
        imports += ["from scott.mini.embedded import TEACHER"] if config.teacher in embedded.TEACHERS else []
        imports += [] if kind == "checkpoint" or loads_lora(info) else ["from peft import PeftModel"]
        imports += ["from huggingface_hub import hf_hub_download"] if hub and kind == "checkpoint" else []
        is_file = kind == "checkpoint"
        load = _load_checkpoint(config, info, folder, hub) if is_file else _load_lora(config, info, kind, folder)
    # the teacher's own pipeline would draw at its size
    size = info.resolution if kind != "diffusers" or needs_size(info.pipeline) else None
    return "\n".join([*imports, "", *load, *_stock_call(info, size=size)])


def stock_snippet(
    info: StudentInfo, folder: Path, *, prompt: str, steps: int, seed: int, guidance: float | None = None
) -> str:
    """Python that draws one picture with a student's pipeline folder; at ω where the student takes one."""
    scale = guidance if info.takes_guidance and guidance is not None else info.guidance_scale
    lines = ["import torch", "from diffusers import DiffusionPipeline", ""]
    lines += [f"pipe = DiffusionPipeline.from_pretrained({_quoted(folder)})"]
    size = info.resolution if needs_size(info.pipeline) else None
    return "\n".join([*lines, *_stock_call(info, prompt, steps, seed, scale, size)])


def _stock_call(
    info: StudentInfo,
    prompt: str = EXAMPLE,
    steps: int = 2,
    seed: int = 0,
    scale: float | None = None,
    size: int | None = None,
) -> list[str]:
    """The call of a stock pipeline `pipe`, and its picture saved."""
    options = {"num_inference_steps": steps, "guidance_scale": info.guidance_scale if scale is None else scale}
    options |= {"height": size, "width": size} if size else {}
    return [
        "image = pipe(",
        f"    prompt={_quoted(prompt)},",
        *(f"    {name}={value}," for name, value in (options | call_options(info.pipeline)).items()),
        # torch's own generator, because SD3's pipeline hands no other to its scheduler
        f"    generator=torch.manual_seed({seed}),",
        ").images[0]",
        'image.save("picture.png")',
    ]


def _load_checkpoint(config: DistillConfig, info: StudentInfo, folder: Path, hub: bool) -> list[str]:
    place, source = Path(shown(folder)), config.teacher_config if config.file else config.teacher
    layout = f", config={_named(source)}" if source else ""
    file = _quoted(place / CHECKPOINT)
    if hub:
        file = f"hf_hub_download({_quoted(place)}, {_quoted(CHECKPOINT)})"
    return [
        f"pipe = {info.pipeline}.from_single_file({file}{layout})",
        f'pipe.scheduler = {info.scheduler}.from_pretrained({_quoted(place)}, subfolder="scheduler")',
    ]


def _load_lora(config: DistillConfig, info: StudentInfo, kind: str, folder: Path) -> list[str]:
    # parts stored in half precision would stay so, and not go together with the others
    given, place = f"{_named(config.teacher)}, torch_dtype=torch.float32", Path(shown(folder))
    variant = f", variant={_quoted(config.variant)}" if config.variant else ""
    load = f"pipe = DiffusionPipeline.from_pretrained({given}{variant})"
    if config.file:
        layout = f", config={_named(config.teacher_config)}" if config.teacher_config else ""
        load = f"pipe = {info.pipeline}.from_single_file({given}{layout})"
    merged = [
        line
        for file, scale in config.loras
        for line in (
            f"pipe.load_lora_weights({_quoted(shown(file))})",
            f"pipe.fuse_lora(lora_scale={scale:g})",
            "pipe.unload_lora_weights()",
        )
    ]
    return [
        load,
        *_load_vae(config),
        *merged,
        f'pipe.scheduler = {info.scheduler}.from_pretrained({_quoted(place)}, subfolder="scheduler")',
        f"pipe.load_lora_weights({_quoted(place)}, weight_name={_quoted(lora_file(kind, ''))})"
        if loads_lora(info)
        else f"pipe.transformer = PeftModel.from_pretrained(pipe.transformer, {_quoted(place)})",
    ]


def _load_vae(config: DistillConfig) -> list[str]:
    if config.vae is None:
        return []
    reader = "from_single_file" if Path(config.vae).suffix in SINGLE_FILE else "from_pretrained"
    part = ', subfolder="vae"' if (Path(config.vae) / "vae").is_dir() else ""
    return [f"pipe.vae = type(pipe.vae).{reader}({_quoted(shown(config.vae))}{part})"]


def _named(teacher: str) -> str:
    """A teacher in Python; an embedded one is where scott is installed."""
    return "TEACHER" if teacher in embedded.TEACHERS else _quoted(shown(teacher))


def loads_lora(info: StudentInfo) -> bool:
    """Whether the pipeline has `load_lora_weights`."""
    return not info.pipeline.startswith("PixArt")


def shown(path: str | Path) -> str:
    return Path(path).name if Path(path).is_absolute() else str(path)


def _quoted(text: object) -> str:
    return json.dumps(str(text), ensure_ascii=False)
