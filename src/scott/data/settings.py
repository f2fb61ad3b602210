"""What `scott prepare` keeps of a source, and how: with the source and the teacher, all that the shards depend on."""

import math
from dataclasses import dataclass

from scott.data.records import Columns
from scott.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Raises `UserError` for a value out of range."""

    image_column: str | None = None
    """Of the pictures: bytes, paths or URLs. One with a usual name, if left out."""
    caption_column: tuple[str, ...] = ()
    """One or more, each of one caption or a list. One with a usual name, if left out."""
    split: str = "train"
    """Of a Hugging Face dataset."""
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
    shard_size: int = 1000
    """Records a shard; a tar becomes one, whatever it holds."""
    batch_size: int = 16
    """Pictures encoded at once."""
    limit: int | None = None
    """Read the first that many records; of tars, those of the first one."""
    licence: str = ""
    """Of the data, kept in the manifest."""

    def __post_init__(self) -> None:
        for name in ("shard_size", "batch_size", "limit", "resolution", "max_aspect"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < math.inf:
                raise UserError(f"got {name} {value}, expected 1 or more")

    @property
    def columns(self) -> Columns:
        return Columns(self.image_column, self.caption_column)
