"""What `scott prepare` keeps of a source, and how: with the source and the teacher, all that the shards depend on."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from scott.data.records import Columns
from scott.errors import UserError

MAX_RESOLUTION = 8192


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is taken of a source. Raises `UserError` for a value out of range."""

    image_column: str | None = None
    """Of the pictures: bytes, paths or URLs. One with a usual name, if left out."""
    caption_column: tuple[str, ...] = ()
    """One or more, each of one caption or a list. One with a usual name, if left out."""
    split: str = "train"
    """Of a Hugging Face dataset, or of files and folders that are named after splits."""
    where: str | None = None
    """Keep the records whose columns meet this, such as 'AESTHETIC_SCORE >= 6 and WIDTH >= 512'."""
    min_size: int = 0
    """Of the shorter side, in pixels."""
    max_aspect: float | None = None
    """Longer over shorter side."""
    resolution: int | None = None
    """Side of the square that is cropped; the teacher's, if left out."""
    aspect_buckets: bool = False
    """Crop each picture to the nearest of several shapes of about the square's area; a batch is of one shape."""
    limit: int | None = None
    """Read the first that many records; of tars, those of the first one."""
    decode_memory: int = 1024
    """MiB that decoding pictures may take at once; one that needs more alone is left out."""

    def __post_init__(self) -> None:
        _require("min_size", self.min_size, 0)
        _require("resolution", self.resolution, most=MAX_RESOLUTION)
        for name in ("limit", "max_aspect", "decode_memory"):
            _require(name, getattr(self, name))

    @property
    def columns(self) -> Columns:
        return Columns(self.image_column, self.caption_column)

    def as_json(self) -> dict[str, Any]:
        """All that shards depend on: `decode_memory` where it is not the default, as few pictures need so much."""
        return {name: value for name, value in asdict(self).items() if (name, value) != _USUAL_MEMORY}


_USUAL_MEMORY = ("decode_memory", Reading.decode_memory)


@dataclass(frozen=True, kw_only=True)
class Settings(Reading):
    """What is taken of a source, and how it is written."""

    shard_size: int = 1000
    """Records a shard; a tar becomes one, whatever it holds."""
    batch_size: int = 16
    """Pictures encoded at once."""
    licence: str = ""
    """Of the data, kept in the manifest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("shard_size", "batch_size"):
            _require(name, getattr(self, name))


def _require(name: str, value: float | None, least: int = 1, most: float = math.inf) -> None:
    if value is not None and not (least <= value <= most and value < 2**63):
        raise UserError(
            f"got {name} {value}, expected {least} {'or more, below 2**63' if most == math.inf else f'to {most:,}'}"
        )
