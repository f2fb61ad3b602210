"""One unit of a source, encoded and written as a shard, with a record beside it of what was kept and left out."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from scott.data.loading import Sample
from scott.data.records import Record, Rejected, Unit, chunks
from scott.data.shards import shard_writer, write_durably

LISTED = 1000
"""Left-out records that are named beside a shard; all are counted."""
Load = Callable[[Iterable[Record | Rejected]], Generator[Sample | Rejected]]


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


def write_shard(
    out: Path,
    name: str,
    unit: Unit,
    load: Load,
    encoders: Encoders,
    *,
    batch_size: int,
    bucketed: bool,
    count: Callable[[int], None],
) -> None:
    """`out/name.tar` and then `out/name.json`; `count` is told of each record that was read."""
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
            count(1)
            if isinstance(entry, Rejected):
                leave_out(entry)
            else:
                yield entry

    def encoded(loaded: Iterable[Sample | Rejected]) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
        for chunk in _of_one_size(samples(loaded), batch_size):
            yield from zip(_encode(encoders, chunk, batch_size), [sample.info for sample in chunk], strict=True)

    for seen in unit.left_out:
        leave_out(seen)
    with closing(load(unit.records())) as loaded, shard_writer(out / f"{name}.tar") as writer:
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
    if unit.repeats > 1:
        entry["repeats"] = unit.repeats
    counted = {"unit": unit.name, "shard": entry, "tensors": shapes, "skipped": dict(sorted(skipped.items()))}
    write_durably(out / f"{name}.json", counted | {"rejected": [asdict(entry) for entry in rejected]})


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
