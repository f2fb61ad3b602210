"""What `scott evaluate` can be pointed at: a student, any pipeline of diffusers, or pictures that are there already."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from scott.data.sources import open_source
from scott.device import best_device, processes
from scott.errors import UserError
from scott.evaluation import Sampler
from scott.evaluation.pictures import GUIDANCE, STEPS
from scott.evaluation.stock import PipelineSampler, default_guidance, drawn_guidance, folder_of, load_pipeline
from scott.evaluation.stored import StoredPictures
from scott.export.info import StudentInfo
from scott.export.lora import lora_info, warn_of_base
from scott.measured import STEPS as DEFAULT_STEPS
from scott.measured import Measured
from scott.mini import embedded
from scott.samplers import StudentSampler, TeacherSampler
from scott.students import (
    check_run,
    info_of,
    is_run,
    is_student,
    is_weights,
    load_student,
    lora_of,
    run_of,
    run_teacher,
    teacher_of,
)
from scott.teacher_source import TeacherSource
from scott.teachers.fingerprint import is_fingerprint, pipeline_version
from scott.teachers.lora_files import lora_path, network_of
from scott.training.config import DistillConfig

OF_DRAWING = (
    *("guidance", "scheduler", "lora", "teacher", "teacher_steps", "teacher_solvers", "timesteps", "gamma"),
    *("seeds", "images", "diversity", "precision"),
)
"""What `Measured` has of how pictures are drawn, and kept."""


@dataclass
class Target:
    """What draws: a sampler for each row by its name, and the pixels a side that it draws."""

    samplers: Mapping[str, Sampler]
    size: int | None = None
    stored: StoredPictures | None = None
    """Pictures that are there already."""
    methods: Mapping[str, str] = field(default_factory=dict)
    """Sampler → `--method` of the run that it is of, where that is known."""
    scheduler: str | None = None
    """The class of a stock pipeline's."""


def target_of(
    name: str,
    steps: Sequence[int],
    measured: Measured,
    dtype: torch.dtype,
    warn: Callable[[str], None] = lambda message: None,
) -> Target:
    """Warns of a LoRA that was made for another base. Raises `UserError` as `load_student` and `load_pipeline` do, and
    where options do not go with what is there."""
    folder = Path(embedded.teacher_folder(name))
    pipeline = (folder / "model_index.json").is_file() or not folder.exists()
    stock = measured.scheduler is not None or measured.lora is not None
    if pipeline and (stock or not is_student(folder)):
        return _stock_target(name, str(folder), steps, measured, dtype, warn)
    if run := is_run(folder):
        check_run(folder)
    if not run and is_weights(folder):
        raise UserError(f"{name} is a file of weights; name the run it is of, or its teacher's folder with --lora")
    if not run and not pipeline:
        _check_drawn(name, steps, measured)
        return Target({}, stored=StoredPictures(folder, open_source(name)))
    if stock:
        raise UserError(f"{name} is a student of scott's; --scheduler and --lora are for stock pipelines")
    student = load_student(name, dtype=dtype)
    scale = student.guidance(measured.guidance)
    stops = measured.timesteps
    drawn: list[tuple[int, Sequence[float]]] = [*((n, ()) for n in steps), *([(len(stops), stops)] if stops else [])]
    # one step has no later noise: its pictures, and their row, are those of any γ
    asked = [student.sampler(n, scale, times, measured.gamma if n > 1 else 1.0) for n, times in drawn]
    samplers = {_row(sampler, measured): replace(sampler, truncate=True) for sampler in asked}
    size = student.info.resolution if student.info else None
    teachers, methods = _teacher_rows(name, measured, dtype, scale, size), dict.fromkeys(samplers, _method(folder))
    return Target(teachers | samplers, student.backbone.resolution, methods=methods)


def _check_drawn(name: str, steps: Sequence[int], measured: Measured) -> None:
    """Raise `UserError` for what says how pictures are drawn, of those that are there already."""
    if processes()[1] > 1:
        raise UserError(f"got {processes()[1]} processes for {name}, whose pictures are there already; measure in one")
    given = [flag for flag in OF_DRAWING if getattr(measured, flag) != getattr(Measured(), flag)]
    if given := given + ["steps"] * (tuple(steps) != DEFAULT_STEPS):
        flag = given[0].replace("_", "-")
        raise UserError(f"got --{flag} for {name}, whose pictures are there already; leave it out")


