"""At which ω students draw best: `python -m experiments.guidance --help`; what came out is in README.md.

FID, coverage and spread on the validation split, one line of results.jsonl for each run and ω.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from experiments.measuring import cell, measured
from experiments.results import append_lines, insert, read_lines, table
from experiments.runs import Report, Training, exit_code

from scott.errors import UserError
from scott.mini.protocol import mini_reference
from scott.students import is_run
from scott.training.config import DistillConfig

HERE = Path(__file__).parent


@dataclass
class Guidance:
    """Measure what has no line yet; then write the table into README.md."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Finished runs of full students of the embedded teacher, as experiments.trial makes them."""
    omegas: tuple[float, ...] = (1.5, 2.0, 2.5, 3.0)
    samples: int = 2000
    data: Path = Path("runs/trials/data")
    """Prepared shards of the runs."""
    folder: Path = HERE

    def run(self, report: Report) -> None:
        self.show()  # before anything is made, so that a folder that cannot show it is known
        reference = mini_reference(self.samples, "validation")
        for run in self.runs:
            if not is_run(run):
                raise UserError(f"got {run}, which is no run folder; expected one that experiments.trial made")
            config = replace(DistillConfig.load(run / "config.json"), out=run)
            what = {"run": run.name, "method": config.method, "updates": config.max_steps, "samples": self.samples}
            there = {line["omega"] for line in read_lines(self.file) if what.items() <= line.items()}
            training, omegas = Training(config, self.data), [omega for omega in self.omegas if omega not in there]
            if omegas:
                training.finished(report)  # nothing is left of it: this loads the student
            for omega in omegas:
                figures = measured(training.samplers(omega), reference, report)
                append_lines(self.file, what | {"omega": omega, "steps": figures})
        self.show()

    def show(self) -> None:
        """Write the table of the lines that there are."""
        insert(self.folder / "README.md", "guidance", markdown(read_lines(self.file)))

    @property
    def file(self) -> Path:
        return self.folder / "results.jsonl"


def markdown(lines: list[dict[str, Any]]) -> str:
    header = ["run", "method", "updates", "ω", "1 step: FID, coverage, spread", "2 steps", "4 steps"]
    return table(
        header,
        [
            [
                line["run"],
                line["method"],
                line["updates"],
                f"{line['omega']:g}",
                *(cell(line["steps"][n]) for n in "124"),
            ]
            for line in lines
        ],
    )


if __name__ == "__main__":
    sys.exit(exit_code(tyro.cli(Guidance, description=__doc__).run))
