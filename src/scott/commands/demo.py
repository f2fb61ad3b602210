"""`scott demo`: the recipe `mini`, from data to a measured student, in minutes, with the evidence in one folder."""

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image

from scott.commands.distill import run
from scott.commands.evaluate import conditions
from scott.commands.prepare import MINI_SCENES
from scott.data.preparation import Report
from scott.evaluation import Generate, Progress, Reference, Results, Row, evaluate, image_grid, timed
from scott.evaluation.references import BATCH, Tick, check_samples
from scott.evaluation.report import write_report
from scott.export.card import method_of, write_cards
from scott.measured import Measured
from scott.mini.embedded import GUIDANCE, NAME
from scott.mini.protocol import MINI, mini_reference, recorded_teacher_row
from scott.mini.scenes import Scenes
from scott.recipes.configs import mini
from scott.samplers import StudentSampler, TeacherSampler
from scott.students import load_student, teacher_of
from scott.targets import Target
from scott.teachers import LatentBackbone
from scott.training.config import DistillConfig
from scott.training.jumps import batches_read
from scott.training.metrics import read_metrics

SEED = 1
TEACHER_STEPS = (50, 2)
STUDENT_STEPS = (1, 2, 4)
GRIDS, COLUMNS = 2, 8


def demo(out: Path, *, max_steps: int, samples: int, seed: int, report: Report) -> Results:
    """Distil the embedded teacher into `out`, sample, evaluate; writes results.json, samples/ and report.html."""
    check_samples(samples)
    config = mini(out=out, seed=seed, max_steps=max_steps, sample_every=100, checkpoint_every=100)
    read = config.batch_size * batches_read(config)
    config = replace(config, limit=min(read, MINI_SCENES))  # a short run prepares what it reads
    run(config, report)
    backbone, student, omega = teacher_of(config.teacher), load_student(str(out)), config.drawn_guidance
    samplers: dict[str, TeacherSampler | StudentSampler]
    samplers = {f"teacher, {n} steps": TeacherSampler(backbone, n, GUIDANCE) for n in TEACHER_STEPS}
    samplers |= {f"student, {n} step{'s'[: n - 1]}": student.sampler(n, omega) for n in STUDENT_STEPS}
    grids = draw_grids(samplers, out / "samples", lambda done, total: report("draw samples", done, total, {}))

    def tick(name: str, done: int, total: int) -> None:
        report(f"evaluate {name}", done, total, {})

    tick("real pictures", 0, 2)
    reference = mini_reference(samples)
    tick("real pictures", 1, 2)
    floor = reference.floor()
    tick("real pictures", 2, 2)
    rows = [floor, *(_teacher_row(reference, backbone, steps, tick) for steps in TEACHER_STEPS)]
    for n in STUDENT_STEPS:
        name, sampler = f"scott-{n}", student.sampler(n, omega)
        row = evaluate(sampler, reference, name=name, progress=partial(tick, name))
        rows.append(replace(row, method=config.method))
    meta = conditions(str(out), Target({}), reference, Measured(samples=samples), MINI)
    meta |= {"guidance": GUIDANCE, "student_guidance": omega, "seed": seed, "teacher": NAME, "updates": max_steps}
    results = Results(rows, meta)
    results.save(out / "results.json")
    write_cards(out, config)
    _write_report(out, config, results, grids)
    return results


def draw_grids(
    samplers: Mapping[str, Generate], folder: Path, progress: Progress = lambda done, total: None
) -> list[tuple[str, Image.Image]]:
    """A row for each sampler by its name, of the same held-out captions from the same noise."""
    # a stride, so that the pictures are not of one stretch of the alphabet
    captions = Scenes(GRIDS * COLUMNS * 17, "held-out").captions()[::17]
    folder.mkdir(parents=True, exist_ok=True)
    grids = []
    for index in range(GRIDS):
        prompts = captions[index * COLUMNS : (index + 1) * COLUMNS]
        images = []
        for row, sampler in enumerate(samplers.values(), 1):
            images.append(list(sampler(prompts, SEED + index)))
            progress(index * len(samplers) + row, GRIDS * len(samplers))
        picture = image_grid(images, list(samplers), prompts, scale=2)
        picture.save(folder / f"grid-{index + 1}.png")
        grids.append(("Held-out captions; each column starts from the same noise.", picture))
    return grids


def _teacher_row(reference: Reference, backbone: LatentBackbone, steps: int, tick: Tick) -> Row:
    """The recorded row, with the time measured here on one batch, or else all of it measured here."""
    sampler = TeacherSampler(backbone, steps, GUIDANCE)
    recorded = recorded_teacher_row(steps, len(reference.prompts), GUIDANCE)
    if recorded is None:
        name = f"teacher-ddim-{steps}"
        return evaluate(sampler, reference, name=name, progress=partial(tick, name))
    few = reference.prompts[:BATCH]
    tick(recorded.name, 0, len(few))
    sampler(few[:2], SEED)  # warm-up
    _, seconds = timed(sampler, few, SEED)
    tick(recorded.name, len(few), len(few))
    return replace(recorded, seconds_per_image=seconds / len(few))


def _write_report(out: Path, config: DistillConfig, results: Results, grids: list[tuple[str, Image.Image]]) -> None:
    by_name = {one.name: one for one in results.rows}
    statements = [
        "A 5 M-parameter Stable Diffusion in miniature, trained on captioned emoji, was distilled with SCott: "
        f"{config.max_steps:,} updates of batch {config.batch_size}.",
        f"Settings: {method_of(config)}.",
        f"FID, CLIP score and coverage: Mini-CLIP features of {by_name['scott-2'].samples:,} images of held-out "
        f"captions, the teacher at guidance {GUIDANCE} and the student at {config.drawn_guidance}.",
    ]
    write_report(
        out / "report.html",
        title="SCott on the embedded teacher",
        results=results,
        config=dataclasses.asdict(config) | {"out": str(out)},
        metrics=read_metrics(out / "metrics.jsonl"),
        grids=grids,
        statements=statements,
    )
