"""The table of the recorded run: `python -m experiments.recorded_run --help`; what it answers is in README.md."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import tyro
from rich.console import Console

from scott.commands.demo import SEED, draw_grids
from scott.evaluation import Results, Row, evaluate, markdown_table, table, timed
from scott.evaluation.references import BATCH
from scott.mini.embedded import GUIDANCE
from scott.mini.protocol import mini_reference
from scott.mini.scenes import Scenes
from scott.progress import Bars
from scott.samplers import StudentSampler, TeacherSampler
from scott.students import load_student, teacher_of
from scott.training.config import DistillConfig

HERE = Path(__file__).parent
Sampler = TeacherSampler | StudentSampler


@dataclass
class Record:
    """Measure teacher and students on the same held-out captions and noise, and write results.json beside this file.

    Rows that the file has already, of as many samples, are kept: the command goes on where it was stopped.
    """

    students: tuple[str, ...] = ("scott=runs/mini", "lcm=runs/lcm")
    """name=run folder, each measured at 1, 2 and 4 steps and its own ω."""
    teacher_steps: tuple[int, ...] = (50, 25, 2)
    samples: int = 5000
    guidance: float = GUIDANCE
    time_only: bool = False
    """Only measure the seconds an image of the rows there are, on two batches each: for when nothing else runs."""
    draw: bool = False
    """Only draw the first captions with each sampler, into the folder of `out`."""
    out: Path = HERE / "results.json"

    def run(self) -> None:
        console = Console()
        rows = Results.load(self.out).rows if self.out.is_file() else []
        meta = {"samples": self.samples, "guidance": self.guidance, "seed": SEED, "teacher": "mini"}
        results = Results([row for row in rows if row.samples == self.samples], meta)
        if self.draw:
            draw_grids({_label(name): make() for name, make in self.samplers().items()}, self.out.parent)
            return
        if self.time_only:
            results.rows = [self.timed_again(row) for row in results.rows]
            results.save(self.out)
        else:
            self.measure(results, console)
        console.print(table(results))
        console.print(markdown_table(results), markup=False)

    def measure(self, results: Results, console: Console) -> None:
        """Add the rows that are not there yet, saved one by one."""
        reference, there = mini_reference(self.samples), {one.name for one in results.rows}
        if "real-vs-real" not in there:
            results.rows.append(reference.floor())
        with Bars(console) as bars:
            for name, make in self.samplers().items():
                if name not in there:
                    progress = partial(_tick, bars, name)
                    row = evaluate(make(), reference, name=name, seeds=(SEED,), progress=progress)
                    results.rows.append(replace(row, method=self.method_of(row)))
                    results.save(self.out)

    def samplers(self) -> dict[str, Callable[[], Sampler]]:
        """Name of a row → what makes its sampler."""
        found: dict[str, Callable[[], Sampler]] = {}
        teacher = cache(partial(teacher_of, "mini"))
        for steps in self.teacher_steps:
            found[f"teacher-ddim-{steps}"] = lambda steps=steps: TeacherSampler(teacher(), steps, self.guidance)
        for student in self.students:
            name, folder = student.split("=", 1)
            load = cache(partial(load_student, folder))
            for steps in (1, 2, 4):
                found[f"{name}-{steps}"] = lambda n=steps, load=load: load().sampler(n, load().guidance(None))
        return found

    def method_of(self, row: Row) -> str:
        """Of the run that a student is of; a teacher has none."""
        folder = dict(student.split("=", 1) for student in self.students).get(row.family)
        return DistillConfig.load(Path(folder) / "config.json").method if folder else ""

    def timed_again(self, row: Row) -> Row:
        """The row with the faster of two batches; the floor, which samples nothing, as it is."""
        make = self.samplers().get(row.name)
        if make is None:
            return row
        sampler, prompts = make(), Scenes(2 * BATCH, "held-out", 1).captions()
        sampler(prompts[:BATCH], SEED)  # warm-up
        seconds = [timed(sampler, prompts[half], SEED)[1] for half in (slice(BATCH), slice(BATCH, None))]
        return replace(row, seconds_per_image=min(seconds) / BATCH)


def _label(name: str) -> str:
    who, steps = name.replace("-ddim", "").rsplit("-", 1)
    return f"{who}, {steps} step{'s'[: int(steps) - 1]}"


def _tick(bars: Bars, name: str, done: int, total: int) -> None:
    bars.report(name, done, total, {})


if __name__ == "__main__":
    tyro.cli(Record, description=__doc__).run()
