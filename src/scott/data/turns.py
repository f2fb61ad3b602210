"""Whose turn a step is, where several take turns in proportion to their weights."""

from collections.abc import Sequence

import torch

from scott.rng import generator_for

ROUND = 1000


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
