"""How good are the images? Distances to real pictures, neighbours among them, captions met, and what shows it.

Everything here takes feature matrices (N, D), images, or a `Sampler`, which is a callable (prompts, seed) → images
that says what it costs; nothing here knows how a model was trained. `features` and `networks` turn pictures and
captions into features; `distances`, `neighbours` and `measures` turn features into figures; `pictures` draws and
keeps, `stored` are there already; `evaluating` takes either through all of it, against the `references` that
`protocols` name; `results` keeps the rows; `tables`, `comparison`, `curves`, `grids` and `report` show them.
"""

from scott.evaluation.distances import frechet_distance
from scott.evaluation.evaluating import Diversity, Sampler, evaluate
from scott.evaluation.features import Features, Instruments
from scott.evaluation.grids import image_grid, to_pil
from scott.evaluation.measures import Figure, clip_score
from scott.evaluation.neighbours import coverage
from scott.evaluation.pictures import Generate, Progress, batch_seed, timed
from scott.evaluation.references import Reference
from scott.evaluation.results import Results, Row
from scott.evaluation.tables import markdown_table, table

__all__ = [
    "Diversity",
    "Features",
    "Figure",
    "Generate",
    "Instruments",
    "Progress",
    "Reference",
    "Results",
    "Row",
    "Sampler",
    "batch_seed",
    "clip_score",
    "coverage",
    "evaluate",
    "frechet_distance",
    "image_grid",
    "markdown_table",
    "table",
    "timed",
    "to_pil",
]
