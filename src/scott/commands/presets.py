"""Published data sets by a short name: where they are, and what is taken of them."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A published data set: where its metadata are, and what is taken of it."""

    source: str
    settings: dict[str, Any]
    scores: tuple[str, ...] = ()
    """Names that the column of the aesthetic score has in its editions; 6 or more is taken."""


_COCO = "zip://annotations/captions_{0}.json::simplecache::http://images.cocodataset.org/annotations/{1}.zip"
_COCO_LICENCE = {"licence": "captions CC BY 4.0; each picture has its own, numbered in the column `license`"}
PRESETS = {
    "coco2014": Preset(_COCO.format("train2014", "annotations_trainval2014"), _COCO_LICENCE),
    "coco2017": Preset(_COCO.format("train2017", "annotations_trainval2017"), _COCO_LICENCE),
    "laion-aesthetics-6plus": Preset(
        "ChristophSchuhmann/improved_aesthetics_6plus",
        {
            "image_column": "URL",
            "caption_column": ("TEXT",),
            "licence": "metadata CC BY 4.0; each picture has its own",
        },
        ("AESTHETIC_SCORE", "aesthetic"),
    ),
}
