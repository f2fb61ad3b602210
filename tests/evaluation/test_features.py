"""A CLIP's features against the transformers model and image processor they stand for."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from scott.errors import UserError
from scott.evaluation import Features, networks

SIZE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP folder with random weights, a letter tokenizer and a preprocessor."""
    path = tmp_path_factory.mktemp("clip")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(path)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(tokens),
            "max_position_embeddings": 12,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        vision_config={**tower, "image_size": SIZE, "patch_size": 8},
        projection_dim=24,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(path)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.2, 0.25, 0.3],
    )
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clip(folder: Path) -> Features:
    return networks.clip(folder, batch_size=3)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with an edge, so that resizing has something to get wrong."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8))
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    image.paste((255, 0, 0), (0, 0, width // 3, height // 2))
    return image


def as_tensor(*images: Image.Image) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])


def test_unnormalised_embeddings_of_the_model(clip: Features, folder: Path) -> None:
    images = [photo(SIZE, SIZE, seed) for seed in range(4)]
    texts = ["a cat", "two dogs", "a", "the cat"]
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    tokens = CLIPTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(folder)(**tokens, **processor(images, return_tensors="pt"))
    got_images, got_texts = clip.images(as_tensor(*images)), clip.texts(texts)
    assert got_images.shape == got_texts.shape == (4, 24)
    assert got_images.dtype == torch.float32
    torch.testing.assert_close(F.normalize(got_images), expected.image_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(F.normalize(got_texts), expected.text_embeds, rtol=0, atol=1e-5)
    assert not torch.allclose(got_images.norm(dim=1), torch.ones(4), atol=0.05)


@pytest.mark.parametrize("shape", [(48, 48), (61, 40), (23, 57), (9, 12)])
def test_preprocessing_is_that_of_the_image_processor(clip: Features, folder: Path, shape: tuple[int, int]) -> None:
    image = photo(*shape)
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = clip.network.get_image_features(pixel_values=pixels).pooler_output
    # The processor rounds to 8 bits after resizing.
    torch.testing.assert_close(clip.images(as_tensor(image)), expected, rtol=0, atol=0.01)


def test_the_batch_does_not_matter(clip: Features) -> None:
    tensors = as_tensor(*(photo(20, 24, seed) for seed in range(7)))
    torch.testing.assert_close(clip.images(tensors)[4:5], clip.images(tensors[4:5]), rtol=0, atol=1e-5)


def test_the_description_tells_weights_apart(clip: Features, folder: Path, tmp_path: Path) -> None:
    assert networks.clip(folder).description == clip.description
    shutil.copytree(folder, tmp_path / folder.name)
    other = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        other.visual_projection.weight.add_(1e-4)
    other.save_pretrained(tmp_path / folder.name)
    assert networks.clip(tmp_path / folder.name).description != clip.description


def test_a_caption_does_not_depend_on_its_neighbours(clip: Features) -> None:
    texts = ["a", "cat and dog", "a", "a much longer caption than the context holds"]
    together = clip.texts(texts)
    alone = torch.cat([clip.texts([text]) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "images",
    [
        torch.full((2, 3, SIZE, SIZE), 1.5),
        torch.full((2, 3, SIZE, SIZE), torch.nan),
        torch.zeros(2, 1, SIZE, SIZE),
        torch.zeros(3, SIZE, SIZE),
        torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8),
    ],
    ids=["above 1", "not a number", "grey", "no batch", "bytes"],
)
def test_refuses_images(clip: Features, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="images: got"):
        clip.images(images)


@pytest.mark.parametrize("missing", ["*", "tokenizer*", "pre*"], ids=["all", "tokenizer", "preprocessor"])
def test_an_incomplete_folder_is_a_user_error(folder: Path, tmp_path: Path, missing: str) -> None:
    shutil.copytree(folder, tmp_path / "clip", ignore=shutil.ignore_patterns(missing))
    with pytest.raises(UserError, match="is not a CLIP model"):
        networks.clip(tmp_path / "clip")
