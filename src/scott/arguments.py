"""The commands of the command line, each as what it is given; tyro makes its help and its parser of it (`cli.parse`).

What a command does is in its file in `commands/`, imported when the command runs: torch, and what stands on it, takes
seconds, and the help none.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from scott.commands.drawn import Drawn
from scott.commands.measuring import Compare, Evaluate
from scott.commands.options import Recipes
from scott.data.settings import Settings
from scott.errors import UserError
from scott.progress import Bars, console, outcome, warn
from scott.teacher_source import TeacherParts, TeacherSource


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
        console.print(outcome(self.out), markup=False, highlight=False, soft_wrap=True)


@dataclass
class Distill:
    """Distil a teacher into a few-step student; the same command resumes the run."""

    recipe: Recipes

    def run(self) -> None:
        self.recipe.run()


@dataclass
class Prepare:
    """Encode pictures and captions once, into shards; the same command resumes it."""

    source: Positional[str | None] = None
    """A folder, parquet, tars, COCO's JSON, a Hugging Face dataset (docs/data.md), or mini; a preset has its own."""
    teacher: str | None = None
    """Whose VAE and text encoders encode: a pipeline folder or file, a hub id or mini."""
    parts: Annotated[TeacherParts, arg(name="teacher", help="")] = field(default_factory=TeacherParts)
    out: Path | None = None
    """A new folder; with --check, the page."""
    check: bool = False
    """Read the source without a teacher: say what would be kept, what not and why, and show 16 pictures in a page of
    HTML (check.html, if --out is left out)."""
    preset: Literal["coco2014", "coco2017", "laion-aesthetics-6plus"] | None = None
    """Start from that data set's public metadata, with its columns and filter."""
    settings: Annotated[Settings, arg(name="reading", help="")] = field(default_factory=Settings)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the text encoders; the VAE runs in fp32."""
    low_memory: bool = False
    """Hold the text encoders on the device one at a time."""

    def run(self) -> None:
        from scott.commands import check
        from scott.commands import prepare as recipe
        from scott.commands.presets import PRESETS
        from scott.data.sources import check_there
        from scott.device import processes, use_own_device
        from scott.diffusion.tensors import DTYPES
        from scott.mini.embedded import teacher_source

        preset = PRESETS[self.preset] if self.preset else None
        if (name := self.source or (preset.source if preset else None)) is None:
            raise UserError("got neither a source nor --preset; expected one of them")
        if self.check:
            page = self.out or Path("check.html")
            with Bars(console) as bars:
                found = check.check_named(name, self.settings, page, bars.report, preset)
            console.print(check.check_summary(found, page))
            return
        if self.teacher is None or self.out is None:
            missing = [f"no --{name}" for name in ("teacher", "out") if getattr(self, name) is None]
            raise UserError(f"got {' and '.join(missing)}; expected both, or --check to read the source without them")
        check_there(name)
        from scott.teachers import load_backbone  # which takes seconds; what reads the source alone needs no networks

        use_own_device()
        source = teacher_source(TeacherSource(teacher=self.teacher, **vars(self.parts)))
        backbone = load_backbone(source, DTYPES[self.precision])
        backbone.in_turn = self.low_memory
        rank, count = processes()
        with Bars(console) as bars:
            made = recipe.prepare_source(name, backbone, self.out, self.settings, bars.report, rank, count, preset)
            if rank == 0:  # who speaks, speaks for all
                made = replace(made, manifest=recipe.wait_for_manifest(self.out))
        console.print(recipe.summary(made, self.out))


@dataclass
class Sample:
    """Draw with a student: a run, one of its exports, or a teacher and a LoRA file."""

    student: Positional[str | None] = None
    """A run folder, a student's pipeline folder or hub id, or (with --engine onnx) an ONNX export."""
    prompts: tuple[str, ...] = tyro.MISSING
    """Prompts, and .txt files with a prompt a line."""
    teacher: str | None = None
    """With --lora: the teacher it was made for, a pipeline folder or file, a hub id or `mini`."""
    parts: Annotated[TeacherParts, arg(name="teacher", help="")] = field(default_factory=TeacherParts)
    lora: str | None = None
    """A run that has a LoRA, or a LoRA file (or its folder) that `scott export` wrote."""
    engine: Literal["torch", "onnx"] = "torch"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the network and the text encoders."""
    asked: Annotated[Drawn, arg(name="drawing", help="")] = field(default_factory=Drawn)
    seed: int = 0
    """Of the first picture; each further one takes the next."""
    grid: bool = False
    """Write a contact sheet of all pictures too."""
    out: Path = Path("samples")

    def run(self) -> None:
        from scott.commands.sample import draw

        if self.teacher is None and self.parts != TeacherParts():
            named = [name for name, value in vars(self.parts).items() if value != getattr(TeacherParts, name)]
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in named)
            raise UserError(f"got {flags} without --teacher; leave them out, or give it and --lora")
        given = vars(self) | {"teacher": self.teacher and TeacherSource(teacher=self.teacher, **vars(self.parts))}
        files = draw(**{name: value for name, value in given.items() if name != "parts"}, warn=warn)
        console.print("\n".join(str(file) for file in files), markup=False, soft_wrap=True)


@dataclass
class Export:
    """Write a run's student as others read it, and compare it with what is read back."""

    run_folder: Positional[Path]
    """What `scott distill` wrote."""
    to: Literal["diffusers", "lora", "kohya", "checkpoint", "onnx"]
    """A stock pipeline folder; a file for `load_lora_weights`; one for A1111 and ComfyUI; the whole student as one file
    for these and `from_single_file`; parts for onnxruntime."""
    best: bool = False
    """Of the best checkpoint (`--best-metric` of the run) instead of the newest, into RUN_FOLDER/best."""
    export_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Of the weights on disk; ONNX casts them to fp32 as it loads them."""
    teacher: str | None = None
    """Where the run's teacher is now, if it was moved or renamed."""
    push: str | None = None
    """Upload it too, as OWNER/NAME on the Hugging Face hub, with its card as the page (`hf auth login` before)."""
    base_model: str | None = None
    """With --push: the teacher's OWNER/NAME on the hub, where the run's was a folder or a file."""
    license: str | None = None
    """With --push: the hub's name of the student's licence; that in the teacher folder's README.md, if left out."""

    def run(self) -> None:
        from scott.commands.export import export
        from scott.commands.push import check_repository, push

        if not self.push and (self.base_model or self.license):
            raise UserError("got --base-model or --license without --push, whose page has them; leave them out")
        if self.push:
            check_repository(self.push)
        if self.base_model:
            check_repository(self.base_model, "--base-model")
        folder = export(self.run_folder, self.to, best=self.best, precision=self.export_precision, place=self.teacher)
        updates = json.loads((folder / "scott.json").read_text(encoding="utf-8"))["updates"]
        console.print(f"export {folder} of step {updates:,}   card {folder / 'card.md'}", markup=False, soft_wrap=True)
        if self.push:
            said = {"base": self.base_model, "licence": self.license}
            pushed = push(self.run_folder, folder, self.to, self.push, **said)
            console.print(f"pushed {pushed}", markup=False, soft_wrap=True)


@dataclass
class App:
    """Draw with runs, watch them and plan them in the browser. Needs the extra `app`."""

    runs: Positional[Annotated[tuple[str, ...], arg(metavar="[RUNS ...]")]] = ()
    """Run folders, finished or not, and students or other pipelines of diffusers, by folder or hub id, or
    PIPELINE+LORA; the runs in ./runs, if left out."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of all networks; the newest four stay in memory."""
    host: str = "127.0.0.1"
    """0.0.0.0 lets other machines in, with no password."""
    port: int | None = None
    """The first free one from 7860 on, if left out."""

    def run(self) -> None:
        from scott.commands.app import app

        app(self.runs, self.host, self.port, self.precision)


@dataclass
class Env:
    """Versions and devices, for a report of a fault."""

    def run(self) -> None:
        from scott.commands.env import environment

        console.print(environment(), markup=False, highlight=False, soft_wrap=True)


COMMANDS = {
    kind.__name__.lower(): kind for kind in (Demo, Prepare, Distill, Sample, Export, Evaluate, Compare, App, Env)
}
"""Name → what is given after it."""
