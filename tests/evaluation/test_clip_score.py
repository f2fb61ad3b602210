import pytest
import torch

from scott.evaluation import clip_score, retrieval_accuracy


def test_mean_cosine_keeps_its_sign() -> None:
    images = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [1.0, 0.0]])
    texts = torch.tensor([[5.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-2.0, 0.0]])
    assert clip_score(images, texts) == pytest.approx((1 + 0 + 0.5**0.5 - 1) / 4)


def test_retrieval_among_all() -> None:
    texts = torch.eye(4)
    images = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [2, 0, 1, 0], [0, 0, 0, 1]])
    assert retrieval_accuracy(images, texts) == 0.75


def test_a_repeated_caption_is_no_rival() -> None:
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert retrieval_accuracy(texts, texts) == 1.0


def test_refuses() -> None:
    with pytest.raises(ValueError, match="expected pairs"):
        clip_score(torch.ones(3, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="D = 2, text features D = 3"):
        clip_score(torch.ones(3, 2), torch.ones(3, 3))