def _stock_target(
    name: str, folder: str, steps: Sequence[int], measured: Measured, dtype: torch.dtype, warn: Callable[[str], None]
) -> Target:
    if measured.teacher_steps:
        raise UserError(f"got --teacher-steps for {name}, a stock pipeline; give its own steps as --steps")
    if measured.timesteps:
        raise UserError(f"got --timesteps for {name}, which is no student of scott's; leave them out")
    if measured.gamma != 1:
        raise UserError(f"got --gamma for {name}, which is no student of scott's; leave it out")
    held = measured.lora and str(lora_of(Path(measured.lora)))
    pipeline = load_pipeline(folder, measured.scheduler, held, dtype, best_device())
    scheduler = type(pipeline.scheduler).__name__
    lora = f"+{Path(measured.lora).name.removesuffix('.safetensors')}" if measured.lora else ""
    label = f"{Path(name).name}{lora}-{scheduler.removesuffix('Scheduler').lower()}"
    own = embedded.default_guidance(name) or default_guidance(pipeline)
    info = lora_info(lora_path(Path(held))) if held and Path(held).exists() else None
    if held and info and is_fingerprint(info.base):
        warn_of_base(network_of(pipeline)[1], Path(held), info, warn)
    if held and not info:
        info = StudentInfo.read(folder_of(held))
    if not info and is_student(Path(folder)):
        info = info_of(folder)
    if info:  # what a student has in it: its ω, and its size
        own = info.guidance_scale
    side = info.resolution if info else None
    guidance = own if measured.guidance is None else drawn_guidance(pipeline, measured.guidance)
    samplers = {f"{label}-{n}": PipelineSampler(pipeline, n, guidance, side) for n in steps}
    return Target(samplers, PipelineSampler(pipeline, 1, None, side).resolution, scheduler=scheduler)


def _row(sampler: StudentSampler, measured: Measured) -> str:
    """What a student's row is called: with times of one's own, and γ where not all noise is new."""
    times = f"-at-{'-'.join(f'{step:g}' for step in measured.timesteps)}" if sampler.stops else ""
    gamma = f"-gamma-{sampler.gamma:g}" if sampler.gamma != 1 else ""
    return f"student{times}{gamma}-{sampler.steps}"


def _method(folder: Path) -> str:
    """`--method` of a run, or of the run that an export stands in; empty where there is none."""
    run = run_of(folder)
    return DistillConfig.load(run / "config.json").method if run else ""


def _teacher_rows(
    name: str, measured: Measured, dtype: torch.dtype, guidance: float, size: int | None
) -> dict[str, Sampler]:
    """Of the student's teacher, in the steps and by the solvers asked for, at the student's size; with a run's parts,
    wherever it is now. Raises `UserError` where it is not known."""
    if not measured.teacher_steps:
        return {}
    if is_run(Path(name)):
        source, size = run_teacher(Path(name))
        source = replace(source, teacher=measured.teacher or source.teacher)
    elif measured.teacher is not None:
        source = TeacherSource.of(measured.teacher)
    else:
        raise UserError(f"{name} is no run that would name its teacher; give --teacher beside --teacher-steps")
    backbone = teacher_of(source, dtype, resolution=size)
    return {
        f"teacher-{solver}-{n}": TeacherSampler(backbone, n, guidance, truncate=True, solver=solver)
        for solver in measured.teacher_solvers
        for n in measured.teacher_steps
    }


def made_by(sampler: Sampler, measured: Measured) -> dict[str, Any]:
    """What pictures of a sampler are a function of, besides prompt and seed: what it draws by, not its name."""
    made: dict[str, Any] = {STEPS: sampler.steps, GUIDANCE: sampler.guidance, "precision": measured.precision}
    if isinstance(sampler, PipelineSampler):
        made |= {"pipeline": pipeline_version(sampler.pipeline)[:8], "size": sampler.resolution}
        return made | {"scheduler": type(sampler.pipeline.scheduler).__name__}
    if isinstance(sampler, TeacherSampler | StudentSampler):
        backbone = sampler.backbone
        made |= {"pipeline": pipeline_version(backbone.pipeline)[:8], "size": backbone.resolution}
    if isinstance(sampler, TeacherSampler) and sampler.solver != "ddim":
        made["solver"] = sampler.solver
    if isinstance(sampler, StudentSampler) and sampler.gamma != 1:
        made["gamma"] = sampler.gamma
    return made | {"sampler": type(sampler).__name__}
