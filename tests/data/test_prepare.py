"""Encoding once gives what encoding directly gives, and the file is used instead of the images."""

import numpy as np
import pytest
import torch
from PIL import Image

from scott.data import prepare
from scott.data.prepare import to_pixels


class Images:
    name = "noise"

    def __init__(self, count, caption="a cat"):
        self.count, self.caption, self.version = count, caption, f"{count} {caption}"

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        return Image.fromarray(pixels), f"{self.caption} {'ab'[index % 2]}"


class Unreadable(Images):
    def __getitem__(self, index):
        raise AssertionError("the cache should have been read")


def test_the_file_holds_what_encoding_gives_in_half_precision(make_backbone, tmp_path):
    backbone, images, seen = make_backbone(), Images(5), []
    file = tmp_path / "deep" / "latents.safetensors"
    batch = prepare(images, backbone, file, lambda done, total: seen.append((done, total)), chunk=2)
    pairs = [images[i] for i in range(5)]
    mean, std = backbone.encode_images(torch.stack([to_pixels(image, 64) for image, _ in pairs]))
    text = backbone.encode_prompts([caption for _, caption in pairs])["text"]
    assert batch.cond.keys() == {"text"}
    for got, expected in ((batch.mean, mean), (batch.std, std), (batch.cond["text"], text)):
        assert got.dtype == torch.float16
        torch.testing.assert_close(got.float(), expected, rtol=2e-3, atol=1e-3)
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_the_second_time_the_file_is_read(make_backbone, tmp_path):
    backbone, file = make_backbone(), tmp_path / "latents.safetensors"
    first = prepare(Images(3), backbone, file, lambda done, total: None)
    second = prepare(Unreadable(3), backbone, file, lambda done, total: None)
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.cond["text"], second.cond["text"])
    assert [path.name for path in tmp_path.iterdir()] == ["latents.safetensors"]


def test_a_caption_too_long_is_cut(make_backbone, tmp_path):
    backbone = make_backbone()
    batch = prepare(Images(2, "b" * 20), backbone, tmp_path / "latents.safetensors", lambda done, total: None)
    cut = backbone.encode_prompts(["b" * 20], truncate=True)["text"]
    torch.testing.assert_close(batch.cond["text"][:1].float(), cut, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("spoil", ["other images", "other caption", "corrupt"])
def test_a_file_of_other_images_is_made_again(make_backbone, tmp_path, spoil):
    backbone, file = make_backbone(), tmp_path / "latents.safetensors"
    prepare(Images(3), backbone, file, lambda done, total: None)
    if spoil == "corrupt":
        file.write_bytes(b"not safetensors")
    images = {"other images": Images(2), "other caption": Images(3, "a dog"), "corrupt": Images(3)}[spoil]
    expected = prepare(images, backbone, tmp_path / "fresh.safetensors", lambda done, total: None)
    again = prepare(images, backbone, file, lambda done, total: None)
    assert torch.equal(again.cond["text"], expected.cond["text"])


def test_pixels_are_the_centre_square():
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48] = (255, 102, 0)
    pixels = to_pixels(Image.fromarray(wide), 32)
    assert pixels.shape == (3, 32, 32)
    torch.testing.assert_close(pixels, torch.tensor([1.0, 0.4, 0.0]).view(3, 1, 1).expand(3, 32, 32))
    tall = to_pixels(Image.fromarray(wide.transpose(1, 0, 2)), 16)
    torch.testing.assert_close(tall[:, 4:12, 4:12], pixels[:, :8, :8])


def test_pixels_of_the_right_size_are_untouched():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    pixels = to_pixels(Image.fromarray(image), 16)
    assert torch.equal((pixels * 255).round().byte().permute(1, 2, 0), torch.from_numpy(image))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_every_kind_of_image_becomes_rgb(mode):
    pixels = to_pixels(Image.new("RGB", (40, 30), (255, 255, 255)).convert(mode), 16)
    assert pixels.shape == (3, 16, 16)
    assert pixels.min() > 0.98
