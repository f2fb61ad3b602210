"""An endless sequence of shuffled epochs, of which any batch can be had directly."""

import pytest
import torch

from scott.data import Batch, CachedSource


def numbered(count):
    mean = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1)
    return Batch(mean, mean + 0.5, {"text": mean.view(-1, 1, 1) * 10})


def rows(batch):
    return batch.mean.flatten().int().tolist()


@pytest.mark.parametrize(("count", "size"), [(7, 3), (5, 5), (3, 7), (10, 4), (1, 4)])
def test_every_epoch_holds_every_sample_once(count, size):
    source = CachedSource(numbered(count), "numbers", seed=0)
    seen = [row for step in range(4 * count) for row in rows(source.batch(step, size))]
    assert len(seen) == 4 * count * size
    epochs = [seen[i : i + count] for i in range(0, len(seen), count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count > 4:
        assert epochs[0] != epochs[1]


def test_a_batch_is_a_function_of_the_seed_and_the_step_alone():
    source = CachedSource(numbered(7), "numbers", seed=0)
    forward = [rows(source.batch(step, 3)) for step in range(10)]
    again = CachedSource(numbered(7), "numbers", seed=0)
    assert [rows(again.batch(step, 3)) for step in reversed(range(10))] == forward[::-1]
    other = CachedSource(numbered(7), "numbers", seed=1)
    assert [rows(other.batch(step, 3)) for step in range(10)] != forward


def test_rows_of_mean_std_and_text_stay_together():
    batch = CachedSource(numbered(7), "numbers", seed=0).batch(5, 4)
    assert len(batch) == 4
    assert torch.equal(batch.std, batch.mean + 0.5)
    assert torch.equal(batch.cond["text"].flatten(), batch.mean.flatten() * 10)


def test_to_casts_everything():
    half = Batch(*(torch.ones(2, 1, 1, 1).half() for _ in range(2)), {"text": torch.ones(2, 3).half()})
    batch = half.to(torch.device("cpu"))
    assert {batch.mean.dtype, batch.std.dtype, batch.cond["text"].dtype} == {torch.float32}


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="holds no samples"):
        CachedSource(numbered(0), "nothing", seed=0)
