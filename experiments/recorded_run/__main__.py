"""The table of the recorded run: `python -m experiments.recorded_run --help`; what it answers is in README.md."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from scott.evaluation import Results, Row, markdown_table, table
from scott.generators import TeacherSampler
from scott.progress import Bars
from scott.recipes.demo import GUIDANCE
from scott.recipes.demo import TEACHER_STEPS as DEMO_TEACHER_STEPS
from scott.recipes.draw import load_student
from scott.recipes.measure import SEED, Reference
from scott.recipes.run import teacher_of

HERE = Path(__file__).parent


@dataclass
class Record:
    """Measure teacher and students on the same held-out captions and noise, and write results.json beside this file."""

    students: tuple[str, ...] = ("scott=runs/mini", "lcm=runs/lcm", "lcm-time=runs/lcm-time")
    """name=run folder, each measured at 1, 2 and 4 steps."""
    teacher_steps: tuple[int, ...] = (50, 25, 4, 2)
    samples: int = 5000
    demo_samples: int = 1000
    """The size at which `scott demo` measures; the teacher's rows it shows are measured at it too."""
    guidance: float = GUIDANCE
    out: Path = HERE / "results.json"

    def run(self) -> None:
        console = Console()
        teacher = teacher_of("mini")
        rows: list[Row] = []
        with Bars(console) as bars:

            def tick(name: str, done: int, total: int) -> None:
                bars.report(name, done, total, {})

            reference = Reference(self.samples)
            rows.append(reference.floor())
            for steps in self.teacher_steps:
                sampler = TeacherSampler(teacher, steps, self.guidance)
                rows.append(reference.row(f"teacher-ddim-{steps}", sampler, tick))
            for student in self.students:
                name, folder = student.split("=", 1)
                loaded = load_student(folder)
                rows += [reference.row(f"{name}-{n}", loaded.sampler(n, self.guidance), tick) for n in (1, 2, 4)]
            if self.demo_samples != self.samples:
                reference = Reference(self.demo_samples)
                for steps in DEMO_TEACHER_STEPS:
                    sampler = TeacherSampler(teacher, steps, self.guidance)
                    rows.append(reference.row(f"teacher-ddim-{steps}", sampler, tick))
        meta = {"samples": self.samples, "guidance": self.guidance, "seed": SEED, "teacher": "mini"}
        results = Results(rows, meta)
        results.save(self.out)
        console.print(table(results))
        console.print(markdown_table(results), markup=False)


if __name__ == "__main__":
    tyro.cli(Record, description=__doc__).run()
