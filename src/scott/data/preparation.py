"""Does once what training would do at every step: read, decode, crop, encode picture and captions; writes shards.

A shard is a function of the source's unit and the settings alone: what is there already is kept, whichever process
made it and however often the work was stopped.
"""

import json
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from scott.data.captions import read_captions
from scott.data.filters import Where, check_size
from scott.data.manifest import Manifest, assemble, claim, is_finished
from scott.data.pictures import Size, aspect_buckets, cropped, decode, quietly, to_rgb
from scott.data.records import Record, Rejected, Skip, Source, Unit, chunks
from scott.data.settings import Settings
from scott.data.shards import shard_writer, write_durably
from scott.errors import UserError

Report = Callable[[str, int, int, dict[str, float]], None]
THREADS = 16  # pictures that come by URL are waited for
READ_AT_ONCE = 256  # records a unit, where they are read to be measured
LISTED = 1000
"""Left-out records that are named beside a shard; all are counted."""


class Encoders(Protocol):
    """What preparing asks of a teacher: its VAE and text encoders."""

    latent_shape: tuple[int, int, int]
    resolution: int
    """Side in pixels of the pictures that latents of `latent_shape` stand for."""

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents (B, C, H, W) of pixels (B, 3, H', W') in [0, 1]."""

    def encode_prompts(self, prompts: Sequence[str], *, truncate: bool = False) -> dict[str, Tensor]:
        """name → (B, ...); a prompt longer than the text encoder reads is cut."""

    def size_cond(self, height: int, width: int) -> dict[str, Tensor]:
        """name → (1, ...): what tells the network a picture's size in pixels."""


@dataclass(frozen=True)
class Outcome:
    """What a call did: the manifest (None while other processes are at work), and its own records and seconds."""

    manifest: Manifest | None
    records: int
    seconds: float


@dataclass(frozen=True)
class Sample:
    """A picture that is kept, decoded: pixels (3, H, W) uint8."""

    pixels: Tensor
    captions: list[str]
    info: dict[str, Any]


def full_settings(
    name: str, source: Source, settings: Settings, encoders: Encoders, teacher: dict[str, Any]
) -> dict[str, Any]:
    """All that the shards depend on, as JSON. `teacher` says whose VAE and text encoders encode.

    Raises:
        UserError: a resolution that is no multiple of a latent's side in pixels.
    """
    resolution = settings.resolution or encoders.resolution
    factor = _factor(encoders)
    if resolution % factor:
        raise UserError(f"got resolution {resolution}, expected a multiple of {factor}, as the VAE needs")
    made_from = {"name": name, "kind": source.kind, "version": source.version}
    given = asdict(replace(settings, resolution=resolution))
    return json.loads(json.dumps({"source": made_from, "teacher": teacher} | given))


def prepare_shards(
    source: Source,
    encoders: Encoders,
    settings: Settings,
    full: dict[str, Any],
    out: Path,
    report: Report,
    rank: int = 0,
    world: int = 1,
) -> Outcome:
    """Write the shards of a source that `out` lacks: of `world` processes, those of the units rank, rank + world, ...

    Whoever finds all shards there writes the manifest. `full` is `full_settings`' answer.

    Raises:
        UserError: `out` holds something else, a column is missing, nothing was kept, the disk is full, or the source
            cannot be read.
    """
    where = Where(settings.where, source.columns) if settings.where else None
    units = _limited(source.units(settings.shard_size), settings.limit)
    claim(out, full)
    mine = range(rank, len(units), world)
    load = partial(_load, settings=settings, sizes=_sizes(full["resolution"], settings, encoders), where=where)
    progress = _Progress(report, [units[i] for i in mine])
    for i in mine:
        if is_finished(out, _name(i)):
            progress.skip(units[i])
        else:
            _write_shard(
                out, _name(i), units[i], load, encoders, settings.batch_size, settings.aspect_buckets, progress
            )
    return Outcome(assemble(out, full, [_name(i) for i in range(len(units))]), progress.records, progress.seconds)


