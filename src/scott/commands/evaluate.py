"""`scott evaluate`: the figures of a saved student, and of its teacher beside it."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scott.commands.distill import Report, teacher_of
from scott.commands.measure import SEED, MiniReference, Reference, Tick, check_samples, reasons, source_reference
from scott.commands.measured import Measured
from scott.commands.sample import is_run, load_student
from scott.data.manifest import MANIFEST
from scott.data.records import Columns
from scott.data.sources import open_source
from scott.errors import UserError
from scott.evaluation import ClipFeatures, Results
from scott.export.card import write_cards
from scott.mini import embedded
from scott.mini.scenes import RESOLUTION
from scott.samplers import StudentSampler, TeacherSampler
from scott.teachers import LatentBackbone
from scott.training.config import DistillConfig

PAPERS_CLIP = "laion/CLIP-ViT-g-14-laion2B-s12B-b42K"


def evaluate_student(
    student: str, steps: Sequence[int], measured: Measured, *, out: Path | None, report: Report
) -> tuple[Results, Path]:
    """Rows of the student, of its teacher if asked for, and on the embedded data of the real-against-real floor.

    Returns them and the file they were written to. Raises `UserError` as `load_student`, `source_reference` do, and
    for data and features that do not go together.
    """
    if not steps or min((*steps, *measured.teacher_steps)) < 1:
        raise UserError(
            f"got steps {' '.join(map(str, (*steps, *measured.teacher_steps)))}; expected 1 or more of each"
        )
    check_samples(measured.samples)
    if measured.teacher is not None and not measured.teacher_steps:
        raise UserError(f"got --teacher {measured.teacher} without --teacher-steps; say in how many steps it draws")
    file = out or (Path(student) if Path(student).is_dir() else Path()) / _file_name(measured.data)
    Results.check_path(file)
    loaded = load_student(student)
    scale = loaded.guidance(measured.guidance)
    students = {f"student-{n}": replace(loaded.sampler(n, scale), truncate=True) for n in steps}
    teacher = teacher_of(_teacher(measured, student)) if measured.teacher_steps else None

    def tick(name: str, done: int, total: int) -> None:
        report(f"evaluate {name}", done, total, {})

    reference = _reference(measured, student, loaded.backbone, tick)
    rows = [reference.floor()] if isinstance(reference, MiniReference) else []
    samplers: dict[str, TeacherSampler | StudentSampler] = {}
    if teacher is not None:
        for n in measured.teacher_steps:
            samplers[f"teacher-ddim-{n}"] = TeacherSampler(teacher, n, scale, truncate=True)
    rows += [reference.row(name, sampler, tick) for name, sampler in (samplers | students).items()]
    results = Results(rows, _conditions(measured, reference, student, scale))
    results.save(file)
    if is_run(Path(student)):
        write_cards(Path(student), DistillConfig.load(Path(student) / "config.json"))
    return results, file


def _conditions(measured: Measured, reference: Reference, student: str, guidance: float) -> dict[str, Any]:
    common = {"samples": len(reference.prompts), "guidance": guidance, "seed": SEED, "student": student}
    if measured.data in embedded.SOURCES:
        return common | {"split": measured.split}
    left_out = {"left out": reasons(reference.skipped)} if reference.skipped else {}
    return common | {"data": measured.data, "features": measured.features} | left_out


def _file_name(data: str) -> str:
    """`evaluation.json`, or of other data one with their name, so that one table does not replace another."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(data.split("::")[0]).stem).strip("-")
    return "evaluation.json" if data in embedded.SOURCES else f"evaluation-{name}.json"


def _reference(measured: Measured, student: str, backbone: LatentBackbone, tick: Tick) -> Reference:
    """Raises `UserError` for data and features that do not go together, or not with what the student draws."""
    if measured.data not in embedded.SOURCES:
        if measured.features is None:
            raise UserError(f"got --data {measured.data} without --features; name a CLIP, as {PAPERS_CLIP}")
        if (Path(measured.data) / MANIFEST).is_file():
            raise UserError(f"{measured.data} holds encoded pictures; name the pictures that they were made of")
        columns = Columns(measured.image_column, measured.caption_column)
        source = open_source(measured.data, columns, measured.data_split)
        features = ClipFeatures.from_pretrained(measured.features, device=backbone.device)
        return source_reference(source, measured.samples, backbone.resolution, features, tick)
    if measured.features is not None:
        raise UserError("got --features, but the embedded data has a CLIP of its own; leave it out")
    if (size := backbone.resolution) != RESOLUTION:
        raise UserError(
            f"{student} draws {size} px pictures and the embedded data has {RESOLUTION}; "
            "name pictures to measure it on with --data, and a CLIP with --features"
        )
    return MiniReference(measured.samples, measured.split)


def _teacher(measured: Measured, student: str) -> str:
    if measured.teacher is not None:
        return measured.teacher
    if not is_run(Path(student)):
        raise UserError(f"{student} is no run that would name its teacher; give --teacher beside --teacher-steps")
    return DistillConfig.load(Path(student) / "config.json").teacher
