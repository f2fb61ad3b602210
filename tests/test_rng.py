"""Each seed and position has a stream of its own, and those that runs have been trained with stay."""

from itertools import product

import torch

from scott.evaluation import batch_seed
from scott.rng import generator_for


def first(*words):
    return int(torch.randint(2**62, (), generator=generator_for(*words)))


def test_different_tuples_give_different_streams():
    """Also where one is the other with zeros behind it, or with a number split into 32-bit words."""
    tuples = [words for length in range(1, 6) for words in product((0, 1, 2), repeat=length)]
    tuples += [(2**32,), (2**32, 0), (2**32 + 1,), (0, 2**32), (2**64 - 1,), (2**32 - 1, 2**32 - 1), (2**64 - 1, 3)]
    assert len({first(*words) for words in tuples}) == len(tuples)


def test_the_same_tuple_gives_the_same_stream():
    for words in ((3, 4), (3, 4, 1, 0), (2**64 - 1, 7)):
        assert first(*words) == first(*words)


def test_a_steps_stream_is_that_of_an_evaluations_batch():
    """As both say: torch reads 32 bits of a seed, which are the same ones."""
    for seed, index in ((0, 0), (7, 39_999)):
        batch = torch.Generator().manual_seed(batch_seed(seed, index))
        assert int(torch.randint(2**62, (), generator=batch)) == first(seed, index)


def test_the_streams_of_a_runs_steps_are_fixed():
    """A run that goes on has to draw what it would have drawn: these are numpy's SeedSequence([seed, step])."""
    states = [
        15_793_235_383_387_715_774,
        5_836_529_245_451_711_556,
        15_842_412_137_193_163_570,
        4_245_091_184_500_617_293,
    ]
    assert [generator_for(*words).initial_seed() for words in ((0, 0), (0, 1), (7, 39_999), (0, 3, 1))] == states
