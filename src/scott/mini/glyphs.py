"""The subjects of the embedded data: colour emoji, each in one or more styles, drawn once and shipped as a shard.

A shard is a tar of `NNN.json` (subject, code points) followed by `NNN.STYLE.webp`, its drawings, RGBA cropped to their
ink; of one style, `NNN.webp`. LICENSES.md tells whose drawings they are.
"""

import io
import json
import tarfile
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from scott.errors import UserError

ASSETS = Path(str(resources.files("scott.mini") / "assets"))
SHARD = ASSETS / "glyphs.tar"
ONLY_STYLE = "noto"
"""The style of a shard that names none."""


@cache
def load(shard: Path = SHARD) -> dict[str, dict[str, Image.Image]]:
    """subject → style → RGBA drawing, in shard order; alpha is premultiplied: resizing leaves no dark fringe. Raises
    `UserError` for a file that is no tar."""
    try:
        return _read(shard)
    except tarfile.TarError as error:
        raise UserError(f"{shard} is no shard of glyphs ({error}); expected a tar") from None


def _read(shard: Path) -> dict[str, dict[str, Image.Image]]:
    glyphs: dict[str, dict[str, Image.Image]] = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None, "a shard holds files alone"
            name = member.name.split(".")
            if name[-1] == "json":
                glyphs[json.load(content)["subject"]] = drawings = {}
            else:
                drawings[name[1] if len(name) == 3 else ONLY_STYLE] = _premultiplied(content.read())
    return glyphs


def styles(shard: Path = SHARD) -> tuple[str, ...]:
    """The styles of a shard, the same for every subject."""
    return tuple(next(iter(load(shard).values())))


def _premultiplied(webp: bytes) -> Image.Image:
    rgba = np.asarray(Image.open(io.BytesIO(webp)).convert("RGBA")).astype(np.float32)
    rgba[..., :3] *= rgba[..., 3:] / 255
    return Image.fromarray(rgba.round().astype(np.uint8), mode="RGBa")
