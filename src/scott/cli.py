"""The command line, one class a command. Bad input is one message and exit code 2."""

import json
import os
import signal
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro
from rich.console import Console
from rich.markup import escape
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, subcommand

from scott.commands.measured import Measured
from scott.data.settings import Settings
from scott.errors import Preempted, UserError
from scott.progress import Bars
from scott.recipes.configs import RECIPE_OF, RECIPES
from scott.training.config import DistillConfig

console = Console(quiet=os.environ.get("RANK", "0") != "0")
"""Of several processes the first one speaks; errors are printed by whoever has them."""


@dataclass
class Demo:
    """Distil the embedded teacher in minutes and show what came of it."""

    out: Path = Path("runs/demo")
    max_steps: int = 450
    samples: int = 1000
    """Images a row of the table is measured on."""
    seed: int = 0

    def run(self) -> None:
        from scott.commands.demo import demo
        from scott.evaluation import table

        with Bars(console) as bars:
            results = demo(self.out, max_steps=self.max_steps, samples=self.samples, seed=self.seed, report=bars.report)
        console.print(table(results))
        console.print(f"student {self.out / 'student'}   report {self.out / 'report.html'}")


@dataclass
class Distill:
    """Distil a teacher into a few-step student. The same command on its run folder resumes it."""

    config: DistillConfig
    dry_run: bool = False
    """Say what would be trained, called and held, and stop: no weights are read and nothing is written."""
    json: bool = False
    """With --dry-run: say it as JSON."""
    processes: int = 1
    """With --dry-run: how many the run is spread over; what is said is of each."""

    def run(self) -> None:
        if (self.json or self.processes != 1) and not self.dry_run:
            raise UserError("got --json or --processes, which only --dry-run has; add it, or leave them out")
        if self.dry_run:
            self._plan()
            return
        from scott.commands.distill import run

        with Bars(console) as bars:
            run(self.config, bars.report, bars.warn)
        console.print(f"student {self.config.out / 'student'}")

    def _plan(self) -> None:
        from scott.commands.plan import as_json, as_table, plan

        with console.status("a step without weights"):
            budget = plan(self.config, self.processes)
        if self.json:
            console.print_json(as_json(budget))
        else:
            console.print(as_table(budget, self.config))


@dataclass
class Prepare:
    """Encode pictures and captions once, into shards that any run with the same VAE and text encoders trains on.

    The same command goes on where it was stopped; under torchrun or `accelerate launch` processes share the work.
    """

    source: Positional[str | None] = None
    """A folder of pictures (.txt beside each, or metadata.jsonl or .csv), .parquet or .tar files (a path, a pattern, a
    URL), COCO's captions_*.json, a Hugging Face dataset, or mini. With --preset it may be left out."""
    teacher: str = tyro.MISSING
    """Whose VAE and text encoders encode: a pipeline folder, a hub id or mini."""
    out: Path = tyro.MISSING
    preset: Literal["coco2014", "coco2017", "laion-aesthetics-6plus"] | None = None
    """Start from that data set's public metadata, with its columns and filter."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the text encoders; the VAE runs in fp32."""

    def run(self) -> None:
        from scott.commands import prepare as recipe
        from scott.commands.distill import teacher_of

        preset = recipe.PRESETS[self.preset] if self.preset else None
        if (name := self.source or (preset.source if preset else None)) is None:
            raise UserError("got neither a source nor --preset; expected one of them")
        recipe.use_own_device()
        backbone = teacher_of(self.teacher, recipe.PRECISIONS[self.precision])
        with Bars(console) as bars:
            outcome = recipe.prepare_source(
                name, backbone, self.out, self.settings, bars.report, *recipe.processes(), preset=preset
            )
            if recipe.processes()[0] == 0:  # who speaks, speaks for all
                outcome = replace(outcome, manifest=recipe.wait_for_manifest(self.out))
        console.print(recipe.summary(outcome, self.out))


@dataclass
class Sample:
    """Draw with a student: a run folder, one of its exports, or a teacher and a LoRA file."""

    student: Positional[str | None] = None
    """A run folder, a student's pipeline folder or hub id, or (with --engine onnx) an ONNX export."""
    prompts: tuple[str, ...] = tyro.MISSING
    """Prompts, or one .txt file with a prompt a line."""
    teacher: str | None = None
    """With --lora: the teacher it was made for, a pipeline folder, a hub id or `mini`."""
    lora: str | None = None
    """A LoRA file (or its folder) that `scott export` wrote."""
    engine: Literal["torch", "onnx"] = "torch"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the network and the text encoders."""
    steps: int = 2
    """1 to 8."""
    seed: int = 0
    """Of the first picture; each further one takes the next."""
    guidance: float | None = None
    """ω, in the form uncond + ω (cond − uncond); by default the middle of what the student was trained for."""
    grid: bool = False
    """Write a contact sheet of all pictures too."""
    out: Path = Path("samples")

    def run(self) -> None:
        from scott.commands.sample import draw

        files = draw(
            self.prompts,
            student=self.student,
            teacher=self.teacher,
            lora=self.lora,
            engine=self.engine,
            precision=self.precision,
            steps=self.steps,
            seed=self.seed,
            guidance=self.guidance,
            grid=self.grid,
            out=self.out,
        )
        console.print("\n".join(str(file) for file in files))


@dataclass
class Export:
    """Write a run's student as others read it, and compare it with what is read back."""

    run_folder: Positional[Path]
    to: Literal["diffusers", "lora", "kohya", "onnx"]
    """diffusers: a stock pipeline folder. lora: a file for `load_lora_weights`. kohya: one for A1111 and ComfyUI.
    onnx: text encoders, backbone and VAE decoder for onnxruntime."""
    best: bool = False
    """Of the best checkpoint (`--best-metric` of the run) instead of the newest, into RUN_FOLDER/best."""

    def run(self) -> None:
        from scott.commands.export import export

        folder = export(self.run_folder, self.to, best=self.best)
        updates = json.loads((folder / "scott.json").read_text(encoding="utf-8"))["updates"]
        console.print(f"export {folder} of step {updates:,}   card {folder / 'card.md'}")


