"""Randomness as a function of position: every draw of step n comes from a generator seeded with (seed, n).

Nothing has to be stored for a resumed run to repeat what an uninterrupted one would have drawn, and CPU generators
give the same numbers whatever device trains.
"""

from hashlib import sha256

import numpy as np
import torch

ORDER, CAPTION, BUCKET, STEP, CHOICE, SOURCE = range(1, 7)
"""Second numbers of positions, which keep apart: an epoch's order of samples, a step's captions, whose turn a bucket
is, what a step draws beside its jump, which jumps are used again, and whose turn a source is. A jump has one number."""


def generator_for(seed: int, *position: int) -> torch.Generator:
    """A CPU generator for each seed ≥ 0 and position of any number of integers ≥ 0: of any two the streams differ, but
    for one chance in 2**32, as torch reads 32 bits of what it is seeded with. Those of (seed, n), a step's, are what
    `evaluation.batch_seed(seed, n)` seeds too."""
    words = (seed, *position)
    # numpy fills up with zeros, and splits what exceeds 32 bits: tuples of two, and of three or four that end in no
    # zero, are the ones that it keeps apart; all others differ by their digest
    apart = len(words) == 2 or (len(words) in (3, 4) and words[-1] != 0)
    if apart and max(words) < 2**32:
        state = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
    else:
        state = int.from_bytes(sha256(repr(words).encode()).digest()[:8], "big")
    return torch.Generator().manual_seed(state)
