"""What open_clip does not have, or preprocesses otherwise, is one line."""

import sys
from types import SimpleNamespace

import pytest
import torch

from scott.errors import UserError
from scott.evaluation import networks

CHOSEN = {"size": 8, "mean": (0.0,) * 3, "std": (1.0,) * 3, "resize_mode": "shortest", "interpolation": "bicubic"}


class Model(torch.nn.Module):
    """The mean colour, with a preprocessing."""

    def __init__(self, chosen):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))  # for its device
        self.visual = SimpleNamespace(preprocess_cfg=chosen)

    def encode_image(self, images):
        return images.mean((2, 3))


def library(model):
    """As open_clip would be with this `create_model`."""

    def create_model(architecture, pretrained, force_quick_gelu):
        made = model()
        made.quick = force_quick_gelu
        return made

    def get_pretrained_cfg(architecture, tag):
        return {"quick_gelu": True} if (architecture, tag) == ("ViT-B-32", "openai") else {}

    return SimpleNamespace(
        create_model=create_model, get_tokenizer=lambda name: len, get_pretrained_cfg=get_pretrained_cfg
    )


@pytest.fixture
def loaded(monkeypatch):
    """`loaded(make)`: what `--features open_clip:…` gives where open_clip makes its model so."""

    def load(make, name="open_clip:ViT-B-32@openai"):
        monkeypatch.setattr(networks, "require", lambda *what: library(make))
        return networks.load(name, None, "cpu")

    return load


def failing(error):
    def make():
        raise error

    return make


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Model config for 'ViT-B-32' not found in built-ins."),
        RuntimeError("Failed to download weights for tag 'openai'"),
        OSError("no route"),
    ],
)
def test_what_is_not_there_is_said(loaded, error) -> None:
    with pytest.raises(UserError, match=r"open_clip does not give ViT-B-32@openai \(.*list_pretrained"):
        loaded(failing(error))


def test_a_library_that_fails_when_imported_says_why(monkeypatch, tmp_path) -> None:
    """As torchvision does where torch is of another build."""
    (tmp_path / "open_clip.py").write_text("raise RuntimeError('operator torchvision::nms does not exist\\nat …')")
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"needs open_clip \(operator .* exist\); pip install open_clip_torch$"):
        networks.load("open_clip:ViT-B-32@openai", None, "cpu")


def test_weights_are_asked_for(loaded) -> None:
    with pytest.raises(UserError, match="without weights; expected open_clip:ARCHITECTURE@WEIGHTS"):
        loaded(lambda: Model(CHOSEN), "open_clip:ViT-B-32")
    loaded(lambda: Model(CHOSEN), "open_clip:hf-hub:owner/name")  # which has its own


@pytest.mark.parametrize("other", [{"resize_mode": "squash"}, {"interpolation": "bilinear"}])
def test_another_way_of_resizing_is_refused(loaded, other) -> None:
    with pytest.raises(
        UserError, match=f"by .*{next(iter(other.values()))}.*expected a CLIP with shortest and bicubic"
    ):
        loaded(lambda: Model(CHOSEN | other))


def test_pictures_are_resized_as_clips_are(loaded) -> None:
    """The shorter side to the model's size, and the centre."""
    image = torch.zeros(1, 3, 8, 24)
    image[..., 8:16] = 1
    assert loaded(lambda: Model(CHOSEN)).images(image).tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("name", "quick"),
    [("ViT-B-32@openai", True), ("ViT-B/32@openai", True), ("ViT-B-32@laion2b_s34b_b79k", False)],
)
def test_weights_have_the_activation_that_they_were_trained_with(loaded, name, quick) -> None:
    """Open_clip builds ViT-B-32 with GELU whatever the tag, and only warns."""
    features = loaded(lambda: Model(CHOSEN), f"open_clip:{name}")
    assert features.network.quick == quick
    assert ("with QuickGELU" in features.description) == quick
