"""The embedded default as the rest of scott uses it: the teacher, its scenes, and the features that measure it."""

from pathlib import Path

from PIL import Image
from torch import Tensor

from scott.backbones import Backbone, load_backbone
from scott.errors import UserError
from scott.evaluation import ClipFeatures
from scott.mini import scenes
from scott.mini.glyphs import ASSETS

TEACHER = ASSETS / "teacher"
CLIP = ASSETS / "clip"
RECORDED = ASSETS / "recorded.json"
"""Results of the recorded run, committed beside the weights they were measured on."""


class Scenes:
    """The first `count` scenes of a split as captioned images."""

    def __init__(self, count: int, split: scenes.Split = "train", seed: int = 0) -> None:
        self.count, self.split, self.seed = count, split, seed
        self.name = f"mini ({split})"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        scene = scenes.scene(index, split=self.split, seed=self.seed)
        return scenes.render(scene), scene.caption

    def captions(self) -> list[str]:
        return [scenes.scene(i, split=self.split, seed=self.seed).caption for i in range(self.count)]


def load_teacher(folder: Path = TEACHER) -> Backbone:
    """The teacher that ships with scott, or one that `scott mini build` made in `folder`."""
    if not folder.is_dir():
        raise UserError(f"no embedded teacher at {folder}; reinstall scott, or make one with `scott mini build`")
    return load_backbone(folder)


def load_features(folder: Path = CLIP) -> ClipFeatures:
    return ClipFeatures.from_pretrained(folder)


def real_features(features: ClipFeatures, count: int, *, seed: int = 0, split: scenes.Split = "held-out") -> Tensor:
    """Features (count, D) of the first real pictures of a split."""
    return features.images([image for image, _ in (Scenes(count, split, seed)[i] for i in range(count))])
