"""The students, other pipelines and teachers of the page: loaded when first drawn with, and the newest few kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from scott.device import best_device
from scott.errors import UserError
from scott.evaluation.stock import PipelineSampler, folder_of, load_pipeline, scheduler_beside, takes_omega
from scott.export.card import FOLDERS, read_front_matter
from scott.export.info import METADATA, STUDENT_INFO, StudentInfo
from scott.students import Student, info_of, is_run, is_student, load_student, lora_of, run_of, run_teacher, teacher_of
from scott.teacher_source import TeacherSource, few_step_word
from scott.teachers import LatentBackbone
from scott.teachers.layout import model_index
from scott.teachers.single_file import metadata_of

KEPT = 4
"""Networks that stay in memory, students and teachers together."""


@dataclass(frozen=True)
class Stock:
    """A pipeline of diffusers that is no student of scott's: PIPELINE or PIPELINE+LORA, folders or hub ids."""

    name: str
    lora: str
    pipeline: Any
    info: StudentInfo | None = None
    """Of a student of scott's, in the pipeline or in the LoRA."""

    @property
    def scheduler(self) -> str:
        return type(self.pipeline.scheduler).__name__

    @property
    def is_few_step(self) -> bool:
        return "LCM" in self.scheduler

    @property
    def size(self) -> int | None:
        """A student's, in pixels, where it is not its teacher's."""
        return self.info.resolution if self.info else None

    def sampler(self, steps: int) -> PipelineSampler:
        """At its own default guidance; at none (1) where a few-step network has it built in and no input for it; as a
        student says that it is drawn."""
        if self.info:
            return PipelineSampler(self.pipeline, steps, self.info.guidance_scale, self.size)
        built_in = self.is_few_step and not takes_omega(self.pipeline)
        return PipelineSampler(self.pipeline, steps, 1.0 if built_in else None)


class Models:
    """What `scott app` was called with: run folders, finished or not, students and pipelines by folder or hub id.

    Args:
        names: those, or what finds them each time that they are asked for.
    """

    def __init__(
        self, names: Sequence[str] | Callable[[], list[str]], dtype: torch.dtype = torch.float32, kept: int = KEPT
    ) -> None:
        self._names, self.dtype = names, dtype
        self._here = {name for name in self.names if Path(name).exists()}
        self._kept = lru_cache(maxsize=kept)(self._load)

    @property
    def names(self) -> list[str]:
        return self._names() if callable(self._names) else [*self._names]

    @property
    def runs(self) -> list[str]:
        """The run folders among the names."""
        return [name for name in self.names if is_run(Path(name))]

    @property
    def students(self) -> list[str]:
        """The names that can draw now; a run joins them when it is done."""
        there = [name for name in self.names if not self._is_gone(name)]
        return [name for name in there if not is_run(Path(name)) or student_folder(name).is_dir()]

    def student(self, name: str) -> Student | Stock:
        """Raises `UserError` as `load_student` and `load_pipeline` do, and for a folder that is there no more."""
        if self._is_gone(name):  # which may be a name on the hub too
            raise UserError(f"{name} is there no more; load this page again for those that are")
        info = student_folder(name) / STUDENT_INFO  # written anew where a run was trained on
        return self._kept(name, made=info.stat().st_mtime_ns if info.is_file() else None)

    def _is_gone(self, name: str) -> bool:
        is_here = Path(name).exists()
        self._here |= {name} if is_here else set()
        return not is_here and name in self._here

    def teacher(self, source: TeacherSource, size: int | None = None) -> LatentBackbone:
        """At a size in pixels, where it is not the teacher's own. Raises `UserError` as `load_backbone` does."""
        return self._kept(source, size)

    def _load(self, what: str | TeacherSource, size: int | None = None, made: int | None = None) -> Any:
        """A student or pipeline by its name, and when it was made, or a teacher."""
        if isinstance(what, TeacherSource):
            return teacher_of(what, self.dtype, resolution=size)
        folder = Path(what)
        pipeline, lora = _pipeline_and_lora(what)
        lora = lora and str(lora_of(Path(lora)))
        is_pipeline = (folder / "model_index.json").is_file() or not folder.exists()
        if not lora and (not is_pipeline or is_student(folder)):
            return load_student(what, dtype=self.dtype)
        scheduler = None
        if lora and not scheduler_beside(lora) and _makes_few_step(lora):
            flows = str(model_index(pipeline).get("scheduler", [None, ""])[1]).startswith("FlowMatch")
            scheduler = "FlowMatchLCMScheduler" if flows else "LCMScheduler"
        made = load_pipeline(pipeline, scheduler, lora or None, self.dtype, best_device())
        info = StudentInfo.read(folder_of(lora)) if lora else None
        return Stock(pipeline, lora, made, info or (info_of(pipeline) if lora and is_student(Path(pipeline)) else None))


def _pipeline_and_lora(name: str) -> tuple[str, str]:
    """What a name is made of: at the last `+` that stands behind a folder or file, or else at the first."""
    cuts = [index for index, letter in enumerate(name) if letter == "+"]
    if not cuts or Path(name).exists():
        return name, ""
    cut = next((index for index in reversed(cuts) if Path(name[:index]).exists()), cuts[0])
    return name[:cut], name[cut + 1 :]


def _makes_few_step(lora: str) -> bool:
    """Whether a LoRA is a student's, as scott saves it or by its name; others go with the pipeline's own scheduler."""
    file = Path(lora)
    ours = file.is_file() and METADATA in metadata_of(file)
    return ours or few_step_word(lora) is not None


def teacher_source(student: str) -> tuple[TeacherSource, int | None] | None:
    """What `Models.teacher` takes for a run's student, or an export's: by the run it lies in, or the hub id that its
    model card names."""
    if run := run_of(Path(student)):
        return run_teacher(run)
    base = read_front_matter(Path(student)).get("base_model")
    if not isinstance(base, str):
        return None
    info = StudentInfo.read(Path(student))
    return TeacherSource(teacher=base), info.resolution if info else None


def student_folder(name: str) -> Path:
    """The pipeline folder of a student that `load_student` takes."""
    return Path(name) / FOLDERS["diffusers"] if is_run(Path(name)) else Path(name)


def omega_range(students: Sequence[str]) -> tuple[float, float, float] | None:
    """Lowest and highest ω of the students that take one, and the first one's own; None where none does."""
    infos = [info for name in students if (info := StudentInfo.read(student_folder(name))) and info.takes_guidance]
    if not infos:
        return None
    return min(i.guidance_min for i in infos), max(i.guidance_max for i in infos), infos[0].guidance
