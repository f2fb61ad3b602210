"""The figures as tables: for the terminal, for a README or a card, and the cells of the report's."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from scott.evaluation.results import Results, Row

COLUMNS = ["sampler", "steps", "calls", "s / image", "FID ↓", "FID ratio", "CLIP score ↑", "coverage ↑", "samples"]


def cells(results: Results, row: Row) -> list[str]:
    """One row as text; "–" for what was not measured, "†" after the name where the measures are recorded."""
    return [
        row.name + (" †" if row.recorded else ""),
        str(row.steps) if row.steps else "–",
        str(row.network_calls) if row.network_calls else "–",
        _number(row.seconds_per_image, ".3g"),
        _number(row.fid, "#.3g"),
        _number(results.fid_ratio(row), ".2f"),
        _number(row.clip_score, ".3f"),
        _number(row.coverage, ".3f"),
        f"{row.samples:,}",
    ]


def footnotes(results: Results) -> list[str]:
    notes = [f"{row.name}: {row.note}" for row in results.rows if row.note]
    if baseline := results.baseline():
        notes.append(f"FID ratio: to {baseline.name}.")
    if any(row.recorded for row in results.rows):
        notes.append("† Measured in an earlier run of the same sampler.")
    return notes


def table(results: Results) -> Table:
    """For the terminal: `rich.print(table(results))`. Footnotes stand in the caption."""
    shown = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
        caption="\n".join(footnotes(results)) or None,
        caption_justify="left",
    )
    for column in COLUMNS:
        named = column == "sampler"
        shown.add_column(column, justify="left" if named else "right", no_wrap=named)
    for row in results.rows:
        shown.add_row(*cells(results, row), style="bold" if row is results.baseline() else None)
    return shown


def markdown_table(results: Results) -> str:
    """For a README or a model card: a GitHub table, then the footnotes, each a paragraph."""
    lines = [COLUMNS, ["---"] + ["---:"] * (len(COLUMNS) - 1)]
    lines += [cells(results, row) for row in results.rows]
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join(rows) + "".join(f"\n\n{note}" for note in footnotes(results)) + "\n"


def _number(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)
