"""A folder of pictures, each with its caption in a file beside it."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path, PurePosixPath

from scott.data.captions import read_columns
from scott.data.pictures import SUFFIXES
from scott.data.records import MAX_TEXT_BYTES, Columns, Record, Rejected, Skip, Unit, slices, with_left_out
from scott.data.sources.files import caption_of, read_file, read_picture
from scott.data.sources.survey import Survey
from scott.data.sources.tables import usual_captions
from scott.errors import UserError, first_line

TEXTS = (".txt", ".caption", ".text", ".json")
"""Endings of captions beside pictures, in upper or lower case, the first of several counts."""
_REPEATED = re.compile(r"([1-9]\d*)_(.+)")
_PAGES = ("readme", "license", "licence", "citation")


def texts_of(names: Sequence[str], prefer_json: bool = False) -> dict[str, str]:
    """Path without its ending → the file that holds the caption of a picture of that name."""
    found: dict[str, str] = {}
    for ending in reversed((".json", *TEXTS) if prefer_json else TEXTS):
        found |= {name[: -len(ending)]: name for name in names if name.lower().endswith(ending)}
    return found


def text_beside(picture: str, texts: Mapping[str, str]) -> str | None:
    """`a.b.txt` of `a.b.png`, or else `a.b.png.txt`."""
    return texts.get(str(PurePosixPath(picture).with_suffix("")), texts.get(picture))


class Folder:
    """Pictures of a folder and the folders in it, in the order of their paths, each with the text of its name.

    Where all of them lie in folders named `10_cat`, an epoch visits each of those ten times, and the caption of one
    without a text is "cat", as kohya's sd-scripts have it.

    Raises `UserError` when it holds no pictures.
    """

    kind = "folder"

    def __init__(
        self, found: Survey, names: Sequence[str], texts: Mapping[str, str], wanted: Columns, left_out: list[Rejected]
    ) -> None:
        self.folder, self.names, self.wanted = found.root, names, wanted
        if not names:
            raise UserError(f"{found.root} holds no pictures; expected files ending in {', '.join(sorted(SUFFIXES))}")
        self.texts = {name: text_beside(name, texts) for name in names}
        self.repeated = all(_REPEATED.fullmatch(name.split("/")[0]) for name in names)
        read = {*names, *self.texts.values()}
        read |= {name for entry in left_out for name in (entry.key, text_beside(entry.key, texts))}
        self.left_out = left_out + [_unread(name) for name in found.files if name not in read and not _is_page(name)]

    @cached_property
    def columns(self) -> Sequence[str]:
        """Those of the first .json that holds a caption."""
        for name in self.texts.values():
            if name and name.lower().endswith(".json"):
                try:
                    return list(read_columns(read_file(self.folder / name, MAX_TEXT_BYTES)))
                except (OSError, Skip):
                    continue
        return ()

    @cached_property
    def version(self) -> str:
        texts = [self.texts[name] or str(Path(name).with_suffix(".txt")) for name in self.names]
        return state_digest(self.folder, [*self.names, *texts])

    def units(self, size: int) -> list[Unit]:
        units: list[Unit] = []
        for repeats, group in groupby(range(len(self.names)), key=lambda i: self._repeats(self.names[i])):
            rows = list(group)
            for part in slices(len(rows), size):
                r = range(rows[part.start], rows[part.start] + len(part))
                title = f"pictures {r.start} to {r.stop - 1}"
                units.append(Unit(title, len(r), partial(self._records, r), repeats))
        return with_left_out(units, self.left_out)

    def _repeats(self, name: str) -> int:
        found = _REPEATED.fullmatch(name.split("/")[0]) if self.repeated else None
        return int(found[1]) if found else 1

    def _records(self, rows: range) -> Iterator[Record | Rejected]:
        for name in self.names[rows.start : rows.stop]:
            try:
                captions, columns = self._caption(name)
                yield Record(name, partial(read_picture, name, self.folder), captions, columns)
            except Skip as skip:
                yield Rejected(name, skip.reason, skip.detail)

    def _caption(self, name: str) -> tuple[object, dict[str, object]]:
        text = self.texts[name]
        if text is None:
            if self.repeated:
                return name.split("/")[0].partition("_")[2], {}
            raise Skip("no-caption", f"no {', '.join(TEXTS)} beside it")
        try:
            content = read_file(self.folder / text, MAX_TEXT_BYTES)
        except OSError as error:
            raise Skip("unreadable-caption", first_line(error)) from None
        if not text.lower().endswith(".json"):
            return content, {}
        columns = read_columns(content)
        names = self.wanted.captions or usual_captions(columns)
        if not any(column in columns for column in names):
            raise Skip("no-caption", ", ".join(columns))
        return caption_of(columns, names), {key: value for key, value in columns.items() if key not in names}


def _is_page(name: str) -> bool:
    """Whether a file is there for people, or to say of a data set what is not of one picture."""
    path = PurePosixPath(name.lower())
    return path.name.startswith(_PAGES) or path.suffix in (".md", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".py")


def _unread(name: str) -> Rejected:
    return Rejected(name, "no-picture" if name.lower().endswith(TEXTS) else "other-file")


def state_digest(folder: Path, names: Sequence[str]) -> str:
    """Of names, sizes and times of change; a file that is not there counts as such."""
    digest = hashlib.sha256()
    for name in names:
        try:
            stat = (folder / name).stat()
            digest.update(repr((name, stat.st_size, stat.st_mtime_ns)).encode())
        except (OSError, ValueError):
            digest.update(repr((name, None)).encode())
    return digest.hexdigest()
