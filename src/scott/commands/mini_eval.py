"""`scott mini eval`: how good the embedded teacher is, and what its measuring instrument can tell apart."""

from pathlib import Path

from scott.commands.distill import Report, best_device
from scott.commands.measure import MiniReference
from scott.commands.measured import EvaluationSplit
from scott.evaluation import Results, retrieval_accuracy
from scott.mini import embedded
from scott.samplers import TeacherSampler

SCALES = (1.5, 2.5, 3.5, 5.0)
STEPS = 50


def measure_teacher(folder: Path | None, *, samples: int, split: EvaluationSplit, out: Path, report: Report) -> Results:
    """Rows of the 50-step teacher at several guidance scales; `meta` has Mini-CLIP's retrieval on the real pictures.

    `folder` is what `scott mini build` wrote, None the teacher that ships; `out` is the file they are written to.
    """
    Results.check_path(out)
    teacher = embedded.load_teacher(folder / "teacher" if folder else embedded.TEACHER).to(best_device())
    features = embedded.load_features(folder / "clip" if folder else embedded.CLIP)
    reference = MiniReference(samples, split, features)
    retrieval = retrieval_accuracy(reference.captions_own, features.texts(reference.prompts))
    rows = [reference.floor()]
    for scale in SCALES:
        sampler = TeacherSampler(teacher, STEPS, scale)
        name = f"teacher-ddim-{STEPS}-cfg-{scale:g}"
        rows.append(reference.row(name, sampler, lambda n, done, total: report(f"evaluate {n}", done, total, {})))
    meta = {"samples": samples, "split": split, "retrieval": retrieval, "teacher": str(folder or "shipped")}
    results = Results(rows, meta)
    results.save(out)
    return results
