"""The subjects in four hands, drawn once and shipped as `scott.mini`'s glyph shard.

    noto     Noto Color Emoji, the font (Debian: fonts-noto-color-emoji)
    3D       Fluent Emoji 3D, npm @lobehub/fluent-emoji-3d, WebP named by code points
    flat     Fluent Emoji Flat, npm @iconify-json/fluent-emoji-flat, SVG named by chars.json
    twemoji  Twemoji, npm @iconify-json/twemoji, SVG named by chars.json

`python -m experiments.embedded_teacher.drawings --sources FOLDER` needs these sources (`npm pack` each and unpack it as
FOLDER/fluent-emoji-3d, fluent-emoji-flat and twemoji) and the packages emoji and resvg-py; everyone else reads the
shard. `--sheets FOLDER` draws what was looked at when the subjects were chosen: every subject in its four hands.
"""

import io
import json
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tyro
from experiments.runs import exit_code
from PIL import Image, ImageDraw, ImageFont

from scott.errors import UserError, require
from scott.files import read_object, replacing
from scott.mini import glyphs

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE = 109
"""The only size at which Noto's bitmaps are stored."""
SIDE = 72
"""Longer side of a stored drawing; a scene draws it at 26 to 58 pixels."""
QUALITY = 90
"""Of WebP's colours; transparency is lossless."""
SUBJECTS = Path(__file__).with_name("subjects.txt")
"""Chosen by eye from such sheets: the same thing in all four hands, easily named."""
SHARD = glyphs.SHARD
Draw = Callable[[str], Image.Image | None]


def subject_names() -> list[str]:
    return SUBJECTS.read_text(encoding="utf-8").splitlines()


def noto(character: str) -> Image.Image | None:
    """A character by the font."""
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((12, 12), character, font=_font(), embedded_color=True)
    return canvas


@cache
def _font() -> ImageFont.FreeTypeFont:
    if not FONT.is_file():
        raise UserError(f"no font at {FONT}; install Noto Color Emoji (Debian: fonts-noto-color-emoji)")
    return ImageFont.truetype(str(FONT), FONT_SIZE)


def fluent_3d(package: Path) -> Draw:
    """By file name: code points in hexadecimal, joined by hyphens."""

    def draw(character: str) -> Image.Image | None:
        file = package / "assets" / f"{_points(character)}.webp"
        return Image.open(file).convert("RGBA") if file.is_file() else None

    return draw


def icons(package: Path) -> Draw:
    """By an Iconify set: `chars.json` names the icon of code points, `icons.json` has its SVG's body."""
    resvg_py = require("resvg_py", "drawing SVG", "resvg-py")
    names, found = (
        read_object(package / f"{name}.json", f"npm pack the icon set and unpack it as {package}")
        for name in ("chars", "icons")
    )

    def draw(character: str) -> Image.Image | None:
        points = _points(character)
        name = names.get(points, names.get(points.replace("-fe0f", "")))
        if name is None or name not in found["icons"]:
            return None
        icon = found["icons"][name]
        width, height = (icon.get(side, found.get(side, 16)) for side in ("width", "height"))
        head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        svg = f'{head} viewBox="0 0 {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
        return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=256)))).convert("RGBA")

    return draw


def _points(character: str) -> str:
    return "-".join(f"{ord(c):04x}" for c in character)


def styles(sources: Path) -> dict[str, Draw]:
    return {
        "noto": noto,
        "3D": fluent_3d(sources / "fluent-emoji-3d"),
        "flat": icons(sources / "fluent-emoji-flat"),
        "twemoji": icons(sources / "twemoji"),
    }


def characters() -> dict[str, str]:
    """Unicode's short name, as the `emoji` package spells it → character."""
    emoji = require("emoji", "naming the subjects")
    status = emoji.STATUS["fully_qualified"]
    entries = emoji.EMOJI_DATA.items()
    return {data["en"].strip(":").replace("_", " "): char for char, data in entries if data["status"] == status}


def drawing(character: str, draw: Draw) -> Image.Image | None:
    """The drawing, cropped to its ink, its longer side `SIDE`; None where the style lacks it."""
    image = draw(character)
    if image is None or (box := image.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()) is None:
        return None
    # premultiplied, so that transparent pixels lend no colour to their neighbours
    ink = image.crop(box).convert("RGBa")
    factor = SIDE / max(ink.size)
    size = (max(1, round(ink.width * factor)), max(1, round(ink.height * factor)))
    return ink.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0).convert("RGBA")


def write_shard(shard: Path, sources: Path) -> int:
    """Write every subject in every style, whole or not at all; returns the number of drawings.

    Of a subject there are `NNN.json` (subject, code points) and `NNN.STYLE.webp`, RGBA cropped to its ink, a style.
    Raises `UserError` where a style lacks a subject.
    """
    by_name, found = characters(), styles(sources)
    count = 0
    with replacing(shard) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index, name in enumerate(subject_names()):
            character = by_name[name]
            points = " ".join(f"U+{ord(c):04X}" for c in character)
            _add(tar, f"{index:03d}.json", json.dumps({"subject": name, "code_points": points}).encode())
            for style, draw in found.items():
                image = drawing(character, draw)
                if image is None:
                    raise UserError(f"{style} lacks {name!r}; take it out of subjects.txt")
                webp = io.BytesIO()
                image.save(webp, "webp", quality=QUALITY, alpha_quality=100, method=4)
                _add(tar, f"{index:03d}.{style}.webp", webp.getvalue())
                count += 1
    return count


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)  # every other field stays at its default, so that equal glyphs give equal bytes
    tar.addfile(info, io.BytesIO(content))


def sheets(folder: Path, sources: Path, names: list[str], columns: int = 4, rows: int = 10) -> list[Path]:
    """Contact sheets: each subject in every style, with its name; what a style lacks is left white."""
    by_name, found = characters(), styles(sources)
    folder.mkdir(parents=True, exist_ok=True)
    files, cell = [], SIDE + 4
    width = cell * len(found) + 10
    for page, start in enumerate(range(0, len(names), columns * rows), 1):
        canvas = Image.new("RGB", (columns * width, rows * (cell + 14)), "white")
        pen = ImageDraw.Draw(canvas)
        for place, name in enumerate(names[start : start + columns * rows]):
            left, top = place % columns * width, place // columns * (cell + 14)
            pen.text((left + 2, top), name, fill="black")
            for number, draw in enumerate(found.values()):
                if (image := drawing(by_name[name], draw)) is not None:
                    canvas.paste(image, (left + number * cell, top + 14), image)
        files.append(folder / f"subjects-{page}.png")
        canvas.save(files[-1])
    return files


@dataclass
class Drawings:
    """Draw the glyph shard of the embedded data from its four sources."""

    sources: Path
    out: Path = SHARD
    sheets: Path | None = None
    """Draw contact sheets here instead."""

    def run(self) -> None:
        if self.sheets:
            for file in sheets(self.sheets, self.sources, subject_names()):
                print(file)  # noqa: T201
        else:
            print(f"{write_shard(self.out, self.sources)} drawings in {self.out}")  # noqa: T201


if __name__ == "__main__":
    asked = tyro.cli(Drawings)
    sys.exit(exit_code(lambda report: asked.run()))
