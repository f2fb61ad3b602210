"""The students and teachers of the page: each is loaded when it is first drawn with, and kept."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from scott.export.card import FOLDERS
from scott.export.trained import StudentInfo
from scott.students import is_run, load_student, run_teacher, teacher_of
from scott.teacher_source import TeacherSource


class Models:
    """What `scott app` was called with: run folders, finished or not, and students' folders or hub ids."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.student = cache(load_student)
        self.teacher = cache(lambda source, resolution: teacher_of(source, resolution=resolution))

    @property
    def runs(self) -> list[str]:
        """The run folders among the names."""
        return [name for name in self.names if is_run(Path(name))]

    @property
    def students(self) -> list[str]:
        """The names that can draw now; a run joins them when it is done."""
        return [name for name in self.names if not is_run(Path(name)) or student_folder(name).is_dir()]

    def teacher_of(self, student: str) -> tuple[TeacherSource, int | None] | None:
        """What `teacher` takes for a run's student; None of another, which does not say."""
        return run_teacher(Path(student)) if is_run(Path(student)) else None


def student_folder(name: str) -> Path:
    """The pipeline folder of a student that `load_student` takes."""
    return Path(name) / FOLDERS["diffusers"] if is_run(Path(name)) else Path(name)


def omega_range(students: Sequence[str]) -> tuple[float, float] | None:
    """Lowest and highest ω of the students that take one; None where none does."""
    infos = _taking_omega(students)
    return (min(i.guidance_min for i in infos), max(i.guidance_max for i in infos)) if infos else None


def usual_omega(students: Sequence[str]) -> float:
    """What the first student that takes ω is drawn at, or 1."""
    return next((info.guidance for info in _taking_omega(students)), 1.0)


def _taking_omega(students: Sequence[str]) -> list[StudentInfo]:
    infos = (StudentInfo.read(student_folder(name)) for name in students)
    return [info for info in infos if info and info.takes_guidance]
