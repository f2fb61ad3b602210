"""What `scott evaluate` measures on, as data."""

from dataclasses import dataclass
from typing import Literal

EvaluationSplit = Literal["held-out", "validation"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What `scott evaluate` measures on."""

    data: str = "mini"
    """`mini`, or a source of captioned pictures as `scott prepare` takes it, such as COCO's captions_val2017.json."""
    image_column: str | None = None
    """Of that source's pictures, and below of its captions; ones with usual names, if left out."""
    caption_column: tuple[str, ...] = ()
    data_split: str = "train"
    """Of a Hugging Face dataset."""
    features: str | None = None
    """With other data than mini: the CLIP that measures, a transformers folder or hub id."""
    samples: int = 1000
    guidance: float | None = None
    split: EvaluationSplit = "held-out"
    """Of mini. Choose by validation; report held-out."""
    teacher: str | None = None
    """With --teacher-steps: the student's teacher, a pipeline folder, a hub id or mini; a run's own, if left out."""
    teacher_steps: tuple[int, ...] = ()
    """Measure the teacher too, in these numbers of DDIM steps."""
