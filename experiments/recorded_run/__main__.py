"""What the recorded run has besides the figures of `scott evaluate`: its pictures, and the teacher's rows that the demo
shows. README.md beside this file has the commands.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro
from experiments.measuring import progress
from experiments.runs import Report, exit_code
from rich.console import Console

from scott.commands.demo import SEED, STUDENT_STEPS, TEACHER_STEPS, draw_grids
from scott.evaluation import Results, evaluate, table
from scott.mini.embedded import GUIDANCE, NAME
from scott.mini.protocol import mini_reference
from scott.samplers import StudentSampler, TeacherSampler
from scott.students import load_student, teacher_of


@dataclass
class Grid:
    """Draw the first held-out captions with the teacher and a student, from the same noise: OUT/grid-1.png, -2.png."""

    student: str = "runs/scott"
    out: Path = Path("runs/recorded")

    def run(self, report: Report) -> None:
        drawn_by, teacher = load_student(self.student), teacher_of(NAME)
        samplers: dict[str, TeacherSampler | StudentSampler]
        samplers = {f"teacher, {n} steps": TeacherSampler(teacher, n, GUIDANCE) for n in TEACHER_STEPS}
        omega = drawn_by.guidance(None)
        samplers |= {f"scott, {n} step{'s'[: n - 1]}": drawn_by.sampler(n, omega) for n in STUDENT_STEPS}
        draw_grids(samplers, self.out)


@dataclass
class Teacher:
    """Measure the teacher at its own ω; OUT is what the package keeps as mini/assets/recorded.json."""

    out: Path
    samples: int = 1000

    def run(self, report: Report) -> None:
        reference, backbone = mini_reference(self.samples), teacher_of(NAME)
        settings = {"samples": self.samples, "guidance": GUIDANCE, "seed": SEED, "teacher": NAME}
        results = Results([reference.floor()], settings)
        for steps in TEACHER_STEPS:
            name, sampler = f"teacher-ddim-{steps}", TeacherSampler(backbone, steps, GUIDANCE)
            tick = partial(progress, report, name)
            results.rows.append(evaluate(sampler, reference, name=name, seeds=(SEED,), progress=tick))
        results.save(self.out)
        Console().print(table(results))


if __name__ == "__main__":
    asked = tyro.extras.subcommand_cli_from_dict({"grid": Grid, "teacher": Teacher}, description=__doc__)
    sys.exit(exit_code(asked.run))
