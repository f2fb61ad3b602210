"""`scott sample` and `scott evaluate`: a student that was saved, found, loaded and used."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL.PngImagePlugin import PngInfo

from scott.backbones import Backbone, load_backbone
from scott.diffusion import JumpGrid
from scott.errors import UserError
from scott.evaluation import Results, to_pil
from scott.export.pipeline import STUDENT_INFO
from scott.generators import StudentSampler
from scott.mini.scenes import RESOLUTION
from scott.recipes.measure import SEED, EvaluationSplit, Reference
from scott.recipes.run import Report, best_device


@dataclass(frozen=True)
class Student:
    """A saved student, ready to draw."""

    name: str
    backbone: Backbone
    grid: JumpGrid
    guidance_range: tuple[float, float] | None
    """The ω it was trained for; None where a pipeline made elsewhere does not say."""

    def guidance(self, asked: float | None) -> float:
        """ω to draw with: what was asked, or the middle of the range. Raises `UserError` outside the range."""
        if self.guidance_range is None:
            if asked is None:
                raise UserError(f"{self.name} does not say which guidance it was trained for; give --guidance")
            return asked
        low, high = self.guidance_range
        if asked is None:
            return (low + high) / 2
        if not low <= asked <= high:
            raise UserError(f"got guidance {asked}; {self.name} was trained for {low} to {high}")
        return asked

    def sampler(self, steps: int, guidance: float) -> StudentSampler:
        return StudentSampler(self.backbone, self.backbone.teacher, self.grid, steps, guidance)


def load_student(name: str) -> Student:
    """A run folder's student, or a pipeline folder's (or hub id's), with the grid it was trained on.

    Raises `UserError` when there is none, or when the pipeline is no consistency student.
    """
    folder = Path(name)
    if (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
        folder = folder / "student"
        if not folder.is_dir():
            raise UserError(f"{name} is a run without a student yet; finish it with the command that started it")
    backbone = load_backbone(str(folder)).to(best_device())
    if backbone.original_inference_steps is None:
        raise UserError(f"{name} has no LCMScheduler, so it is no few-step student; distil it first")
    spacing = backbone.schedule.training_steps // backbone.original_inference_steps
    grid = JumpGrid(backbone.schedule, jump=spacing, substeps=1)
    info = folder / STUDENT_INFO
    values = json.loads(info.read_text()) if info.is_file() else None
    return Student(name, backbone, grid, (values["guidance_min"], values["guidance_max"]) if values else None)


def draw(
    student: str, prompts: Sequence[str], *, steps: int, seed: int, guidance: float | None, out: Path
) -> list[Path]:
    """One PNG a prompt in `out`, named after the prompt, with what made it in its metadata.

    Image i uses the seed `seed + i`.
    """
    texts = _prompts(prompts)
    loaded = load_student(student)
    scale = loaded.guidance(guidance)
    loaded.grid.inference_times(steps)
    loaded.backbone.encode_prompts(texts)  # every prompt is checked before anything is written
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose another --out")
    sampler = loaded.sampler(steps, scale)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for index, prompt in enumerate(texts):
        (pixels,) = sampler([prompt], seed + index)
        info = {"prompt": prompt, "seed": seed + index, "steps": steps, "guidance_scale": scale, "student": student}
        metadata = PngInfo()
        metadata.add_text("parameters", json.dumps(info, ensure_ascii=False))
        file = out / f"{_slug(prompt)}-{steps}-steps-seed-{seed + index}.png"
        to_pil(pixels).save(file, pnginfo=metadata)
        files.append(file)
    return files


def evaluate_student(
    student: str,
    steps: Sequence[int],
    *,
    samples: int,
    guidance: float | None,
    split: EvaluationSplit,
    out: Path | None,
    report: Report,
) -> tuple[Results, Path]:
    """The student's rows, beside the real-against-real floor; returns them and the file they were written to.

    Raises `UserError` for a student that does not draw pictures of the embedded data's size.
    """
    loaded = load_student(student)
    scale = loaded.guidance(guidance)
    if loaded.backbone.latent_shape[-1] * 8 != RESOLUTION:
        size = loaded.backbone.latent_shape[-1] * 8
        raise UserError(
            f"{student} draws {size} px pictures; the embedded data it would be measured on has {RESOLUTION}"
        )
    for n in steps:
        loaded.grid.inference_times(n)
    reference = Reference(samples, split)

    def tick(name: str, done: int, total: int) -> None:
        report(f"evaluate {name}", done, total, {})

    rows = [reference.floor()]
    rows += [reference.row(f"student-{n}", loaded.sampler(n, scale), tick) for n in steps]
    meta = {"samples": samples, "guidance": scale, "seed": SEED, "split": split, "student": student}
    results = Results(rows, meta)
    file = out or (Path(student) / "evaluation.json" if Path(student).is_dir() else Path("evaluation.json"))
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


def _slug(prompt: str) -> str:
    """The prompt as the start of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "empty"
