"""`scott sample` and `scott evaluate`: a student that was saved, found, loaded and used."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from scott.backbones import Backbone, load_backbone
from scott.diffusion import JumpGrid
from scott.errors import UserError
from scott.evaluation import Results
from scott.generators import StudentSampler
from scott.recipes.measure import SEED, HeldOut, recorded_teacher_rows, student_rows
from scott.recipes.run import Report, best_device


def load_student(student: str) -> tuple[Backbone, JumpGrid]:
    """A run folder's student, or a pipeline folder's (or hub id's), with the grid it was trained on.

    Raises `UserError` when there is none, or when the pipeline is no consistency student.
    """
    folder = Path(student)
    if (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
        if not (folder / "student").is_dir():
            raise UserError(f"{folder} is a run without a student yet; finish it with the command that started it")
        student = str(folder / "student")
    backbone = load_backbone(student).to(best_device())
    steps = backbone.original_inference_steps
    if steps is None:
        raise UserError(f"{student} has no LCMScheduler, so it is no few-step student; distil it first")
    spacing = backbone.schedule.training_steps // steps
    return backbone, JumpGrid(backbone.schedule, jump=spacing, substeps=1)


def draw(student: str, prompts: Sequence[str], *, steps: int, seed: int, guidance: float, out: Path) -> list[Path]:
    """One PNG a prompt in `out`, with what made it in its metadata; image i uses the seed `seed + i`."""
    texts = _prompts(prompts)
    backbone, grid = load_student(student)
    grid.inference_times(steps)
    backbone.encode_prompts(texts)  # every prompt is checked before anything is written
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose another --out")
    sampler = StudentSampler(backbone, grid, steps, guidance, network="teacher")
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for index, prompt in enumerate(texts):
        (pixels,) = sampler([prompt], seed + index)
        info = {"prompt": prompt, "seed": seed + index, "steps": steps, "guidance_scale": guidance, "student": student}
        metadata = PngInfo()
        metadata.add_text("parameters", json.dumps(info, ensure_ascii=False))
        file = out / f"{seed + index:05d}-{steps}-steps.png"
        _to_pil(pixels).save(file, pnginfo=metadata)
        files.append(file)
    return files


def evaluate_student(
    student: str, steps: Sequence[int], *, samples: int, guidance: float, out: Path | None, report: Report
) -> tuple[Results, Path]:
    """The student's rows beside the recorded teacher's; returns them and the file they were written to."""
    backbone, grid = load_student(student)
    for n in steps:
        grid.inference_times(n)
    held_out = HeldOut(samples)
    rows = [held_out.floor(), *recorded_teacher_rows(samples)]
    rows += student_rows(
        held_out,
        backbone,
        grid,
        steps,
        name="student",
        guidance=guidance,
        network="teacher",
        tick=lambda name, done, total: report(f"evaluate {name}", done, total, {}),
    )
    results = Results(rows, {"samples": samples, "guidance": guidance, "seed": SEED, "student": student})
    file = out or (Path(student) / "results.json" if Path(student).is_dir() else Path("results.json"))
    results.save(file)
    return results, file


def _prompts(prompts: Sequence[str]) -> list[str]:
    if len(prompts) == 1 and prompts[0].endswith(".txt"):
        file = Path(prompts[0])
        if not file.is_file():
            raise UserError(f"no prompts file {file}; expected a text file with a prompt a line")
        prompts = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    texts = [prompt for prompt in prompts if prompt]
    if not texts:
        raise UserError("got no prompts; give one or more after --prompts, or a .txt file with a prompt a line")
    return texts


def _to_pil(pixels: Tensor) -> Image.Image:
    return Image.fromarray((pixels.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8))
