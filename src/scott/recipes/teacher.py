"""`scott mini eval`: how good the embedded teacher is, and what its measuring instrument can tell apart."""

from pathlib import Path

from scott.evaluation import Results, retrieval_accuracy
from scott.generators import TeacherSampler
from scott.mini import embedded
from scott.recipes.measure import HeldOut
from scott.recipes.run import Report, best_device

SCALES = (1.5, 2.5, 3.5, 5.0)
STEPS = 50


def measure_teacher(folder: Path | None, *, samples: int, report: Report) -> tuple[Results, float]:
    """Rows of the 50-step teacher at several guidance scales, and Mini-CLIP's caption retrieval on real pictures.

    `folder` is what `scott mini build` wrote, None the teacher that ships.
    """
    teacher = embedded.load_teacher(*([folder / "teacher"] if folder else [])).to(best_device())
    features = embedded.load_features(*([folder / "clip"] if folder else []))
    held_out = HeldOut(samples, features)
    retrieval = retrieval_accuracy(held_out.real, features.texts(held_out.prompts))
    rows = [held_out.floor()]
    for scale in SCALES:
        name = f"teacher-ddim-{STEPS}-cfg-{scale:g}"
        sampler = TeacherSampler(teacher, STEPS, scale)
        rows.append(held_out.row(name, sampler, lambda n, done, total: report(f"evaluate {n}", done, total, {})))
    return Results(rows, {"samples": samples, "retrieval": retrieval, "teacher": str(folder or "shipped")}), retrieval
