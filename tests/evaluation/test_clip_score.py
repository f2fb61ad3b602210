import pytest
import torch

from scott.evaluation import clip_score


def test_mean_cosine_keeps_its_sign() -> None:
    images = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [1.0, 0.0]])
    texts = torch.tensor([[5.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-2.0, 0.0]])
    assert clip_score(images, texts) == pytest.approx((1 + 0 + 0.5**0.5 - 1) / 4)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="expected pairs"):
        clip_score(torch.ones(3, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="D = 2, text features D = 3"):
        clip_score(torch.ones(3, 2), torch.ones(3, 3))
