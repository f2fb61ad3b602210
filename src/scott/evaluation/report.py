"""The figures, shown: a terminal table, a README table, and one self-contained report.html."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.table import Table

from scott.evaluation.curves import curves_svg
from scott.evaluation.results import Results, Row
from scott.files import write_atomically

_COLUMNS = [
    "sampler",
    "steps",
    "calls",
    "s / image",
    "FID ↓",
    "FID ratio",
    "CLIP score ↑",
    "coverage ↑",
    "samples",
]


def _cells(results: Results, row: Row) -> list[str]:
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


def _number(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)


def _footnotes(results: Results) -> list[str]:
    notes = [f"{row.name}: {row.note}" for row in results.rows if row.note]
    if baseline := results.baseline():
        notes.append(f"FID ratio: to {baseline.name}.")
    if any(row.recorded for row in results.rows):
        notes.append("† Measured in an earlier run of the same sampler.")
    return notes


def table(results: Results) -> Table:
    """For the terminal: `rich.print(table(results))`. Footnotes stand in the caption."""
    caption = "\n".join(_footnotes(results)) or None
    shown = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
        caption=caption,
        caption_justify="left",
    )
    for column in _COLUMNS:
        named = column == "sampler"
        shown.add_column(column, justify="left" if named else "right", no_wrap=named)
    for row in results.rows:
        shown.add_row(*_cells(results, row), style="bold" if row is results.baseline() else None)
    return shown


def markdown_table(results: Results) -> str:
    """For a README or a model card: a GitHub table, then the footnotes, each a paragraph."""
    lines = [_COLUMNS, ["---"] + ["---:"] * (len(_COLUMNS) - 1)]
    lines += [_cells(results, row) for row in results.rows]
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join(rows) + "".join(f"\n\n{note}" for note in _footnotes(results)) + "\n"


def write_report(
    path: str | Path,
    *,
    title: str,
    results: Results,
    config: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    grids: Sequence[tuple[str, Image.Image]],
    notes: Sequence[str],
) -> None:
    """Write report.html: what was done, the table, the samples, the curves, the configuration.

    `metrics` are the rows of metrics.jsonl, `grids` (caption, image) pairs, `notes` sentences that say what
    was done. A section without content is left out. The page makes no request: images and styles are
    inside, and its content security policy forbids everything else. Every text is HTML-escaped.
    """
    style = files("scott.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    body = [
        f"<h1>{escape(title)}</h1>",
        _meta(results.meta),
        _section("What was done", _list(notes, "notes")),
        _section("Results", _html_table(results) if results.rows else ""),
        _section("Samples", "".join(_figure(caption, image) for caption, image in grids)),
        _section("Training", _panels(metrics)),
        _details("Configuration", config),
    ]
    content = "\n".join(part for part in body if part)
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{content}
</main>
</body>
</html>
"""
    write_atomically(path, page)


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{heading}</h2>\n{content}\n</section>" if content else ""


def _list(items: Sequence[str], css_class: str) -> str:
    entries = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<ul class="{css_class}">{entries}</ul>' if entries else ""


def _meta(meta: Mapping[str, Any]) -> str:
    """The results' conditions as a definition list; nested values as "name value" pairs."""

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {text(inner)}" for key, inner in value.items())
        return f"{value:,}" if type(value) is int else str(value)

    entries = "".join(
        f"<div><dt>{escape(str(key).replace('_', ' '))}</dt><dd>{escape(text(value))}</dd></div>"
        for key, value in meta.items()
    )
    return f'<dl class="meta">{entries}</dl>' if entries else ""


def _html_table(results: Results) -> str:
    def line(cells: Sequence[str], tag: str, css_class: str = "") -> str:
        inner = "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)
        return f'<tr class="{css_class}">{inner}</tr>'

    baseline = results.baseline()
    rows = []
    for row in results.rows:
        marks = ["baseline"] * (row is baseline) + ["recorded"] * row.recorded
        rows.append(line(_cells(results, row), "td", " ".join(marks)))
    footnotes = "".join(f'<p class="small">{escape(note)}</p>' for note in _footnotes(results))
    head = line(_COLUMNS, "th")
    contents = f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table>{contents}</table></div>{footnotes}'


def _figure(caption: str, image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    alt = escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{image.width}" height="{image.height}" '
        f'alt="{alt}"><figcaption>{alt}</figcaption></figure>'
    )


def _panels(metrics: Sequence[Mapping[str, Any]]) -> str:
    panels = "".join(f'<div class="panel"><h3>{escape(title)}</h3>{svg}</div>' for title, svg in curves_svg(metrics))
    return f'<div class="panels">{panels}</div>' if panels else ""


def _details(heading: str, config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    text = json.dumps(config, indent=2, ensure_ascii=False, default=str)
    return f"<details><summary>{heading}</summary><pre>{escape(text)}</pre></details>"
