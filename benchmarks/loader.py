"""Batches a second of `ShardSource`, read by the training loop itself and by workers of a DataLoader.

    python -m benchmarks.loader [--workers 0 2] [--json]

The samples are of SD1.5's shapes, (4, 64, 64) latents and (77, 768) text embeddings, and random.
"""

import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from torch.utils.data import DataLoader, Dataset

from scott.data.manifest import Manifest, ShardEntry
from scott.data.shard_source import ShardSource
from scott.data.shards import shard_writer

SHAPES = {"mean": [4, 64, 64], "std": [4, 64, 64], "cond.text": [77, 768]}


@dataclass(frozen=True)
class Options:
    workers: tuple[int, ...] = (0, 2)
    """Processes that read; 0 is the training loop's own."""
    shards: int = 20
    samples: int = 200
    """Of a shard."""
    batch_size: int = 32
    batches: int = 100
    json: bool = False
    """One JSON object a line."""


class Batches(Dataset):
    """Batch n of a source is item n."""

    def __init__(self, source: ShardSource, options: Options) -> None:
        self.source, self.options = source, options

    def __len__(self) -> int:
        return self.options.batches

    def __getitem__(self, step: int) -> dict:
        return asdict(self.source.batch(step, self.options.batch_size))


def write(folder: Path, options: Options) -> None:
    generator = torch.Generator().manual_seed(0)
    entries = []
    for number in range(options.shards):
        with shard_writer(folder / f"{number:06d}.tar") as writer:
            for index in range(options.samples):
                shapes = {name: [1, *shape] if name.startswith("cond.") else shape for name, shape in SHAPES.items()}
                tensors = {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}
                writer.add(f"{index:06d}", tensors, {"captions": ["a cat"]})
            sha256 = writer.finish()
        entries.append(ShardEntry(f"{number:06d}.tar", options.samples, writer.bytes, sha256))
    Manifest({}, tuple(entries), SHAPES, {}).save(folder)


def measure(source: ShardSource, workers: int, options: Options) -> dict[str, float]:
    loader = DataLoader(Batches(source, options), batch_size=None, num_workers=workers)
    began = time.perf_counter()
    for _ in loader:
        pass
    seconds = time.perf_counter() - began
    return {
        "workers": workers,
        "batches_per_second": options.batches / seconds,
        "milliseconds_per_batch": 1e3 * seconds / options.batches,
    }


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options)
        for workers in options.workers:
            figures = measure(ShardSource(Path(folder), seed=0), workers, options)
            rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
            if options.json:
                sys.stdout.write(json.dumps(rounded) + "\n")
            else:
                Console().print(f"{workers} workers: {rounded['batches_per_second']} batches/s")


if __name__ == "__main__":
    main()
