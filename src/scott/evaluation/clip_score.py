"""Do the images show what the captions say? (CLIPScore: Hessel et al. 2021, arXiv 2104.08718.)

Row i of the image features and row i of the text features belong together.
"""

from torch import Tensor
from torch.nn import functional as F

from scott.evaluation.features import Matrix, feature_pair


def clip_score(image_features: Matrix, text_features: Matrix) -> float:
    """Mean cosine of image and caption features, each (N, D), in [−1, 1].

    The plain cosine, as in the paper's tables (0.318 for SD1.5): CLIPScore's max(·, 0) and its factor are
    left out. Raises `ValueError` on different shapes or non-finite features.
    """
    images, texts = _unit_pairs(image_features, text_features)
    return (images * texts).sum(dim=1).mean().item()


def retrieval_accuracy(image_features: Matrix, text_features: Matrix) -> float:
    """Part of the images whose own caption has the highest cosine among all N (R-precision at 1).

    A repeated caption is no rival: a tie, within 1e-6, counts as found. Raises `ValueError` on different shapes or
    non-finite features.
    """
    images, texts = _unit_pairs(image_features, text_features)
    cosine = images @ texts.T
    return (cosine.diagonal() >= cosine.amax(dim=1) - 1e-6).double().mean().item()


def _unit_pairs(image_features: Matrix, text_features: Matrix) -> tuple[Tensor, Tensor]:
    images, texts = feature_pair(("image", image_features), ("text", text_features))
    if len(images) != len(texts):
        raise ValueError(f"got {len(images)} image features and {len(texts)} text features, expected pairs")
    return F.normalize(images, dim=1), F.normalize(texts, dim=1)
