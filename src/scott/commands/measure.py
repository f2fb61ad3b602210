"""What samplers are measured on: captions and the features of real pictures, of the embedded data or of any source."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from scott.commands.measured import EvaluationSplit
from scott.data.loading import READ_AT_ONCE, Sample, loaded
from scott.data.records import Record, Rejected, Source, chunks
from scott.data.settings import Settings
from scott.errors import UserError
from scott.evaluation import Features, Reference, Results, Row, Sampler, evaluate
from scott.evaluation.protocols import PROTOCOLS, chosen
from scott.mini import embedded
from scott.mini.scenes import Scene, Scenes, Split, pictures

SEED = 1
VALIDATION_SEED = 100
BATCH = 64
SMALLEST = 10
"""Samples that a row is measured on at least."""
Tick = Callable[[str, int, int], None]
Instruments = dict[str, Features]


def measure_row(reference: Reference, name: str, sampler: Sampler, tick: Tick) -> Row:
    """One seed's figures, nothing kept."""
    return evaluate(
        sampler,
        reference,
        name=name,
        batch_size=BATCH,
        seeds=(SEED,),
        progress=lambda done, total: tick(name, done, total),
    )


class SourceReference(Reference):
    """A reference of a source's pictures."""

    names: list[str]
    """Of the pictures, in their order."""
    skipped: Counter[str]
    """Reason → how many pictures were left out on the way."""


def entries_of(source: Source) -> Iterator[Record | Rejected]:
    return (entry for unit in source.units(READ_AT_ONCE) for entry in (*unit.left_out, *unit.records()))


