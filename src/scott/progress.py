"""What the command line prints on, and progress bars with the time left, one a phase."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn

LINE_SECONDS = 60
console = Console(quiet=os.environ.get("RANK", "0") != "0")
"""Of several processes the first one speaks; errors are printed by whoever has them."""


def warn(message: str, console: Console = console) -> None:
    console.print(f"[yellow]warning[/] {escape(message)}", highlight=False)


LEFT = {
    "student": "the student, a stock pipeline",
    "lora": "the same as a LoRA file",
    "student/card.md": "how to draw with it",
    "report.html": "pictures and figures in one page",
    "warnings.txt": "what the run found odd",
}
"""What a run may leave in its folder → what it is."""


def outcome(run: Path) -> str:
    """Where the things are that a finished run left, and what to do next, as lines."""
    quoted = shlex.quote(str(run))
    found = {str(run / name): what for name, what in LEFT.items() if (run / name).exists()}
    width = max(map(len, found), default=0)
    lines = [f"{place:{width}}  {what}" for place, what in found.items()]
    return "\n".join(
        [
            *lines,
            "next:",
            f"  scott app {quoted}",
            f'  scott sample {quoted} --prompts "a small green apple" --steps 2',
            f"  scott export {quoted} --to diffusers --export-precision fp16",
        ]
    )


class Bars(Progress):
    """A `Report` (phase, done, total, terms): one bar a phase, which 80 columns hold; without a terminal, a line
    a minute and at each phase's end."""

    def __init__(self, console: Console, clock: Callable[[], float] = monotonic) -> None:
        name, terms = TextColumn("{task.description:<22}"), TextColumn("{task.fields[terms]}")
        columns = (name, BarColumn(14), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn(), terms)
        # what is printed stands above the bars on a terminal, and goes into a file or a pipe as it is
        to = {"disable": not console.is_terminal, "redirect_stdout": sys.stdout.isatty()}
        super().__init__(*columns, console=console, get_time=clock, **to)
        self._phases: dict[str, TaskID] = {}
        self._printed = clock()

    def warn(self, message: str) -> None:
        """A line above the bars."""
        warn(message, self.console)

    def report(self, phase: str, done: int, total: int, terms: dict[str, float]) -> None:
        if phase not in self._phases:
            self._phases[phase] = self.add_task(phase, total=total, terms="")
        task, before = self._tasks[self._phases[phase]], self._tasks[self._phases[phase]].completed
        self.update(task.id, completed=done)
        if "consistency" in terms:
            self.update(task.id, terms=f"L_CD {terms['consistency']:.3g}")
        elif "rate" in terms:
            self.update(task.id, terms=f"{terms['rate']:,.1f}/s")
        if self.disable and (self.get_time() - self._printed >= LINE_SECONDS or before < done == total):
            self._line(task, terms)

    def _line(self, task: Task, terms: dict[str, float]) -> None:
        self._printed = self.get_time()
        left = "" if task.finished or task.time_remaining is None else f"{task.time_remaining / 60:,.0f} min left"
        ratio = f"adversarial ratio {terms['adversarial_ratio']:.2f}" if "adversarial_ratio" in terms else ""
        parts = (f"{task.completed:,.0f} of {task.total:,.0f}", left, task.fields["terms"], ratio)
        line = f"{task.description}: {', '.join(part for part in parts if part)}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
