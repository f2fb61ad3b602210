"""Python that draws with an export: in its card, and beside a picture that was drawn."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from scott.diffusion import FlowSchedule
from scott.evaluation.stock import PipelineSampler, scheduler_beside, stock_options
from scott.export.info import StudentInfo
from scott.export.lora import lora_file
from scott.export.merging import merging, quoted
from scott.export.pipeline import call_options
from scott.export.single_file import FILE as CHECKPOINT
from scott.mini import embedded
from scott.teacher_source import SINGLE_FILE, TeacherSource
from scott.teachers import LatentBackbone
from scott.teachers.layout import family_class, model_index, variants
from scott.teachers.single_file import known_configs, lacking_parts
from scott.training.config import DistillConfig

EXAMPLE = "a small green apple on a blue background"


def shown(path: str | Path) -> str:
    """A path as a card shows it: of an absolute one the last part, as a path of this machine helps nobody."""
    return Path(path).name if Path(path).is_absolute() else str(path)


def snippet(config: DistillConfig, info: StudentInfo, kind: str, folder: Path, *, hub: bool = False) -> str:
    """Python that draws a picture with the export in `folder`, or in a repository of that name, as it stands."""
    place = Path(shown(folder))
    if kind == "onnx":
        export = f"snapshot_download({quoted(place)})" if hub else quoted(place)
        lines = [
            *(["from huggingface_hub import snapshot_download"] if hub else []),
            "from scott.evaluation import to_pil",
            "from scott.students import load_student",
            "",
            f'student = load_student({export}, engine="onnx")',
            f"(pixels,) = student.sampler(steps=2, guidance={info.guidance:g})([{quoted(EXAMPLE)}], seed=0)",
            'to_pil(pixels).save("picture.png")',
        ]
        return "\n".join(lines)
    # the teacher's own pipeline would draw at its size
    size = info.resolution if kind != "diffusers" or family_class(info.pipeline).own_size else None
    size = size or (None if kind == "diffusers" else _size_of_file(config))
    call = _student_call(info, size=size)
    if kind == "diffusers":
        return "\n".join([*_loaded(str(place)), *call])
    scheduler = f'pipe.scheduler = {info.scheduler}.from_pretrained({quoted(place)}, subfolder="scheduler")'
    embedding = _import_of(config.teacher)
    if kind == "checkpoint":
        source = config.teacher_config if _is_file(config) else config.teacher
        file = f"hf_hub_download({quoted(place)}, {quoted(CHECKPOINT)})" if hub else quoted(place / CHECKPOINT)
        load = [f"pipe = {info.pipeline}.from_single_file({file}{f', config={_named(source)}' if source else ''})"]
        embedding += ["from huggingface_hub import hf_hub_download"] if hub else []
        return "\n".join([*_imports(info.pipeline, info.scheduler), *embedding, "", *load, scheduler, *call])
    names, load = _load_teacher(config, info.pipeline)
    lora = f"pipe.load_lora_weights({quoted(place)}, weight_name={quoted(lora_file(kind, ''))})"
    if not loads_lora(info):
        embedding += ["from peft import PeftModel"]
        lora = f"pipe.transformer = PeftModel.from_pretrained(pipe.transformer, {quoted(place)})"
    return "\n".join([*_imports(*names, info.scheduler), *embedding, "", *load, scheduler, lora, *call])


def stock_snippet(
    info: StudentInfo, folder: Path, *, prompt: str, steps: int, seed: int, guidance: float | None = None
) -> str:
    """Python that draws one picture with a student's pipeline folder; at ω where the student takes one."""
    scale = guidance if info.takes_guidance and guidance is not None else info.guidance_scale
    size = info.resolution if family_class(info.pipeline).own_size else None
    return "\n".join([*_loaded(str(folder)), *_student_call(info, prompt, steps, seed, scale, size)])


