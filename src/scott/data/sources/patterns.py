"""The files that a pattern stands for: braces as a shell has them (`{000..009}`, `{a,b}`), `*` anything."""

import glob
import re
from pathlib import Path

import bracex
import fsspec

from scott.errors import UserError, first_line

MAX_FILES = 1_000_000


def braces(pattern: str) -> list[str]:
    """All names that a pattern's braces stand for, the last brace counting fastest; a lone brace is itself.

    Raises:
        UserError: more than a million names.
    """
    try:
        return bracex.expand(pattern, keep_escapes=True, limit=MAX_FILES)
    except bracex.ExpansionLimitException:
        raise UserError(f"got {pattern}, which stands for more than {MAX_FILES:,} files; name fewer") from None
    except RecursionError:  # of thousands that are nested
        return [pattern]


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
            except Exception as error:  # each protocol has its own
                raise UserError(f"{name} cannot be listed: {first_line(error)}") from None
            names += sorted(file.full_name for file in files)
        else:
            names.append(name)
    return names
