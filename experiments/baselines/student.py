"""A student of the embedded teacher that scott's trainer does not make: its data, budget, cost, and saved form."""

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
import tyro
from experiments.baselines.ranges import check_ranges
from experiments.embedded_teacher.stage import Draw, Losses, StageConfig, Tensors, run_stage
from experiments.embedded_teacher.unet import cached
from experiments.measuring import measured, reference_by
from experiments.runs import Report, Spent, cpu_seconds, exit_code, one_thread
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from scott.commands.prepare import MINI_SCENES
from scott.data.locks import locked
from scott.diffusion import JumpGrid
from scott.errors import UserError
from scott.export.info import STUDENT_INFO, StudentInfo
from scott.export.pipeline import save_student
from scott.export.trained import replacing_folder
from scott.files import replacing, write_atomically
from scott.mini import embedded, glyphs
from scott.samplers import StudentSampler
from scott.teachers import LatentBackbone

CALIBRATION = 20
"""Steps from which it is read how many fit into a budget; they are not counted."""
CHUNK = 64
APART = ("out", "teacher", "shard", "validation")
"""Options that no weight follows from: places may be spelt otherwise, and what is in them is told by `made_of`."""
CHECKPOINT_EVERY = 100


@dataclass(kw_only=True)
class Baseline(ABC):
    """What `fit` of a method trains goes on where it was stopped, to the same bits, by the same options."""

    out: Path
    teacher: Path = glyphs.ASSETS
    """A folder with teacher/."""
    shard: Path = glyphs.SHARD
    """The drawings that its pictures are made of."""
    cpu_minutes: float | None = None
    """Of all that is computed for the student, the teacher's calls too; the number of steps follows from it."""
    slower: float = 1.0
    """What a step takes here over what it takes the core that those minutes are of."""
    steps: int | None = None
    batch_size: int = 32
    learning_rate: float = 1e-4
    warmup: int = 50
    seed: int = 0
    scenes: int = MINI_SCENES
    validation: int = 0
    """Measure this many validation captions in each number of steps that it is made for."""

    method: ClassVar[str]
    drawn_in: ClassVar[tuple[int, ...]]
    """The numbers of steps that it is made for."""

    @abstractmethod
    def fit(self) -> nn.Module:
        """The trained network, made by `stage` and `kept`, which count what they cost."""

    def train(self) -> float:
        """CPU seconds of all that was computed for the student, without those a crash lost.

        Raises:
            UserError: not one of `steps` and `cpu_minutes`, or an option is out of its range, or `out` is of a run with
                other options, or is written by another command.
        """
        if (self.steps is None) == (self.cpu_minutes is None):
            raise UserError(f"got {self.steps} steps and {self.cpu_minutes} CPU minutes; give one of them")
        check_ranges(self)
        torch.manual_seed(self.seed)
        self.out.mkdir(parents=True, exist_ok=True)
        with locked(self.out):
            self._check_options()
            self.data  # noqa: B018 (it is made here, and costs the student nothing, as of scott's own)
            self.updates, self.seconds = 0, 0.0
            with one_thread():
                self.backbone.copies["target"] = self.fit().requires_grad_(False).eval()
        return self.seconds

    def _check_options(self) -> None:
        """Keep what the run is made by, or raise `UserError` where it is not what it was begun by."""
        given = {name: str(value) for name, value in asdict(self).items() if name not in APART}
        given["data"] = self.made_of
        file = self.out / "options.json"
        by_default = {option.name: str(option.default) for option in fields(self)}  # of a file older than an option
        there = by_default | json.loads(file.read_text()) if file.is_file() else given
        if "data" not in there:  # the places of teacher and scenes stand for it
            given |= {name: str(getattr(self, name)) for name in ("teacher", "shard")}
            there["data"] = self.made_of
        names = [name for name in there | given if name not in APART or name in given]  # another method has others
        if other := [name for name in names if there.get(name) != given.get(name)]:
            raise UserError(f"{self.out} is of a run with other {', '.join(other)}; choose another --out")
        write_atomically(file, json.dumps(given, indent=1))

    @cached_property
    def backbone(self) -> LatentBackbone:
        return embedded.load_teacher(self.teacher / "teacher")

    @cached_property
    def made_of(self) -> str:
        """Digest of teacher, scenes and drawings, which the data follow from."""
        return sha256(f"{self.backbone.version} {self.scenes}".encode() + self.shard.read_bytes()).hexdigest()[:12]

    @cached_property
    def data(self) -> Tensors:
        """`mean` and `std` of the latents and `text` of the scenes that scott's students are trained on, kept beside
        `out` for other runs."""
        file = self.out.parent / f"data-{self.made_of}.safetensors"
        with FileLock(f"{file}.lock"):
            return cached(file, self.backbone, self.shard, seed=0, count=self.scenes, config=self.stage_config())

    def stage_config(self, **changes: Any) -> StageConfig:
        config = StageConfig(
            steps=CALIBRATION,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=0.0,
            warmup=self.warmup,
            decay="last fifth",
            checkpoint_every=CHECKPOINT_EVERY,
        )
        return replace(config, **changes)

    def stage(
        self,
        name: str,
        module: nn.Module,
        draw: Draw,
        losses: Losses,
        *,
        share: float = 1.0,
        seconds: float = 0.0,
        groups: Sequence[dict[str, Any]] | None = None,
        **changes: Any,
    ) -> Tensors:
        """The EMA of the module's state after that share of `steps`, or of `seconds` of the core of budgets."""
        folder, config = self.out / name, self.stage_config(**changes)
        run = partial(run_stage, name, module, losses=losses, seed=self.seed, groups=groups)
        if self.steps is None:
            calibrate = partial(run, draw, config=config)
            here = share * seconds * self.slower
            config = replace(config, steps=_fitting(here, folder / "steps.json", module, calibrate))
        else:
            config = replace(config, steps=max(1, round(share * self.steps)))
        spent = Spent(folder, folder, config.checkpoint_every)

        def counted(indices: range, generator: torch.Generator) -> Tensors:
            spent.write(indices.start // self.batch_size)
            return draw(indices, generator)

        average = run(counted, config=config, folder=folder)
        if config.steps not in spent.steps:  # else it is read back, which is no cost of the student
            spent.write(config.steps)
        self.updates += config.steps
        self.seconds += spent.total(config.steps)
        return average

    def kept(self, name: str, count: int, make: Callable[[range], Tensors]) -> Tensors:
        """What `make` gives for `count` samples, kept in files of `CHUNK` of them, in fp32."""
        parts: list[Tensors] = []
        for start in range(0, count, CHUNK):
            file, began = self.out / name / f"{start:06d}.safetensors", cpu_seconds()
            if not file.is_file():
                file.parent.mkdir(exist_ok=True)
                made = make(range(start, min(start + CHUNK, count)))
                with replacing(file) as partial:
                    save_file(made, partial, {"cpu_seconds": str(cpu_seconds() - began)})
            with safe_open(file, "pt") as content:
                self.seconds += float(content.metadata()["cpu_seconds"])
                parts.append({key: content.get_tensor(key) for key in content.keys()})  # noqa: SIM118 (no dict)
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def samplers(self) -> dict[int, StudentSampler]:
        """Consistency multistep sampling: predict x0, add noise to the next time; without guidance."""
        grid = JumpGrid(self.backbone.schedule)
        return {n: StudentSampler(self.backbone, self.backbone.target, grid, n, 1.0) for n in self.drawn_in}

    def save(self) -> Path:
        """A pipeline folder that `scott evaluate` and stock pipelines draw with."""
        grid = JumpGrid(self.backbone.schedule)
        info = StudentInfo(
            pipeline=type(self.backbone.pipeline).__name__,
            scheduler="LCMScheduler",
            train="full",
            updates=self.updates,
            guidance_min=1.0,
            guidance_max=1.0,
            takes_guidance=False,
            original_inference_steps=grid.original_inference_steps,
            times={str(steps): grid.inference_times(steps) for steps in self.drawn_in},
            lora_rank=None,
            lora_alpha=None,
            only_these_steps=True,
        )
        with replacing_folder(self.out / "student") as folder:
            save_student(self.backbone, folder, grid)
            (folder / STUDENT_INFO).write_text(info.to_json())
        return self.out / "student"

    def figures(self) -> dict[str, Any]:
        """What else is told of a run."""
        return {}

    def run(self, report: Report) -> None:
        """Train and save, and print one line of JSON."""
        seconds = self.train()
        line = {"method": self.method, "seed": self.seed, "updates": self.updates, "cpu_seconds": round(seconds, 1)}
        defaults = {option.name: option.default for option in fields(self)}
        changed = {n: value for n, value in asdict(self).items() if n not in (*APART, "seed") and value != defaults[n]}
        line |= {"settings": changed} | self.figures() | {"student": str(self.save())}
        if self.validation:
            reference = reference_by("mini", self.validation, "validation")
            line |= {"validation": self.validation, "steps": measured(self.samplers(), reference, report)}
        print(json.dumps(line))  # noqa: T201


def _fitting(seconds: float, file: Path, module: nn.Module, run: Callable[..., Tensors]) -> int:
    """How many steps take so many CPU seconds; once known, kept in `file`, so that a resumed stage is as long."""
    if not file.is_file():
        before, began = {key: value.clone() for key, value in module.state_dict().items()}, cpu_seconds()
        with TemporaryDirectory() as folder:
            run(folder=Path(folder))
        each = (cpu_seconds() - began) / CALIBRATION
        module.load_state_dict(before)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(max(1, int(seconds / each))))
    return int(json.loads(file.read_text()))


def main(method: type[Baseline], description: str | None) -> None:
    """The command line of a method."""
    asked = tyro.cli(method, description=description)
    sys.exit(exit_code(asked.run))
