"""Rows of tables in text: CSV and its like, JSON lines, a list in JSON, or an object in JSON of one entry a picture."""

import csv
import json
import re
from collections.abc import Collection, Iterator, Sequence, Set
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from scott.data.captions import read_columns, utf8
from scott.data.pictures import named_as_picture
from scott.data.records import MAX_PICTURE_BYTES, Skip
from scott.data.sources.files import kind_of_start, opened, read_local
from scott.data.sources.survey import folded
from scott.data.sources.tables import CAPTIONS, IMAGES, usual_column
from scott.errors import UserError

OF_TEXT = (".csv", ".tsv", ".txt")
_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")
_SEPARATORS = ",;\t|"
_OF_COCO = ("info", "images", "annotations", "licenses", "categories", "type")
_URL = re.compile(r"\w+://\S+$")
_NUMBER = re.compile(r"#\d+$")
"""Of the caption, behind a picture's name, in Flickr8k's first edition."""
_KEY = re.compile(rb'\s*(?:(\[)|\{\s*"((?:[^"\\]|\\.)*)"\s*:)', re.DOTALL)
UNPACKED, UNPACKED_LEAST = 64, 1 << 28
"""A packed table may be so many times as large, or so many bytes where that is more: text packs to a tenth, what is
made to fill memory to a thousandth."""
Row = dict[str, Any]


def is_table(file: Path, pictures: Set[str] | None = None) -> bool:
    """By its ending, also with .gz behind it. A .json is one where it is a list, or its first key is a column's name or
    one of the names of `pictures` (see `names_of`; None: any but COCO's); a .txt, where its first line is a table's."""
    ending = file.suffix.lower()
    if ending == ".json":
        key = first_key(file)
        known = pictures is None or key == "[" or usual_column([key], IMAGES) or pictures & names_of([key])
        return bool(key and known) and key not in _OF_COCO
    if ending != ".txt":
        return file.name.lower().removesuffix(".gz").endswith(_ENDINGS)
    line = _start(file).partition(b"\n")[0].decode(errors="replace")
    cells = [cell.strip() for cell in line.split(_separator(line))]
    named = names_of([re.sub(_NUMBER, "", cell) for cell in cells]) & (pictures or set())
    return len(cells) > 1 and bool(named or (usual_column(cells, IMAGES) and usual_column(cells, CAPTIONS)))


def is_coco(file: Path) -> bool:
    return first_key(file) in _OF_COCO


def first_key(file: Path) -> str:
    """Of the object that a file of JSON holds; "[" of a list."""
    found = _KEY.match(_start(file))
    return "" if found is None else "[" if found[1] else found[2].decode(errors="replace")


def names_of(pictures: Collection[str]) -> set[str]:
    """How a table may call pictures: by their names alone, with and without their endings."""
    names = [PurePosixPath(folded(name.replace("\\", "/"))) for name in pictures]
    return {spelled for name in names for spelled in (name.name, name.stem)}


def _start(file: Path) -> bytes:
    try:
        return utf8(read_local(file, (1 << 12) - 1))
    except (Skip, ValueError):
        return b""


def read_table(file: Path) -> tuple[list[str], list[Row | Skip]]:
    """Names of columns, and rows or why they cannot be read. Rows end at \\n or \\r\\n alone, or where there is none at
    \\r: a caption may hold what else ends a line somewhere.

    Raises:
        UserError: it cannot be read, or has no rows.
    """
    name = file.name.lower().removesuffix(".gz")
    try:
        is_packed = file.suffix.lower() == ".gz"
        with opened(str(file), "gzip" if is_packed else None) as stream:
            content = utf8(_unpacked(stream, file) if is_packed else stream.read()).replace(b"\r\n", b"\n")
        if kind := kind_of_start(content[:64]):
            raise ValueError(": ".join(kind))
        if name.endswith(OF_TEXT):
            header, rows = _csv_rows(content, name)
        else:
            rows = list(_json_rows(content, name.endswith(".json")))
            header = list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))
    except (ValueError, RecursionError, EOFError, csv.Error) as error:
        raise UserError(f"{file} cannot be read ({error}); expected UTF-8, one row a picture") from None
    if not rows:
        listed = ", ".join(header)[:200] or "none"
        raise UserError(f"{file} has no rows below its header ({listed}); expected one a picture")
    if not any(isinstance(row, dict) for row in rows) and not name.endswith(OF_TEXT):
        raise UserError(f"{file} has no row that is a JSON object; expected one a line, or a list of them")
    return header, rows


