"""Python that draws with an export: in its card, and beside a picture that was drawn."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scott.diffusion import FlowSchedule
from scott.export.lora import lora_file
from scott.export.pipeline import call_options
from scott.export.single_file import FILE as CHECKPOINT
from scott.export.trained import StudentInfo, needs_size
from scott.mini import embedded
from scott.teacher_source import SINGLE_FILE, TeacherSource
from scott.teachers import LatentBackbone
from scott.training.config import DistillConfig

EXAMPLE = "a small green apple on a blue background"


def shown(path: str | Path) -> str:
    """A path as a card shows it: of an absolute one the last part, as a path of this machine helps nobody."""
    return Path(path).name if Path(path).is_absolute() else str(path)


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
    return "\n".join([*imports, "", *load, *_student_call(info, size=size)])


def stock_snippet(
    info: StudentInfo, folder: Path, *, prompt: str, steps: int, seed: int, guidance: float | None = None
) -> str:
    """Python that draws one picture with a student's pipeline folder; at ω where the student takes one."""
    scale = guidance if info.takes_guidance and guidance is not None else info.guidance_scale
    size = info.resolution if needs_size(info.pipeline) else None
    return "\n".join([*_loaded(str(folder)), *_student_call(info, prompt, steps, seed, scale, size)])


def pipeline_snippet(
    name: str, scheduler: str, lora: str, *, prompt: str, steps: int, seed: int, guidance: float | None
) -> str:
    """Python that draws one picture with any pipeline, at the guidance scale it is called with; a LoRA's, if given."""
    lines = _loaded(name, *([scheduler] if lora else []))
    if lora:
        lines += [f"pipe.load_lora_weights({_quoted(lora)})"]
        lines += [f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config)"]
    options = {"num_inference_steps": steps} | ({} if guidance is None else {"guidance_scale": guidance})
    return "\n".join([*lines, *_call(prompt, seed, options)])


def teacher_snippet(
    teacher: TeacherSource, backbone: LatentBackbone, *, prompt: str, steps: int, seed: int, guidance: float
) -> str:
    """Python that draws one picture with a teacher's pipeline as `TeacherSampler` does."""
    pipeline, scheduler = type(backbone.pipeline).__name__, backbone.pipeline.scheduler
    solver, made = type(scheduler).__name__, ""
    if not isinstance(backbone.schedule, FlowSchedule):
        solver = "DDIMScheduler"
        trailing = 'timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False'
        made = f"{solver}.from_config(pipe.scheduler.config, {trailing})"
    elif solver != "FlowMatchEulerDiscreteScheduler" or pipeline == "Flux2KleinPipeline":  # which shifts few steps more
        solver = "FlowMatchEulerDiscreteScheduler"
        made = f"{solver}(shift={backbone.schedule.shift})"
    imports = ", ".join([pipeline if teacher.file else "DiffusionPipeline", *([solver] if made else [])])
    lines = ["import torch", f"from diffusers import {imports}"]
    lines += ["from scott.mini.embedded import TEACHER"] if teacher.teacher in embedded.TEACHERS else []
    lines += ["", *_load_teacher(teacher, pipeline, str), *([f"pipe.scheduler = {made}"] if made else [])]
    options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance} | call_options(pipeline)
    if pipeline == "QwenImagePipeline":
        options |= {"true_cfg_scale": guidance, "negative_prompt": ""}
    elif pipeline == "ZImagePipeline":
        options["guidance_scale"] = guidance - 1
    options |= dict.fromkeys(("height", "width"), backbone.resolution) if needs_size(pipeline) else {}
    if isinstance(backbone.schedule, FlowSchedule) and not backbone.shifts_evenly:
        options["sigmas"] = [1 - k / steps for k in range(steps)]
    return "\n".join([*lines, *_call(prompt, seed, options)])


def _loaded(name: str, *more: str) -> list[str]:
    imports = ", ".join(["DiffusionPipeline", *more])
    return [
        "import torch",
        f"from diffusers import {imports}",
        "",
        f"pipe = DiffusionPipeline.from_pretrained({_quoted(name)})",
    ]


def _student_call(
    info: StudentInfo,
    prompt: str = EXAMPLE,
    steps: int = 2,
    seed: int = 0,
    scale: float | None = None,
    size: int | None = None,
) -> list[str]:
    options = {"num_inference_steps": steps, "guidance_scale": info.guidance_scale if scale is None else scale}
    options |= {"height": size, "width": size} if size else {}
    return _call(prompt, seed, options | call_options(info.pipeline))


def _call(prompt: str, seed: int, options: dict[str, Any]) -> list[str]:
    """The call of a stock pipeline `pipe`, and its picture saved."""
    return [
        "image = pipe(",
        f"    prompt={_quoted(prompt)},",
        *(f"    {name}={value!r}," for name, value in options.items()),
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
    place = Path(shown(folder))
    return [
        *_load_teacher(config, info.pipeline),
        f'pipe.scheduler = {info.scheduler}.from_pretrained({_quoted(place)}, subfolder="scheduler")',
        f"pipe.load_lora_weights({_quoted(place)}, weight_name={_quoted(lora_file(kind, ''))})"
        if loads_lora(info)
        else f"pipe.transformer = PeftModel.from_pretrained(pipe.transformer, {_quoted(place)})",
    ]


def _load_teacher(teacher: TeacherSource, pipeline: str, place: Callable[[str | Path], str] = shown) -> list[str]:
    # parts stored in half precision would stay so, and not go together with the others
    given = f"{_named(teacher.teacher, place)}, torch_dtype=torch.float32"
    variant = f", variant={_quoted(teacher.variant)}" if teacher.variant else ""
    load = f"pipe = DiffusionPipeline.from_pretrained({given}{variant})"
    if teacher.file:
        layout = f", config={_named(teacher.teacher_config, place)}" if teacher.teacher_config else ""
        load = f"pipe = {pipeline}.from_single_file({given}{layout})"
    merged = [
        line
        for file, scale in teacher.loras
        for line in (
            f"pipe.load_lora_weights({_quoted(place(file))})",
            f"pipe.fuse_lora(lora_scale={scale:g})",
            "pipe.unload_lora_weights()",
        )
    ]
    return [load, *_load_vae(teacher, place), *merged]


def _load_vae(teacher: TeacherSource, place: Callable[[str | Path], str]) -> list[str]:
    if teacher.vae is None:
        return []
    reader = "from_single_file" if Path(teacher.vae).suffix in SINGLE_FILE else "from_pretrained"
    part = ', subfolder="vae"' if (Path(teacher.vae) / "vae").is_dir() else ""
    return [f"pipe.vae = type(pipe.vae).{reader}({_quoted(place(teacher.vae))}{part})"]


def _named(teacher: str, place: Callable[[str | Path], str] = shown) -> str:
    """A teacher in Python; an embedded one is where scott is installed."""
    return "TEACHER" if teacher in embedded.TEACHERS else _quoted(place(teacher))


def loads_lora(info: StudentInfo) -> bool:
    """Whether the pipeline has `load_lora_weights`."""
    return not info.pipeline.startswith("PixArt")


def _quoted(text: object) -> str:
    return json.dumps(str(text), ensure_ascii=False)
