"""Where captioned pictures come from. One name says it, and its kind is recognised."""

import re
from pathlib import Path

from scott.data.records import Columns, Source
from scott.data.sources.coco import Coco
from scott.data.sources.folder import METADATA, Folder, MetadataFolder
from scott.data.sources.hub import SAVED, HubDataset
from scott.data.sources.parquet import Parquet
from scott.data.sources.patterns import expanded
from scott.data.sources.webdataset import WebDataset
from scott.errors import UserError

KINDS = (
    "a folder of pictures (.txt beside each, or metadata.jsonl or .csv), of .parquet or of .tar, one of COCO, a folder "
    "that save_to_disk wrote, .parquet or .tar files (a path, a pattern or a URL), captions_*.json, or a dataset's name"
)
USUAL = Columns()
_TARS, _PARQUET = (".tar", ".tar.gz", ".tgz"), (".parquet",)
_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")


def open_source(name: str, columns: Columns = USUAL, split: str = "train") -> Source:
    """The source of that name.

    Args:
        name: see `KINDS`. `{000..009}` stands for all the numbers, `*` for anything.
        columns: of a table, instead of the usual ones.
        split: of a Hugging Face dataset.

    Raises:
        UserError: nothing there, or nothing that is known; what each kind of source refuses.
    """
    if (folder := Path(name)).is_dir():
        return _in_folder(folder, columns, split)
    file = name.split("::")[0].lower()
    if file.endswith(".json"):
        return Coco(name)
    if file.endswith(_TARS):
        return WebDataset(_expanded(name), columns)
    if file.endswith(_PARQUET):
        return Parquet(_expanded(name), columns)
    if not Path(name).exists() and _HUB.fullmatch(name):
        return HubDataset(name, split, columns)
    raise UserError(f"no data at {name}; expected `mini`, {KINDS}")


def _in_folder(folder: Path, columns: Columns, split: str) -> Source:
    if any((folder / name).is_file() for name in SAVED):
        return HubDataset(str(folder), split, columns)
    for name in METADATA:
        if (folder / name).is_file():
            return MetadataFolder(folder / name, columns)
    if tars := [str(path) for path in sorted(folder.iterdir()) if path.name.lower().endswith(_TARS)]:
        return WebDataset(tars, columns)
    if tables := sorted(map(str, folder.rglob("*.parquet"))):
        return Parquet(tables, columns)
    annotations = [*folder.glob("captions_*.json"), *folder.glob("annotations/captions_*.json")]
    if len(annotations) > 1:
        raise UserError(f"{folder} holds several caption files; name one: {', '.join(map(str, sorted(annotations)))}")
    return Coco(str(annotations[0])) if annotations else Folder(folder)


def _expanded(pattern: str) -> list[str]:
    """The files of a pattern, in order. Raises `UserError` when there are none."""
    names = [name for name in expanded(pattern) if "://" in name or Path(name).is_file()]
    if not names:
        raise UserError(f"no data at {pattern}; expected `mini`, {KINDS}")
    return names
