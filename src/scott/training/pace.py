"""What a run logs, draws, keeps and measures on its way, and how often; none of it changes what is learnt."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Pace:
    """In steps, where nothing else is said."""

    log_every: int = 10
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where figures go besides metrics.jsonl."""
    sample_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    """How many of the newest are kept, the best one beside them."""
    validate_every: int = 0
    """Steps between measurements of FID, CLIP score and coverage at 2 steps; 0 makes none."""
    validation_samples: int = 500
    """Pictures they are measured on: the first of the training data, and as many drawn of their captions. What was
    learnt by heart counts as good here."""
    validation_features: str = "mini"
    """The CLIP that measures: `mini`, or a transformers CLIP folder or hub id."""
    best_metric: Literal["none", "fid", "clip_score", "coverage"] = "none"
    """The metric whose best checkpoint is kept, measured as --validation-samples says."""
