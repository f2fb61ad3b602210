"""`scott evaluate` and `scott compare`, each as what it is given (`arguments.py` has the other commands)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from scott.errors import UserError
from scott.measured import STEPS, Measured
from scott.progress import Bars, console


@dataclass
class Evaluate:
    """How good pictures are: of a student, of any diffusers pipeline, or in a folder."""

    target: Positional[str]
    """A run, an export, any text-to-image pipeline of diffusers (folder or hub id), mini, or pictures with prompts."""
    measured: Annotated[Measured, arg(name="measurement", help="")] = field(default_factory=Measured)
    steps: tuple[int, ...] = STEPS
    out: Path | None = None
    """Where to write the results; by default evaluation.json in the run, or evaluation-DATA.json, over none of other
    conditions."""

    def run(self) -> None:
        from scott.commands.evaluate import evaluate_target
        from scott.evaluation import table

        with Bars(console) as bars:
            results, file = evaluate_target(
                self.target, self.steps, self.measured, out=self.out, report=bars.report, warn=bars.warn
            )
        console.print(table(results))
        console.print(f"results {file}", markup=False, soft_wrap=True)


@dataclass
class Compare:
    """Results side by side: a table, quality against cost, the gap closed."""

    results: Positional[Annotated[tuple[Path, ...], arg(metavar="[RESULTS ...]")]] = ()
    """Files that `scott evaluate` wrote."""
    out: Path | None = None
    """A folder for comparison.md, .csv, .json and .svg."""
    rival: tuple[str, ...] = ()
    """Samplers, by a row's name without its steps, whose gap to the teacher students close; those of `--method lcm`, if
    left out."""
    steps: tuple[int, ...] = ()
    """Rows of these numbers of steps alone, with real pictures and the teacher that ratios are to; all, if left out."""
    metrics: tuple[str, ...] = ()
    """These alone; all there are, if left out."""
    update: tuple[Path, ...] = ()
    """Markdown files whose tables, between `<!-- scott compare RESULTS -->` and `<!-- end -->`, are written again."""
    check: bool = False
    """With --update: change nothing, and fail where a table is not that of its results."""

    def run(self) -> None:
        from scott.commands.compare import compare, update

        if not self.results and not self.update:
            raise UserError("got no results to compare; name files that `scott evaluate` wrote, or pages with --update")
        if not self.results and (self.out or self.rival or self.steps or self.metrics):
            raise UserError(
                "--out, --rival, --steps and --metrics are of results that are named; a page's table names its own"
            )
        if self.check and not self.update:
            raise UserError("got --check without --update; name the pages whose tables it checks")
        if self.results:
            text = compare(self.results, self.out, self.rival, self.steps, self.metrics)[1]
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        for page in update(self.update, check=self.check):
            console.print(f"updated {page}", markup=False, soft_wrap=True)