def _factor(encoders: Encoders) -> int:
    """A latent's side in pixels."""
    return encoders.resolution // encoders.latent_shape[-1]


def _sizes(resolution: int, settings: Settings, encoders: Encoders) -> list[Size]:
    if settings.aspect_buckets:
        return aspect_buckets(resolution, _factor(encoders))
    return [(resolution, resolution)]


def _name(index: int) -> str:
    return f"{index:06d}"


def _limited(units: Sequence[Unit], limit: int | None) -> list[Unit]:
    """The first `limit` records; where a unit does not know how many it has, none beyond that unit."""
    if limit is None:
        return list(units)
    kept: list[Unit] = []
    for unit in units:
        count = limit if unit.count is None else min(limit, unit.count)
        if count:
            kept.append(Unit(unit.name, unit.count and count, partial(_first, unit, count)))
        limit -= count
    return kept


def _first(unit: Unit, count: int) -> Iterator[Record | Rejected]:
    return islice(unit.records(), count)


class _Progress:
    """Counts records, or units where their records are not known beforehand, and the rate of this call."""

    def __init__(self, report: Report, units: Sequence[Unit]) -> None:
        self._report, self._by_record = report, all(unit.count is not None for unit in units)
        self._total = sum(unit.count or 0 for unit in units) if self._by_record else len(units)
        self._done, self.records, self._began = 0, 0, time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def add(self, records: int) -> None:
        self.records += records
        self._advance(records if self._by_record else 0)

    def unit_done(self) -> None:
        self._advance(0 if self._by_record else 1)

    def skip(self, unit: Unit) -> None:
        self._advance(unit.count or 0 if self._by_record else 1)

    def _advance(self, by: int) -> None:
        self._done += by
        self._report("prepare", self._done, self._total, {"rate": self.records / max(self.seconds, 1e-9)})


def read_samples(source: Source, size: int) -> Generator[Sample | Rejected]:
    """A source's records in their order, pictures cropped to size x size, or why one cannot be read."""
    records = (record for unit in source.units(READ_AT_ONCE) for record in unit.records())
    load = partial(_load, settings=Settings(), sizes=[(size, size)], where=None)
    with quietly(), closing(_ahead(load, records)) as loaded:
        yield from loaded


# --- one record -------------------------------------------------------------------------------------------------


def _load(
    entry: Record | Rejected, settings: Settings, sizes: Sequence[Size], where: Where | None
) -> Sample | Rejected:
    if isinstance(entry, Rejected):
        return entry
    try:
        if where is not None and not where(entry.columns):
            raise Skip("where")
        captions = read_captions(entry.captions)
        picture, before = _picture(entry, settings)
        info = {"key": entry.key, "captions": captions, "width": before[0], "height": before[1]}
        return Sample(cropped(picture, sizes), captions, info | {"columns": _plain(entry.columns)})
    except Skip as skip:
        return Rejected(entry.key, skip.reason, skip.detail[:200])


def _picture(record: Record, settings: Settings) -> tuple[Image.Image, tuple[int, int]]:
    """The picture, upright, and the size it has before it is cropped."""
    accept = partial(check_size, min_size=settings.min_size, max_aspect=settings.max_aspect)
    found = record.image()
    if isinstance(found, Image.Image):
        accept(*found.size)
        found = to_rgb(found)
    else:
        found = decode(found, accept)
    return found, found.size


def _plain(columns: dict[str, Any]) -> dict[str, Any]:
    """What JSON can hold of a record's columns, and is short."""
    kept = {name: value for name, value in columns.items() if isinstance(value, str | int | float | None)}
    finite = {name: value for name, value in kept.items() if not isinstance(value, float) or math.isfinite(value)}
    return {name: value for name, value in finite.items() if not isinstance(value, str) or len(value) <= 1000}


def _ahead(function: Callable[[Any], Any], entries: Iterable[Any]) -> Generator[Any]:
    """`map` with threads that work ahead, in order."""
    waiting: deque[Future[Any]] = deque()
    pool = ThreadPoolExecutor(THREADS)
    try:
        for entry in entries:
            waiting.append(pool.submit(function, entry))
            if len(waiting) >= 4 * THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