@dataclass
class Evaluate:
    """FID, CLIP score and coverage of a student: on the embedded teacher's held-out captions, or on your pictures."""

    student: Positional[str]
    measured: Annotated[Measured, tyro.conf.arg(name="")] = field(default_factory=Measured)
    steps: tuple[int, ...] = (1, 2, 4)
    out: Path | None = None
    """Where to write the results; by default evaluation.json beside the student, or evaluation-DATA.json."""

    def run(self) -> None:
        from scott.commands.evaluate import evaluate_student
        from scott.evaluation import table

        with Bars(console) as bars:
            results, file = evaluate_student(self.student, self.steps, self.measured, out=self.out, report=bars.report)
        console.print(table(results))
        console.print(f"results {file}")


@dataclass
class MiniBuild:
    """Train the embedded teacher from its glyphs: hours, on the CPU, resumed by the same command."""

    work: Path = Path("runs/mini-build")
    """Where the stages keep their checkpoints and logs."""
    out: Path = Path("runs/mini-teacher")
    """Where teacher/ and clip/ are written."""
    start: Path | None = None
    """What an earlier build wrote: its encoders are kept and its U-Net is trained further."""
    unet_steps: int = 22_000
    seed: int = 0

    def run(self) -> None:
        from scott.mini.build import build

        build(self.work, self.out, seed=self.seed, unet_steps=self.unet_steps, start=self.start, say=console.print)


@dataclass
class MiniEval:
    """Measure an embedded teacher at several guidance scales, and the CLIP that measures it."""

    teacher: Path | None = None
    """What `scott mini build` wrote; by default the teacher that ships."""
    split: Literal["validation", "held-out"] = "validation"
    """Choose by validation; report held-out."""
    samples: int = 1000
    out: Path = Path("mini-eval.json")

    def run(self) -> None:
        from scott.commands.mini_eval import measure_teacher
        from scott.evaluation import table

        with Bars(console) as bars:
            results = measure_teacher(
                self.teacher, samples=self.samples, split=self.split, out=self.out, report=bars.report
            )
        console.print(table(results))
        console.print(
            f"retrieval among {self.samples} real pictures {results.meta['retrieval']:.3f}   results {self.out}"
        )


@dataclass
class Mini:
    """The embedded teacher itself: `build` trains it from the glyphs, `eval` measures it."""


def _recipes(method: str, train: str | None) -> Any:
    """`distill RECIPE`: one sub-command a recipe, its defaults those of the method and of what is trained."""
    choices = []
    for name, recipe in RECIPES.items():
        asked = {"train": train} if train else {}
        default = recipe(method, **asked, **({} if name == "mini" else {"data": tyro.MISSING}))
        choices.append(Annotated[Distill, subcommand(name, default=Distill(default), description=recipe.__doc__)])
    return Union[tuple(choices)]  # noqa: UP007 (built at run time)


_COMMANDS: dict[str, Any] = {
    "demo": Demo,
    "prepare": Prepare,
    "distill": Distill,
    "sample": Sample,
    "export": Export,
    "evaluate": Evaluate,
    "mini": Mini,
}


def _parse(arguments: list[str]) -> Any:
    flat = (OmitArgPrefixes, OmitSubcommandPrefixes)
    match arguments[:1]:
        case ["distill"]:
            if len(arguments) > 1 and arguments[1].startswith("--") and (teacher := _value_of("--teacher", arguments)):
                arguments = ["distill", _recipe_for(teacher), *arguments[1:]]
            method, train = _value_of("--method", arguments), _value_of("--train", arguments)
            recipes = _recipes("lcm" if method == "lcm" else "scott", train if train in ("lora", "full") else None)
            return tyro.cli(recipes, prog="scott distill", args=arguments[1:], config=flat, description=Distill.__doc__)
        case ["mini"]:
            return tyro.cli(_choice(build=MiniBuild, eval=MiniEval), prog="scott mini", args=arguments[1:])
        case _:
            return tyro.cli(_choice(**_COMMANDS), prog="scott", args=arguments, description=__doc__)


def _recipe_for(teacher: str) -> str:
    """The recipe of a teacher's family. Raises `UserError` when there is no such teacher or family."""
    if teacher == "mini":
        return teacher
    from scott.teachers.load import family_of, model_index

    return RECIPE_OF[family_of(teacher, model_index(teacher))[0].__name__]


def _choice(**commands: Any) -> Any:
    return Union[tuple(Annotated[command, subcommand(name)] for name, command in commands.items())]  # noqa: UP007


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
        from scott.teachers.load import hide_loading_bars

        hide_loading_bars()
        command.run()
    except (UserError, FloatingPointError, OSError) as error:
        Console(stderr=True).print(f"[bold red]error[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except Preempted as stop:
        Console(stderr=True).print(f"{stop}; the same command goes on from there", highlight=False, soft_wrap=True)
        sys.exit(128 + signal.SIGTERM)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; a run goes on from its last checkpoint by the same command")
        sys.exit(130)


if __name__ == "__main__":
    main()
