"""LCM (its rate one that stays, or one that falls as ours does), InstaFlow, UFOGen, SCott as the paper has it and with
a critic told one time of all that learns at the paper's ratio of rates (and that held to a share of gradients), and
ours on the embedded teacher, at equal time and at equal updates.

A student's rows go into results.jsonl as it ends; a run that was stopped goes on, by the same command.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import tyro
from experiments.baselines.instaflow import InstaFlow
from experiments.baselines.student import Baseline
from experiments.baselines.ufogen import UFOGen
from experiments.beginning import begin, common_updates
from experiments.comparison.figure import draw
from experiments.comparison.rows import Features, Matched, Row, markdown, read_rows
from experiments.measuring import figures_of, measured, progress, reference_by
from experiments.results import append_lines, insert
from experiments.runs import QUIET, Report, Training, digest, exit_code

from scott.device import best_device
from scott.errors import UserError
from scott.evaluation import evaluate
from scott.evaluation.curves import as_svg
from scott.files import write_atomically
from scott.mini import embedded
from scott.mini.protocol import MiniReference
from scott.recipes.configs import mini
from scott.samplers import TeacherSampler
from scott.students import teacher_of
from scott.training.config import DistillConfig

HERE = Path(__file__).parent
METHODS: dict[str, Callable[..., DistillConfig]] = {
    "ours": mini,
    "lcm": partial(mini, method="lcm"),
    "lcm-settles": partial(mini, method="lcm", decay=mini().decay),
    "scott-paper": partial(mini, method="paper"),
    "scott-clean": partial(mini, method="paper", critic_input="clean", critic_learning_rate=2.5e-4),
    "scott-share": partial(
        mini, method="paper", critic_input="clean", critic_learning_rate=2.5e-4, adversarial_share=0.6
    ),
}
BASELINES: dict[str, type[Baseline]] = {"instaflow": InstaFlow, "ufogen": UFOGen}
TEACHER_STEPS = (50, 25)
CALIBRATION = 40
"""Updates from which it is read how many fit into a budget."""


@dataclass
class Comparison:
    """Train and measure what has no rows yet; then write the table into README.md, and draw quality.svg."""

    budgets: tuple[float, ...] = (20, 60, 240)
    """Core-minutes of a training."""
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[str, ...] = ("ours", "lcm", "scott-paper")
    at_equal_updates: tuple[str, ...] = ("lcm",)
    """Those that are trained a second time, for as many updates as ours made in the budget."""
    baselines: tuple[str, ...] = tuple(BASELINES)
    """Those of experiments/baselines that are trained in the largest budget."""
    cost: tuple[str, ...] = ()
    """method=core-seconds of an update, by which a budget is counted instead of a run of 40; on a GPU, of all methods.
    """
    slower: float = 1.0
    """What an update takes here over what it takes the core that budgets are of, where it is read off a run."""
    shared: bool = False
    """Compute once what runs have in common: LCM up to where ours has its critic, from where each goes on, to the same
    bits."""
    scenes: int = 65_536
    """Of the embedded data, that all train on."""
    samples: int = 5000
    features: Features = "mini"
    """The network that FID and coverage are measured by: Mini-CLIP, or EfficientNet-Lite0."""
    folder: Path = HERE
    runs: Path = Path("runs/comparison")

    def run(self, report: Report) -> None:
        known = {"methods": [*METHODS], "at_equal_updates": [*METHODS], "baselines": [*BASELINES]}
        for option, names in known.items():
            if unknown := {*getattr(self, option)} - {*names}:
                raise UserError(f"got {option} {', '.join(sorted(unknown))}; expected some of {', '.join(names)}")
        if lacking := {*self.methods} - self.costs.keys() if best_device().type != "cpu" else set():
            raise UserError(
                f"got no --cost of {', '.join(sorted(lacking))}; a budget is of a CPU's core: "
                "say what an update takes of one, in seconds"
            )
        if wrong := [budget for budget in self.budgets if not 0 < budget < math.inf]:
            raise UserError(f"got a budget of {wrong[0]:g}; expected core-minutes above 0")
        if not 0 < self.slower < math.inf:
            raise UserError(f"got --slower {self.slower:g}; expected a finite number above 0")
        self.show()  # before anything is made, so that a folder that cannot show it is known
        self.measure_references(report)
        for budget in self.budgets:
            baselines = self.baselines if budget == max(self.budgets) else ()
            for seed in self.seeds:
                if self.shared:
                    self.train_beginning(budget, seed, report)
                students: list[tuple[str, Matched]] = [(method, "time") for method in self.methods]
                students += [(method, "updates") for method in self.at_equal_updates]
                if self.shared:  # LCM's longest run goes on from the shorter one
                    students.sort(key=lambda student: student == ("lcm", "time"))
                for method, matched in students:
                    self.train(self.blank(method, matched, budget, seed), report)
                for method in baselines:
                    self.train(self.blank(method, "time", budget, seed), report)
        self.show()

    def show(self) -> None:
        """Write the table, into a page that is made where there is none, and the figure of the rows that there are."""
        page = self.folder / "README.md"
        if not page.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(page, "# Comparison\n\n<!-- comparison -->\n<!-- end of comparison -->\n")
        insert(page, "comparison", markdown(self.rows()))
        write_atomically(self.folder / "quality.svg", as_svg(draw(self.rows())).decode())

    @cached_property
    def costs(self) -> dict[str, float]:
        """Method → core-seconds of an update, of those that are given. Raises `UserError` for what is none."""
        found = {}
        for given in self.cost:
            method, _, seconds = given.partition("=")
            try:
                found[method] = float(seconds)
            except ValueError:
                found[method] = 0.0
            if method not in METHODS or not 0 < found[method] < math.inf:
                raise UserError(f"got --cost {given}; expected seconds of {', '.join(METHODS)}, as in ours=0.41")
        return found

    @property
    def file(self) -> Path:
        return self.folder / "results.jsonl"

    def rows(self) -> list[Row]:
        return read_rows(self.file)

    @property
    def trainings(self) -> Path:
        """Runs on other scenes have other data, and stand in another folder."""
        return self.runs / f"{self.scenes}-scenes"

    @cached_property
    def reference(self) -> MiniReference:
        return reference_by(self.features, self.samples)

    def blank(self, method: str, matched: Matched = "nothing", budget: float = 0, seed: int = 0) -> Row:
        """A row before anything is measured; of what is not trained by default."""
        nothing: dict[str, Any] = dict.fromkeys(("updates", "cpu_minutes", "steps", "fid", "coverage"), 0)
        nothing |= dict.fromkeys(("guidance", "clip_score", "spread"))
        what: dict[str, Any] = {"method": method, "matched": matched, "budget": budget, "seed": seed}
        what |= {"samples": self.samples, "features": self.features}
        return Row(**what, **nothing, scenes=0 if matched == "nothing" else self.scenes)

    def alike(self) -> list[Row]:
        """The rows of as many samples, by the same network."""
        return [row for row in self.rows() if (row.samples, row.features) == (self.samples, self.features)]

    def there(self, blank: Row) -> list[Row]:
        """The rows of a student."""
        return [row for row in self.alike() if (row.run, row.scenes) == (blank.run, self.scenes)]

    def measure_references(self, report: Report) -> None:
        """The floor, and the teacher."""
        there = {(row.method, row.steps) for row in self.alike()}
        if ("real", 0) not in there:
            append_lines(self.file, asdict(self.blank("real")) | figures_of(self.reference.floor()))
        for steps in TEACHER_STEPS:
            if ("teacher", steps) not in there:
                sampler = TeacherSampler(teacher_of("mini"), steps, embedded.GUIDANCE)
                name = f"teacher {steps}"
                made = evaluate(sampler, self.reference, name=name, progress=partial(progress, report, name))
                how = {"steps": steps, "guidance": embedded.GUIDANCE}
                append_lines(self.file, asdict(self.blank("teacher")) | figures_of(made) | how)

    def train(self, blank: Row, report: Report) -> None:
        """The rows of one student, unless they are there, of as many samples and scenes, by the same network.

        Raises:
            UserError: those that are there were made by another recipe of the same name.
        """
        name = f"{blank.method}-{blank.matched}-{blank.budget:g}-{blank.seed}"
        if there := self.there(blank):
            made_by, updates = there[0].config, there[0].updates
            if made_by and made_by != digest(self.config(blank.method, name, updates, blank.seed)):
                raise UserError(
                    f"{self.file} has {blank.method} of seed {blank.seed} by another recipe; move its rows away, "
                    "or say another --folder and --runs"
                )
            return
        run: Training | Baseline
        if blank.method in BASELINES:
            # as a command line gives it: a run knows its options by how they are written
            how: dict[str, Any] = {"cpu_minutes": float(blank.budget), "slower": self.slower}
            how |= {"seed": blank.seed, "scenes": self.scenes}
            run = BASELINES[blank.method](out=self.trainings / name, **how)
            minutes = run.train() / 60
            updates = run.updates
        else:
            updates = self.updates(blank, self.trainings / name, report)
            run, minutes = self.trained(blank.method, name, updates, blank.seed, report)
            blank = replace(blank, config=digest(run.config))
        trained = replace(blank, updates=updates, cpu_minutes=round(minutes, 2), device=str(run.backbone.device))
        samplers = run.samplers()
        rows = [
            asdict(trained) | figures | {"steps": int(steps), "guidance": samplers[int(steps)].guidance}
            for steps, figures in measured(samplers, self.reference, report).items()
        ]
        append_lines(self.file, *rows)

    def train_beginning(self, budget: float, seed: int, report: Report) -> None:
        """LCM's updates before ours has its critic, unless ours is measured or has begun."""
        ours = self.blank("ours", "time", budget, seed)
        name = f"{ours.method}-{ours.matched}-{budget:g}-{seed}"
        has_begun = (self.trainings / name / "config.json").is_file()
        if "ours" in self.methods and not self.there(ours) and not has_begun:
            updates = self.updates(ours, self.trainings / name, report)
            common = common_updates(*(self.config(method, name, updates, seed) for method in ("ours", "lcm")))
            self.trained("lcm", f"beginning-{budget:g}-{seed}", common, seed, report)

    def config(self, method: str, name: str, updates: int, seed: int, **changes: Any) -> DistillConfig:
        settings = QUIET | {"checkpoint_every": 100, "log_every": 1, "limit": self.scenes} | changes
        return METHODS[method](**settings, out=self.trainings / name, seed=seed, max_steps=updates)

    def trained(
        self, method: str, name: str, updates: int, seed: int, report: Report, **changes: Any
    ) -> tuple[Training, float]:
        training = Training(self.config(method, name, updates, seed, **changes), data=self.trainings / "data")
        if self.shared:
            begin(training, [file.parent for file in self.trainings.glob("*/config.json")], report)
        return training, training.train(report) / 60

    def updates(self, blank: Row, out: Path, report: Report) -> int:
        """Of a run that has begun, its own; as many as another seed's; else what its budget allows."""
        if (out / "config.json").is_file():
            return DistillConfig.load(out / "config.json").max_steps
        there = [row for row in self.rows() if row.scenes == self.scenes]
        if blank.matched == "updates":
            ours = [row for row in there if row.run[:3] == ("ours", "time", blank.budget)]
            if not ours:
                raise UserError(f"got {blank.method} at equal updates without ours; add ours to --methods")
            return min(ours, key=lambda row: row.seed != blank.seed).updates
        if others := [row.updates for row in there if row.run[:3] == blank.run[:3]]:
            return others[0]
        if blank.method in self.costs:
            return max(1, int(60 * blank.budget / self.costs[blank.method]))
        # with a store that is full after a few updates, as a run's is for all but its first ones
        small, name = {"jump_store": 128}, f"calibration-{blank.method}"
        _, minutes = self.trained(blank.method, name, CALIBRATION, 0, report, **small)
        return max(1, int(blank.budget * self.slower * CALIBRATION / minutes))


if __name__ == "__main__":
    sys.exit(exit_code(tyro.cli(Comparison, description=__doc__).run))
