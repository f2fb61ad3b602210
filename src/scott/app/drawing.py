"""What the page draws: pictures of one prompt and seed by students and their teachers, each with what it cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

from scott.app.models import Models, student_folder
from scott.errors import UserError
from scott.evaluation import timed, to_pil
from scott.export.snippet import stock_snippet
from scott.mini import embedded
from scott.samplers import StudentSampler, TeacherSampler
from scott.students import Student
from scott.teacher_source import TeacherSource

LIVE_SECONDS = 0.5
"""A sampler that took longer is not run at every letter that is typed."""
SEEDS = 2**32
"""Seeds of the page are below it: a browser's numbers are exact to 2^53."""


@dataclass(frozen=True)
class Settings:
    """What to draw with."""

    students: Sequence[str]
    student_steps: Sequence[int]
    teacher_steps: Sequence[int]
    omega: float | None = None
    """For students that take ω, clipped to their range."""


@dataclass(frozen=True)
class Column:
    """One sampler, and whose it is."""

    who: str
    sampler: StudentSampler | TeacherSampler
    student: Student | None = None
    """None of a teacher."""

    @property
    def key(self) -> tuple[str, int]:
        return self.who, self.sampler.steps

    def code(self, prompt: str, seed: int) -> str | None:
        """The same picture in stock diffusers; None of a teacher, and of a student that does not say what it is."""
        if self.student is None or self.student.info is None:
            return None
        folder, sampler = student_folder(self.student.name), self.sampler
        return stock_snippet(
            self.student.info, folder, prompt=prompt, steps=sampler.steps, seed=seed, guidance=sampler.guidance
        )


@dataclass(frozen=True)
class Picture:
    """A column's picture, or none where it was too slow to draw while typing."""

    column: Column
    prompt: str
    seed: int
    image: Image.Image | None
    seconds: float

    @property
    def made(self) -> dict[str, Any]:
        """What a PNG says of itself."""
        sampler, kind = self.column.sampler, "student" if self.column.student else "teacher"
        how = {"steps": sampler.steps, "guidance_scale": sampler.guidance, kind: self.column.who}
        return {"prompt": self.prompt, "seed": self.seed} | how

    @property
    def file_name(self) -> str:
        return f"{Path(self.column.who).name}-{self.column.sampler.steps}-steps-seed-{self.seed}.png"


@dataclass(frozen=True)
class Order:
    """What a reader asked for, and when."""

    time: float
    """On the reader's clock: what was asked for later may arrive earlier."""
    prompt: str
    seeds: Sequence[int]
    settings: Settings

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise UserError("got no prompt; type what to draw")
        if not 0 <= self.seeds[0] <= self.seeds[-1] < SEEDS:
            raise UserError(f"got seed {self.seeds[0]}; expected 0 to {SEEDS - len(self.seeds)}")

    def is_like(self, other: "Order") -> bool:
        return replace(self, time=other.time) == other


@dataclass
class Drawer:
    """Draws one picture at a time, and remembers how long each sampler took."""

    models: Models
    seconds: dict[tuple[str, int], float] = field(default_factory=dict)
    newest: dict[str, Order] = field(default_factory=dict)
    """Reader → its newest order, for which older ones are given up."""
    lock: Lock = field(default_factory=Lock)

    def columns(self, settings: Settings) -> Iterator[Column]:
        """The students' samplers, then those of their teachers at the same ω; of the embedded teacher without any.

        Raises `UserError` for what cannot be loaded, or drawn in so many steps.
        """
        mini = TeacherSource(teacher=embedded.NAME), None
        teachers: dict[tuple[TeacherSource, int | None], float]
        teachers = {} if settings.students else {mini: embedded.GUIDANCE}
        for name in settings.students:
            student = self.models.student(name)
            omega = _omega(student, settings.omega)
            for steps in settings.student_steps:
                yield Column(name, student.sampler(steps, omega), student)
            if teacher := self.models.teacher_of(name):
                teachers.setdefault(teacher, omega)
        for (source, size), omega in teachers.items():
            for steps in settings.teacher_steps:
                sampler = TeacherSampler(self.models.teacher(source, size), steps, omega)
                yield Column(f"teacher {source.teacher}", sampler)

    def draw(self, order: Order, reader: str, *, live: bool = False) -> Iterator[Picture]:
        """A picture of each seed and column, as each is done, until the same reader orders something newer.

        While typing (`live`) pictures of slow samplers are left out, and what was ordered already is not drawn anew.
        Raises `UserError` as `columns` does.
        """
        newest = self.newest.get(reader)
        if newest and (newest.time > order.time or (live and newest.is_like(order))):
            return
        self.newest[reader] = order
        for seed in order.seeds:
            columns = self.columns(order.settings)
            while True:
                with self.lock:
                    column = next(columns, None) if self.newest[reader] is order else None
                    if column is None:
                        break
                    picture = self._picture(column, order.prompt, seed, live)
                if self.newest[reader] is order:
                    yield picture

    def _picture(self, column: Column, prompt: str, seed: int, live: bool) -> Picture:
        if column.key not in self.seconds:
            replace(column.sampler, steps=1)([prompt], seed)  # warm-up
        elif live and self.seconds[column.key] > LIVE_SECONDS:
            return Picture(column, prompt, seed, None, self.seconds[column.key])
        images, seconds = timed(column.sampler, [prompt], seed)
        self.seconds[column.key] = seconds
        return Picture(column, prompt, seed, to_pil(images[0]), seconds)


def _omega(student: Student, wanted: float | None) -> float:
    info = student.info
    if info is None or not info.takes_guidance or wanted is None:
        return student.guidance(None)
    return min(max(wanted, info.guidance_min), info.guidance_max)
