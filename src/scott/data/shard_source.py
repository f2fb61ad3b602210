"""Training batches from prepared shards, read where they lie."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scott.data.batch import Batch
from scott.data.manifest import Manifest
from scott.data.order import Order, Turns
from scott.data.shards import Shard
from scott.rng import BUCKET, CAPTION, generator_for

OPEN = 512
"""Shards that are held open at most, each of which takes a file descriptor; processes have 1024 by default."""


@dataclass(frozen=True)
class _Bucket:
    """All samples of one shape: runs of them in shards, as (number of the shard, first in it), in an order.

    Runs whose samples an epoch visits several times are there as often.
    """

    tensors: dict[str, list[int]]
    """Name → shape, as `Manifest.tensors`."""
    runs: list[tuple[int, int]]
    order: Order

    @property
    def counts(self) -> dict[tuple[int, int], int]:
        """Run → how many samples it has."""
        return dict(zip(self.runs, map(int, self.order.counts), strict=True))

    def place(self, position: int) -> tuple[int, int]:
        """(shard, index in it) of a position in the endless sequence of its epochs."""
        run, index = self.order.place(position)
        number, first = self.runs[run]
        return number, first + index


class ShardSource:
    """A folder of shards, visited in a new order each epoch; each visit of a picture takes one of its captions.

    An epoch puts the shards in a random order and shuffles the samples of `shuffle_shards` of them at a time, so that
    few are open at once. Up to that many shards in all are shuffled as one. Nothing is held but the open shards' maps.

    Where pictures have several shapes, a batch is of one, and each shape has epochs of its own. They take turns in a
    random order, each as often as its share of the samples asks, so that in the long run all are seen equally often.

    Raises:
        UserError: no readable manifest, or a shard that is missing or cut (see `Manifest.load`); when a shard is first
            read, another SHA-256 than the manifest's.
    """

    def __init__(self, folder: Path, seed: int, shuffle_shards: int = 16) -> None:
        self.folder, self.seed = folder, seed
        self.manifest = Manifest.load(folder)
        self._shards = [shard for shard in self.manifest.shards if shard.samples]
        runs: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        whole = self.manifest.tensors["mean"][1:]
        for number, shard in enumerate(self._shards):
            first = 0
            for height, width, count in shard.buckets or [[*whole, shard.samples]]:
                runs.setdefault((height, width), []).append((number, first, count))
                first += count
        self._buckets = []
        for side, parts in sorted(runs.items()):
            shapes = {name: [self.manifest.tensors[name][0], *side] for name in ("mean", "std")}
            visits = [part for part in parts for _ in range(self._shards[part[0]].repeats)]
            order = Order([count for _, _, count in visits], seed, shuffle_shards)
            places = [(number, first) for number, first, _ in visits]
            self._buckets.append(_Bucket(self.manifest.tensors | shapes, places, order))
        # of each shape a block is being read, and a batch may end it and begin the next
        self.most_open = min(2 * shuffle_shards * len(self._buckets), max(OPEN, 2 * shuffle_shards))
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._checked: set[int] = set()
        self._turns = Turns([bucket.order.total for bucket in self._buckets], seed, BUCKET)

    @property
    def version(self) -> str:
        """A digest of all shards' digests."""
        return sha256("".join(shard.sha256 for shard in self._shards).encode()).hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}  # a map of a file cannot be pickled

    def __len__(self) -> int:
        return self.manifest.samples

    @property
    def varied(self) -> bool:
        """Whether batches differ in height and width."""
        return len(self._buckets) > 1

    def batch(self, step: int, size: int, part: slice = slice(None)) -> Batch:
        """Samples step · size, ..., step · size + size − 1 of the endless sequence of epochs, or a part of them.

        Of several shapes, it is the sequence of the shape whose turn the step is.
        """
        which = torch.rand(size, generator=generator_for(self.seed, step, CAPTION))
        number, turn = self._turns.at(step)
        bucket, first = self._buckets[number], turn * size
        rows = range(size)[part]
        return _stacked([self._read(bucket, bucket.place(first + row), which[row].item()) for row in rows])

    def all(self) -> Batch:
        """Every sample, in the order they are stored, each with its first caption; of data of one shape."""
        (bucket,) = self._buckets
        places = [(number, index) for number, shard in enumerate(self._shards) for index in range(shard.samples)]
        return _stacked([self._read(bucket, place, 0.0) for place in places])

    @property
    def alike(self) -> int:
        """How many samples have the most frequent shape."""
        return max(sum(bucket.counts.values()) for bucket in self._buckets)

    def examples(self, count: int) -> tuple[Tensor, list[str]]:
        """Latents (B, C, H, W), the posterior's means, and first captions of the first `count` samples there are.

        Of several shapes, they are of the most frequent one.
        """
        bucket, places = self._first(count)
        means = [self._shard(number).sample(index, bucket.tensors)["mean"] for number, index in places]
        return torch.stack(means), [self._caption(place) for place in places]

    def conditions(self, count: int) -> dict[str, Callable[[], dict[str, Tensor]]]:
        """Each caption of `examples` → what reads its condition, with batch 1."""
        bucket, places = self._first(count)
        return {self._caption(place): partial(self._condition, bucket, place) for place in places}

    def _first(self, count: int) -> tuple[_Bucket, list[tuple[int, int]]]:
        """The most frequent shape, and where its first `count` samples are."""
        bucket = max(self._buckets, key=lambda bucket: sum(bucket.counts.values()))
        places = ((number, first + i) for (number, first), there in bucket.counts.items() for i in range(there))
        return bucket, list(islice(places, count))

    def _caption(self, place: tuple[int, int]) -> str:
        caption: str = self._shard(place[0]).info(place[1])["captions"][0]
        return caption

    def _condition(self, bucket: _Bucket, place: tuple[int, int]) -> dict[str, Tensor]:
        return _stacked([self._read(bucket, place, 0.0)]).cond

    def _read(self, bucket: _Bucket, place: tuple[int, int], which: float) -> dict[str, Tensor]:
        """One sample with one of its captions, the one at `which` in [0, 1) of them."""
        number, index = place
        tensors = self._shard(number).sample(index, bucket.tensors)
        return {
            name: value[int(which * len(value))] if name.startswith("cond.") else value
            for name, value in tensors.items()
        }

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            entry = self._shards[number]
            shard = Shard(self.folder / Path(entry.file).name, None if number in self._checked else entry.sha256)
            if len(shard) != entry.samples:
                raise shard.corrupt(f"it holds {len(shard)} samples and the manifest says {entry.samples}")
            self._open[number] = shard
            self._checked.add(number)
            while len(self._open) > self.most_open:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]


def _stacked(samples: list[dict[str, Tensor]]) -> Batch:
    stacked = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    cond = {name.removeprefix("cond."): value for name, value in stacked.items() if name.startswith("cond.")}
    return Batch(stacked["mean"], stacked["std"], cond)
