"""A folder of pictures, each with its caption in a file beside it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path, PurePosixPath

from scott.data.captions import read_columns
from scott.data.records import MAX_TEXT_BYTES, Columns, Record, Rejected, Skip, Unit, attempt, slices, with_left_out
from scott.data.sources.files import digest_of, read_local
from scott.data.sources.survey import Survey, endings_of, folded
from scott.data.sources.tables import captions_among
from scott.errors import UserError

TEXTS = (".txt", ".caption", ".text", ".json")
"""Endings of captions beside pictures, in upper or lower case, the first of several counts."""
_REPEATED = re.compile(r"([1-9]\d{0,2})_(.+)")
"""A folder's name in which each picture is visited up to 999 times an epoch; longer numbers are dates."""
_PAGES = ("readme", "license", "licence", "citation")


def texts_beside(pictures: Sequence[str], files: Sequence[str], prefer_json: bool = False) -> dict[str, str]:
    """Picture → the file with its caption: `a.b.txt` of `a.b.png`, or else `a.b.png.txt`, or else, of texts that are no
    other picture's, one whose name differs in upper and lower case or in Unicode's composition alone."""
    named: dict[str, str] = {}
    for ending in reversed((".json", *TEXTS) if prefer_json else TEXTS):
        named |= {name[: -len(ending)]: name for name in files if name.lower().endswith(ending)}
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in pictures}
    found = {name: text for name, stem in stems.items() if (text := named.get(stem) or named.get(name))}
    taken = set(found.values())
    alike = {folded(stem): text for stem, text in named.items() if text not in taken}
    return found | {n: alike[folded(s)] for n, s in stems.items() if n not in found and folded(s) in alike}


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
        self.folder, self.names, self.texts, self.wanted = found.root, names, texts, wanted
        if not names:
            raise UserError(f"{found.root} holds no pictures, but {endings_of(found.files) or 'nothing'}")
        if wanted.image or (wanted.captions and not any(text.lower().endswith(".json") for text in texts.values())):
            named = ", ".join((wanted.image or "", *wanted.captions)).strip(", ")
            raise UserError(f"{found.root} holds pictures with texts beside them, and no columns; got {named}")
        repeated = [_repeated(name) for name in names]
        self.repeats = repeated if all(repeated) else [None] * len(names)
        read = {*names, *texts.values(), *(entry.key for entry in left_out)}
        stems = {folded(str(PurePosixPath(name).with_suffix(""))) for name in texts}
        rest = (name for name in found.files if name not in read and not is_page(name))
        self.left_out = left_out + [_unread(name, stems) for name in rest]

    @cached_property
    def columns(self) -> Sequence[str]:
        """Those of the first .json that holds a caption."""
        for name in self.texts.values():
            if name.lower().endswith(".json"):
                try:
                    return list(read_columns(read_local(self.folder / name, MAX_TEXT_BYTES)))
                except Skip:
                    continue
        return ()

    @cached_property
    def version(self) -> str:
        texts = [self.texts.get(name, str(Path(name).with_suffix(".txt"))) for name in self.names]
        return digest_of([*self.names, *texts], self.folder)

    def units(self, size: int) -> list[Unit]:
        units: list[Unit] = []
        for repeated, group in groupby(range(len(self.names)), key=lambda i: self.repeats[i]):
            rows = list(group)
            for part in slices(len(rows), size):
                r = range(rows[part.start], rows[part.start] + len(part))
                title = f"pictures {r.start} to {r.stop - 1}"
                units.append(Unit(title, len(r), partial(self._records, r), repeated[0] if repeated else 1))
        return with_left_out(units, self.left_out)

    def _records(self, rows: range) -> Iterator[Record | Rejected]:
        for i in rows:
            yield attempt(self.names[i], partial(self._record, i))

    def _record(self, i: int) -> Record:
        name, repeated = self.names[i], self.repeats[i]
        image = partial(read_local, self.folder / name)
        if (text := self.texts.get(name)) is None:
            if repeated:
                return Record(name, image, repeated[1])
            raise Skip("no-caption", f"no {', '.join(TEXTS)} beside it")
        try:
            content = read_local(self.folder / text, MAX_TEXT_BYTES)
        except Skip as skip:
            raise Skip("unreadable-caption", skip.detail) from None
        if not text.lower().endswith(".json"):
            return Record(name, image, content)
        columns = read_columns(content)
        captions = captions_among(columns, self.wanted.captions)
        return Record(name, image, captions, columns)


def _repeated(name: str) -> tuple[int, str] | None:
    """(visits an epoch, caption) that the innermost folder named like `10_cat` says of a picture."""
    for part in reversed(PurePosixPath(name).parts[:-1]):
        if found := _REPEATED.fullmatch(part):
            return int(found[1]), found[2]
    return None


def is_page(name: str) -> bool:
    """Whether a file is there for people, or to say of a data set what is not of one picture."""
    path = PurePosixPath(name.lower())
    return path.name.startswith(_PAGES) or path.suffix in (".md", ".json", ".parquet", ".py")


def _unread(name: str, stems: set[str]) -> Rejected:
    if not name.lower().endswith(TEXTS):
        return Rejected(name, "other-file")
    if folded(name.rpartition(".")[0]) in stems:
        return Rejected(name, "other-file", "its picture has another text")
    return Rejected(name, "no-picture")
