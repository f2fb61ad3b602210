"""The subjects of the embedded data: colour emoji, drawn once and shipped as a WebDataset shard.

The drawings are Noto Color Emoji (SIL Open Font License 1.1), at the font's native 109 px; the names are Unicode's
short names as the `emoji` package spells them. `draw` needs the font and that package; everyone else reads the shard.
"""

import io
import json
import tarfile
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import webdataset as wds
from PIL import Image, ImageDraw, ImageFont

from scott.errors import UserError

NATIVE_SIZE = 109  # the only size at which Noto's bitmaps are stored
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
ASSETS = Path(str(resources.files("scott.mini") / "assets"))
SHARD = ASSETS / "glyphs.tar"


def subject_names() -> list[str]:
    """The names in `subjects.txt`, sorted: chosen by eye as the emoji that are easiest to tell apart."""
    return (resources.files("scott.mini") / "subjects.txt").read_text().split("\n")[:-1]


def draw(shard: Path, font: Path = FONT) -> int:
    """Draw every subject with `font` and write `shard`; returns the number of glyphs.

    Each sample has `NNN.webp` (lossless RGBA, cropped to its ink) and `NNN.json` (subject, code points).
    Raises `UserError` when the font is missing or lacks a subject.
    """
    import emoji

    if not font.is_file():
        raise UserError(f"no font at {font}: install Noto Color Emoji (Debian: fonts-noto-color-emoji)")
    characters = {
        data["en"].strip(":").replace("_", " "): character
        for character, data in emoji.EMOJI_DATA.items()
        if data["status"] == emoji.STATUS["fully_qualified"]
    }
    face = ImageFont.truetype(str(font), NATIVE_SIZE)
    names = subject_names()
    shard.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index, name in enumerate(names):
            image = _draw_one(characters[name], face)
            if image is None:
                raise UserError(f"{font} draws nothing for {name!r}: take it out of subjects.txt")
            webp = io.BytesIO()
            image.save(webp, "webp", lossless=True, quality=100, method=6)
            points = " ".join(f"U+{ord(c):04X}" for c in characters[name])
            _add(tar, f"{index:03d}.json", json.dumps({"subject": name, "code_points": points}).encode())
            _add(tar, f"{index:03d}.webp", webp.getvalue())
    return len(names)


def _draw_one(character: str, face: ImageFont.FreeTypeFont) -> Image.Image | None:
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((12, 12), character, font=face, embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    return canvas.crop(box) if box else None


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)  # every other field stays at its default, so that equal glyphs give equal bytes
    tar.addfile(info, io.BytesIO(content))


@cache
def load(shard: Path = SHARD) -> dict[str, Image.Image]:
    """subject → RGBA drawing with premultiplied alpha (so that resizing leaves no dark fringe), in shard order."""
    glyphs = {}
    # every process of a launcher reads all of them
    for sample in wds.WebDataset(str(shard), shardshuffle=False, empty_check=True, nodesplitter=None):
        rgba = np.asarray(Image.open(io.BytesIO(sample["webp"])).convert("RGBA")).astype(np.float32)
        rgba[..., :3] *= rgba[..., 3:] / 255
        premultiplied = Image.fromarray(rgba.round().astype(np.uint8), mode="RGBa")
        glyphs[json.loads(sample["json"])["subject"]] = premultiplied
    return glyphs
