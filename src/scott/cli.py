"""The command line: demo | distill | sample | evaluate | mini. Bad input is one message and exit code 2."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro
from rich.console import Console
from rich.markup import escape
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, subcommand

from scott.errors import UserError
from scott.progress import Bars
from scott.recipes.configs import RECIPES
from scott.training.config import DistillConfig

console = Console()


@dataclass
class Demo:
    """Distil the embedded teacher in minutes and show what came of it."""

    out: Path = Path("runs/demo")
    max_steps: int = 450
    samples: int = 1000
    """Images a row of the table is measured on."""
    seed: int = 0

    def run(self) -> None:
        from scott.evaluation import table
        from scott.recipes.demo import demo

        with Bars(console) as bars:
            results = demo(self.out, max_steps=self.max_steps, samples=self.samples, seed=self.seed, report=bars.report)
        console.print(table(results))
        console.print(f"student {self.out / 'student'}   report {self.out / 'report.html'}")


@dataclass
class Distill:
    """Distil a teacher into a few-step student. The same command on its run folder resumes it."""

    config: DistillConfig

    def run(self) -> None:
        from scott.recipes.run import run

        with Bars(console) as bars:
            run(self.config, bars.report)
        console.print(f"student {self.config.out / 'student'}")


@dataclass
class Sample:
    """Draw with a student: a run folder, or a student's pipeline folder."""

    student: Positional[str]
    prompts: tuple[str, ...]
    """Prompts, or one .txt file with a prompt a line."""
    steps: int = 2
    seed: int = 0
    guidance: float = 2.5
    """ω, in the form uncond + ω (cond − uncond)."""
    out: Path = Path("samples")

    def run(self) -> None:
        from scott.recipes.draw import draw

        files = draw(self.student, self.prompts, steps=self.steps, seed=self.seed, guidance=self.guidance, out=self.out)
        console.print("\n".join(str(file) for file in files))


@dataclass
class Evaluate:
    """FID, CLIP score and coverage of a student of the embedded teacher, on held-out captions."""

    student: Positional[str]
    steps: tuple[int, ...] = (1, 2, 4)
    samples: int = 1000
    guidance: float = 2.5
    out: Path | None = None
    """Where to write results.json; by default beside the student."""

    def run(self) -> None:
        from scott.evaluation import table
        from scott.recipes.draw import evaluate_student

        with Bars(console) as bars:
            results, file = evaluate_student(
                self.student, self.steps, samples=self.samples, guidance=self.guidance, out=self.out, report=bars.report
            )
        console.print(table(results))
        console.print(f"results {file}")


@dataclass
class Mini:
    """The embedded teacher itself: `build` trains it from the glyphs (hours), `eval` measures it."""

    action: Positional[Literal["build", "eval"]]
    work: Path = Path("runs/mini-build")
    """Where the stages keep their checkpoints and logs."""
    out: Path = Path("runs/mini-teacher")
    """build: where teacher/ and clip/ are written."""
    samples: int = 1000
    seed: int = 0

    def run(self) -> None:
        if self.action == "build":
            from scott.mini.build import build

            build(self.work, self.out, seed=self.seed, say=console.print)
            return
        from scott.evaluation import table
        from scott.recipes.teacher import measure_teacher

        folder = self.out if (self.out / "teacher").is_dir() else None
        with Bars(console) as bars:
            results, retrieval = measure_teacher(folder, samples=self.samples, report=bars.report)
        console.print(table(results))
        console.print(f"retrieval among {self.samples} real pictures: {retrieval:.3f}")


def _recipes(method: str) -> Any:
    """`distill RECIPE`: one sub-command a recipe, its defaults those of the method."""
    choices = []
    for name, recipe in RECIPES.items():
        default = recipe(method, **_NO_DEFAULT.get(name, {}))
        choices.append(Annotated[DistillConfig, subcommand(name, default=default, description=recipe.__doc__)])
    return Union[tuple(choices)]  # noqa: UP007 (built at run time)


_NO_DEFAULT: dict[str, dict[str, Any]] = {"sd15": {"data": tyro.MISSING}}
_COMMANDS: dict[str, Any] = {"demo": Demo, "distill": Distill, "sample": Sample, "evaluate": Evaluate, "mini": Mini}


def _parse(arguments: list[str]) -> Any:
    if arguments[:1] == ["distill"]:
        method = "lcm" if _value_of("--method", arguments) == "lcm" else "scott"
        flat = (OmitArgPrefixes, OmitSubcommandPrefixes)
        recipe = _recipes(method)
        return Distill(
            tyro.cli(recipe, prog="scott distill", args=arguments[1:], config=flat, description=Distill.__doc__)
        )
    commands: Any = Union[  # noqa: UP007 (built at run time)
        tuple(Annotated[command, subcommand(name)] for name, command in _COMMANDS.items())
    ]
    return tyro.cli(commands, prog="scott", args=arguments, description=__doc__)


def _value_of(flag: str, arguments: list[str]) -> str | None:
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.split("=", 1)[1]
        if argument == flag and index + 1 < len(arguments):
            return arguments[index + 1]
    return None


def main() -> None:
    """Entry point of `scott`."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")  # read when they are imported, after parsing
    try:
        command = _parse(sys.argv[1:])
        from scott.backbones.load import hide_loading_bars

        hide_loading_bars()
        command.run()
    except (UserError, FloatingPointError) as error:
        Console(stderr=True).print(f"[bold red]error[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; the same command goes on from the last checkpoint")
        sys.exit(130)


if __name__ == "__main__":
    main()
