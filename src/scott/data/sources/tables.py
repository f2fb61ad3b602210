"""Which columns of a table hold the picture and its captions; and the records of Arrow's tables."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scott.data.captions import read_captions
from scott.data.records import Record, Skip
from scott.data.sources.files import read_picture
from scott.errors import UserError

IMAGES = (
    *("image", "img", "jpg", "png", "picture", "url", "image_url", "file_name", "filename", "file", "path"),
    *("image_path", "filepath", "file_path", "image_file"),
)
CAPTIONS = ("caption", "captions", "text", "texts", "txt", "prompt", "prompts", "sentences", "description")


def image_column(table: str, columns: Sequence[str], wanted: str | None, usual: Sequence[str] = IMAGES) -> str:
    """The column of the picture: the one named, or the first with a usual name, in upper or lower case.

    Raises:
        UserError: there is none, or two of that name; the columns are listed.
    """
    return _column(table, columns, wanted, usual, "--image-column")


def caption_columns(table: str, columns: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The columns of the captions, by the same rule."""
    return [_column(table, columns, name, CAPTIONS, "--caption-column") for name in wanted or (None,)]


def _column(table: str, columns: Sequence[str], wanted: str | None, usual: Sequence[str], flag: str) -> str:
    for name in [wanted] if wanted else [spelled for one in usual for spelled in (one, one.upper(), one.title())]:
        if columns.count(name) > 1:
            raise UserError(f"{table} has several columns {name!r}; give each a name of its own")
        if name in columns:
            return name
    expected = f"{wanted!r}" if wanted else f"one of {', '.join(usual)}"
    listed = ", ".join(map(str, columns))[:1000] or "none"
    raise UserError(f"{table} has the columns {listed}, and not {expected}; name one with {flag}")


def captions_among(columns: Mapping[str, Any], wanted: Sequence[str]) -> object:
    """The captions of a record's own columns: those named, or the one with the first usual name that is there.

    Raises:
        Skip: there is none.
    """
    usual = (name for one in CAPTIONS for name in (one, one.upper()) if name in columns)
    names = [name for name in wanted or [next(usual, "")] if name in columns]
    if not names:
        raise Skip("no-caption", ", ".join(columns))
    return captions_of(columns, names)


def captions_of(columns: Mapping[str, Any], names: Sequence[str]) -> object:
    """The value of one caption column, or of several as a list."""
    if len(names) == 1:
        return columns.get(names[0])
    captions: list[str] = []
    for name in names:
        try:
            captions += read_captions(columns.get(name))
        except Skip as skip:
            if skip.reason != "empty-caption":
                raise
    return captions


def kept_columns(schema: Any, image: str, captions: Sequence[str]) -> list[str]:
    """The columns of an Arrow schema that are read: those of pictures and captions, and what filters may see and a
    shard keeps, numbers and texts. Others (embeddings, masks) may be larger than the picture."""
    from pyarrow import types

    numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_null)
    scalar = (*numbers, types.is_string, types.is_large_string, types.is_string_view, types.is_dictionary)
    kept = {field.name for field in schema if any(kind(field.type) for kind in scalar)}
    once = [name for name in schema.names if schema.names.count(name) == 1]
    return [name for name in once if name in kept or name in (image, *captions)]


def table_record(key: str, rows: Any, index: int, image: str, captions: Sequence[str], folder: Path | None) -> Record:
    """A row of a table or record batch, whose picture is bytes, a path in `folder`, a URL, or Hugging Face's {bytes,
    path}. Raises `Skip` for a cell that cannot be decoded, where it is the picture's or a caption's."""
    from pyarrow import ArrowException

    row: dict[str, Any] = {}
    for name in rows.schema.names:
        try:
            row[name] = rows.column(name)[index].as_py()
        except (ValueError, OverflowError, ArrowException) as error:
            if name in captions:
                raise Skip("caption-not-utf8" if isinstance(error, UnicodeError) else "caption-not-text") from None
            if name == image:
                raise Skip("no-picture", "its cell cannot be decoded") from None
    picture = row.get(image)
    if isinstance(picture, dict):
        picture = picture.get("bytes") if picture.get("bytes") is not None else picture.get("path")
    rest = {name: value for name, value in row.items() if name not in (image, *captions)}
    if isinstance(picture, str):
        rest[image] = picture
    texts = captions_of(row, captions)
    if isinstance(picture, bytes):
        return Record(key, lambda: picture, texts, rest, len(picture))
    return Record(key, partial(read_picture, picture, folder, absolute=True), texts, rest)
