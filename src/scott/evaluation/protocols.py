"""Which prompts are drawn and which real pictures they are held against, by name, as the literature measures.

    coco2017-5k    5,000 pictures of val2017, each with its first caption
    coco2014-30k   30,000 of val2014's 40,504, each with its first caption; everything to 256 px
    mjhq-5k        500 of each of MJHQ-30K's ten categories, each with its prompt

Pictures are cropped at their centre and resized by Lanczos, real and drawn alike. Where a protocol takes some of the
pictures, they are those whose names have the smallest SHA-256, in that order: one that anyone can compute and that
favours nothing. coco2014-30k.txt beside this file has the ids of those of val2014. Another list of names replaces it
(`listed`).

The real pictures of coco2014-30k are its captions' own; GigaGAN's evaluator and DMD hold pictures of as many captions
against the whole of val2014. A Fréchet distance depends on the real pictures: published figures, the paper's too,
compare only where theirs are the same.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from scott.data.captions import read_captions
from scott.data.loading import entries_of
from scott.data.manifest import MANIFEST
from scott.data.records import Columns, Record, Rejected, Source, reasons
from scott.data.sources import open_source
from scott.data.sources.files import PATH_MAX
from scott.errors import UserError
from scott.evaluation.features import Instruments
from scott.evaluation.measures import SHOWN, check_metrics
from scott.evaluation.mjhq import Mjhq
from scott.evaluation.networks import CLIPS, NETWORKS
from scott.evaluation.references import SMALLEST, Entries, Reference, Tick, check_samples, source_reference
from scott.files import write_atomically
from scott.measured import Measured


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A source of captioned pictures: what is taken of it, and how it is measured."""

    name: str
    data: str
    """What `--data` names."""
    samples: int
    size: int | None = None
    """Pixels a side that pictures are measured at; None takes what the sampler draws."""
    order: Callable[[Iterable[Record | Rejected]], Entries] | None = None
    """Of all that the source has; None keeps its order."""
    whole: bool = True
    """Whether data with fewer pictures than `samples` are refused, where --samples asks for no fewer."""
    open: Callable[[str, Columns, str], Source] = open_source
    features: str = "inception"
    """`--features`, where it is left out."""
    clip: str | None = None
    """The CLIP of the CLIP score then; None takes that of `networks.CLIPS`."""
    shown: tuple[str, ...] = ()
    """What can be read off its pictures themselves, of `measures.SHOWN`."""
    embedded: tuple[str, ...] = ()
    """Names of `--data` that it alone is for."""
    unread: tuple[str, ...] = ("split",)
    """What `Measured` has that says nothing here."""

    def check(self, measured: Measured) -> None:
        """Raise `UserError` for what can be known to be wrong before anything is loaded."""
        check_metrics(measured.metrics)
        if given := [name for name in self.unread if getattr(measured, name) != getattr(Measured(), name)]:
            flag = given[0].replace("_", "-")
            raise UserError(f"got --{flag} with the protocol {self.name}, which does not read it; leave it out")
        if hidden := [name for name in measured.metrics if name in SHOWN and name not in self.shown]:
            raise UserError(f"got the metric {hidden[0]}, which is read off pictures of mini alone; leave it out")
        for name, low in {"batch-size": 1, "bootstrap": 0, "size": 1}.items():
            if (value := getattr(measured, name.replace("-", "_"))) is not None and value < low:
                raise UserError(f"got --{name} {value}; expected {low} or more")
        if measured.diversity < 0 or measured.diversity == 1:
            raise UserError(f"got --diversity {measured.diversity}; expected 2 or more pictures a caption, or 0")
        if not measured.seeds or min(measured.seeds) < 0 or len(set(measured.seeds)) < len(measured.seeds):
            raise UserError(
                f"got --seeds {' '.join(map(str, measured.seeds))}; expected numbers of 0 or more, each once"
            )
        if unknown := set(measured.models) - {*NETWORKS, *CLIPS}:
            raise UserError(f"got --models {' '.join(sorted(unknown))}; expected {', '.join([*NETWORKS, *CLIPS])}")
        if (Path(measured.data) / MANIFEST).is_file():
            raise UserError(f"{measured.data} holds encoded pictures; name the pictures that they were made of")
        check_samples(self.samples_of(measured))

    def samples_of(self, measured: Measured) -> int:
        """What is asked for: a number, a whole list of names, or the protocol's."""
        if measured.samples is not None:
            return measured.samples
        return len(names_in(measured.names)) if measured.names else self.samples

    def reference(
        self, measured: Measured, samples: int, drawn: int | None, instruments: Instruments, tick: Tick
    ) -> Reference:
        """Of the data that are measured on, for samplers that draw `drawn` pixels a side, where that is known."""
        if (size := measured.size or self.size or drawn) is None:
            raise UserError(
                "got pictures of no known size; say with --size at how many pixels a side they are measured"
            )
        columns = Columns(measured.image_column, measured.caption_column)
        source = self.open(measured.data, columns, measured.data_split)
        floor = self.open(measured.floor_data, columns, measured.data_split) if measured.floor_data else None
        names = names_in(measured.names) if measured.names else None
        choose = partial(listed, names=names, source=source.kind) if names else self.order
        whole = samples if names is None else min(samples, len(names))
        least = whole if self.whole and measured.samples is None else SMALLEST
        key = [self.name, names, measured.image_column, measured.caption_column, measured.data_split]
        return source_reference(
            source,
            whole,
            size,
            instruments,
            tick,
            choose=choose,
            floor=floor,
            key=key,
            least=least,
            names=names,
            once=not self.whole,
        )

    def check_captions(self, drawn: Sequence[str], own: Sequence[str]) -> None:
        """Raise `UserError` where pictures that are there already are of others than the protocol's captions."""
        if self.whole and not self.embedded and (others := Counter(drawn) - Counter(own)):
            raise UserError(
                f"got {len(drawn):,} pictures, one of {next(iter(others))!r}, which is none of the first {len(own):,} "
                f"captions of {self.name}; draw those that are missing, or measure pictures of other captions with "
                "--protocol custom"
            )

    def conditions(self, measured: Measured, reference: Reference) -> dict[str, Any]:
        """What else figures were measured under."""
        left_out = {"left out": reasons(reference.skipped)} if reference.skipped else {}
        return {"data": measured.data, "size": reference.size} | left_out


