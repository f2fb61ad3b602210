"""Files that are whole or absent."""

import os
from pathlib import Path


def write_atomically(path: str | Path, text: str) -> None:
    """Write UTF-8 text beside `path`, then move it there: a reader never sees half a file.

    A path that is no file, such as /dev/null, is written to and not replaced.
    """
    if Path(path).exists() and not Path(path).is_file():
        Path(path).write_text(text, encoding="utf-8")
        return
    temporary = Path(f"{path}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
