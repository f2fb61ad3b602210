"""One unit of a source, encoded and written as a shard, with a record beside it of what was kept and left out."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from scott.data.loading import Load, Sample, Tally
from scott.data.manifest import ShardEntry
from scott.data.records import Rejected, Unit, chunks
from scott.data.settings import Settings
from scott.data.shards import shard_writer, write_durably


class Encoders(Protocol):
    """What preparing asks of a teacher: its VAE and text encoders."""

    latent_shape: tuple[int, int, int]
    resolution: int
    """Side in pixels of the pictures that latents of `latent_shape` stand for."""

    @property
    def least_side(self) -> int:
        """Pixels that a picture's sides are multiples of."""

    def check_resolution(self, resolution: int) -> None:
        """Raise `UserError` for a size that cannot be trained at."""

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents (B, C, H, W) of pixels (B, 3, H', W') in [0, 1]."""

    def encode_prompts(self, prompts: Sequence[str], *, truncate: bool = False) -> dict[str, Tensor]:
        """name → (B, ...); a prompt longer than the text encoder reads is cut."""

    def size_cond(self, height: int, width: int) -> dict[str, Tensor]:
        """name → (1, ...): what tells the network a picture's size in pixels."""


def write_shard(
    out: Path, name: str, unit: Unit, load: Load, encoders: Encoders, settings: Settings, count: Callable[[int], None]
) -> None:
    """`out/<name>.tar` with the samples of a unit that are kept, and beside it a .json of what was kept and why not.

    `count` is called with 1 for each record that was read.
    """
    tally, shapes, bucketed = Tally(), dict[str, list[int]](), settings.aspect_buckets
    sides: Counter[tuple[int, ...]] = Counter()
    with closing(load(unit.entries())) as loaded, shard_writer(out / f"{name}.tar") as writer:
        encoded = _encoded(encoders, tally.kept(loaded, count), settings.batch_size)
        # where there are several sizes, those of one stand together, so that a count of each says where they are
        for tensors, info in sorted(encoded, key=lambda pair: pair[0]["mean"].shape) if bucketed else encoded:
            if not all(value.isfinite().all() for value in tensors.values()):
                tally.leave_out(Rejected(info["key"], "not-finite", "beyond fp16"))
                continue
            writer.add(f"{name}_{sides.total():06d}", tensors, info)
            shapes = shapes or _shapes(tensors)
            sides[tuple(tensors["mean"].shape[1:])] += 1
        sha256 = writer.finish()
    buckets = [[*side, number] for side, number in sides.items()] if bucketed else []
    entry = ShardEntry(f"{name}.tar", sides.total(), writer.bytes, sha256, buckets, unit.repeats)
    counted = {"unit": unit.name, "shard": asdict(entry), "tensors": shapes, "skipped": tally.skipped}
    write_durably(out / f"{name}.json", counted | {"rejected": list(map(asdict, tally.listed))})


def _encoded(
    encoders: Encoders, samples: Iterable[Sample], batch_size: int
) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    for chunk in _of_one_size(samples, batch_size):
        yield from zip(_encode(encoders, chunk, batch_size), [sample.info for sample in chunk], strict=True)


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
