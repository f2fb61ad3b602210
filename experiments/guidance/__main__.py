"""At which ω and times, and with how much new noise, students draw best: `python -m experiments.guidance --help`; what
came out is in README.md.

FID, coverage and spread, one line of results.jsonl for each run and ω, or run, times and γ, which is that of
`scott.sampling.sample`: how much of a later step's noise is new.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from experiments.measuring import cell, measured_by_all, reference_by
from experiments.results import append_lines, insert, read_lines, table
from experiments.runs import Report, Training, exit_code, plain_run

from scott.choices import check_gamma
from scott.errors import UserError
from scott.measured import EvaluationSplit
from scott.samplers import StudentSampler
from scott.students import Student

HERE = Path(__file__).parent


@dataclass
class Guidance:
    """Measure what has no line yet; then write the tables into README.md."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Finished runs of full students of the embedded teacher, as experiments.trial makes them."""
    omegas: tuple[float, ...] = (1.5, 2.0, 2.5, 3.0)
    """In 1, 2 and 4 steps."""
    times: tuple[str, ...] = ()
    """To draw at, a step each, at the ω that the run draws at: 999,599."""
    samples: int = 2000
    split: EvaluationSplit = "validation"
    """Chosen on validation; what was chosen is measured once on held-out captions."""
    other: Literal["efficientnet"] | None = None
    """A network besides Mini-CLIP that is measured by."""
    gammas: tuple[float, ...] = (1.0,)
    """At each of --times."""
    data: Path = Path("runs/trials/data")
    """Prepared shards of the runs."""
    folder: Path = HERE

    def run(self, report: Report) -> None:
        self.show()  # before anything is made, so that a folder that cannot show it is known
        stops = [_times(text) for text in self.times]
        for gamma in self.gammas:
            check_gamma(gamma)
        references = {name: reference_by(name, self.samples, self.split) for name in ("mini", self.other) if name}
        for run in self.runs:
            config, what = plain_run(run)
            what |= {"samples": self.samples, "split": self.split, "other": self.other}
            # lines of before there was a digest, a split, another network, or γ, are of the runs of their names
            before = what | {"split": "validation", "other": None}
            there = [before | {"gamma": 1.0} | line for line in read_lines(self.file)]
            there = [line for line in there if what.items() <= line.items()]
            asked: list[dict[str, Any]] = [{"omega": omega} for omega in self.omegas]
            asked += [{"times": times, "gamma": gamma} for times in stops for gamma in self.gammas]
            if lacking := [one for one in asked if not any(one.items() <= line.items() for line in there)]:
                training = Training(config, self.data)
                training.finished(report)  # nothing is left of it: this loads the student
                for one in lacking:
                    figures = measured_by_all(samplers(training, **one), references, report)
                    append_lines(self.file, what | one | {"steps": figures})
        self.show()

    def show(self) -> None:
        """Write the tables of the lines that there are."""
        for name, text in markdown(read_lines(self.file)):
            insert(self.folder / "README.md", name, text)

    @property
    def file(self) -> Path:
        return self.folder / "results.jsonl"


def samplers(
    training: Training, omega: float | None = None, times: Sequence[float] | None = None, gamma: float = 1.0
) -> dict[int, StudentSampler]:
    """By steps: at ω; or at these times, one a step, with γ. Raises `UserError` as `Student.sampler` does."""
    made = training.samplers(omega)
    if times is None:
        return made
    one = next(iter(made.values()))
    student = Student(training.config.out.name, one.backbone, one.network, one.grid, None)
    return {len(times): student.sampler(len(times), one.guidance, times, gamma)}


def _times(text: str) -> list[float]:
    """Raises `UserError` for what are no numbers."""
    try:
        return [float(time) for time in text.split(",")]
    except ValueError:
        raise UserError(f"got --times {text}; expected numbers, as in 999,599") from None


def markdown(lines: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Name and text of each table."""
    header = ["run", "method", "updates"]
    by_omega = [
        [*(line[name] for name in header), f"{line['omega']:g}", *(cell(line["steps"][n]) for n in "124")]
        for line in lines
        if "omega" in line
    ]
    yield "guidance", table([*header, "ω", "1 step: FID, coverage, spread", "2 steps", "4 steps"], by_omega)
    by_times = []
    for line in lines:
        if "times" in line:
            (figures,) = line["steps"].values()
            other = f"{figures['fid_efficientnet']:.1f}" if "fid_efficientnet" in figures else None
            times = ", ".join(f"{time:g}" for time in line["times"])
            captions = f"{line['samples']:,} {line.get('split', 'validation')}"
            how = [times, f"{line.get('gamma', 1):g}", captions]
            by_times.append([*(line[name] for name in header), *how, cell(figures), other])
    header += ["times", "γ", "captions"]
    yield "times", table([*header, "FID, coverage, spread", "FID by EfficientNet-Lite0"], by_times)


if __name__ == "__main__":
    sys.exit(exit_code(tyro.cli(Guidance, description=__doc__).run))
