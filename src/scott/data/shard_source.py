"""Training batches from prepared shards, read where they lie."""

from collections import OrderedDict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scott.data.batch import Batch
from scott.data.manifest import Manifest
from scott.data.order import Order
from scott.data.shards import Shard
from scott.rng import generator_for

_CAPTION = 2  # keeps the stream of the choice of captions apart from the others


class ShardSource:
    """A folder of shards, visited in a new order each epoch; each visit of a picture takes one of its captions.

    An epoch puts the shards in a random order and shuffles the samples of `shuffle_shards` of them at a time, so that
    few are open at once. Up to that many shards in all are shuffled as one. Nothing is held but the open shards' maps.

    Raises:
        UserError: no readable manifest, or a shard that is missing or cut (see `Manifest.load`); when a batch is read,
            a corrupt sample, named.
    """

    def __init__(self, folder: Path, seed: int, shuffle_shards: int = 16) -> None:
        self.folder, self.seed, self.shuffle_shards = folder, seed, shuffle_shards
        self.manifest = Manifest.load(folder)
        self._shards = [shard for shard in self.manifest.shards if shard.samples]
        self._order = Order([shard.samples for shard in self._shards], seed, shuffle_shards)
        self._open: OrderedDict[int, Shard] = OrderedDict()

    @property
    def version(self) -> str:
        """A digest of all shards' digests."""
        return sha256("".join(shard.sha256 for shard in self._shards).encode()).hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}  # a map of a file cannot be pickled

    def __len__(self) -> int:
        return self.manifest.samples

    def batch(self, step: int, size: int, part: slice = slice(None)) -> Batch:
        """Samples step · size, ..., step · size + size − 1 of the endless sequence of epochs, or a part of them."""
        which = torch.rand(size, generator=generator_for(self.seed, step, _CAPTION))
        positions = range(step * size, (step + 1) * size)
        rows = range(size)[part]
        return self._batch([self._read(*self._order.place(positions[row]), which[row].item()) for row in rows])

    def all(self) -> Batch:
        """Every sample, in the order they are stored, each with its first caption."""
        places = [(number, index) for number, shard in enumerate(self._shards) for index in range(shard.samples)]
        return self._batch([self._read(*place, 0.0) for place in places])

    def _batch(self, samples: list[dict[str, Tensor]]) -> Batch:
        names = self.manifest.tensors
        stacked = {name: torch.stack([sample[name] for sample in samples]) for name in names}
        cond = {name.removeprefix("cond."): stacked[name] for name in names if name.startswith("cond.")}
        return Batch(stacked["mean"], stacked["std"], cond)

    def examples(self, count: int) -> tuple[Tensor, list[str]]:
        """Latents (B, C, H, W), the posterior's means, and first captions of the first `count` samples there are."""
        means: list[Tensor] = []
        captions: list[str] = []
        for number, entry in enumerate(self._shards):
            for index in range(min(entry.samples, count - len(captions))):
                means.append(self._shard(number).sample(index, self.manifest.tensors)["mean"])
                captions.append(self._shard(number).info(index)["captions"][0])
        return torch.stack(means), captions

    def _read(self, number: int, index: int, which: float) -> dict[str, Tensor]:
        """One sample with one of its captions, the one at `which` in [0, 1) of them."""
        tensors = self._shard(number).sample(index, self.manifest.tensors)
        return {
            name: value[int(which * len(value))] if name.startswith("cond.") else value
            for name, value in tensors.items()
        }

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            entry = self._shards[number]
            shard = Shard(self.folder / Path(entry.file).name)
            if len(shard) != entry.samples:
                raise shard.corrupt(f"it holds {len(shard)} samples and the manifest says {entry.samples}")
            self._open[number] = shard
            if len(self._open) > 2 * self.shuffle_shards:  # a batch may end one block and begin the next
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]
