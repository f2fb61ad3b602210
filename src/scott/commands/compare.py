"""`scott compare`: results beside one another, and the tables of Markdown files made again."""

from collections.abc import Sequence
from pathlib import Path

from scott.errors import UserError
from scott.evaluation import Results
from scott.evaluation.comparison import as_json, combined, comparison, drawn, updated
from scott.evaluation.tables import csv_table
from scott.files import write_atomically


def compare(
    files: Sequence[Path],
    out: Path | None,
    rivals: Sequence[str] = (),
    steps: Sequence[int] = (),
    metrics: Sequence[str] = (),
) -> tuple[Results, str]:
    """The rows of all files and their table; with `out`, comparison.md, .csv, .json and .svg there.

    Raises `UserError` as `Results.load`, `Results.only`, `combined` and `gaps` do.
    """
    results = combined(files).only(steps, metrics)
    text = comparison(results, rivals)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for ending, content in (("md", text), ("csv", csv_table(results)), ("json", as_json(results, rivals))):
            write_atomically(out / f"comparison.{ending}", content)
        write_atomically(out / "comparison.svg", drawn(results).decode())
    return results, text


def update(pages: Sequence[Path], *, check: bool) -> list[Path]:
    """Write the tables of Markdown files again; the files that were others. Raises `UserError` for them if `check`."""
    changed = {page: text for page in pages if (text := updated(page)) != page.read_bytes().decode()}
    if check and changed:
        names = " ".join(map(str, changed))
        raise UserError(f"the tables of {names} are not those of their results; run scott compare --update {names}")
    for page, text in changed.items():
        write_atomically(page, text)
    return list(changed)
