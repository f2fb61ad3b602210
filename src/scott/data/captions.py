"""Captions as data sets have them: a text, bytes, or a list of either, of any size and encoding."""

import codecs
import json
from collections.abc import Iterable
from typing import Any

from scott.data.records import LFS_POINTER, MAX_TEXT_BYTES, Skip

MAX_CHARACTERS = 10_000
"""Several times what any text encoder here reads; a longer text is a page, not a caption."""
MAX_CAPTIONS = 64


def read_captions(value: object) -> list[str]:
    """One caption or more, each with its white space collapsed; empty ones of several are left out.

    Raises:
        Skip: none left, not text, not UTF-8, too long, or too many.
    """
    several = not isinstance(value, str | bytes) and isinstance(value, Iterable) and not isinstance(value, dict)
    captions: list[str] = []
    for entry in value if several else [value]:  # type: ignore[attr-defined]
        if caption := _one(entry):
            captions.append(caption)
        if len(captions) > MAX_CAPTIONS:
            raise Skip("too-many-captions", f"more than {MAX_CAPTIONS}")
    if not captions:
        raise Skip("empty-caption")
    return captions


def _one(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str | bytes):
        raise Skip("caption-not-text", type(value).__name__)
    if len(value) > MAX_TEXT_BYTES:
        raise Skip("caption-too-long", f"{len(value)} characters")
    try:
        text = utf8(value).decode() if isinstance(value, bytes) else value
        text.encode()  # a str may hold half a surrogate pair, which no tokenizer takes
    except UnicodeError:
        raise Skip("caption-not-utf8") from None
    if text.startswith(LFS_POINTER.decode()):
        raise Skip("git-lfs-pointer", "run git lfs pull")
    text = " ".join(text.replace("\0", " ").split())
    if len(text) > MAX_CHARACTERS:
        raise Skip("caption-too-long", f"{len(text)} characters")
    return text


def utf8(data: bytes) -> bytes:
    """Without the mark in front; of what has UTF-32's or UTF-16's, as editors of Windows write it, the same text in
    UTF-8. Raises `UnicodeError` for either without its mark, in which every other byte is 0."""
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return data.decode("utf-32").encode()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16").encode()
    if len(start := data[:64]) > 3 and 2 * start.count(0) >= len(start) - 1 and start.strip(b"\0"):
        raise UnicodeError("it is in UTF-16 or UTF-32, without the mark that says which")
    return data.removeprefix(codecs.BOM_UTF8)


def read_columns(data: bytes) -> dict[str, Any]:
    """The JSON object that describes a record. Raises `Skip` where it is none."""
    try:
        columns = json.loads(data)
    except (ValueError, RecursionError):
        raise Skip("metadata-not-json") from None
    if not isinstance(columns, dict):
        raise Skip("metadata-not-json", f"a {type(columns).__name__}")
    return columns
