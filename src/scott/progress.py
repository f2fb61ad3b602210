"""Progress bars with rate and time left, one a phase, and what the losses are."""

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bars:
    """A `Report` (phase, done, total, terms) shown as one bar a phase."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
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

    def report(self, phase: str, done: int, total: int, terms: dict[str, float]) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(phase, total=total, terms="")
        self._progress.update(self._tasks[phase], completed=done)
        if terms:
            shown = (f"{name} {terms[name]:.3g}" for name in ("consistency", "adversarial", "critic") if name in terms)
            self._progress.update(self._tasks[phase], terms=" ".join(shown))
