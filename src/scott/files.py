"""Files that are whole or absent."""

import os
from pathlib import Path


def write_atomically(path: str | Path, text: str) -> None:
    """Write UTF-8 text beside `path`, then move it there: a reader never sees half a file."""
    temporary = Path(f"{path}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
