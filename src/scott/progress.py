"""What the command line prints on, and progress bars with the time left, one a phase."""

import os

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

console = Console(quiet=os.environ.get("RANK", "0") != "0")
"""Of several processes the first one speaks; errors are printed by whoever has them."""


def warn(message: str, console: Console = console) -> None:
    console.print(f"[yellow]warning[/] {escape(message)}", highlight=False)


class Bars(Progress):
    """A `Report` (phase, done, total, terms) shown as one bar a phase, which 80 columns hold."""

    def __init__(self, console: Console) -> None:
        name, terms = TextColumn("{task.description:<22}"), TextColumn("{task.fields[terms]}")
        columns = (name, BarColumn(14), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn(), terms)
        super().__init__(*columns, console=console)
        self._phases: dict[str, TaskID] = {}

    def warn(self, message: str) -> None:
        """A line above the bars."""
        warn(message, self.console)

    def report(self, phase: str, done: int, total: int, terms: dict[str, float]) -> None:
        if phase not in self._phases:
            self._phases[phase] = self.add_task(phase, total=total, terms="")
        self.update(self._phases[phase], completed=done)
        if "consistency" in terms:
            self.update(self._phases[phase], terms=f"L_CD {terms['consistency']:.3g}")
        elif "rate" in terms:
            self.update(self._phases[phase], terms=f"{terms['rate']:,.1f}/s")
