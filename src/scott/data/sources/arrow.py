"""Records of Arrow tables, of which any cell may be one that cannot be decoded."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scott.data.records import Record, Rejected, Skip
from scott.data.sources.files import caption_of, read_picture


def arrow_error() -> type[Exception]:
    from pyarrow import ArrowException

    return ArrowException


def described(schema: Any, image: str, captions: Sequence[str]) -> list[str]:
    """The columns that are read: those of pictures and captions, and what filters may see and a shard keeps, numbers
    and texts. Others (embeddings, masks) may be larger than the picture."""
    from pyarrow import types

    numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_null)
    scalar = (*numbers, types.is_string, types.is_large_string, types.is_string_view, types.is_dictionary)
    kept = {field.name for field in schema if any(kind(field.type) for kind in scalar)}
    return [name for name in schema.names if name in kept or name in (image, *captions)]


def table_record(
    key: str, rows: Any, index: int, image: str, captions: Sequence[str], folder: Path | None
) -> Record | Rejected:
    """A row of a table or record batch, whose picture is bytes, a path in `folder`, a URL, or Hugging Face's {bytes,
    path}. A cell that cannot be decoded counts against the record where it is the picture's or a caption's."""
    row: dict[str, Any] = {}
    for name in rows.schema.names:
        try:
            row[name] = rows.column(name)[index].as_py()
        except (ValueError, OverflowError, arrow_error()) as error:
            if name in captions:
                return Rejected(key, "caption-not-utf8" if isinstance(error, UnicodeError) else "caption-not-text")
            if name == image:
                return Rejected(key, "no-picture", "its cell cannot be decoded")
    picture = row.get(image)
    if isinstance(picture, dict):
        picture = picture.get("bytes") if picture.get("bytes") is not None else picture.get("path")
    rest = {name: value for name, value in row.items() if name not in (image, *captions)}
    if isinstance(picture, str):
        rest[image] = picture
    try:
        texts = caption_of(row, captions)
    except Skip as skip:
        return Rejected(key, skip.reason, skip.detail)
    if isinstance(picture, bytes):
        return Record(key, lambda: picture, texts, rest, len(picture))
    return Record(key, partial(read_picture, picture, folder, absolute=True), texts, rest)
