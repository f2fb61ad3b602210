"""The files that a pattern stands for: `{000..009}` all the numbers, `{a,b}` either, `*` anything."""

import glob
import math
import re
from itertools import product
from pathlib import Path

import fsspec

from scott.errors import UserError, first_line

MAX_FILES = 1_000_000
_BRACES = re.compile(r"\{(\d{1,18}\.\.\d{1,18}|[^{}]*,[^{}]*)\}")


def braces(pattern: str) -> list[str]:
    """All names that a pattern's braces stand for, the last brace counting fastest; any other brace is itself.

    Numbers are padded as a shell does it: all to one width where an end is written with a zero in front.

    Raises:
        UserError: more than a million names.
    """
    pieces = _BRACES.split(pattern)  # text, inside of a brace, text, ...
    counts = [_count(piece) if i % 2 else 1 for i, piece in enumerate(pieces)]
    if math.prod(counts) > MAX_FILES:
        raise UserError(f"got {pattern}, which stands for {math.prod(counts):,} files; name at most {MAX_FILES:,}")
    choices = [_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return list(map("".join, product(*choices)))


def _count(inside: str) -> int:
    first, dots, last = inside.partition("..")
    return abs(int(last) - int(first)) + 1 if dots and "," not in inside else inside.count(",") + 1


def _choices(inside: str) -> list[str]:
    if "," in inside:
        return inside.split(",")
    first, _, last = inside.partition("..")
    padded = any(end != "0" and end.startswith("0") for end in (first, last))
    width, step = max(len(first), len(last)) if padded else 0, 1 if int(first) <= int(last) else -1
    return [str(number).zfill(width) for number in range(int(first), int(last) + step, step)]


def expanded(pattern: str) -> list[str]:
    """The names that a pattern stands for, in order; those of `*` are there, those of braces need not be.

    Raises:
        UserError: too many names, or a remote place that cannot be listed.
    """
    if "://" not in pattern and Path(pattern).is_file():
        return [pattern]
    names: list[str] = []
    for name in braces(pattern):
        if "://" not in name:
            literal = re.sub(r"[\[?]", r"[\g<0>]", name)
            found = sorted(path for path in glob.iglob(literal, recursive=True) if Path(path).is_file())
            names += found or ([] if "*" in name else [name])
        elif "*" in name:
            try:
                files = fsspec.open_files(name)
            except (OSError, ImportError, ValueError) as error:
                raise UserError(f"{name} cannot be listed: {first_line(error)}") from None
            names += sorted(file.full_name for file in files)
        else:
            names.append(name)
    return names
