"""Which of the teacher's jumps a step trains on, and where those that are used again end.

A jump (x_n, its walk to x̂_m, ω) depends on the data, the seed and its number alone: the student has no part in it. So a
batch of jumps may be trained on N times (`jump_reuse`). The first K steps all walk, to fill the store of K batches
(`jump_store` / batch); what it holds at the end has N/2 uses left in the mean, so S steps, several times K, make about
S/N + K/2 walks.
"""

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from scott.diffusion import JumpGrid
from scott.rng import CHOICE, STEP, generator_for
from scott.training.config import DistillConfig
from scott.training.draws import Draws


def jumps_kept(config: DistillConfig) -> int:
    """How many batches of jumps the store has room for."""
    return max(1, config.jump_store // config.batch_size)


def jumps_of_steps(config: DistillConfig) -> Iterator[tuple[int, bool]]:
    """For each step: the number of its batch of jumps, and whether no later step uses that one.

    A step walks a new batch where the store has room for it, and else takes one of the store's at random; one that
    `jump_reuse` steps have used leaves it. Without reuse, step n has jump n.
    """
    size = jumps_kept(config)
    generator = generator_for(config.seed, 0, CHOICE)
    left: dict[int, int] = {}
    walked = 0
    while True:
        if len(left) < size:
            jump, walked = walked, walked + 1
            left[jump] = config.jump_reuse
        else:
            jump = [*left][int(torch.randint(size, (), generator=generator))]
        left[jump] -= 1
        if last := not left[jump]:
            del left[jump]
        yield jump, last


def batches_read(config: DistillConfig) -> int:
    """How many batches of the data a run's steps train on, each as often as `jump_reuse` says."""
    return 1 + max(jump for jump, _ in islice(jumps_of_steps(config), config.max_steps))


class Jumps:
    """The jumps of a run's steps. The ends of what is used again are kept, as one process's rows.

    They are a cache: what a resumed run does not find there is walked again, to the same bits.
    """

    def __init__(self, config: DistillConfig) -> None:
        self.config = config
        self.of_steps = [*islice(jumps_of_steps(config), config.max_steps)]
        self._ends: dict[tuple[int, int], Tensor] = {}

    def number(self, step: int) -> int:
        """Of the batch of jumps that a step trains on."""
        return self.of_steps[step][0]

    def draws(self, step: int, shape: torch.Size, grid: JumpGrid) -> Draws:
        """A step's draws: those of its jump, and the critic's, which are new where the jump is not."""
        config = self.config
        jump = generator_for(config.seed, self.number(step))
        own = jump if config.jump_reuse == 1 else generator_for(config.seed, step, STEP)
        return Draws.make(shape, grid, config, own, jump)

    def end(self, step: int, part: int, walk: Callable[[], Tensor]) -> Tensor:
        """x̂_m of one pass of a step, walked if it has to be."""
        jump, last = self.of_steps[step]
        end = self._ends.pop((jump, part), None)
        if end is None:
            end = walk()
        if not last:
            self._ends[jump, part] = end
        return end
