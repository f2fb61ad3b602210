"""The embedded default as the rest of scott uses it: the teacher, its scenes, and the features that measure it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from scott.data.records import Source
from scott.errors import UserError
from scott.evaluation import Features
from scott.evaluation.networks import clip
from scott.mini.glyphs import ASSETS
from scott.mini.scenes import Scenes
from scott.teacher_source import TeacherSource

if TYPE_CHECKING:
    from scott.teachers import LatentBackbone

TEACHER = ASSETS / "teacher"
CLIP = ASSETS / "clip"
RECORDED = ASSETS / "recorded.json"
"""The teacher's rows on 1,000 held-out captions, which the demo shows: written by `python -m experiments.recorded_run
teacher --out FILE`, measured again by a test."""

GUIDANCE = 2.0
"""ω of the teacher (assets/README.md says by what)."""
NAME = "mini"
TEACHERS: dict[str, Path] = {NAME: TEACHER}
FEATURES: dict[str, Path] = {NAME: CLIP}
SOURCES: dict[str, Callable[[int], Source]] = {NAME: Scenes}
"""What a name on the command line stands for: a teacher's folder, a CLIP's, so many captioned pictures."""


def default_guidance(name: str) -> float | None:
    """ω of an embedded teacher, which its stock pipeline does not know."""
    return GUIDANCE if name in TEACHERS else None


def teacher_folder(name: str) -> str | Path:
    """What `load_backbone` makes a teacher of: the folder of an embedded one, or the name itself."""
    return TEACHERS.get(name, name)


def teacher_source(teacher: str | TeacherSource) -> TeacherSource:
    """What `load_backbone` makes a teacher of, the folder of an embedded one in the place of its name. Raises
    `UserError` where the name is a run's."""
    source = TeacherSource.of(teacher)
    source.check_no_run()
    return replace(source, teacher=str(teacher_folder(source.teacher)))


def teacher_name(folder: str) -> str:
    """The name of an embedded teacher by its folder, which is another wherever scott is installed; or `folder`."""
    return next((name for name, path in TEACHERS.items() if str(path) == folder), folder)


def clip_folder(name: str) -> str | Path:
    """What `evaluation.networks.clip` takes: the folder of the embedded CLIP, or the name itself."""
    return FEATURES.get(name, name)


def load_teacher(folder: Path = TEACHER, dtype: torch.dtype = torch.float32) -> "LatentBackbone":
    """The teacher that ships with scott, or one that experiments.embedded_teacher made in `folder`."""
    if not folder.is_dir():
        way = "reinstall scott" if folder == TEACHER else "name a folder that experiments.embedded_teacher made"
        raise UserError(f"no embedded teacher at {folder}; {way}")
    from scott.teachers import load_backbone  # which loads diffusers: data of this name need none

    return load_backbone(folder, dtype)


def load_features(folder: Path = CLIP) -> Features:
    return clip(folder)
