"""What the command line prints on, and progress bars with the time left, one a phase."""

import os
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

console = Console(quiet=os.environ.get("RANK", "0") != "0")
"""Of several processes the first one speaks; errors are printed by whoever has them."""


class Bars:
    """A `Report` (phase, done, total, terms) shown as one bar a phase."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            # 80 columns hold all of it
            TextColumn("{task.description:<22}"),
            BarColumn(14),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[terms]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def warn(self, message: str) -> None:
        """A line above the bars."""
        self._progress.console.print(f"[yellow]warning[/] {escape(message)}", highlight=False)

    def report(self, phase: str, done: int, total: int, terms: dict[str, float]) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(phase, total=total, terms="")
        self._progress.update(self._tasks[phase], completed=done)
        if "consistency" in terms:
            self._progress.update(self._tasks[phase], terms=f"L_CD {terms['consistency']:.3g}")
        elif "rate" in terms:
            self._progress.update(self._tasks[phase], terms=f"{terms['rate']:,.1f}/s")
