"""`scott sample`: pictures of prompts, by a student that was saved."""

import dataclasses
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import torch
from PIL import Image

from scott.commands.drawn import Drawn
from scott.commands.framing import drawing
from scott.commands.prepare import Warn
from scott.diffusion.tensors import DTYPES
from scott.errors import UserError, first_line, printable
from scott.evaluation import image_grid, to_pil
from scott.evaluation.pictures import how_made, save_picture
from scott.export.lora import apply_lora
from scott.export.trained import student_grid
from scott.students import Engine, Student, load_student, lora_of, teacher_of
from scott.teacher_source import TeacherSource

COLUMNS = 6
"""Pictures beside one another in a contact sheet."""


def load_lora_student(teacher: str | TeacherSource, lora: str, dtype: torch.dtype, warn: Warn) -> Student:
    """A teacher with the LoRA that a run, or an export's file or folder, holds; warns when it was made for another."""
    backbone = teacher_of(teacher, dtype)
    info = apply_lora(backbone, lora_of(Path(lora)), warn)
    if info.resolution:
        backbone.resize(info.resolution)
    grid = student_grid(backbone.schedule, info.original_inference_steps)
    return Student(f"{TeacherSource.of(teacher).teacher} with {lora}", backbone, backbone.target, grid, info)


def find_student(
    student: str | None,
    teacher: str | TeacherSource | None,
    lora: str | None,
    engine: Engine,
    precision: str = "fp32",
    warn: Warn = lambda message: None,
) -> Student:
    """The student that a command line names: by itself, or as a teacher and a LoRA."""
    if engine == "onnx" and precision != "fp32":
        raise UserError(f"got --precision {precision} with --engine onnx, whose exports are fp32; leave it out")
    dtype = DTYPES[precision]
    if student is not None and teacher is None and lora is None:
        return load_student(student, engine, dtype)
    if student is None and teacher is not None and lora is not None:
        if engine != "torch":
            raise UserError("got --engine onnx with a LoRA, which only torch applies; leave it out")
        return load_lora_student(teacher, lora, dtype, warn)
    raise UserError("expected either a student (a run folder or an export), or both --teacher and --lora")


def draw(
    prompts: Sequence[str],
    *,
    student: str | None = None,
    teacher: str | TeacherSource | None = None,
    lora: str | None = None,
    engine: Engine = "torch",
    precision: str = "fp32",
    asked: Drawn,
    seed: int = 0,
    grid: bool = False,
    out: Path,
    warn: Warn = lambda message: None,
) -> list[Path]:
    """One PNG a prompt in `out`, named after the prompt, with what made it in its metadata; the files.

    Image i uses the seed `seed + i`. With `grid`, the last file is a contact sheet of them all. A picture that is there
    is drawn again only if it was made alike.
    """
    texts = _prompts(prompts)
    if not 0 <= seed <= 2**64 - len(texts):
        raise UserError(f"got seed {seed} for {len(texts)} pictures; expected 0 to {2**64 - len(texts)}")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose another --out")
    loaded = find_student(student, teacher, lora, engine, precision, warn)
    sampler, steps = drawing(loaded, asked), asked.steps
    for text in texts:  # every prompt is checked before anything is written
        loaded.backbone.encode_prompts([text])
    scale = sampler.guidance if asked.negative_prompt is None else asked.guidance
    how = {"steps": steps, "guidance_scale": scale, "student": loaded.name} | asked.given
    how |= {"updates": loaded.info.updates} if loaded.info else {}
    how |= _otherwise(teacher, engine, precision, asked)
    made = _files_to_make(out, texts, seed, grid, how)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # of a place where nobody makes folders
        raise UserError(f"{out} cannot be made: {first_line(error)}; give another --out") from None
    files, pictures = list(made), list[Image.Image]()
    for index, prompt in enumerate(texts):
        picture = to_pil(sampler([prompt], seed + index)[0])
        save_picture(picture, files[index], made[files[index]])
        if grid:
            pictures.append(picture)
    if grid:
        save_picture(_contact_sheet(pictures, texts), files[-1], made[files[-1]])
    return files


