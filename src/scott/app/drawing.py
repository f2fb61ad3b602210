"""What the page draws: pictures of one prompt and seed by students and their teachers, each with what it cost."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from PIL import Image

from scott.app.models import Models, Stock, student_folder, teacher_source
from scott.errors import UserError, printable
from scott.evaluation import Sampler, timed, to_pil
from scott.export.snippet import pipeline_snippet, stock_snippet, teacher_snippet
from scott.mini import embedded
from scott.samplers import TeacherSampler
from scott.students import Student
from scott.teacher_source import TeacherSource

LIVE_SECONDS = 0.5
"""A sampler that takes longer, for all seeds, is not run at every letter that is typed."""
SEEDS = 2**32
"""Seeds of the page are below it: a browser's numbers are exact to 2^53."""


@dataclass(frozen=True)
class Column:
    """One sampler, and whose it is."""

    who: str
    kind: Literal["student", "teacher", "pipeline"]
    sampler: Sampler
    code: Callable[..., str] | None = None
    """(prompt, seed) → the same picture in stock diffusers."""

    @property
    def key(self) -> tuple[str, int]:
        """By which it is known how long it takes."""
        return self.who, self.sampler.steps


@dataclass(frozen=True)
class Picture:
    """A column's picture and its cost, or none where it was too slow to draw while typing; it holds no network."""

    who: str
    kind: str
    steps: int
    omega: float | None
    """None where a pipeline draws at its own default."""
    calls: int
    seconds: float
    prompt: str
    seed: int
    image: Image.Image | None = None
    code: str | None = None

    @property
    def made(self) -> dict[str, Any]:
        """What a PNG says of itself."""
        how = {"steps": self.steps, "guidance_scale": self.omega, self.kind: self.who}
        return {"prompt": self.prompt, "seed": self.seed} | how

    @property
    def file_name(self) -> str:
        return f"{Path(self.who).name}-{self.steps}-steps-seed-{self.seed}.png"


@dataclass(frozen=True)
class Order:
    """What a reader asked for, and when."""

    time: float
    """On the reader's clock: what was asked for later may arrive earlier."""
    prompt: str
    seeds: Sequence[int]
    students: Sequence[str]
    student_steps: Sequence[int]
    teacher_steps: Sequence[int]
    omega: float | None = None
    """For students that take ω, clipped to their range; None draws each at its own."""

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise UserError("got no prompt; type what to draw")
        if self.prompt != printable(self.prompt):
            raise UserError(f"got the prompt {self.prompt!a}, which is not UTF-8; expected UTF-8 text")
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

    def columns(self, order: Order) -> Iterator[Column]:
        """The students' samplers, then those of their teachers at the same ω; of the embedded teacher without any.

        A pipeline of many steps draws in the teachers'. Raises `UserError` for what cannot be loaded, or drawn so.
        """
        teachers: list[tuple[tuple[TeacherSource, int | None], float]] = []
        if not order.students:
            teachers.append(((TeacherSource(teacher=embedded.NAME), None), embedded.GUIDANCE))
        for name in order.students:
            student = self.models.student(name)
            code: Callable[..., str] | None
            if isinstance(student, Stock):
                code = partial(pipeline_snippet, student.pipeline, student.name, student.lora, student.size)
                for steps in order.student_steps if student.is_few_step else order.teacher_steps:
                    yield Column(name, "pipeline", student.sampler(steps), code)
                continue
            omega = _omega(student, order.omega)
            code = None if student.info is None else partial(stock_snippet, student.info, student_folder(name))
            for steps in order.student_steps:
                yield Column(name, "student", student.sampler(steps, omega), code)
            if (teacher := teacher_source(name)) and (teacher, omega) not in teachers:
                teachers.append((teacher, omega))
        for (source, size), omega in teachers:
            for steps in order.teacher_steps:
                backbone = self.models.teacher(source, size)
                sampler, code = TeacherSampler(backbone, steps, omega), partial(teacher_snippet, source, backbone)
                yield Column(_teacher_name(source, size), "teacher", sampler, code)

    def draw(self, order: Order, reader: str, *, live: bool = False) -> Iterator[Picture]:
        """A picture of each seed and column, as each is done, until the same reader orders something newer.

        While typing (`live`) pictures of slow samplers are left out, and what was ordered already is not drawn anew.
        Raises `UserError` as `columns` does, and where nothing is chosen that could draw.
        """
        if newest := self.newest.get(reader):
            # Draw takes a new seed, which a live order of the same may be ahead with
            if live if newest.is_like(order) else newest.time > order.time:
                return
            order = replace(order, time=max(order.time, newest.time))
        self.newest[reader] = order
        limit, draws = LIVE_SECONDS / len(order.seeds) if live else math.inf, False
        for seed in order.seeds:
            columns = self.columns(order)
            while True:
                with self.lock:
                    column = next(columns, None) if self.newest[reader] is order else None
                    if column is None:
                        break
                    draws = True
                    picture = self._picture(column, order.prompt, seed, limit)
                    del column  # which would keep its network
                if self.newest[reader] is order:
                    yield picture
        if not draws and self.newest[reader] is order:
            raise UserError("nothing is chosen that could draw; choose steps, of the students or of their teachers")

    def _picture(self, column: Column, prompt: str, seed: int, limit: float) -> Picture:
        sampler = column.sampler
        if column.key not in self.seconds:
            replace(sampler, steps=1)([prompt], seed)  # type: ignore[type-var]  # warm-up
        if self.seconds.get(column.key, 0.0) > limit:
            images, seconds = None, self.seconds[column.key]
        else:
            images, seconds = timed(sampler, [prompt], seed)
            self.seconds[column.key] = seconds
        omega = sampler.guidance
        how = {"prompt": prompt, "steps": sampler.steps, "seed": seed, "guidance": omega}
        return Picture(
            *(column.who, column.kind, sampler.steps, omega, sampler.network_calls, seconds, prompt, seed),
            image=None if images is None else to_pil(images[0]),
            code=column.code(**how) if column.code else None,
        )


def _teacher_name(source: TeacherSource, size: int | None) -> str:
    """With what makes it another than the teacher alone."""
    parts = [source.teacher, *(file.stem for file, _ in source.loras), *([Path(source.vae).stem] if source.vae else [])]
    return f"teacher {' + '.join(parts)}" + (f" at {size} pixels" if size else "")


def _omega(student: Student, wanted: float | None) -> float:
    info = student.info
    if info is None or not info.takes_guidance or wanted is None:
        return student.guidance(None)
    return min(max(wanted, info.guidance_min), info.guidance_max)
