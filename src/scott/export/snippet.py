"""Python that draws with an export: in its card, and beside a picture that was drawn."""

from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from scott.diffusion import FlowSchedule
from scott.evaluation.stock import PipelineSampler, scheduler_beside, stock_options
from scott.export.info import StudentInfo
from scott.export.lora import lora_file
from scott.export.merging import quoted
from scott.export.pipeline import call_options
from scott.export.single_file import FILE as CHECKPOINT
from scott.export.teacher_lines import import_of, is_file, named, shown, size_of_file, teacher_lines
from scott.teacher_source import TeacherSource
from scott.teachers import LatentBackbone
from scott.teachers.layout import family_class
from scott.training.config import DistillConfig

FLOW_EULER = "FlowMatchEulerDiscreteScheduler"
OTHERWISE = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "stochastic_sampling")
"""Settings of it with which it does not walk the ODE at evenly spaced, shifted times."""
EXAMPLE = "a small green apple on a blue background"


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
    size = size or (None if kind == "diffusers" else size_of_file(config))
    call = _student_call(info, size=size)
    if kind == "diffusers":
        return "\n".join([*_loaded(str(place)), *call])
    scheduler = f'pipe.scheduler = {info.scheduler}.from_pretrained({quoted(place)}, subfolder="scheduler")'
    embedding = import_of(config.teacher)
    if kind == "checkpoint":
        source = config.teacher_config if is_file(config) else config.teacher
        file = f"hf_hub_download({quoted(place)}, {quoted(CHECKPOINT)})" if hub else quoted(place / CHECKPOINT)
        load = [f"pipe = {info.pipeline}.from_single_file({file}{f', config={named(source)}' if source else ''})"]
        embedding += ["from huggingface_hub import hf_hub_download"] if hub else []
        return "\n".join([*_imports(info.pipeline, info.scheduler), *embedding, "", *load, scheduler, *call])
    names, load = teacher_lines(config, info.pipeline)
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
    """Python that draws one picture with a teacher's pipeline as `TeacherSampler` does.

    By diffusers' DDIM as far as the steps divide those of training: of others it does not step to its next time.
    """
    pipeline, scheduler = type(backbone.pipeline).__name__, backbone.pipeline.scheduler
    solver, made = type(scheduler).__name__, ""
    if not isinstance(backbone.schedule, FlowSchedule):
        solver = "DDIMScheduler"
        trailing = 'timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False, thresholding=False'
        if teacher.prediction or teacher.file:  # diffusers does not read what a file says of itself
            config = scheduler.config
            trailing += f", prediction_type={quoted(config.prediction_type)}"
            trailing += f", rescale_betas_zero_snr={config.get('rescale_betas_zero_snr', False)}"
        made = f"{solver}.from_config(pipe.scheduler.config, {trailing})"
    elif solver != FLOW_EULER or backbone.shifts_by_steps or any(scheduler.config.get(key) for key in OTHERWISE):
        solver = FLOW_EULER
        made = f"{solver}(shift={backbone.schedule.shift})"
    names, load = teacher_lines(teacher, pipeline, str)
    lines = _imports(*names, *([solver] if made else []))
    lines += import_of(teacher.teacher)
    lines += ["", *load, *([f"pipe.scheduler = {made}"] if made else [])]
    options: dict[str, Any] = {"num_inference_steps": steps}
    options |= call_options(pipeline) | backbone.guidance_options(guidance)
    size = backbone.resolution if backbone.own_size else size_of_file(teacher)
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


def loads_lora(info: StudentInfo) -> bool:
    """Whether the pipeline has `load_lora_weights`."""
    return hasattr(getattr(diffusers, info.pipeline), "load_lora_weights")
