"""What the recorded run has besides the figures of `scott evaluate`: its pictures, and the teacher's rows that the demo
shows. README.md beside this file has the commands.
"""

from functools import partial
from pathlib import Path

import tyro
from rich.console import Console

from scott.commands.demo import SEED, draw_grids
from scott.evaluation import Results, evaluate, table
from scott.mini.embedded import GUIDANCE, NAME
from scott.mini.protocol import mini_reference
from scott.progress import Bars
from scott.samplers import StudentSampler, TeacherSampler
from scott.students import load_student, teacher_of

TEACHER_STEPS = (50, 2)
STUDENT_STEPS = (1, 2, 4)


def grid(student: str = "runs/scott", out: Path = Path("runs/recorded")) -> None:
    """Draw the first held-out captions with the teacher and a student, from the same noise: OUT/grid-1.png, -2.png."""
    teacher, drawn_by = teacher_of(NAME), load_student(student)
    samplers: dict[str, TeacherSampler | StudentSampler]
    samplers = {f"teacher, {n} steps": TeacherSampler(teacher, n, GUIDANCE) for n in TEACHER_STEPS}
    omega = drawn_by.guidance(None)
    samplers |= {f"scott, {n} step{'s'[: n - 1]}": drawn_by.sampler(n, omega) for n in STUDENT_STEPS}
    draw_grids(samplers, out)


def teacher(out: Path, samples: int = 1000) -> None:
    """Measure the teacher at its own ω; OUT is what the package keeps as mini/assets/recorded.json."""
    reference, backbone = mini_reference(samples), teacher_of(NAME)
    results = Results([reference.floor()], {"samples": samples, "guidance": GUIDANCE, "seed": SEED, "teacher": NAME})
    with Bars(Console()) as bars:
        for steps in TEACHER_STEPS:
            name, sampler = f"teacher-ddim-{steps}", TeacherSampler(backbone, steps, GUIDANCE)
            tick = partial(_tick, bars, name)
            results.rows.append(evaluate(sampler, reference, name=name, seeds=(SEED,), progress=tick))
    results.save(out)
    Console().print(table(results))


def _tick(bars: Bars, name: str, done: int, total: int) -> None:
    bars.report(name, done, total, {})


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"grid": grid, "teacher": teacher}, description=__doc__)
