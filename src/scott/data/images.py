"""Captioned images, wherever they are: something with a length whose item i is (image, caption)."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageOps

from scott.errors import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


class CaptionedImages(Protocol):
    name: str
    version: str
    """Differs when the images or captions do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, str]: ...


class Folder:
    """Images of a folder (and the folders in it), each with its caption in a .txt file of the same name.

    Raises `UserError` when the folder is missing, holds no images, or an image has no caption.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(
                f"no data at {folder}; expected `mini` or a folder of images with .txt captions beside them"
            )
        self.name = str(folder)
        self.files: Sequence[Path] = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        without = [p for p in self.files if not p.with_suffix(".txt").is_file()]
        if not self.files:
            raise UserError(f"{folder} holds no images; expected files ending in {', '.join(sorted(SUFFIXES))}")
        if without:
            raise UserError(
                f"{len(without)} of {len(self.files)} images lack a caption, first {without[0]}; expected a .txt beside"
            )
        stats = ((p, p.stat(), p.with_suffix(".txt").stat()) for p in self.files)
        states = [(p.name, i.st_size, i.st_mtime_ns, c.st_size, c.st_mtime_ns) for p, i, c in stats]
        self.version = hashlib.sha256(repr(states).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        file = self.files[index]
        try:
            image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
        except (OSError, Image.DecompressionBombError) as error:
            raise UserError(f"{file} is not a readable image ({error}); mend it or take it out") from None
        caption = file.with_suffix(".txt")
        try:
            return image, caption.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{caption} is not UTF-8 text ({error}); save it as UTF-8") from None
