"""Training batches from several sources, in proportion to their weights."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from hashlib import sha256
from math import lcm

import torch
from torch import Tensor

from scott.data.batch import Batch
from scott.data.order import Turns
from scott.data.shard_source import OPEN, ShardSource
from scott.errors import UserError
from scott.rng import SOURCE


class Mixture:
    """Each batch is of one source; the sources take turns, so that samples come in proportion to the weights.

    Raises `UserError` unless there is a positive weight for each source, and all of them hold what one network takes.
    """

    def __init__(self, sources: Sequence[ShardSource], weights: Sequence[float], seed: int) -> None:
        exact = [Fraction(weight).limit_denominator(1000) for weight in weights]
        if len(exact) != len(sources) or min(exact) <= 0:
            raise UserError(
                f"got the weights {list(weights)} for {len(sources)} sources; expected one above 0 for each"
            )
        whole = lcm(*(weight.denominator for weight in exact))
        self.sources, self.weights = sources, [int(weight * whole) for weight in exact]
        self._turns = Turns(self.weights, seed, SOURCE)
        for source in sources:  # they share what one may hold
            source.most_open = min(source.most_open, max(1, OPEN // len(sources)))
        first, *others = (source.manifest.tensors for source in sources)
        for other, source in zip(others, sources[1:], strict=True):
            if other.keys() != first.keys() or any(_fixed(name, other) != _fixed(name, first) for name in first):
                raise UserError(f"{source.folder} holds {other}, and {sources[0].folder} {first}; prepare them alike")

    @property
    def version(self) -> str:
        """A digest of the sources' and of their weights."""
        parts = [(source.version, weight) for source, weight in zip(self.sources, self.weights, strict=True)]
        return sha256(repr(parts).encode()).hexdigest()[:16]

    @property
    def varied(self) -> bool:
        shapes = {tuple(source.manifest.tensors["mean"]) for source in self.sources}
        return len(shapes) > 1 or any(source.varied for source in self.sources)

    def batch(self, step: int, size: int, part: slice = slice(None)) -> Batch:
        which, turn = self._turns.at(step)
        return self.sources[which].batch(turn, size, part)

    @property
    def alike(self) -> int:
        """How many samples have the shape of the first source's examples."""
        shape = self.sources[0].examples(1)[0].shape
        return sum(source.alike for source in self.sources if source.examples(1)[0].shape == shape)

    def examples(self, count: int) -> tuple[Tensor, list[str]]:
        """`ShardSource.examples` of the first source, then of those that follow and have latents of the same shape."""
        means, captions = self.sources[0].examples(count)
        for source in self.sources[1:]:
            if len(captions) < count:
                more, texts = source.examples(count - len(captions))
                if more.shape[1:] == means.shape[1:]:
                    means, captions = torch.cat([means, more]), captions + texts
        return means, captions

    def conditions(self, count: int) -> dict[str, Callable[[], dict[str, Tensor]]]:
        """`ShardSource.conditions` of all sources, of which the first that has a caption counts."""
        found = [source.conditions(count) for source in self.sources]
        return {caption: read for conditions in reversed(found) for caption, read in conditions.items()}


def _fixed(name: str, tensors: dict[str, list[int]]) -> list[int]:
    """What may not differ: all of a condition's shape, and of latents the channels."""
    return tensors[name] if name.startswith("cond.") else tensors[name][:1]


Prepared = ShardSource | Mixture
"""The data of a run, as `scott prepare` makes them."""
