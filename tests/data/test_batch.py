"""What a training step is given."""

import torch

from scott.data.batch import Batch


def numbered(count):
    mean = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1)
    return Batch(mean, mean + 0.5, {"text": mean.view(-1, 1, 1) * 10})


def test_rows_of_mean_std_and_text_stay_together():
    for rows, expected in ((torch.tensor([5, 1, 1]), [5, 1, 1]), (slice(2, 4), [2, 3])):
        batch = numbered(7)[rows]
        assert batch.mean.flatten().tolist() == expected
        assert len(batch) == len(expected)
        assert torch.equal(batch.std, batch.mean + 0.5)
        assert torch.equal(batch.cond["text"].flatten(), batch.mean.flatten() * 10)


def test_to_casts_everything():
    half = Batch(*(torch.ones(2, 1, 1, 1).half() for _ in range(2)), {"text": torch.ones(2, 3).half()})
    batch = half.to(torch.device("cpu"))
    assert {batch.mean.dtype, batch.std.dtype, batch.cond["text"].dtype} == {torch.float32}
