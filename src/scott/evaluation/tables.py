"""The figures as tables: for the terminal, for a README or a card, as CSV, and the cells of the report's."""

import csv
import io

from rich.box import SIMPLE_HEAD
from rich.table import Table

from scott.evaluation.measures import METRICS, SHOWN, USUAL, Figure
from scott.evaluation.results import FLOOR, Results, Row

FORMATS = {"fid": "#.3g", "clip-score": ".3f", "coverage": ".3f"}
BOOTSTRAP = "‡"
"""Behind the ± of the bootstrap, where others are of seeds."""
TITLES = {"fid": "FID ↓", "clip-score": "CLIP score ↑", "coverage": "coverage ↑", "spread": "spread → 1"}


def metrics_of(results: Results) -> list[str]:
    """The usual metrics, then what else any row has."""
    return list(dict.fromkeys([*USUAL, *(name for row in results.rows for name in row.metrics)]))


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
        measures.append(_figure(figure, FORMATS.get(name, "#.3g"), mark))
        if name == "fid":
            measures.append(_number(figure.excess if figure else None, "#.3g"))
            measures.append(_number(results.fid_ratio(row), ".2f"))
    guidance = [_number(row.guidance, "g")] if "ω" in columns(results) else []
    return [
        row.name + (" †" if row.recorded else ""),
        str(row.steps) if row.steps else "–",
        str(row.network_calls) if row.network_calls else "–",
        *guidance,
        _number(row.seconds_per_image, ".3g"),
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
    if features := results.meta.get("networks", {}).get("features"):
        lines.append(f"Features: {features}.")
    if any(row.recorded for row in results.rows):
        lines.append("† Measured in an earlier run of the same sampler.")
    return lines


def table(results: Results) -> Table:
    """For the terminal: `rich.print(table(results))`. Footnotes stand in the caption."""
    shown = Table(
        box=SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        pad_edge=False,
        caption="\n".join(footnotes(results)) or None,
        caption_justify="left",
    )
    rows = [cells(results, row) for row in results.rows]
    for column, *values in zip(columns(results), *rows, strict=True):
        width = max(map(len, (*values, *column.split())))  # headers are broken, so that 80 columns hold all figures
        shown.add_column(column, justify="left" if column == "sampler" else "right", width=width)
    for row, values in zip(results.rows, rows, strict=True):
        shown.add_row(*values, style="bold" if row is results.baseline() else None)
    return shown


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


def _figure(figure: Figure | None, spec: str, mark: str) -> str:
    """With what stands behind ±; a `mark` follows that of the bootstrap."""
    if figure is None:
        return "–"
    ends = figure.seeds or figure.interval
    half = f" ±{(max(ends) - min(ends)) / 2:.2g}{'' if figure.seeds else mark}" if ends else ""
    return format(figure.value, spec) + half


def _number(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)
