"""Which columns of a table hold the picture and its captions; and the records of Arrow's tables."""

import re
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from scott.data.captions import read_captions
from scott.data.pictures import starts_as_picture
from scott.data.records import Record, Skip
from scott.data.sources.files import places_of, read_picture
from scott.errors import UserError

IMAGES = (
    *("image", "img", "jpg", "png", "picture", "url", "image_url", "img_url", "file_name", "file", "path"),
    *("image_path", "img_path", "file_path", "image_file", "image_name", "images"),
)
CAPTIONS = (
    *("caption", "captions", "text", "texts", "txt", "prompt", "prompts", "sentences", "description", "comment"),
)
_BASE64 = 256
"""Characters, from which on a text may be a picture in base64."""


@cache
def _folded(column: str) -> str:
    """Of "Image Name", "imageName" and "image_name" the same."""
    return re.sub(r"[\W_]", "", column.lower())


def usual_column(columns: Sequence[str], usual: Sequence[str]) -> str | None:
    """The column with the first of the usual names that is there, however that is spelled."""
    there = {_folded(column): column for column in reversed(columns)}
    return next((there[_folded(name)] for name in usual if _folded(name) in there), None)


def image_column(table: str, columns: Sequence[str], wanted: str | None, usual: Sequence[str] = IMAGES) -> str:
    """The column of the picture: the one named, or the first with a usual name.

    Raises:
        UserError: there is none, or two of that name; the columns are listed.
    """
    return _column(table, columns, wanted, usual, "--image-column")


def caption_columns(table: str, columns: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The columns of the captions, by the same rule."""
    return [_column(table, columns, name, CAPTIONS, "--caption-column") for name in wanted or (None,)]


def _column(table: str, columns: Sequence[str], wanted: str | None, usual: Sequence[str], flag: str) -> str:
    name = wanted or usual_column(columns, usual)
    if name is None or name not in columns:
        expected = repr(wanted) if wanted else f"one of {', '.join(usual)}"
        listed = ", ".join(map(str, columns))[:1000] or "none"
        raise UserError(f"{table} has the columns {listed}, and not {expected}; name one with {flag}")
    if columns.count(name) > 1:
        raise UserError(f"{table} has several columns {name!r}; give each a name of its own")
    return name


def caption_names(columns: Mapping[str, Any], wanted: Sequence[str]) -> list[str]:
    """Those of a record's own columns that hold captions: those named, or the one with the first usual name there is.

    Raises:
        Skip: there is none.
    """
    names = [name for name in wanted or [usual_column([*columns], CAPTIONS) or ""] if name in columns]
    if not names:
        raise Skip("no-caption", ", ".join(columns))
    return names


def picture_in(cell: object) -> object:
    """What a cell says of its picture, a path, a URL or bytes; also as the one entry of a list, as {bytes, path}, as
    Hugging Face has it, or in base64. Raises `Skip` for several."""
    if isinstance(cell, list) and all(isinstance(entry, str | bytes | dict) for entry in cell):
        if len(cell) > 1:
            raise Skip("several-pictures", f"{len(cell)} in one row")
        cell = cell[0] if cell else None
    if isinstance(cell, dict):
        cell = cell.get("bytes") if cell.get("bytes") is not None else cell.get("path")
    if isinstance(cell, str) and len(cell) > _BASE64:
        content = cell.partition(";base64,")[2] if cell.startswith("data:") else cell
        with suppress(ValueError):
            if starts_as_picture(b64decode(content[:24], validate=True)):
                return b64decode("".join(content.split()), validate=True)
    return cell


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


def of_names(schema: Any, column: str) -> bool:
    """Whether an Arrow column holds texts: of pictures, their paths or URLs."""
    from pyarrow import types

    kind = schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def named_places(column: Any, folder: Path) -> Iterator[str]:
    """Where the pictures are that a piece of such a column names; nothing of a cell that cannot be decoded."""
    for cell in column:
        with suppress(UnicodeError):
            yield from places_of([cell.as_py()], folder, absolute=True)


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
    picture = picture_in(row.get(image))
    texts = captions_of(row, captions)
    columns = {name: value for name, value in row.items() if name != image}
    columns |= {name: row[name].decode(errors="replace") for name in captions if isinstance(row[name], bytes)}
    if isinstance(picture, str):
        columns[image] = picture
    if isinstance(picture, bytes):
        return Record(key, lambda: picture, texts, columns, len(picture), captions)
    return Record(key, partial(read_picture, picture, folder, absolute=True), texts, columns, repeated=captions)
