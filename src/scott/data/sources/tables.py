"""Which columns of a table hold the picture and its captions."""

from collections.abc import Sequence

from scott.errors import UserError

IMAGES = ("image", "img", "jpg", "png", "picture", "url", "image_url", "file_name", "path", "image_path")
CAPTIONS = ("caption", "captions", "text", "texts", "prompt", "sentences")


def image_column(table: str, columns: Sequence[str], wanted: str | None) -> str:
    """The column of the picture: the one named, or the first with a usual name, in upper or lower case.

    Raises:
        UserError: there is none; the columns are listed.
    """
    return _column(table, columns, wanted, IMAGES, "--image-column")


def caption_columns(table: str, columns: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The columns of the captions, by the same rule."""
    flag = "--caption-column"
    return [_column(table, columns, name, CAPTIONS, flag) for name in wanted or (None,)]


def _column(table: str, columns: Sequence[str], wanted: str | None, usual: Sequence[str], flag: str) -> str:
    for name in [wanted] if wanted else [spelled for one in usual for spelled in (one, one.upper())]:
        if name in columns:
            return name
    expected = f"{wanted!r}" if wanted else f"one of {', '.join(usual)}"
    listed = ", ".join(map(str, columns)) or "none"
    raise UserError(f"{table} has the columns {listed}, and not {expected}; name one with {flag}")
