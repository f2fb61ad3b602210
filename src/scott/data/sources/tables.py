"""Which columns of a table hold the picture and its captions, and what its cells say."""

import json
from collections.abc import Collection, Sequence
from typing import Any

from scott.errors import UserError

IMAGES = (
    *("image", "img", "jpg", "png", "picture", "url", "image_url", "file_name", "filename", "file", "path"),
    *("image_path", "filepath", "file_path", "image_file"),
)
CAPTIONS = ("caption", "captions", "text", "texts", "prompt", "prompts", "sentences", "description")


def image_column(table: str, columns: Sequence[str], wanted: str | None, usual: Sequence[str] = IMAGES) -> str:
    """The column of the picture: the one named, or the first with a usual name, in upper or lower case.

    Raises:
        UserError: there is none; the columns are listed.
    """
    return _column(table, columns, wanted, usual, "--image-column")


def caption_columns(table: str, columns: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The columns of the captions, by the same rule."""
    flag = "--caption-column"
    return [_column(table, columns, name, CAPTIONS, flag) for name in wanted or (None,)]


def usual_captions(columns: Collection[str]) -> tuple[str, ...]:
    """The column with the first usual name that is there, or none."""
    return next(((name,) for usual in CAPTIONS for name in (usual, usual.upper()) if name in columns), ())


def _column(table: str, columns: Sequence[str], wanted: str | None, usual: Sequence[str], flag: str) -> str:
    for name in [wanted] if wanted else [spelled for one in usual for spelled in (one, one.upper(), one.title())]:
        if name in columns:
            return name
    expected = f"{wanted!r}" if wanted else f"one of {', '.join(usual)}"
    listed = ", ".join(map(str, columns)) or "none"
    raise UserError(f"{table} has the columns {listed}, and not {expected}; name one with {flag}")


def number(cell: Any) -> Any:
    """What a cell of text says, where it says a number; any other cell as it is."""
    if not isinstance(cell, str):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return value if isinstance(value, int | float) and not isinstance(value, bool) else cell
