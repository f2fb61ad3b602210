"""Randomness as a function of position: every draw of step n comes from a generator seeded with (seed, n).

Nothing has to be stored for a resumed run to repeat what an uninterrupted one would have drawn, and CPU generators
give the same numbers whatever device trains.
"""

import numpy as np
import torch


def generator_for(seed: int, *position: int) -> torch.Generator:
    """A CPU generator whose stream depends on the seed and the position only."""
    state = np.random.SeedSequence([seed, *position]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))
