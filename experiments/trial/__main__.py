"""One variant of the recipe mini, trained and measured on the validation split: `python -m experiments.trial --help`.

A trial is one line of results.jsonl: what was set, what it cost, and FID, coverage and spread in 1, 2 and 4 steps by
Mini-CLIP, with `--other` FID and coverage by another network too, and the critic's mean loss.
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Literal

import tyro
from experiments.beginning import begin
from experiments.measuring import cell, measured_by_all, reference_by
from experiments.results import append_lines, insert, read_lines, table
from experiments.runs import QUIET, Report, Training, digest, exit_code, parsed

from scott.errors import UserError
from scott.recipes.configs import mini
from scott.training.config import DistillConfig
from scott.training.metrics import read_metrics

HERE = Path(__file__).parent
IDENTITY = ("method", "set", "from", "seed", "updates", "samples", "other", "phases", "energy", "matching")
FLAGS = {"method": "--method", "init": "--from", "seed": "--seed", "max_steps": "--updates", "out": "a name and --runs"}
"""Setting → what says it."""


@dataclass
class Trial:
    """Train a variant for some updates and add its line; one that has its line is not run again."""

    name: Annotated[str, tyro.conf.Positional] = ""
    set: tuple[str, ...] = ()
    """key=value of a run's config, as `scott distill mini` has them (critic_rank=8)."""
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A run whose student's EMA it begins with (`scott distill --init`); critic and optimizers begin anew."""
    method: Literal["scott", "lcm", "paper"] = "scott"
    updates: int = 300
    samples: int = 2000
    other: Literal["efficientnet"] | None = None
    """A network besides Mini-CLIP that it is measured by."""
    phases: int = 1
    """Of the schedule, within which the student is consistent; of more than 1 it draws in as many steps, by DDIM."""
    energy: bool = False
    """Give the student noise of its own, and learn by an energy score."""
    matching: bool = False
    """Match distributions in the critic's place, which is then a denoiser of what is drawn."""
    shared: bool = False
    """Go on from the run in --runs that has made most of the same first updates, to the same bits: what trials have in
    common is computed once, and counted in each."""
    seed: int = 0
    table: bool = False
    """Write the table of all lines into README.md, and run nothing."""
    folder: Path = HERE
    runs: Path = Path("runs/trials")

    def run(self, report: Report) -> None:
        file = self.folder / "results.jsonl"
        if self.table:
            insert(self.folder / "README.md", "trials", markdown(read_lines(file)))
            return
        if not self.name:
            raise UserError("got no name for the trial; say one, or --table")
        if self.phases < 1 or self.updates < 1:
            raise UserError(f"got {self.phases} phases and {self.updates} updates; expected 1 or more of each")
        if (self.phases > 1) + self.energy + self.matching > 1:
            raise UserError("got several of --phases, --energy and --matching; give one of them")
        if self.shared and (self.phases > 1 or self.energy):
            raise UserError("got --shared of a variant, whose first updates are its own; leave it out")
        line = {"name": self.name, **self.identity(), "config": digest(self.config())}
        for there in read_lines(file):
            if there["name"] == self.name and there["seed"] == self.seed:
                known = line | {"other": None, "phases": 1, "energy": False, "matching": False} | there
                if all(known[key] == line[key] for key in (*IDENTITY, "config")):
                    return
                raise UserError(
                    f"{file} has a trial {self.name} of seed {self.seed} already, of other settings or of another "
                    "recipe mini; name another"
                )
        self.folder.mkdir(parents=True, exist_ok=True)  # before it trains, so that one that cannot be made is known
        append_lines(file, line | self.made(report))

    def identity(self) -> dict[str, Any]:
        """What makes it this trial, as its line has it: two numbers are a list there."""
        source = None if self.source is None else str(self.source)
        asked = (self.method, self.given(), source, self.seed, self.updates, self.samples)
        values = (*asked, self.other, self.phases, self.energy, self.matching)
        return dict(zip(IDENTITY, json.loads(json.dumps(values)), strict=True))

    def given(self) -> dict[str, Any]:
        """What is set. Raises `UserError` for what has a flag of its own."""
        given = parsed(self.set)
        if twice := sorted(given.keys() & FLAGS.keys()):
            raise UserError(f"got --set {twice[0]}={given[twice[0]]}; give {FLAGS[twice[0]]}")
        return given

    def made(self, report: Report) -> dict[str, Any]:
        """Train and measure."""
        # before it trains, so that what cannot be measured is not trained
        references = {name: reference_by(name, self.samples, "validation") for name in ("mini", self.other) if name}
        training = Training(self.config(), self.runs / "data", self.phases, self.energy, self.matching)
        if self.shared:
            begin(training, self.alike(), report)
        seconds = training.train(report)
        figures = measured_by_all(training.samplers(), references, report)
        loss = critic_loss(read_metrics(training.config.out / "metrics.jsonl"))
        return {"cpu_seconds": round(seconds, 1), "critic_loss": loss, "steps": figures}

    def alike(self) -> list[Path]:
        """Runs on as many scenes that are no variants of the step, which end in more than a seed."""
        files = [file for file in sorted(self.runs.glob("*/config.json")) if re.search(r"-\d+$", file.parent.name)]
        return [file.parent for file in files if DistillConfig.load(file).limit == self.config().limit]

    def config(self) -> DistillConfig:
        # which no config has
        variant = "-energy" * self.energy + "-matching" * self.matching + f"-{self.phases}-phases" * (self.phases > 1)
        out = self.runs / f"{self.name}-{self.seed}{variant}"
        settings = QUIET | {"checkpoint_every": 100, "log_every": 1} | self.given()
        settings |= {"method": self.method, "init": None if self.source is None else str(self.source)}
        return mini(**settings, out=out, seed=self.seed, max_steps=self.updates)


def critic_loss(records: list[dict[str, float]]) -> float | None:
    """Mean hinge loss over the second half of the updates with a critic: 2 of one that knows nothing, 0 of one that is
    never wrong. None without a critic."""
    losses = [record["critic"] for record in records if "critic" in record]
    return round(mean(losses[len(losses) // 2 :]), 4) if losses else None


def markdown(lines: list[dict[str, Any]]) -> str:
    rows = []
    for line in lines:
        given = line["set"] | ({"phases": line["phases"]} if line.get("phases", 1) > 1 else {})
        given |= {"score": "energy"} if line.get("energy") else {}
        given |= {"in the critic's place": "matching"} if line.get("matching") else {}
        settings = ", ".join(f"{key} {value}" for key, value in given.items()) or "–"
        measured = [line["steps"].get(n) for n in ("1", "2", "4")]
        cells = [one and cell(one) for one in measured]
        others = [f"{one['fid_efficientnet']:.1f}" for one in measured if one and "fid_efficientnet" in one]
        rows.append(
            [
                line["name"],
                line["method"],
                settings,
                line["from"],
                line["seed"],
                line["updates"],
                f"{line['cpu_seconds']:,.0f}",
                line.get("critic_loss"),
                *cells,
                ", ".join(others) or None,
            ]
        )
    header = [
        "trial",
        "method",
        "set",
        "from",
        "seed",
        "updates",
        "CPU s",
        "critic's loss",
        "1 step: FID, coverage, spread",
        "2 steps",
        "4 steps",
        "FID by EfficientNet-Lite0",
    ]
    return table(header, rows)


if __name__ == "__main__":
    sys.exit(exit_code(tyro.cli(Trial, description=__doc__).run))
