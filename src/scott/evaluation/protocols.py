"""Which prompts are drawn and which real pictures they are held against, by name, as the literature measures.

    coco2017-5k    5,000 pictures of val2017, each with its first caption
    coco2014-30k   30,000 of val2014's 40,504, each with its first caption; everything to 256 px
    mjhq-5k        500 of each of MJHQ-30K's ten categories, each with its prompt

Pictures are cropped at their centre and resized by Lanczos, real and drawn alike. Where a protocol takes some of the
pictures, those come first whose names have the smallest SHA-256: an order that anyone can compute, that favours
nothing, and that no file needs to keep. A published list of names replaces it (`chosen`).
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from scott.data.records import Record, Rejected, Skip, Unit, slices
from scott.errors import UserError
from scott.files import write_atomically

Entries = list[Record | Rejected]


@dataclass(frozen=True)
class Protocol:
    samples: int
    size: int | None
    """Pixels a side that pictures are measured at; None takes what the sampler draws."""
    order: Callable[[Entries], Entries] | None
    """Of all that the source has; None keeps its order."""
    data: str
    """What `--data` names."""


def by_digest(entries: Entries) -> Entries:
    return sorted(entries, key=lambda entry: sha256(entry.key.encode()).digest())


def by_category(entries: Entries) -> Entries:
    """By digest within a category (the folder of the name), and the categories in turn."""
    groups: dict[str, Entries] = defaultdict(list)
    for entry in by_digest(entries):
        groups[entry.key.partition("/")[0]].append(entry)
    ranked = [(rank, name, entry) for name, group in groups.items() for rank, entry in enumerate(group)]
    return [entry for _, _, entry in sorted(ranked, key=lambda item: item[:2])]


PROTOCOLS: dict[str, Protocol] = {
    "coco2017-5k": Protocol(5000, None, None, "COCO's annotations/captions_val2017.json"),
    "coco2014-30k": Protocol(30_000, 256, by_digest, "COCO's annotations/captions_val2014.json"),
    "mjhq-5k": Protocol(5000, None, by_category, "MJHQ-30K's meta_data.json"),
    "custom": Protocol(1000, None, None, "captioned pictures"),
}


def chosen(entries: Entries, names: Sequence[str], source: str) -> Entries:
    """The entries of these names, in their order. Raises `UserError` for a name that the source has not."""
    there = {entry.key: entry for entry in entries}
    if missing := [name for name in names if name not in there]:
        raise UserError(f"{source} has no {missing[0]}, nor {len(missing) - 1:,} others of the list of {len(names):,}")
    return [there[name] for name in names]


class Mjhq:
    """MJHQ-30K: `meta_data.json` and, beside it or in `mjhq30k_imgs`, CATEGORY/ID.jpg."""

    kind = "mjhq"
    columns = ("category",)

    def __init__(self, file: str) -> None:
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
            self.rows = [(f"{row['category']}/{name}.jpg", str(row["prompt"])) for name, row in content.items()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file} is not MJHQ-30K's meta_data.json ({error!r})") from None
        beside = Path(file).parent
        self.folder = next((f for f in (beside / "mjhq30k_imgs", beside) if (f / self.rows[0][0]).is_file()), beside)
        self.version = sha256(repr((self.rows, str(self.folder))).encode()).hexdigest()

    def units(self, size: int) -> list[Unit]:
        return [Unit(f"{r.start}", len(r), partial(self._records, r)) for r in slices(len(self.rows), size)]

    def _records(self, rows: range) -> Iterator[Record]:
        for name, prompt in self.rows[rows.start : rows.stop]:
            yield Record(name, partial(self._read, name), prompt, {"category": name.partition("/")[0]})

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError:
            raise Skip("missing-file") from None


def names_in(file: Path) -> list[str]:
    """The first column of a CSV, or lines."""
    try:
        rows = list(csv.reader(file.read_text(encoding="utf-8").splitlines()))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no list of pictures' names: {error}") from None
    names = [row[0] for row in rows if row]
    return names[1:] if names[:1] == ["name"] else names


def write_list(file: Path, names: Sequence[str], prompts: Sequence[str]) -> None:
    """Which pictures and captions figures are of: a CSV that `names_in` reads."""
    content = io.StringIO()
    csv.writer(content, lineterminator="\n").writerows([("name", "prompt"), *zip(names, prompts, strict=False)])
    write_atomically(file, content.getvalue())