def by_list(entries: Iterable[Record | Rejected]) -> Entries:
    """COCO's pictures of coco2014-30k.txt, in its order. Raises `UserError` where there is none."""
    numbers = Path(__file__).with_name("coco2014-30k.txt").read_text(encoding="utf-8").split()
    ranks = {f"COCO_val2014_{int(number):012d}.jpg": rank for rank, number in enumerate(numbers)}
    every = [*entries]
    if not (there := [entry for entry in every if entry.key in ranks]):
        raise UserError(f"got {len(every):,} pictures, none of COCO's val2014; give annotations/captions_val2014.json")
    return sorted(there, key=lambda entry: ranks[entry.key])


def by_digest(entries: Iterable[Record | Rejected]) -> Entries:
    return sorted(entries, key=lambda entry: sha256(entry.key.encode()).digest())


def by_category(entries: Iterable[Record | Rejected]) -> Entries:
    """By digest within a category (the folder of the name), and the categories in turn."""
    groups: dict[str, Entries] = defaultdict(list)
    for entry in by_digest(entries):
        groups[entry.key.partition("/")[0]].append(entry)
    ranked = [(rank, name, entry) for name, group in groups.items() for rank, entry in enumerate(group)]
    return [entry for _, _, entry in sorted(ranked, key=lambda item: item[:2])]


def listed(entries: Iterable[Record | Rejected], names: Sequence[str], source: str) -> Entries:
    """The entries of these names, in their order, of several of one picture the first; no others are held. Raises
    `UserError` for a name that the source has not, or has of several pictures."""
    there: dict[str, Entries] = {name: [] for name in names}
    for entry in entries:
        if entry.key in there:
            there[entry.key].append(entry)
    if missing := [name for name in names if not there[name]]:
        raise UserError(f"{source} has no {missing[0]}, nor {len(missing) - 1:,} others of the list of {len(names):,}")
    records = {name: [entry for entry in there[name] if isinstance(entry, Record)] for name in there}
    for name in names:
        if (count := len({*map(_read_by, records[name])})) > 1:
            raise UserError(
                f"got --names with {name[:200]!r}, which {count:,} pictures of {source} are called; expected names of "
                "one picture each; rename them, or leave --names out"
            )
    return [(records[name] or there[name])[0] for name in names]


def _read_by(record: Record) -> str | int:
    """What two records have in common that read the same file or URL."""
    return repr(record.image.args) if isinstance(record.image, partial) else id(record.image)


def prompts_of(protocol: str, data: str) -> tuple[list[str], list[str]]:
    """Names and prompts of the pictures that a protocol takes of its data, by their captions alone."""
    one = PROTOCOLS[protocol]
    entries = list(entries_of(one.open(data, Columns(), "train")))
    taken = [entry for entry in (one.order(entries) if one.order else entries) if isinstance(entry, Record)]
    taken = taken[: one.samples]
    return [entry.key for entry in taken], [read_captions(entry.captions)[0] for entry in taken]


def names_in(file: Path) -> list[str]:
    """The first column of a CSV, or lines."""
    try:
        rows = list(csv.reader(io.StringIO(file.read_text(encoding="utf-8-sig"))))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file} is no list of pictures' names: {error}") from None
    names = [row[0] for row in rows if row]
    if (longest := max(map(len, names), default=0)) > PATH_MAX:
        raise UserError(f"{file} is no list of pictures' names: one has {longest} characters of {PATH_MAX}")
    return names[1:] if names[:1] == ["name"] else names


def write_list(file: Path, names: Sequence[str], prompts: Sequence[str]) -> None:
    """Which pictures and captions figures are of: a CSV that `names_in` reads."""
    content = io.StringIO()
    csv.writer(content, lineterminator="\n").writerows([("name", "prompt"), *zip(names, prompts, strict=False)])
    write_atomically(file, content.getvalue())


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="coco2017-5k",
            data="COCO's annotations/captions_val2017.json",
            samples=5000,
            unread=("split", "image_column", "caption_column"),
        ),
        Protocol(
            name="coco2014-30k",
            data="COCO's annotations/captions_val2014.json",
            samples=30_000,
            size=256,
            order=by_list,
            unread=("split", "image_column", "caption_column"),
        ),
        Protocol(
            name="mjhq-5k",
            data="MJHQ-30K's meta_data.json",
            samples=5000,
            order=by_category,
            open=Mjhq,
            unread=("split", "image_column", "caption_column", "data_split"),
        ),
        Protocol(name="custom", data="captioned pictures", samples=1000, whole=False),
    )
}
