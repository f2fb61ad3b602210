"""What samplers are measured on, of any source of captioned pictures."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scott.data.loading import Sample, Tally, entries_of, loaded
from scott.data.pictures import cropped
from scott.data.records import Record, Rejected, Source, chunks, reasons
from scott.data.settings import Settings
from scott.errors import UserError
from scott.evaluation.features import Instruments, features_of
from scott.evaluation.grids import to_pil
from scott.evaluation.measures import METRICS, USUAL, Figure, figures
from scott.evaluation.pictures import Generate
from scott.evaluation.results import FLOOR, Row
from scott.files import replacing

BATCH = 64
SMALLEST = 10
"""Samples that a row is measured on at least."""
SAME = "same-picture"
"""Why a picture is skipped that came before: a table may have a row a caption."""
Tick = Callable[[str, int, int], None]
Entries = list[Record | Rejected]
Reading = Callable[[Tensor, Sequence[str]], Mapping[str, Tensor]]
"""(B pictures, their captions) → name → what each shows, (B,), NaN where it does not apply."""


@dataclass
class Reference:
    """Captions to draw, and features of the real pictures that what is drawn of them is measured against."""

    prompts: list[str]
    instruments: Instruments
    real: Mapping[str, Tensor]
    """Instrument → features (N, D) of real pictures."""
    metrics: Sequence[str] = USUAL
    others: Mapping[str, Tensor] = field(default_factory=dict)
    """Of as many other real pictures as there are captions: what a perfect sampler would draw. Empty where there are
    none."""
    replicates: int = 0
    """Bootstrap resamples behind an interval."""
    reading: Reading | None = None
    """What else is read off each picture."""
    size: int | None = None
    """Pixels a side that drawn pictures are brought to, by Lanczos, before they are measured; None leaves them."""
    redrawn: Generate | None = None
    """Real pictures of a caption, as a sampler draws them, where the data can be drawn again."""
    reading_variants: Reading | None = None
    """What is read off several pictures of one caption."""
    names: list[str] = field(default_factory=list)
    """Of the real pictures that the captions are of, where they have names."""
    version: str = ""
    """Of the source that the real pictures are of, where it has one."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Reason → how many real pictures were left out on the way."""

    @cached_property
    def texts(self) -> dict[str, Tensor]:
        """Instrument → features of the captions, for the metrics that compare pictures with them."""
        names = {METRICS[name].instrument for name in self.metrics if METRICS[name].captions}
        return {name: self.instruments[name].texts(self.prompts) for name in names}

    @cached_property
    def floors(self) -> dict[str, Figure]:
        compared = [name for name in self.metrics if not METRICS[name].captions]
        return figures(compared, self.real, {}, self.others, self.replicates) if self.others else {}

    def floor(self) -> Row:
        """Other real pictures in a sampler's place: what finite samples cost even a perfect one."""
        count = len(next(iter(self.others.values())))
        return Row(FLOOR, 0, 0, None, samples=count, metrics=self.floors)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Instrument → features of pictures, at the size that is measured."""
        return features_of(self.instruments, self.sized(images))

    def sized(self, images: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) at the size that is measured, by Lanczos where it is another than theirs."""
        if self.size is None or images.shape[-2:] == (self.size, self.size):
            return images
        return torch.stack([cropped(to_pil(image), [(self.size, self.size)]) for image in images]).float() / 255


def source_reference(
    source: Source,
    samples: int,
    size: int,
    instruments: Instruments,
    tick: Tick,
    *,
    choose: Callable[[Iterable[Record | Rejected]], Entries] | None = None,
    floor: Source | None = None,
    key: Sequence[Any] | None = None,
    least: int = SMALLEST,
    names: Sequence[str] | None = None,
    once: bool = True,
) -> Reference:
    """The first pictures that can be read, of those that `choose` makes of all, each with its first caption.

    A picture is cropped at its centre to size x size by Lanczos. The floor's pictures are the first of the source
    `floor`, or of this source those that follow, or that have none of `names`, where there are as many. With `once`, a
    picture whose pixels came before, in the floor too, is skipped. `key`, what the choice depends on, keeps features
    for the next time, where there are all `samples` of them and nothing else was skipped on the way.

    Raises:
        UserError: fewer than `least` can be read, or fewer of `floor` than of the source; see `open_source`.
    """
    check_samples(samples)
    file = None
    if key is not None and instruments:
        made_of = [
            source.kind,
            source.version,
            floor and floor.version,
            samples,
            size,
            *key,
            names and len(names),
            once,
        ]
        file = _cache_file(made_of, instruments)
        if kept := _kept(file):
            return _reference(instruments, size, source.version, *kept)
    entries, behind = _split(source, choose, names)
    behind = entries_of(floor) if floor else behind
    seen: set[bytes] | None = set() if once else None
    with closing(_decoded(entries, size, seen)) as found:
        real, described = _read(found, samples, instruments, lambda done: tick("the real pictures", done, samples))
        if (count := len(described["prompts"])) < least:
            raise _too_few(count, least, described["skipped"])
        with nullcontext(found) if behind is None else closing(_decoded(behind, size, seen)) as following:
            others, rest = _read(following, count, instruments, lambda done: tick("the floor's pictures", done, count))
    if floor and (read := len(rest["prompts"])) < count:
        there = f"got {read:,} readable pictures in --floor-data{_why(rest['skipped'])}"
        raise UserError(f"{there}; expected as many as are drawn, {count:,}")
    tensors = {f"real/{name}": value for name, value in real.items()}
    if all(len(features) == count for features in others.values()):
        tensors |= {f"others/{name}": value for name, value in others.items()}
    if file is not None and count == samples and {*described["skipped"], *rest["skipped"]} <= {SAME}:
        _keep(file, tensors, described)
    return _reference(instruments, size, source.version, tensors, described)


