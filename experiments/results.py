"""Results of experiments: rows as JSON lines, and the Markdown tables that a README has of them."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from scipy.stats import ttest_1samp

from scott.errors import UserError
from scott.files import write_atomically


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Of a file of JSON lines, or none. Raises `UserError` where one is not JSON."""
    if not file.is_file():
        return []
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise UserError(f"{file} is no file of JSON lines ({error}); restore it, or move it away") from None


def append_lines(file: Path, *rows: Mapping[str, Any]) -> None:
    """Add rows, the file whole at any time and none of another command's lost. Its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file):
        lines = [json.dumps(one, ensure_ascii=False) for one in (*read_lines(file), *rows)]
        write_atomically(file, "\n".join(lines) + "\n")


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Wait until no other command changes the file."""
    lock = file.with_name(f"{file.name}.lock")
    with FileLock(lock):
        try:
            yield
        finally:  # while it is held: who waits for a lock that is gone takes a new one
            lock.unlink(missing_ok=True)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Text columns to the left; a number is shown to three decimals, None as a dash."""
    lines = [header, ["---"] * len(header), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def insert(file: Path, name: str, text: str) -> None:
    """Put `text` between `<!-- name -->` and `<!-- end of name -->`. Raises `UserError` where the file lacks them."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    content = file.read_text(encoding="utf-8") if file.is_file() else ""
    before, found, rest = content.partition(begin)
    _, ends, after = rest.partition(end)
    if not (found and ends) or begin in rest:
        raise UserError(f"{file} has no place for the table {name}; put {begin} and {end} where it belongs")
    write_atomically(file, f"{before}{begin}\n{text}\n{end}{after}")


def mean_interval(values: Sequence[float]) -> list[float]:
    """[low, high] of the mean of two values or more, Student's t at 95 %."""
    found = ttest_1samp(values, 0).confidence_interval(0.95)
    return [float(found.low), float(found.high)]


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
