"""Drawn pictures as files: PNGs that say how they were made, written whole, found again."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from scott.errors import UserError
from scott.evaluation.grids import to_pil
from scott.files import write_atomically

SECONDS = "seconds"
POLL_SECONDS = 0.5


def save_picture(picture: Image.Image, file: Path, made: Mapping[str, object]) -> None:
    """Write a PNG that says in its metadata how it was made."""
    metadata = PngInfo()
    metadata.add_text("parameters", json.dumps(made, ensure_ascii=False))
    temporary = file.with_suffix(".tmp")
    picture.save(temporary, "PNG", pnginfo=metadata)
    os.replace(temporary, file)


def parameters(file: Path) -> Any:
    """How a PNG of `save_picture` was made; None of any other file."""
    try:
        with Image.open(file) as picture:
            return json.loads(picture.info["parameters"])
    except (OSError, KeyError, ValueError):
        return None


def kept(files: Sequence[Path], made: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all are there. Raises `UserError` for one that was made otherwise."""
    for file, wanted in zip(files, made, strict=True):
        if not file.exists():
            return False
        found = parameters(file)
        if not isinstance(found, dict) or {k: v for k, v in found.items() if k != SECONDS} != dict(wanted):
            raise UserError(f"{file} was made otherwise; choose another folder for the pictures, nothing was changed")
    return True


def keep(images: Tensor, files: Sequence[Path], made: Sequence[Mapping[str, Any]], seconds: float) -> None:
    """Write pictures (B, 3, H, W), each of which took `seconds`."""
    files[0].parent.mkdir(parents=True, exist_ok=True)
    for image, file, how in zip(images, files, made, strict=True):
        save_picture(to_pil(image), file, {**how, SECONDS: seconds})


def read(files: Sequence[Path], *, wait: bool = False) -> tuple[Tensor, float]:
    """Pictures (B, 3, H, W) in [0, 1] and the seconds they took; `wait` for files that another process will write."""
    while wait and not all(file.exists() for file in files):
        time.sleep(POLL_SECONDS)
    arrays, seconds = [], 0.0
    for file in files:
        with Image.open(file) as picture:
            seconds += json.loads(picture.info["parameters"])[SECONDS]
            arrays.append(np.array(picture.convert("RGB")))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous().float() / 255, seconds


def write_captions(folder: Path, prompts: Sequence[str]) -> None:
    """metadata.jsonl beside kept pictures, so that the folder is a source of captioned pictures."""
    rows = [{"file_name": f"{index:05d}.png", "text": prompt} for index, prompt in enumerate(prompts)]
    write_atomically(folder / "metadata.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
