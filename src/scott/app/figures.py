"""What the page shows, as HTML: pictures with texts for those who do not see them and PNGs to keep, tables, errors."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

from PIL import Image
from safetensors import SafetensorError

from scott.app.drawing import Picture
from scott.errors import UserError, first_line, is_out_of_memory, one_line
from scott.evaluation.pictures import data_url, png

SMALL = 256
"""Pictures of fewer pixels a side are shown larger, pixel by pixel."""
CSS = """
.figures { display: grid; gap: .8rem; margin: 0 0 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)) }
.figures.many { grid-template-columns: repeat(8, minmax(3.2rem, 1fr)); gap: .4rem }
section h2 { font-size: 1.1rem }
button[role="tab"][aria-selected="true"] { color: var(--body-text-color) }
.figures figure { margin: 0 }
.figures figure:has(details[open]) { grid-column: 1 / -1 }
.figures figure:has(details[open]) img { max-width: 16rem }
.figures img { width: 100%; display: block; border-radius: 4px }
.figures img.small { image-rendering: pixelated }
.figures figcaption { font-size: .85rem; line-height: 1.5 }
.figures a { margin: 0; padding: 0 }
.figures .absent { aspect-ratio: 1; display: grid; place-content: center; text-align: center; padding: .6rem;
  border: 1px dashed var(--border-color-primary); border-radius: 4px; font-size: .85rem }
.figures pre { overflow-x: auto; padding: .6rem; font-size: .85rem; background: var(--background-fill-secondary) }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
.scott-table { font-size: .9rem; margin-bottom: 1rem }
.scott-table caption { text-align: left; font-weight: 600; padding-bottom: .3rem }
.scott-table, .scott-table * { border: 0 !important; text-align: left }
.scott-table td, .scott-table th { padding: .15rem .8rem .15rem 0; font-weight: normal }
.scott-table th[scope="rowgroup"] { font-weight: 600; padding-top: .6rem }
p[role="alert"] { border-left: 4px solid var(--color-accent); padding: .3rem .8rem }
.scott-wide img, .scott-wide svg { max-width: 100%; height: auto; background: white }
.scott-wide { overflow-x: auto }
@media (max-width: 640px) {
  .scott-wide img { max-width: none }
  .figures { grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .5rem }
  .figures.many { grid-template-columns: repeat(4, 1fr) } }
"""


def figures(pictures: Sequence[Picture]) -> str:
    """Pictures in a row for each student and teacher, under its name."""
    rows = [_drawn(pictures)]
    for who, row in groupby(pictures, key=lambda picture: picture.who):
        cells = "".join(_figure(picture) for picture in row)
        rows.append(f'<section aria-label="{escape(who)}"><h2>{escape(who)}</h2>{_grid(cells)}</section>')
    return "".join(rows)


def varieties(pictures: Sequence[Picture]) -> str:
    """All seeds of each student and teacher, in a grid under its name and its number of steps."""
    drawn = [picture for picture in pictures if picture.image is not None]

    def sampler(picture: Picture) -> tuple[bool, str, int, float]:
        return picture.kind == "teacher", picture.who, picture.steps, picture.omega or 0.0

    ordered = sorted(drawn, key=lambda picture: (*sampler(picture), picture.seed))
    grids = [_drawn(pictures)]
    for (_, who, steps, omega), group in groupby(ordered, key=sampler):
        cells = list(group)
        seconds = sum(picture.seconds for picture in cells)
        title = f"{escape(who)}, {_steps(steps)}" + (f", ω {omega:g}" if omega else "")
        inner = "".join(f"<figure>{_image(cell)}<figcaption>seed {cell.seed}</figcaption></figure>" for cell in cells)
        grids.append(
            f'<section aria-label="{title}"><h2>{title}: {seconds:.2f} s for {len(cells)}</h2>'
            f"{_grid(inner, 'many')}</section>"
        )
    if len(drawn) < len(pictures):
        grids.append("<p>What is slow is not drawn while you type; press Draw.</p>")
    return "".join(grids)


def _drawn(pictures: Sequence[Picture]) -> str:
    """For those who do not see it: how far the drawing is."""
    done = sum(picture.image is not None for picture in pictures)
    return f'<p role="status" class="unseen">{_count(done, "picture")} drawn</p>'


def message(text: str) -> str:
    """A sentence in a picture's place, read out as it appears."""
    return f'<p role="alert">{escape(text)}</p>'


def problem(error: Exception) -> str:
    """What is wrong, as the command line says it, in the place of what was asked for: it stays until that is there.

    Raises an error that is none of its reader's doing.
    """
    if isinstance(error, (UserError, FloatingPointError, OSError, SafetensorError)):
        return message(one_line(str(error)))
    if is_out_of_memory(error):
        said = f"{first_line(error)}; choose fewer students or steps, or start scott app with --precision fp16"
        return message(said)
    raise error


def image(picture: Image.Image, text: str) -> str:
    """A picture by itself."""
    return f'<div class="scott-wide"><img src="{data_url(png(picture, {}))}" alt="{escape(text)}"></div>'


def table(rows: Iterable[tuple[str, str, str]], caption: str) -> str:
    """Rows of a name, a figure and a remark; a name alone is the heading of those that follow."""
    cells = ""
    for name, *values in rows:
        if any(values):
            data = "".join(f"<td>{escape(value)}</td>" for value in values)
            cells += f'<tr><th scope="row">{escape(name)}</th>{data}</tr>'
        else:
            cells += f'<tr><th scope="rowgroup" colspan="3">{escape(name)}</th></tr>'
    return f'<table class="scott-table"><caption>{escape(caption)}</caption>{cells}</table>'


def _figure(picture: Picture) -> str:
    caption = f"<b>{_steps(picture.steps)}</b>, {_count(picture.calls, 'call')}<br>"
    if picture.image is None:
        absent = f'<div class="absent">took {picture.seconds:.1f} s: not drawn while you type; press Draw</div>'
        return f"<figure>{absent}<figcaption>{caption}</figcaption></figure>"
    href = data_url(png(picture.image, picture.made))
    name = f"{picture.who}, {_steps(picture.steps)}"
    caption += f"{picture.seconds:.3f} s" + ("" if picture.omega is None else f", ω {picture.omega:g}") + "<br>"
    file = escape(picture.file_name)
    caption += f'<a href="{href}" download="{file}" aria-label="Download {escape(name)}">Download</a>'
    if picture.code:
        caption += f"<details><summary>In diffusers</summary><pre><code>{escape(picture.code)}</code></pre></details>"
    return f"<figure>{_image(picture)}<figcaption>{caption}</figcaption></figure>"


def _image(picture: Picture) -> str:
    assert picture.image is not None
    text = f"{picture.prompt}, drawn by {picture.who} in {_steps(picture.steps)}"
    small = ' class="small"' if picture.image.width < SMALL else ""
    return f'<img{small} src="{data_url(png(picture.image, picture.made))}" alt="{escape(text)}">'


def _grid(cells: str, kind: str = "") -> str:
    return f'<div class="figures {kind}">{cells}</div>'


def _steps(count: int) -> str:
    return _count(count, "step")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
