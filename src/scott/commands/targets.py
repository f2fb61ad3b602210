"""What `scott evaluate` can be pointed at: a student, any pipeline of diffusers, or pictures that are there already."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scott.commands.distill import best_device, teacher_of
from scott.commands.measure import entries_of
from scott.commands.measured import Measured
from scott.commands.prepare import PRECISIONS
from scott.commands.sample import is_run, load_student
from scott.data.captions import read_captions
from scott.data.loading import Sample, loaded
from scott.data.records import Record, Source
from scott.data.settings import Settings
from scott.data.sources import open_source
from scott.errors import UserError
from scott.evaluation import Sampler
from scott.evaluation.features import weights_digest
from scott.evaluation.stock import PipelineSampler, load_pipeline
from scott.mini import embedded
from scott.samplers import StudentSampler, TeacherSampler
from scott.teachers.load import model_index
from scott.training.config import DistillConfig

FEW_STEP = ("LCMScheduler", "FlowMatchLCMScheduler")


@dataclass
class Target:
    """What draws: a sampler for each row by its name, and the pixels a side that it draws."""

    samplers: dict[str, Sampler]
    size: int | None
    prompts: list[str] | None = None
    """Its own, where the pictures are there already."""


def target_of(name: str, steps: Sequence[int], measured: Measured) -> Target:
    """Raises `UserError` as `load_student` and `load_pipeline` do, and where options do not go with what is there."""
    folder = Path(embedded.teacher_folder(name))
    pipeline = (folder / "model_index.json").is_file() or not folder.exists()
    if folder.exists() and not pipeline and not is_run(folder) and not any(folder.glob("*.safetensors")):
        return Target(
            {folder.stem or "pictures": StoredPictures(open_source(name))}, None, captions_of(open_source(name))
        )
    stock = measured.scheduler is not None or measured.lora is not None
    if (
        not is_run(folder)
        and pipeline
        and (stock or model_index(folder).get("scheduler", [None] * 2)[1] not in FEW_STEP)
    ):
        return stock_target(name, steps, measured)
    if stock:
        raise UserError(f"{name} is a student of scott's; --scheduler and --lora are for stock pipelines")
    loaded_student = load_student(name, dtype=PRECISIONS[measured.precision])
    scale = loaded_student.guidance(measured.guidance)
    samplers: dict[str, Sampler] = {
        f"student-{n}": replace(loaded_student.sampler(n, scale), truncate=True) for n in steps
    }
    return Target(teacher_rows(name, measured, scale) | samplers, loaded_student.backbone.resolution)


def stock_target(name: str, steps: Sequence[int], measured: Measured) -> Target:
    folder = str(embedded.teacher_folder(name))
    dtype = PRECISIONS[measured.precision]
    pipeline = load_pipeline(folder, measured.scheduler, measured.lora, dtype, best_device())
    label = f"{Path(name).name}-{type(pipeline.scheduler).__name__.removesuffix('Scheduler').lower()}"
    samplers: dict[str, Sampler] = {f"{label}-{n}": PipelineSampler(pipeline, n, measured.guidance) for n in steps}
    if measured.teacher_steps:
        raise UserError(f"got --teacher-steps for {name}, a stock pipeline; give its own steps as --steps")
    return Target(samplers, PipelineSampler(pipeline, 1, None).resolution)


def teacher_rows(name: str, measured: Measured, guidance: float) -> dict[str, Sampler]:
    """Of the student's teacher under DDIM, in the steps asked for. Raises `UserError` where it is not known."""
    if not measured.teacher_steps:
        return {}
    teacher = measured.teacher
    if teacher is None:
        if not is_run(Path(name)):
            raise UserError(f"{name} is no run that would name its teacher; give --teacher beside --teacher-steps")
        teacher = DistillConfig.load(Path(name) / "config.json").teacher
    backbone = teacher_of(teacher, PRECISIONS[measured.precision])
    return {f"teacher-ddim-{n}": TeacherSampler(backbone, n, guidance, truncate=True) for n in measured.teacher_steps}


def identity(sampler: Sampler, measured: Measured) -> dict[str, Any]:
    """What pictures of a sampler are a function of, besides prompt and seed: its weights, not their names."""
    made: dict[str, Any] = {"steps": sampler.steps, "guidance": sampler.guidance, "precision": measured.precision}
    if isinstance(sampler, PipelineSampler):
        scheduler = type(sampler.pipeline.scheduler).__name__
        return made | {"weights": weights_digest(sampler.network), "scheduler": scheduler}
    if isinstance(sampler, TeacherSampler | StudentSampler):
        made["weights"] = weights_digest(sampler.backbone.network)
    return made | {"sampler": type(sampler).__name__}


def captions_of(source: Source) -> list[str]:
    """The first caption of each picture; no picture is decoded. Raises `UserError` for one without."""
    captions = []
    for entry in entries_of(source):
        if not isinstance(entry, Record):
            raise UserError(f"{entry.key} of the pictures to measure cannot be used: {entry.reason}")
        captions.append(read_captions(entry.captions)[0])
    return captions


class StoredPictures:
    """Pictures that were drawn elsewhere, given out in their order, cropped to `size` pixels a side."""

    steps = network_calls = 0
    guidance = None

    def __init__(self, source: Source) -> None:
        self.source, self.size = source, 0
        self._pictures: Iterator[Tensor] | None = None

    def __call__(self, prompts: Sequence[str], seed: int) -> Tensor:
        self._pictures = self._pictures or self._read()
        return torch.stack([next(self._pictures) for _ in prompts])

    def _read(self) -> Iterator[Tensor]:
        for found in loaded(entries_of(self.source), Settings(), [(self.size, self.size)]):
            if not isinstance(found, Sample):
                raise UserError(f"{found.key} of the pictures to measure cannot be read: {found.reason}")
            yield found.pixels.float() / 255