def pipeline_snippet(
    pipeline: DiffusionPipeline,
    name: str,
    lora: str,
    size: int | None = None,
    *,
    prompt: str,
    steps: int,
    seed: int,
    guidance: float | None,
) -> str:
    """Python that draws one picture as `PipelineSampler` does, with a pipeline of that name; a LoRA's, and of another
    size than the pipeline's own, if given."""
    scheduler = type(pipeline.scheduler).__name__
    lines = _loaded(name, *([scheduler] if lora else []))
    if lora:
        lines += [f"pipe.load_lora_weights({quoted(lora)})"]
        beside = scheduler_beside(lora)
        made = f"from_pretrained({quoted(str(beside))})" if beside else "from_config(pipe.scheduler.config)"
        lines += [f"pipe.scheduler = {scheduler}.{made}"]
    options = {"num_inference_steps": steps} | stock_options(pipeline, guidance)
    options |= dict.fromkeys(("height", "width"), PipelineSampler(pipeline, steps, guidance, size).resolution)
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
        if teacher.prediction or teacher.file:  # diffusers does not read what a file says of itself
            config = scheduler.config
            trailing += f", prediction_type={quoted(config.prediction_type)}"
            trailing += f", rescale_betas_zero_snr={config.get('rescale_betas_zero_snr', False)}"
        made = f"{solver}.from_config(pipe.scheduler.config, {trailing})"
    elif solver != "FlowMatchEulerDiscreteScheduler" or backbone.shifts_by_steps:
        solver = "FlowMatchEulerDiscreteScheduler"
        made = f"{solver}(shift={backbone.schedule.shift})"
    names, load = _load_teacher(teacher, pipeline, str)
    lines = _imports(*names, *([solver] if made else []))
    lines += _import_of(teacher.teacher)
    lines += ["", *load, *([f"pipe.scheduler = {made}"] if made else [])]
    options: dict[str, Any] = {"num_inference_steps": steps}
    options |= call_options(pipeline) | backbone.guidance_options(guidance)
    size = backbone.resolution if backbone.own_size else _size_of_file(teacher)
    options |= dict.fromkeys(("height", "width"), size) if size else {}
    if isinstance(backbone.schedule, FlowSchedule) and not backbone.shifts_evenly:
        options["sigmas"] = [1 - k / steps for k in range(steps)]
    return "\n".join([*lines, *_call(prompt, seed, options)])


def _loaded(name: str, *more: str) -> list[str]:
    return [*_imports("DiffusionPipeline", *more), "", f"pipe = DiffusionPipeline.from_pretrained({quoted(name)})"]


def _imports(*names: str) -> list[str]:
    return ["import torch", f"from diffusers import {', '.join(dict.fromkeys(names))}"]


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
        f"    prompt={quoted(prompt)},",
        *(f"    {name}={value!r}," for name, value in options.items()),
        # torch's own generator, because SD3's pipeline hands no other to its scheduler
        f"    generator=torch.manual_seed({seed}),",
        ").images[0]",
        'image.save("picture.png")',
    ]


def _load_teacher(
    teacher: TeacherSource, pipeline: str, place: Callable[[str | Path], str] = shown
) -> tuple[list[str], list[str]]:
    """What to import from diffusers, and the lines that make a `pipe` of a teacher."""
    part = family_class(pipeline).part
    # parts stored in half precision would stay so, and not go together with the others
    given = f"{_named(teacher.teacher, place)}, torch_dtype=torch.float32"
    if _is_file(teacher):
        names, parts, lines = _parts_of_file(teacher, pipeline, place)
        lines += [f"pipe = {pipeline}.from_single_file({', '.join([given, *parts])})"]
    else:
        there = (Path(teacher.teacher) / part).is_dir()
        found = teacher.variant or (variants(teacher, part)[0] if there else None)
        variant = f", variant={quoted(found)}" if found else ""
        names, lines = ["DiffusionPipeline"], [f"pipe = DiffusionPipeline.from_pretrained({given}{variant})"]
        layout = _named(teacher.teacher, place)
        lines += [f"pipe.vae = {_vae('type(pipe.vae)', teacher.vae, place, layout)}"] if teacher.vae else []
    for file, scale in teacher.loras:
        lines += merging(file, scale, part, _fused(pipeline), place)
    return names, lines