def _otherwise(teacher: str | TeacherSource | None, engine: Engine, precision: str, asked: Drawn) -> dict[str, object]:
    """What else a picture depends on, where it is not as usual: parts of the teacher, and how it is computed."""
    parts = dataclasses.asdict(TeacherSource.of(teacher)) if teacher is not None else {}
    found = {name: list(value) if isinstance(value, tuple) else value for name, value in parts.items()}
    found = {name: value for name, value in found.items() if value and name != "teacher"}
    found |= {"engine": engine} if engine != "torch" else {}
    found |= {"precision": precision} if precision != "fp32" else {}
    return found | ({"image_sha256": sha256(asked.image.read_bytes()).hexdigest()} if asked.image else {})


def _files_to_make(
    out: Path, texts: Sequence[str], seed: int, grid: bool, how: dict[str, object]
) -> dict[Path, dict[str, object]]:
    """File → what its picture is made by, of each text and of the contact sheet, which is the last.

    Raises `UserError` where a file is there that was made otherwise.
    """
    end = f"{how['steps']}-steps-seed"
    made: dict[Path, dict[str, object]] = {}
    for index, prompt in enumerate(texts):
        made[_file(out, prompt, f"{end}-{seed + index}")] = {"prompt": prompt, "seed": seed + index} | how
    if grid:  # beside that of a prompt "grid", whose name has no underscore
        sheet = next(file for name in ("grid", "grid_") if (file := out / f"{name}-{end}-{seed}.png") not in made)
        made[sheet] = {"prompts": texts, "seed": seed} | how
    for file, parameters in made.items():
        if file.exists() and how_made(file) != parameters:
            raise UserError(f"{file} was made otherwise; choose another --out, nothing was changed")
    return made


def _prompts(prompts: Sequence[str]) -> list[str]:
    """Those given, each .txt file's lines in its place."""
    given = [text for prompt in prompts for text in (_lines(Path(prompt)) if prompt.endswith(".txt") else [prompt])]
    texts = [text for text in given if text]
    for text in texts:
        if text != printable(text):
            raise UserError(f"got the prompt {text!a}, which is not UTF-8; expected UTF-8 text")
    if not texts:
        raise UserError("got no prompts; give one or more after --prompts, or .txt files with a prompt a line")
    return texts


def _lines(file: Path) -> list[str]:
    """Of a text file, which end at a newline alone."""
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        why = first_line(error)
        raise UserError(f"{file} cannot be read ({why}); expected a UTF-8 text file with a prompt a line") from None


def _contact_sheet(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Image.Image:
    """All pictures under their prompts, `COLUMNS` in a row."""
    starts = range(0, len(pictures), COLUMNS)
    rows = [image_grid([pictures[i : i + COLUMNS]], [""], prompts[i : i + COLUMNS]) for i in starts]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _file(out: Path, prompt: str, end: str) -> Path:
    """Named after the prompt, and where another one has that name by its digest too."""
    file = out / f"{_slug(prompt)}-{end}.png"
    made = how_made(file) if file.exists() else None
    there = made.get("prompt", prompt) if isinstance(made, dict) else prompt
    return file if there == prompt else out / f"{_slug(prompt)}-{_digest(prompt)}-{end}.png"


def _digest(prompt: str) -> str:
    return sha256(prompt.encode()).hexdigest()[:8]


def _slug(prompt: str) -> str:
    """The prompt as the start of a file name, in any alphabet; one without a letter or digit by its digest.

    File systems take names of 255 bytes; this is 180 at most, 60 letters of three bytes.
    """
    words = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")[:60]
    return words.encode()[:180].decode(errors="ignore") or f"prompt-{_digest(prompt)}"
