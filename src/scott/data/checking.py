"""What a source holds, read as it is for training but without a teacher: what is kept, what is not, and why."""

import base64
import html
import io
import itertools
import random
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

from PIL import Image

from scott.data.loading import Sample, Tally, loader
from scott.data.preparation import limited
from scott.data.records import Source
from scott.data.settings import Settings

SHOWN = 16
PAGE = "<!doctype html><!-- scott prepare --check -->"
"""What a contact sheet begins with, and no other page."""
RESOLUTION, FACTOR = 512, 8
"""Side of the square in pixels, where none is asked for, and of a latent: what most teachers have."""


@dataclass
class Check(Tally):
    """What reading a source gave."""

    count: int = 0
    """Records that are kept."""
    shown: list[Sample] = field(default_factory=list)
    """Up to `SHOWN` of those, drawn at random."""
    repeats: Counter[int] = field(default_factory=Counter)
    """Visits an epoch → how many records of the source have them, where it says more than one."""


def check_source(source: Source, settings: Settings, report: Callable[[int], None]) -> Check:
    """Read all of a source, or its first `limit` records; `report` is called with how many were read.

    Raises:
        UserError: a column of `where` is missing, or the source cannot be read.
    """
    load = loader(source, settings, settings.resolution or RESOLUTION, FACTOR)
    check, generator, numbers = Check(), random.Random(0), itertools.count(1)
    for unit in limited(source, settings):
        with closing(load(unit.entries())) as found:
            for sample in check.kept(found, lambda _: report(next(numbers))):
                check.count += 1
                if len(check.shown) < SHOWN:
                    check.shown.append(sample)
                elif (place := generator.randrange(check.count)) < SHOWN:  # all are shown with the same probability
                    check.shown[place] = sample
        if unit.repeats > 1:
            check.repeats[unit.repeats] += unit.count or 0
    return check


def contact_sheet(title: str, check: Check) -> str:
    """A page of HTML that needs no other file: the counts, and the pictures as they are cropped with their captions."""
    rows = [f"<tr><th>kept<td>{check.count:,}<td>"]
    for reason, count in check.skipped.most_common():
        first = check.first[reason]
        rows.append(f"<tr><th>{reason}<td>{count:,}<td>{html.escape(f'{first.key} {first.detail}')}")
    figures = []
    for sample in check.shown:
        captions = "<br>".join(html.escape(caption[:500]) for caption in sample.captions)
        figures.append(f"<figure>{_picture(sample)}<figcaption>{captions}</figure>")
    name = html.escape(title)
    return (
        f"{PAGE}<meta charset=utf-8><title>{name}</title><style>{_STYLE}</style><h1>{name}</h1>"
        f"<table>{''.join(rows)}</table><main>{''.join(figures)}</main>\n"
    )


_STYLE = (
    "body{font:14px sans-serif;margin:2em}main{display:grid;grid-template-columns:repeat(4,1fr);gap:1em}"
    "img{width:100%}figure{margin:0}th{text-align:left}td:nth-child(2){text-align:right;padding:0 1em}"
    "figcaption{overflow-wrap:anywhere}"
)


def _picture(sample: Sample) -> str:
    image = Image.fromarray(sample.pixels.permute(1, 2, 0).numpy())
    image.thumbnail((384, 384))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'
