"""What `scott evaluate` measures, and on what, as data that are parsed without torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

EvaluationSplit = Literal["held-out", "validation"]
TeacherSolver = Literal["ddim", "dpmpp", "er-sde"]
"""DDIM without noise; DPM-Solver++ (2M); ER-SDE of order 2 with the noise function 5, the best of SCott's solvers."""
STEPS = (1, 2, 4)
"""In how many steps pictures are drawn, if it is left out."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What `scott evaluate` measures, and on what."""

    protocol: Literal["mini", "coco2017-5k", "coco2014-30k", "mjhq-5k", "custom"] | None = None
    """Whose prompts and real pictures; by --data, if left out."""
    data: str = "mini"
    """`mini`, or a source of captioned pictures as `scott prepare` takes it, such as COCO's captions_val2017.json."""
    image_column: str | None = None
    """Of that source's pictures, and below of its captions; ones with usual names, if left out."""
    caption_column: tuple[str, ...] = ()
    data_split: str = "train"
    """Of a Hugging Face dataset."""
    floor_data: str | None = None
    """Other real pictures, whose figures are the floor: by default those that follow in --data, if there are enough."""
    names: Path | None = None
    """A file of pictures' names, one a line (or a CSV whose first column has them): measure on those, in that order."""
    metrics: tuple[str, ...] = ("fid", "clip-score", "coverage")
    """fid, kid, precision, recall, density, coverage, spread: of --features; fid-clean, fd-dinov2, fd-efficientnet,
    clip-fid, cmmd, clip-score, preference; and of mini place, size, background: what the pictures show of what was
    asked for."""
    features: str | None = None
    """inception, dinov2, efficientnet or a CLIP (folder, hub id or open_clip:ARCHITECTURE@WEIGHTS, which gives the CLIP
    score too). By default mini's own CLIP for mini, and inception for other data."""
    models: dict[str, str] = field(default_factory=dict)
    """Weights by path or hub id, of inception, inception-clean, dinov2, clip, clip-b, clip-l or pickscore:
    `--models inception pt_inception.pth clip ./vit-g`."""
    samples: int | None = None
    """By default the whole of --names, all of pictures that are there already, 1,000, or the protocol's."""
    seeds: tuple[int, ...] = (1,)
    """Figures are the mean over them, and show the range."""
    bootstrap: int = 50
    """Resamples behind the interval of a figure; 0 for none."""
    diversity: int = 0
    """Pictures of each of 50 captions, whose spread is measured."""
    images: Path | None = None
    """Keep the pictures there; what is there already is not drawn again. Several processes need it."""
    size: int | None = None
    """Pixels a side at which pictures are measured; the protocol's, or the sampler's own."""
    batch_size: int = 64
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    timesteps: tuple[float, ...] = ()
    """Of a student: draw besides where its network is fed these, a step each, as in 999 599."""
    gamma: float = 1.0
    """Of a student: how much of a later step's noise is new, from 1, as the LCM sampler of other programs has it, to 0,
    as their Euler's."""
    guidance: float | None = None
    """ω, in the form uncond + ω (cond − uncond)."""
    scheduler: str | None = None
    """Of a stock pipeline: the class of another scheduler of diffusers."""
    lora: str | None = None
    """Of a stock pipeline: a LoRA that it loads, or a run that has one."""
    split: EvaluationSplit = "held-out"
    """Of mini. Choose by validation; report held-out."""
    teacher: str | None = None
    """With --teacher-steps: the student's teacher, a pipeline folder, a hub id or mini; a run's own, if left out."""
    teacher_steps: tuple[int, ...] = ()
    """Measure the teacher too, in these numbers of steps."""
    teacher_solvers: tuple[TeacherSolver, ...] = ("ddim",)
    """By which solvers: DDIM without noise, DPM-Solver++ (2M), ER-SDE with noise function 5, of order 2."""

    def __post_init__(self) -> None:
        """Metrics may be separated by commas too."""
        object.__setattr__(self, "metrics", tuple(name for words in self.metrics for name in words.split(",")))
