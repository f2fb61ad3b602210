"""The order in which an epoch visits samples that lie in shards, and whose turn a step is, where several take turns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from scott.rng import ORDER, generator_for

_KEPT = 4
ROUND = 1000


class Order:
    """Each epoch anew: the shards permuted, and the samples of up to `group` consecutive ones shuffled together, in
    blocks of as many shards, up to one.

    Up to `group` shards in all are shuffled as one, by the permutation of all samples in the order they are stored.
    """

    def __init__(self, counts: Sequence[int], seed: int, group: int) -> None:
        self.counts, self.seed, self.group = np.asarray(counts), seed, group
        self.total = int(self.counts.sum())
        self._epochs: dict[int, tuple[list[np.ndarray], np.ndarray]] = {}
        self._blocks: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def place(self, position: int) -> tuple[int, int]:
        """(shard, index in it) of a position in the endless sequence of epochs."""
        epoch, position = divmod(position, self.total)
        groups, ends = self._epoch(epoch)
        block = int(np.searchsorted(ends, position, side="right"))
        order, bounds = self._block(epoch, block)
        sample = int(order[position - (ends[block - 1] if block else 0)])
        which = int(np.searchsorted(bounds, sample, side="right"))
        return int(groups[block][which]), sample - int(bounds[which - 1] if which else 0)

    def _epoch(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The shards of each block, and the position at which it ends."""
        if epoch not in self._epochs:
            shards = np.arange(len(self.counts))
            if len(shards) > self.group:
                shards = torch.randperm(len(shards), generator=generator_for(self.seed, epoch, ORDER)).numpy()
            groups = np.array_split(shards, -(-len(shards) // self.group))
            _keep(self._epochs, epoch, (groups, np.cumsum([self.counts[group].sum() for group in groups])))
        return self._epochs[epoch]

    def _block(self, epoch: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of a block's samples, and where each of its shards ends among them."""
        if (epoch, block) not in self._blocks:
            groups, _ = self._epoch(epoch)
            bounds = np.cumsum(self.counts[groups[block]])
            position = (epoch, ORDER) if len(groups) == 1 else (epoch, ORDER, block)
            order = torch.randperm(int(bounds[-1]), generator=generator_for(self.seed, *position))
            _keep(self._blocks, (epoch, block), (order.numpy(), bounds))
        return self._blocks[epoch, block]


def _keep(cache: dict[Any, Any], key: Any, value: Any) -> None:
    cache[key] = value
    if len(cache) > _KEPT:
        del cache[next(iter(cache))]


class Turns:
    """By the end of round e, of about R = `ROUND` steps, one of weight w of W has had ⌊e R w / W⌋ turns; those of a
    round come in random order. A function of weights, seed, stream and step."""

    def __init__(self, weights: Sequence[int], seed: int, stream: int) -> None:
        self.weights, self.total, self.seed, self.stream = weights, sum(weights), seed, stream

    def at(self, step: int) -> tuple[int, int]:
        """Whose turn it is, and how many turns that one had before."""
        if len(self.weights) == 1:
            return 0, step
        epoch = step // ROUND
        while sum(self._by(epoch + 1)) <= step:
            epoch += 1
        before, after = self._by(epoch), self._by(epoch + 1)
        generator = generator_for(self.seed, epoch, self.stream)
        turn = int(torch.randperm(sum(after) - sum(before), generator=generator)[step - sum(before)])
        for which, (had, has) in enumerate(zip(before, after, strict=True)):
            if turn < has - had:
                return which, had + turn
            turn -= has - had
        raise AssertionError("a turn is one of the round's")

    def _by(self, epoch: int) -> list[int]:
        return [epoch * ROUND * weight // self.total for weight in self.weights]
