"""The embedded default as the rest of scott uses it: the teacher, its scenes, and the features that measure it."""

from pathlib import Path

import torch
from torch import Tensor

from scott.errors import UserError
from scott.evaluation import ClipFeatures
from scott.mini.glyphs import ASSETS
from scott.mini.scenes import Scenes, Split
from scott.teachers import LatentBackbone, load_backbone

TEACHER = ASSETS / "teacher"
CLIP = ASSETS / "clip"
RECORDED = ASSETS / "recorded.json"
"""The teacher's rows on 1,000 held-out captions, which the demo shows: written by `python -m experiments.recorded_run
--students --teacher-steps 50 2 --samples 1000 --out FILE`, measured again by a test."""


def load_teacher(folder: Path = TEACHER, dtype: torch.dtype = torch.float32) -> LatentBackbone:
    """The teacher that ships with scott, or one that experiments.embedded_teacher made in `folder`."""
    if not folder.is_dir():
        raise UserError(f"no embedded teacher at {folder}; reinstall scott")
    return load_backbone(folder, dtype)


def load_features(folder: Path = CLIP) -> ClipFeatures:
    return ClipFeatures.from_pretrained(folder)


def real_features(features: ClipFeatures, count: int, *, seed: int = 0, split: Split = "held-out") -> Tensor:
    """Features (count, D) of the first real pictures of a split."""
    return features.images([image for image, _ in (Scenes(count, split, seed)[i] for i in range(count))])
