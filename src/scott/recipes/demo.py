"""`scott demo`: the whole of the method on the embedded teacher in minutes, with the evidence in one folder."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from scott.backbones import Backbone
from scott.diffusion import JumpGrid
from scott.evaluation import Results, Row, image_grid, write_report
from scott.generators import StudentSampler, TeacherSampler
from scott.mini.scenes import Scenes
from scott.recipes.configs import mini
from scott.recipes.measure import SEED, HeldOut, recorded_teacher_rows, student_rows
from scott.recipes.run import Report, run
from scott.training.config import DistillConfig
from scott.training.metrics import read_metrics

GUIDANCE = 2.5
"""ω at which teacher and student are compared: where the teacher's FID is lowest on training captions."""
TEACHER_STEPS = (50, 2)
STUDENT_STEPS = (1, 2, 4)
GRIDS, COLUMNS = 2, 8


def demo(out: Path, *, max_steps: int, samples: int, seed: int, report: Report) -> Results:
    """Distil the embedded teacher into `out`, sample, evaluate; writes results.json, samples/ and report.html."""
    config = mini(out=out, seed=seed, max_steps=max_steps, sample_every=100, checkpoint_every=100)
    backbone = run(config, report)
    grid = config.make_grid(backbone.schedule)
    grids = draw_grids(backbone, grid, out / "samples")
    held_out = HeldOut(samples)

    def tick(name: str, done: int, total: int) -> None:
        report(f"evaluate {name}", done, total, {})

    rows = [held_out.floor(), *_teacher_rows(held_out, backbone, samples, tick)]
    rows += student_rows(
        held_out, backbone, grid, STUDENT_STEPS, name="scott", guidance=GUIDANCE, network="target", tick=tick
    )
    results = Results(
        rows, {"samples": samples, "guidance": GUIDANCE, "seed": seed, "teacher": "mini", "updates": max_steps}
    )
    results.save(out / "results.json")
    _write_report(out, config, results, grids)
    return results


def draw_grids(backbone: Backbone, grid: JumpGrid, folder: Path) -> list[tuple[str, Image.Image]]:
    """Same held-out captions, same noise: the teacher in 50 and 2 steps, the student in 1, 2 and 4."""
    samplers: dict[str, TeacherSampler | StudentSampler]
    samplers = {f"teacher, {n} steps": TeacherSampler(backbone, n, GUIDANCE) for n in TEACHER_STEPS}
    samplers |= {f"student, {n} step{'s'[: n - 1]}": StudentSampler(backbone, grid, n, GUIDANCE) for n in STUDENT_STEPS}
    # a stride, so that the pictures are not of one stretch of the alphabet
    captions = Scenes(GRIDS * COLUMNS * 17, "held-out").captions()[::17]
    folder.mkdir(parents=True, exist_ok=True)
    grids = []
    for index in range(GRIDS):
        prompts = captions[index * COLUMNS : (index + 1) * COLUMNS]
        images = [list(sampler(prompts, SEED + index)) for sampler in samplers.values()]
        picture = image_grid(images, list(samplers), prompts, scale=2)
        picture.save(folder / f"grid-{index + 1}.png")
        grids.append(("Held-out captions; each column starts from the same noise.", picture))
    return grids


def _teacher_rows(
    held_out: HeldOut, backbone: Backbone, samples: int, tick: Callable[[str, int, int], None]
) -> list[Row]:
    """The recorded rows at this sample size with the time measured here on a few images, or else all measured here."""
    recorded = {row.steps: row for row in recorded_teacher_rows(samples)}
    rows = []
    for steps in TEACHER_STEPS:
        sampler = TeacherSampler(backbone, steps, GUIDANCE)
        name = f"teacher-ddim-{steps}"
        if steps not in recorded:
            rows.append(held_out.row(name, sampler, tick))
            continue
        few = held_out.prompts[:32]
        sampler(few[:2], SEED)  # warm-up
        began = time.perf_counter()
        sampler(few, SEED)
        seconds = (time.perf_counter() - began) / len(few)
        rows.append(dataclasses.replace(recorded[steps], recorded=True, seconds_per_image=seconds))
    return rows


def _write_report(out: Path, config: DistillConfig, results: Results, grids: list[tuple[str, Image.Image]]) -> None:
    by_name = {row.name: row for row in results.rows}
    notes = [
        "A 4.75 M-parameter Stable Diffusion in miniature, trained on captioned emoji, was distilled with SCott: "
        f"{config.max_steps:,} updates of batch {config.batch_size}.",
        f"The teacher walked each jump of {config.jump} training steps in {config.substeps} sub-steps of "
        f"{config.solver}; a rank-{config.critic_rank} LoRA critic on its decoder weighed {config.adversarial_weight}.",
        f"FID, CLIP score and coverage: Mini-CLIP features of {by_name['scott-2'].samples:,} images of held-out "
        f"captions at guidance {GUIDANCE}.",
    ]
    write_report(
        out / "report.html",
        title="SCott on the embedded teacher",
        results=results,
        config=dataclasses.asdict(config) | {"out": str(out)},
        metrics=read_metrics(out / "metrics.jsonl"),
        grids=grids,
        notes=notes,
    )
