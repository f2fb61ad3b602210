"""How good are the images? Fréchet distance, coverage, CLIP score, and what shows them.

Everything here takes feature matrices (N, D), images, or a callable (prompts, seed) → images; nothing here knows how a
model was trained. `features` turns images and captions into features, `fid`, `coverage` and `clip_score` turn features
into numbers, `protocols` runs a sampler through all of them, `results` keeps the rows; `tables`, `curves`, `grids` and
`report` show them.
"""

from scott.evaluation.clip_score import clip_score, retrieval_accuracy
from scott.evaluation.coverage import coverage
from scott.evaluation.features import ClipFeatures, Features
from scott.evaluation.fid import frechet_distance
from scott.evaluation.grids import image_grid, to_pil
from scott.evaluation.protocols import Generate, Progress, batch_seed, evaluate, real_against_real, timed
from scott.evaluation.results import Results, Row
from scott.evaluation.tables import markdown_table, table

__all__ = [
    "ClipFeatures",
    "Features",
    "Generate",
    "Progress",
    "Results",
    "Row",
    "batch_seed",
    "clip_score",
    "coverage",
    "evaluate",
    "frechet_distance",
    "image_grid",
    "markdown_table",
    "real_against_real",
    "retrieval_accuracy",
    "table",
    "timed",
    "to_pil",
]