def _fused(pipeline: str) -> str:
    """What `fuse_lora` has to be given where it leaves out, by default, a part that the pipeline loads LoRAs into."""
    kind = getattr(diffusers, pipeline)
    parts = kind._lora_loadable_modules
    default = inspect.signature(kind.fuse_lora).parameters["components"].default
    return "" if parts == default else f"components={json.dumps(parts)}, "


def _parts_of_file(
    teacher: TeacherSource, pipeline: str, place: Callable[[str | Path], str]
) -> tuple[list[str], list[str], list[str]]:
    """Of a single file: what to import, what its reader is given besides, and the lines that make that."""
    names, options = [pipeline], []
    lines: list[str] = []
    index = model_index(teacher) if Path(teacher.teacher).is_file() else {}
    others = lacking_parts(teacher, index) if index else []
    if teacher.vae:
        names += ["AutoencoderKL"]
        layout = _named(teacher.teacher_config, place) if teacher.teacher_config else _published_as(teacher)
        options = [f"vae={_vae('AutoencoderKL', teacher.vae, place, layout)}"]
        others = [name for name in others if name != "vae"]
    if teacher.teacher_config:
        layout = _named(teacher.teacher_config, place)
        options = [f"config={layout}", *options, *(f"{name}=parts.{name}" for name in others)]
        if others:
            names += ["DiffusionPipeline"]
            left = f"{family_class(pipeline).part}=None, torch_dtype=torch.float32"
            lines = [f"parts = DiffusionPipeline.from_pretrained({layout}, {left})"]
    return names, options, lines


def _published_as(teacher: TeacherSource) -> str:
    """The hub id, in Python, of the pipeline that a file is laid out as; nothing where it is not there any more."""
    file = Path(teacher.teacher)
    return quoted(known_configs(file, teacher.prediction)["source"].split()[1]) if file.is_file() else ""


def _size_of_file(teacher: TeacherSource) -> int | None:
    """What a pipeline has to be asked for of a file of SD2's base edition, in pixels: diffusers takes each of SD2 for
    one of 768. None of others, and where the file is not there any more."""
    file = Path(teacher.teacher)
    if not _is_file(teacher) or teacher.teacher_config or not file.is_file():
        return None
    configs = known_configs(file, teacher.prediction)
    is_base = configs["name"] == "sd21" and configs["scheduler/scheduler_config.json"]["prediction_type"] == "epsilon"
    return 8 * int(configs["unet/config.json"]["sample_size"]) if is_base else None


def _vae(kind: str, vae: str, place: Callable[[str | Path], str], layout: str) -> str:
    """A VAE of its own place; of a file, with the config of the teacher's, which is in `layout`."""
    if Path(vae).suffix in SINGLE_FILE:  # which does not say its scale, and is taken for SD1.5's
        config = f', config={layout}, subfolder="vae"' if layout else ""
        return f"{kind}.from_single_file({quoted(place(vae))}{config})"
    part = ', subfolder="vae"' if (Path(vae) / "vae").is_dir() else ""
    return f"{kind}.from_pretrained({quoted(place(vae))}{part})"


def _is_file(teacher: TeacherSource) -> bool:
    """Whether a teacher is a single file, which need not be there any more."""
    return Path(teacher.teacher).suffix in SINGLE_FILE


def _named(teacher: str, place: Callable[[str | Path], str] = shown) -> str:
    """A teacher in Python; an embedded one is where scott is installed."""
    return "TEACHER" if _import_of(teacher) else quoted(place(teacher))


def _import_of(teacher: str) -> list[str]:
    return ["from scott.mini.embedded import TEACHER"] if teacher in embedded.TEACHERS else []


def loads_lora(info: StudentInfo) -> bool:
    """Whether the pipeline has `load_lora_weights`."""
    return hasattr(getattr(diffusers, info.pipeline), "load_lora_weights")