def _split(
    source: Source, choose: Callable[[Iterable[Record | Rejected]], Entries] | None, names: Sequence[str] | None
) -> tuple[Iterable[Record | Rejected], Iterable[Record | Rejected] | None]:
    """What is chosen of a source, and its other records, where those of some names are set apart: read a second time,
    as a record may hold its picture's bytes."""
    entries = entries_of(source)
    chosen = choose(entries) if choose else entries
    if names is None:
        return chosen, None
    apart = {*names}
    return chosen, (entry for entry in entries_of(source) if isinstance(entry, Record) and entry.key not in apart)


def _decoded(entries: Iterable[Record | Rejected], size: int, seen: set[bytes] | None) -> Generator[Sample | Rejected]:
    """All of them; a picture whose pixels have one of the digests `seen`, to which the others add theirs, left out."""
    with closing(loaded(entries, Settings(), [(size, size)])) as found:
        for entry in found:
            if seen is not None and isinstance(entry, Sample):
                if (digest := sha256(entry.pixels.numpy().tobytes()).digest()) in seen:
                    yield Rejected(entry.info["key"], SAME)
                    continue
                seen.add(digest)
            yield entry


def _read(
    found: Iterator[Sample | Rejected], count: int, instruments: Instruments, tick: Callable[[int], None]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Features of the next `count` that can be read; their prompts, their names, and what was skipped before them."""
    parts, prompts, names, tally = defaultdict(list), list[str](), list[str](), Tally()
    for chunk in chunks(islice(tally.kept(found, lambda _: None), count), BATCH):
        pixels = torch.stack([sample.pixels for sample in chunk]).float() / 255
        for name, features in features_of(instruments, pixels).items():
            parts[name].append(features)
        prompts += [sample.captions[0] for sample in chunk]
        names += [sample.info["key"] for sample in chunk]
        tick(len(names))
    described = {"prompts": prompts, "names": names, "skipped": tally.skipped}
    return {name: torch.cat(part) for name, part in parts.items()}, described


def _why(skipped: Counter[str]) -> str:
    return f" ({reasons(skipped)})" if skipped else ""


def _too_few(count: int, least: int, skipped: Counter[str]) -> UserError:
    fewer = "; complete them, or measure on fewer with --samples" if least > SMALLEST else ""
    return UserError(f"got {count:,} readable pictures with captions{_why(skipped)}; expected {least:,} or more{fewer}")


def _cache_file(made_of: Sequence[Any], instruments: Instruments) -> Path:
    networks = {name: one.description for name, one in sorted(instruments.items())}
    digest = sha256(json.dumps([*made_of, networks]).encode()).hexdigest()
    return cache_folder() / f"{digest}.safetensors"


def _keep(file: Path, tensors: dict[str, Tensor], described: dict[str, Any]) -> None:
    with suppress(OSError, SafetensorError, UserError):  # a place that cannot be written to: no figure needs it
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            save_file(tensors, partial, {"described": json.dumps(described)})


def _kept(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `_keep` wrote; None where it is not there, or cut."""
    with suppress(OSError, SafetensorError), safe_open(file, "pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (no dict)
        return tensors, json.loads(content.metadata()["described"])
    return None


def _reference(
    instruments: Instruments, size: int, version: str, tensors: dict[str, Tensor], described: dict[str, Any]
) -> Reference:
    real, others = (
        {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}
        for kind in ("real/", "others/")
    )
    return Reference(
        described["prompts"],
        instruments,
        real,
        others=others,
        size=size,
        names=described["names"],
        version=version,
        skipped=Counter(described["skipped"]),
    )


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scott" / "references"


def check_samples(samples: int) -> None:
    if samples < SMALLEST:
        raise UserError(f"got {samples} samples; expected {SMALLEST} or more, 1,000 for a figure worth reading")
