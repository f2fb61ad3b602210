"""The figures as tables: for the terminal, for a README or a card, as CSV, and the cells of the report's."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from scott.evaluation.measures import METRICS, SHOWN, SPREAD_CAPTIONS, USUAL, Figure
from scott.evaluation.results import FLOOR, Results, Row

DECIMALS = {"clip-score": 3, "coverage": 3}
"""Of the metrics that do not have three significant digits."""
BOOTSTRAP = "‡"
"""Behind the ± of the bootstrap, where others are of seeds."""
DIFFERING = "differing"
"""Of what several results were measured under: condition → value → the files that say it."""
TITLES = {"fid": "FID ↓", "clip-score": "CLIP score ↑", "coverage": "coverage ↑", "spread": "spread → 1"}


def metrics_of(results: Results) -> list[str]:
    """What any row has, the usual ones first."""
    there = dict.fromkeys(name for row in results.rows for name in row.metrics)
    return [name for name in dict.fromkeys([*USUAL, *there]) if name in there]


def columns(results: Results) -> list[str]:
    guidance = ["ω"] if any(row.guidance is not None for row in results.rows) else []
    measures = [title for name in metrics_of(results) for title in _titles(name, results)]
    return ["sampler", "steps", "calls", *guidance, "s / image", *measures, "samples"]


def cells(results: Results, row: Row) -> list[str]:
    """One row as text; "–" for what was not measured, "†" after the name where the measures are recorded."""
    measures: list[str] = []
    mark = BOOTSTRAP if _kinds(results) == {True, False} else ""
    for name in metrics_of(results):
        figure = results.figure(row, name)
        measures.append(_figure(figure, DECIMALS.get(name), mark))
        if name == "fid":
            excess, ratio = figure.excess if figure else None, results.fid_ratio(row)
            measures.append("–" if excess is None else significant(excess))
            measures.append("–" if ratio is None else f"{ratio:.2f}")
    guidance = ["–" if row.guidance is None else f"{row.guidance:g}"] if "ω" in columns(results) else []
    return [
        row.name + (" †" if row.recorded else ""),
        str(row.steps) if row.steps else "–",
        str(row.network_calls) if row.network_calls else "–",
        *guidance,
        "–" if row.seconds_per_image is None else _short(row.seconds_per_image, 3),
        *measures,
        f"{row.samples:,}",
    ]


def footnotes(results: Results) -> list[str]:
    remarks = dict.fromkeys(row.remark for row in results.rows if row.remark)
    lines = [f"{', '.join(row.name for row in results.rows if row.remark == one)}: {one}" for one in remarks]
    if baseline := results.baseline():
        others = any(row.fid is not None and row.samples != baseline.samples for row in results.rows)
        lines.append(f"FID ratio: to {baseline.name}{', of as many samples alone' if others else ''}.")
    if any(figure and figure.floor is not None for figure in (results.figure(row, "fid") for row in results.rows)):
        lines.append("Excess: FID over that of as many real pictures.")
    kinds = _kinds(results)
    mark = BOOTSTRAP if True in kinds else ""
    lines += ["±: half the range over seeds."] if True in kinds else []
    lines += [f"±{mark}: half of 95 % of the bootstrap over samples."] if False in kinds else []
    lines += _seeds(results)
    if (count := results.meta.get("diversity")) and any("diversity" in row.metrics for row in results.rows):
        captions = min(SPREAD_CAPTIONS, max(row.samples for row in results.rows))
        lines.append(f"Diversity and styles: {count} pictures of each of {captions} captions.")
    if features := (results.meta.get("networks") or {}).get("features"):
        lines.append(f"Features: {features}.")
    for condition, values in results.meta.get(DIFFERING, {}).items():
        each = "; ".join(f"{value} ({', '.join(files)})" for value, files in values.items())
        lines.append(f"{condition.capitalize()}: {each}.")
    if any(row.recorded for row in results.rows):
        lines.append("† Measured in an earlier run of the same sampler.")
    return lines


@dataclass(frozen=True)
class TerminalTable:
    """A table as wide as the terminal, its columns in as many parts below one another as that takes; then footnotes."""

    results: Results

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [cells(self.results, row) for row in self.results.rows]
        names, *others = zip(columns(self.results), *rows, strict=True)
        room = options.max_width - _width(names)
        for part in _parts(others, room):
            shown = Table(box=SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
            for title, *values in (names, *part):
                name = title == names[0]
                width = None if name else _width((title, *values))
                shown.add_column(title, justify="left" if name else "right", width=width, overflow="fold")
            for row, *values in zip(self.results.rows, *(one[1:] for one in (names, *part)), strict=True):
                shown.add_row(*map(Text, values), style="bold" if row is self.results.baseline() else None)
            yield shown
            yield ""
        yield Text("\n".join(footnotes(self.results)), style="table.caption")


def table(results: Results) -> TerminalTable:
    """For the terminal: `rich.print(table(results))`."""
    return TerminalTable(results)


def _width(column: Sequence[str]) -> int:
    """That holds every cell of a column, whose header may be broken between words."""
    title, *values = column
    return max(map(len, (*values, *title.split())))


def _parts(columns: Sequence[Sequence[str]], room: int) -> list[list[Sequence[str]]]:
    """Neighbouring columns, each with a space before it, in as few parts of `room` characters as there can be."""
    parts, left = [list[Sequence[str]]()], room
    for column in columns:
        width = _width(column) + 1
        if width > left and parts[-1]:
            parts.append([])
            left = room
        parts[-1].append(column)
        left -= width
    return parts


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A GitHub table, its first column to the left."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def markdown_table(results: Results) -> str:
    """For a README or a model card: a GitHub table, then the footnotes, each a paragraph."""
    rows = [cells(results, row) for row in results.rows]
    return markdown(columns(results), rows) + "".join(f"\n{line}\n" for line in footnotes(results))


def csv_table(results: Results) -> str:
    """One line a row: the plain fields, then of each metric its value, interval, range over seeds, floor and excess."""
    names = metrics_of(results)
    plain = ["name", "steps", "network_calls", "guidance", "seconds_per_image", "samples"]
    parts = ("", " low", " high", " seeds' least", " seeds' most", " floor", " excess")
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow([*plain, "seeds", *(name + part for name in names for part in parts)])
    for row in results.rows:
        values: list[object] = [getattr(row, name) for name in plain]
        values.append(" ".join(map(str, row.seeds)))
        for name in names:
            figure = results.figure(row, name)
            if figure is None:
                values += [None] * len(parts)
                continue
            of_seeds = (min(figure.seeds), max(figure.seeds)) if figure.seeds else (None, None)
            values += [figure.value, *(figure.interval or (None, None)), *of_seeds, figure.floor, figure.excess]
        writer.writerow(values)
    return content.getvalue()


def _seeds(results: Results) -> list[str]:
    """Of what was drawn; with the rows' names, where they differ."""
    found: dict[tuple[int, ...], list[str]] = {}
    for row in results.rows:
        if row.seeds:
            found.setdefault(row.seeds, []).append(row.name)
    said = []
    for seeds, names in found.items():
        whose = f" ({', '.join(names)})" if len(found) > 1 else ""
        said.append(", ".join(map(str, seeds)) + whose)
    return [f"Seeds: {'; '.join(said)}."] if said else []


