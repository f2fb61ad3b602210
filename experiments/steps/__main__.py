"""Which of a student's two steps falls short of its teacher: `python -m experiments.steps --help`; what came out is in
README.md.

A student is to end where its teacher's walk would. Here the walk takes the place of one step, or of both: what both
give is what a student without error would draw, and what one gives beside the student is what the other step costs.
FID, coverage and spread on captions that training shows or does not; one line of results.jsonl for each run, choice of
steps and captions.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from experiments.measuring import cell, measured_by_all, reference_by
from experiments.results import append_lines, insert, read_lines, table
from experiments.runs import Report, Training, exit_code, plain_run
from torch import Tensor

from scott.diffusion import Denoiser
from scott.mini.protocol import ASKED, REAL
from scott.mini.scenes import Split
from scott.samplers import StudentSampler
from scott.solvers import make
from scott.teachers import Cond

HERE = Path(__file__).parent
Captions = Literal["validation", "train", "shown"]
CAPTIONS: dict[Captions, tuple[Split, tuple[int, int]]] = {
    "validation": ("validation", (REAL, ASKED)),
    "train": ("train", (2, 3)),
    "shown": ("train", (2, 0)),
}
"""Split, and seeds of its real pictures and of its captions; training shows the scenes of seed 0."""
WALKED: dict[str, tuple[int, ...]] = {"none": (), "first": (0,), "second": (1,), "both": (0, 1)}


@dataclass(frozen=True)
class WalkedSampler(StudentSampler):
    """A student some of whose steps are its guided teacher's: a walk of DDIM from where the step begins to clean data,
    in the jumps of the student's grid."""

    walked: tuple[int, ...] = field(default=(), kw_only=True)
    """Which steps, from 0 on."""

    def draw(self, student: Denoiser, noise: Tensor, cond: Cond, generator: torch.Generator) -> Tensor:
        backbone, schedule = self.backbone, self.backbone.schedule
        solver = make("ddim", schedule, eta=0.0)
        guided = backbone.guided_teacher(backbone.unconditional(), self.guidance)
        text = {name: value for name, value in cond.items() if name != "guidance"}

        def step(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
            if self.times.index(t[0].item()) not in self.walked:
                return student(x, t, cond)
            while t[0] > schedule.t_data:
                ahead = self.grid.substep_times(t)
                x, t = solver.walk(guided, x, ahead, text), ahead[-1]
            return x

        return super().draw(step, noise, cond, generator)


@dataclass
class Steps:
    """Measure what has no line yet; then write the table into README.md."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Finished runs of full students of the embedded teacher, as experiments.trial makes them."""
    walked: tuple[Literal["none", "first", "second", "both"], ...] = ("none", "first", "second", "both")
    """Which of the two steps the teacher makes."""
    captions: Captions = "validation"
    """Of pairs of subject and background that training does not show, of other scenes of those that it shows (train),
    or of the scenes that it shows."""
    samples: int = 2000
    other: Literal["efficientnet"] | None = None
    """A network besides Mini-CLIP that is measured by."""
    data: Path = Path("runs/trials/data")
    """Prepared shards of the runs."""
    folder: Path = HERE

    def run(self, report: Report) -> None:
        self.show()  # before anything is made, so that a folder that cannot show it is known
        of = CAPTIONS[self.captions]
        references = {name: reference_by(name, self.samples, *of) for name in ("mini", self.other) if name}
        for run in self.runs:
            config, what = plain_run(run)
            what |= {"captions": self.captions, "samples": self.samples, "other": self.other}
            there = [line["walked"] for line in read_lines(self.file) if what.items() <= line.items()]
            if lacking := [walked for walked in self.walked if walked not in there]:
                training = Training(config, self.data)
                training.finished(report)  # nothing is left of it: this loads the student
                for walked in lacking:
                    figures = measured_by_all({2: sampler(training, walked)}, references, report)
                    append_lines(self.file, what | {"walked": walked} | figures["2"])
        self.show()

    def show(self) -> None:
        insert(self.folder / "README.md", "steps", markdown(read_lines(self.file)))

    @property
    def file(self) -> Path:
        return self.folder / "results.jsonl"


def sampler(training: Training, walked: str) -> WalkedSampler:
    """In two steps, of which the teacher walks some."""
    plain = training.samplers()[2]
    return WalkedSampler(plain.backbone, plain.network, plain.grid, 2, plain.guidance, walked=WALKED[walked])


def markdown(lines: list[dict[str, Any]]) -> str:
    rows = []
    for line in lines:
        other = f"{line['fid_efficientnet']:.1f}" if "fid_efficientnet" in line else None
        rows.append([line["run"], line["method"], line["updates"], line["captions"], line["walked"], cell(line), other])
    header = [
        "run",
        "method",
        "updates",
        "captions",
        "walked by the teacher",
        "FID, coverage, spread",
        "FID by EfficientNet-Lite0",
    ]
    return table(header, rows)


if __name__ == "__main__":
    sys.exit(exit_code(tyro.cli(Steps, description=__doc__).run))
