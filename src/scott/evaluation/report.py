"""One page that shows what was done and how good it is: report.html, which needs nothing beside it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image

from scott.evaluation.curves import curves_svg
from scott.evaluation.pictures import data_url, png
from scott.evaluation.results import Results
from scott.evaluation.tables import cells, columns, footnotes
from scott.files import write_atomically


def write_report(
    path: str | Path,
    *,
    title: str,
    results: Results,
    config: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    grids: Sequence[tuple[str, Image.Image]],
    statements: Sequence[str],
) -> None:
    """Write report.html: what was done, the table, the samples, the curves, the configuration.

    `metrics` are the rows of metrics.jsonl, `grids` (caption, image) pairs, `statements` sentences that say what was
    done. A section without content is left out. The page makes no request: pictures and styles are inside, and its
    content security policy forbids everything else. Every text is HTML-escaped.
    """
    curves = curves_svg(metrics)
    page = Environment(loader=PackageLoader("scott.evaluation", "."), autoescape=True).get_template("report.html")
    text = page.render(
        title=title,
        results=results,
        columns=columns(results),
        cells=cells,
        footnotes=footnotes(results),
        statements=statements,
        grids=[(caption, data_url(png(image, {}))) for caption, image in grids],
        curves=data_url(curves, "image/svg+xml") if curves else None,
        config=json.dumps(config, indent=2, ensure_ascii=False, default=str) if config else None,
    )
    write_atomically(path, text)