def _titles(metric: str, results: Results) -> list[str]:
    """With the better direction; what has none is to be as the data's, where the floor's row says what that is."""
    if metric in METRICS:
        arrow = " ↑" if METRICS[metric].higher_is_better else " ↓"
    elif metric in SHOWN:
        arrow = " ↑"
    else:
        arrow = " → data" if any(row.label == FLOOR and metric in row.metrics for row in results.rows) else ""
    title = TITLES.get(metric, metric + arrow)
    return [title, "excess", "FID ratio"] if metric == "fid" else [title]


def _kinds(results: Results) -> set[bool]:
    """Of what stands behind ±: True of seeds, False of the bootstrap, as of the floor and of diversity always."""
    figures = [figure for row in results.rows for figure in row.metrics.values()]
    return {bool(figure.seeds) for figure in figures if figure.seeds or figure.interval}


def _figure(figure: Figure | None, decimals: int | None, mark: str) -> str:
    """With what stands behind ±; a `mark` follows that of the bootstrap."""
    if figure is None:
        return "–"
    ends = figure.seeds or figure.interval
    half = ""
    if ends and (figure.seeds or max(ends) > min(ends)):  # resamples that are all alike tell nothing
        reach = (max(ends) - min(ends)) / 2
        if not figure.seeds:  # a bound may cut one side of an interval
            reach = max(max(ends) - figure.value, figure.value - min(ends))
        half = f" ±{_short(reach, 2)}{'' if figure.seeds else mark}"
    return (significant(figure.value) if decimals is None else f"{figure.value:.{decimals}f}") + half


def significant(value: float, digits: int = 3) -> str:
    """So many digits, and all of those before the point; an exponent only below 1e-4."""
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return f"{value:.{digits - 1}e}" if exponent < -4 else f"{value:,.{max(digits - 1 - exponent, 0)}f}"


def _short(value: float, digits: int) -> str:
    """Without the zeros that end a fraction."""
    text = significant(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