def _unpacked(stream: IO[bytes], file: Path) -> bytes:
    """All of a packed file, in pieces: one call for `most` bytes would take as many before it reads any."""
    content, most = bytearray(), max(UNPACKED_LEAST, UNPACKED * file.stat().st_size)
    while piece := stream.read(1 << 20):
        content += piece
        if len(content) > most:
            raise ValueError(f"it unpacks to more than {most:,} bytes")
    return bytes(content)


def _json_rows(content: bytes, may_be_object: bool) -> Iterator[Row | Skip]:
    """Those of a line each, or the entries of one list, or of one object: picture → caption or columns."""
    whole: Any = None
    if content.lstrip()[:1] == b"[" or may_be_object:
        with suppress(ValueError, RecursionError):  # of lines
            whole = json.loads(content)
    if isinstance(whole, dict) and usual_column([*whole], IMAGES) is None:
        entries = {name: entry if isinstance(entry, dict) else {"caption": entry} for name, entry in whole.items()}
        yield from (entry | {"file_name": name} for name, entry in entries.items())
    elif isinstance(whole, list):
        yield from (row if isinstance(row, dict) else Skip("metadata-not-json", type(row).__name__) for row in whole)
    else:
        for line in filter(None, map(bytes.strip, content.split(b"\n"))):
            try:
                yield read_columns(line.removesuffix(b","))
            except Skip as skip:
                yield skip


def _csv_rows(content: bytes, name: str) -> tuple[list[str], list[Row | Skip]]:
    """Every cell as its text. Bytes that are no UTF-8 count where they are used. A row that cannot be read is its first
    line: a quote that nobody closes takes in those behind it, which are read again."""
    csv.field_size_limit(2 * MAX_PICTURE_BYTES)  # which may be there in base64
    if b"\n" not in content:
        content = content.replace(b"\r", b"\n")
    lines = content.decode(errors="surrogateescape").lstrip("\n").split("\n")
    named = lines.pop(0)[4:5] if re.fullmatch(f"sep=[{_SEPARATORS}]\r?", lines[0]) else ""  # as Excel has it
    separator = named or ("\t" if name.endswith(".tsv") else _separator(lines[0]))
    lines = [re.sub("[\r\0]", " ", f"{line}\n") for line in lines]  # csv takes a \r for the end of a row

    def read_from(start: int, names: Sequence[str] | None = None) -> "csv.DictReader[str]":
        rest = (lines[number] for number in range(start, len(lines)))
        return csv.DictReader(rest, names, delimiter=separator, skipinitialspace=True, strict=True)

    reader, start = read_from(0), 0
    header = [column for column in reader.fieldnames or () if column]
    rows: list[Row | Skip] = []
    if names := _missing_header(header):
        rows.append(dict(zip(names, header, strict=True)))
        reader.fieldnames = header = names
    while True:
        begun = start + reader.reader.line_num
        try:
            row = next(reader, None)
        except csv.Error as error:
            start = next(number for number in range(begun, len(lines)) if lines[number] != "\n") + 1
            rows.append(Skip("broken-row", f"line {start}: {error}"))
            reader = read_from(start, reader.fieldnames)
            continue
        if row is None:
            return header, rows
        more: Any = row.pop(None, [])  # cells beyond the header's
        if any(more):
            rows.append(Skip("more-cells-than-columns", "quote a caption that holds the separator"))
        else:
            rows.append({column: cell for column, cell in row.items() if column})


def _separator(header: str) -> str:
    """The one that the header has most of."""
    return max(_SEPARATORS, key=header.count)


def _missing_header(first: list[str]) -> list[str] | None:
    """Names of the columns where the first row is a picture's: of two, which is the picture's is seen. Raises
    `ValueError` for another number of columns."""
    pictures = [bool(_URL.match(cell)) or ("." in cell and named_as_picture(_NUMBER.sub("", cell))) for cell in first]
    if not any(pictures):
        return None
    if len(first) != 2:
        raise ValueError("it begins with a row, not with the names of its columns, such as file_name,caption")
    return ["file_name", "caption"] if pictures[0] else ["caption", "file_name"]