# --- one shard --------------------------------------------------------------------------------------------------


def _write_shard(
    out: Path,
    name: str,
    unit: Unit,
    load: Callable[[Any], Any],
    encoders: Encoders,
    batch_size: int,
    bucketed: bool,
    progress: _Progress,
) -> None:
    rejected: list[Rejected] = []
    skipped: Counter[str] = Counter()
    shapes: dict[str, list[int]] = {}
    counts: Counter[tuple[int, ...]] = Counter()
    kept = 0

    def leave_out(entry: Rejected) -> None:
        skipped[entry.reason] += 1
        if len(rejected) < LISTED:
            rejected.append(entry)

    def samples(loaded: Iterable[Sample | Rejected]) -> Iterator[Sample]:
        for entry in loaded:
            progress.add(1)
            if isinstance(entry, Rejected):
                leave_out(entry)
            else:
                yield entry

    def encoded(loaded: Iterable[Sample | Rejected]) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
        for chunk in _of_one_size(samples(loaded), batch_size):
            yield from zip(_encode(encoders, chunk, batch_size), [sample.info for sample in chunk], strict=True)

    with quietly(), closing(_ahead(load, unit.records())) as loaded, shard_writer(out / f"{name}.tar") as writer:
        made = encoded(loaded)
        # where there are several sizes, those of one stand together, so that a count of each says where they are
        for tensors, info in sorted(made, key=lambda pair: pair[0]["mean"].shape) if bucketed else made:
            if not all(value.isfinite().all() for value in tensors.values()):
                leave_out(Rejected(info["key"], "not-finite", "beyond fp16"))
                continue
            writer.add(f"{name}_{kept:06d}", tensors, info)
            shapes = shapes or _shapes(tensors)
            counts[tuple(tensors["mean"].shape[1:])] += 1
            kept += 1
        sha256 = writer.finish()
    entry: dict[str, Any] = {"file": f"{name}.tar", "samples": kept, "bytes": writer.bytes, "sha256": sha256}
    if bucketed:
        entry["buckets"] = [[*side, count] for side, count in counts.items()]
    counted = {"unit": unit.name, "shard": entry, "tensors": shapes, "skipped": dict(sorted(skipped.items()))}
    write_durably(out / f"{name}.json", counted | {"rejected": [asdict(entry) for entry in rejected]})
    progress.unit_done()


def _of_one_size(samples: Iterable[Sample], count: int) -> Iterator[list[Sample]]:
    """Lists of `count` samples of one size each, in the order they fill; last, what is left of each size."""
    waiting: dict[torch.Size, list[Sample]] = {}
    for sample in samples:
        of_its_size = waiting.setdefault(sample.pixels.shape, [])
        of_its_size.append(sample)
        if len(of_its_size) == count:
            yield waiting.pop(sample.pixels.shape)
    yield from waiting.values()


def _shapes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape[1:] if name.startswith("cond.") else value.shape) for name, value in tensors.items()}


def _encode(encoders: Encoders, samples: Sequence[Sample], batch_size: int) -> list[dict[str, Tensor]]:
    """mean, std (C, H, W) and `cond.<name>` (K, ...) of each sample, all of one size, in fp16 on the CPU."""
    mean, std = encoders.encode_images(torch.stack([sample.pixels for sample in samples]).float() / 255)
    captions = [caption for sample in samples for caption in sample.captions]
    parts = [encoders.encode_prompts(part, truncate=True) for part in chunks(captions, batch_size)]
    cond = {name: torch.cat([part[name] for part in parts]).half().cpu() for name in parts[0]}
    for name, value in encoders.size_cond(*samples[0].pixels.shape[1:]).items():
        cond[name] = value.expand_as(cond[name]).half().cpu()
    counts = [len(sample.captions) for sample in samples]
    split = {f"cond.{name}": value.split(counts) for name, value in cond.items()}
    split |= {"mean": mean.half().cpu().unbind(), "std": std.half().cpu().unbind()}
    return [{name: values[i].contiguous().clone() for name, values in split.items()} for i in range(len(samples))]