def source_reference(
    source: Source,
    samples: int,
    size: int,
    instruments: Instruments,
    tick: Tick,
    *,
    protocol: str = "custom",
    names: Sequence[str] | None = None,
    floor: Source | None = None,
    cache: str | None = None,
) -> SourceReference:
    """The first pictures, in the protocol's order, that can be read, each with its first caption.

    A picture is cropped at its centre to size x size by Lanczos. The floor's pictures are the first of the source
    `floor`, or of this source those that follow, where there are as many. `cache`, what the networks are, keeps
    features for the next time; without it nothing is kept.

    Raises:
        UserError: fewer than 10 can be read; see `open_source`.
    """
    check_samples(samples)
    key = [source.kind, source.version, floor and floor.version, samples, size, protocol, names, sorted(instruments)]
    file = cache_folder() / f"{sha256(json.dumps([key, cache]).encode()).hexdigest()}.safetensors" if cache else None
    if file is None or not file.is_file():
        order = PROTOCOLS[protocol].order
        entries = entries_of(source)
        if names is not None:
            entries = iter(chosen(list(entries), names, source.kind))
        elif order is not None:
            entries = iter(order(list(entries)))
        reader = _Reader(size, instruments)
        with closing(loaded(entries, Settings(), [(size, size)])) as found:
            real = reader.read(found, samples, lambda done: tick("the real pictures", done, samples))
            count, keys, prompts, skipped = len(reader.keys), reader.keys, reader.prompts, reader.skipped
            if count < SMALLEST:
                skips = f" ({reasons(skipped)})" if skipped else ""
                raise UserError(f"got {count} readable pictures with captions{skips}; expected {SMALLEST} or more")
            others = (
                reader.read(found, count, lambda done: tick("the floor's pictures", done, count)) if not floor else {}
            )
        if floor is not None:
            with closing(loaded(entries_of(floor), Settings(), [(size, size)])) as found:
                others = reader.read(found, count, lambda done: tick("the floor's pictures", done, count))
        enough = all(len(features) == count for features in others.values())
        tensors = {f"real/{name}": value for name, value in real.items()}
        tensors |= {f"others/{name}": value for name, value in others.items()} if enough else {}
        described = {"prompts": prompts, "names": keys, "skipped": skipped}
        if file is None:
            return _reference(instruments, tensors, described)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.tmp")
        save_file(tensors, partial, {"described": json.dumps(described)})
        os.replace(partial, file)
    with safe_open(file, "pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (no dict)
        return _reference(instruments, tensors, json.loads(content.metadata()["described"]))


class _Reader:
    """Reads samples on and on, and keeps of them what a reference states."""

    def __init__(self, size: int, instruments: Instruments) -> None:
        self.size, self.instruments = size, instruments

    def read(self, found: Iterator[Sample | Rejected], count: int, tick: Callable[[int], None]) -> dict[str, Tensor]:
        """Features of the next `count`; keys, prompts and what was skipped are those of this call."""
        self.keys: list[str] = []
        self.prompts: list[str] = []
        self.skipped: Counter[str] = Counter()
        parts: dict[str, list[Tensor]] = {name: [] for name in self.instruments}
        for chunk in chunks(islice(self._readable(found), count), BATCH):
            pixels = torch.stack([sample.pixels for sample in chunk]).float() / 255
            for name, features in Reference([], self.instruments, {}).features(pixels).items():
                parts[name].append(features)
            self.prompts += [sample.captions[0] for sample in chunk]
            self.keys += [sample.info["key"] for sample in chunk]
            tick(len(self.keys))
        return {name: torch.cat(part) for name, part in parts.items() if part}

    def _readable(self, found: Iterator[Sample | Rejected]) -> Iterator[Sample]:
        for entry in found:
            if isinstance(entry, Sample):
                yield entry
            else:
                self.skipped[entry.reason] += 1


def _reference(instruments: Instruments, tensors: dict[str, Tensor], described: dict[str, Any]) -> SourceReference:
    def of(kind: str) -> dict[str, Tensor]:
        return {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}

    reference = SourceReference(described["prompts"], instruments, of("real/"), others=of("others/"))
    reference.names, reference.skipped = described["names"], Counter(described["skipped"])
    return reference


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scott" / "references"


def reasons(skipped: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in skipped.most_common())


def check_samples(samples: int) -> None:
    if samples < SMALLEST:
        raise UserError(f"got {samples} samples; expected {SMALLEST} or more, 1,000 for a figure worth reading")


@dataclass
class MiniReference(Reference):
    """A reference of the embedded data."""

    scenes: list[Scene] = field(default_factory=list)
    """What its captions ask for."""


def mini_reference(
    samples: int, split: EvaluationSplit = "held-out", instruments: Instruments | None = None
) -> MiniReference:
    """Captions of a split of the embedded data, and the features of as many real pictures that rows are measured on.

    The pictures are of other draws of the split than the captions, so that the floor, the captions' own real pictures
    against the reference, is what a perfect sampler would get.

    "held-out" holds the (subject, background) pairs that training never shows. Whatever is chosen by its figures is
    chosen on "validation": pairs of the training split, in pictures of a seed that training does not use.
    """
    check_samples(samples)
    if instruments is None:
        clip = embedded.load_features()
        instruments = {"features": clip, "clip": clip}
    of: Split = "held-out" if split == "held-out" else "train"
    seed = 0 if split == "held-out" else VALIDATION_SEED
    real, asked = (Scenes(samples, of, seed + draw).scenes() for draw in (0, 1))
    reference = MiniReference([this.caption for this in asked], instruments, {}, scenes=asked)

    def features(drawn: list[Scene]) -> dict[str, Tensor]:
        parts = [reference.features(pictures(drawn[start : start + BATCH])) for start in range(0, samples, BATCH)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return replace(reference, real=features(real), others=features(asked))


def recorded_teacher_row(steps: int, samples: int, guidance: float, file: Path = embedded.RECORDED) -> Row | None:
    """The recorded row of the teacher at these steps, sample size and ω, marked as recorded; None if there is none."""
    if not file.is_file():
        return None
    results = Results.load(file)
    if results.meta["guidance"] != guidance:
        return None
    rows = [row for row in results.rows if row.name == f"teacher-ddim-{steps}" and row.samples == samples]
    return replace(rows[0], recorded=True) if rows else None
