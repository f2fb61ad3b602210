"""What every kind of broken, hostile or unusual picture gets."""

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.making import bomb, noise, png, saved, tiff, tiff_of_12_bits

from scott.data.pictures import MAX_PICTURE_BYTES, aspect_buckets, cropped, decode, to_rgb
from scott.data.records import Skip

PNG, JPEG = saved(noise(0)), saved(noise(0), "JPEG")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
BAD = {
    "zero bytes": (b"", "empty-file"),
    "text": (b"<html>404</html>", "not-a-picture"),
    "a picture cut in half": (PNG[: len(PNG) // 2], "truncated"),
    "a TIFF without its directory, which is its end": (
        saved(noise(0), "TIFF", compression="tiff_lzw")[:1000],
        "truncated",
    ),
    "a jpeg cut in half": (JPEG[: len(JPEG) // 2], "truncated"),
    "a header cut in half": (PNG[:20], "corrupt"),
    "a GIF cut in its header": (saved(noise(0), "GIF")[:500], "corrupt"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs-pointer"),
    "an AVIF cut in its header": (saved(noise(0), "AVIF")[:60], "corrupt"),
    "broken data": (PNG[:60] + bytes(200) + PNG[260:], "corrupt"),
    "a decompression bomb": (bomb(12_000), "too-many-pixels"),
    "a bomb that Pillow refuses itself": (bomb(1 << 16), "too-many-pixels"),
    "more bytes than are read": (bytes(MAX_PICTURE_BYTES + 1), "too-large"),
    "a format whose reader calls a program": (EPS, "not-a-picture"),
    "32 bits a pixel": (saved(Image.new("F", (4, 4), 0.5), "TIFF"), "unsupported-mode"),
    "colours of CIELAB": (saved(Image.new("LAB", (4, 4)), "TIFF"), "unsupported-mode"),
}


@pytest.mark.parametrize(("data", "reason"), BAD.values(), ids=BAD.keys())
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bad_picture_is_skipped_with_its_reason(data, reason):
    with pytest.raises(Skip) as skip:
        decode(data)
    assert skip.value.reason == reason


GREY16 = Image.fromarray((np.arange(4096, dtype=np.uint16) * 16).reshape(64, 64))
FRAMES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
UNUSUAL = {
    "CMYK": (saved(Image.new("RGB", (8, 8), "red").convert("CMYK"), "JPEG", quality=95), (255, 0, 0)),
    "transparency on white": (saved(Image.new("RGBA", (8, 8), (255, 0, 0, 0))), (255, 255, 255)),
    "a palette with transparency": (
        saved(Image.new("P", (8, 8), 0), "GIF", transparency=0),
        (255, 255, 255),
    ),
    "the first frame of a GIF": (saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), (255, 0, 0)),
    "the first frame of a PNG": (saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), (255, 0, 0)),
    "16 bits": (saved(Image.fromarray(np.full((8, 8), 51 * 257, np.uint16))), (51, 51, 51)),
    "AVIF": (saved(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "AVIF", quality=100), (255, 255, 255)),
    "one bit": (saved(Image.new("1", (8, 8), 1)), (255, 255, 255)),
    "grey": (saved(Image.new("L", (8, 8), 77)), (77, 77, 77)),
}


@pytest.mark.parametrize(("data", "colour"), UNUSUAL.values(), ids=UNUSUAL.keys())
def test_an_unusual_picture_is_rgb(data, colour):
    image = decode(data)
    assert (image.mode, image.size) == ("RGB", (8, 8))
    assert np.abs(np.asarray(image).astype(int) - colour).max() <= 2


def test_16_bits_keep_their_range():
    levels = np.asarray(decode(saved(GREY16)))[..., 0].flatten()
    assert levels.tolist() == [value // 256 for value in range(0, 65536, 16)]


def test_12_bits_keep_their_range():
    values = [0, 15, 16, 2048, 4080, 4095]
    assert np.asarray(decode(tiff_of_12_bits(values)))[0, :, 0].tolist() == [value >> 4 for value in values]


def test_white_may_be_0_in_any_number_of_bits():
    assert np.asarray(decode(tiff(2, 16, b"\0\0\0\x80", photometric=0)))[0, :, 0].tolist() == [255, 127]
    assert np.asarray(decode(tiff(2, 8, b"\0\x80", photometric=0)))[0, :, 0].tolist() == [255, 127]


@pytest.mark.parametrize(
    "data",
    [tiff(1, 24, bytes(3)), tiff(1, 64, bytes(8))],
    ids=["24 bits", "64 bits"],
)
def test_samples_that_are_not_read_are_called_that(data):
    with pytest.raises(Skip) as skip:
        decode(data)
    assert skip.value.reason == "unsupported-mode"


TRANSPARENT = {
    "grey of 16 bits": png(16, 0, [b"\x03\xe8\x03\xe9"], b"\x03\xe8"),
    "RGB of 16 bits": png(16, 2, [b"\x03\xe8\x07\xd0\x0b\xb8" + bytes(6)], b"\x03\xe8\x07\xd0\x0b\xb8"),
    "grey of 8 bits": png(8, 0, [b"\x03\x02"], b"\0\x03"),
    "RGB of 8 bits": png(8, 2, [b"\1\2\3\0\0\0"], b"\0\1\0\2\0\3"),
    "grey of 4 bits": png(4, 0, [b"\x30"], b"\0\3"),
    "grey of 2 bits": png(2, 0, [b"\x40\0\0\0"], b"\0\1"),
    "grey of 1 bit": png(1, 0, [b"\x7f"], b"\0\0"),
}


@pytest.mark.parametrize("data", TRANSPARENT.values(), ids=TRANSPARENT.keys())
def test_the_transparent_colour_of_a_png_is_white_and_no_other(data):
    first, second = np.asarray(decode(data))[0, :2].tolist()
    assert first == [255] * 3
    assert second[0] < 5 or data is TRANSPARENT["grey of 1 bit"]


def test_transparency_is_laid_on_white_as_the_whole_picture_would_be():
    values = np.random.default_rng(0).integers(0, 256, (300, 20, 4), dtype=np.uint8)
    image = Image.fromarray(values)
    white = Image.new("RGBA", image.size, "white")
    expected = Image.alpha_composite(white, image).convert("RGB")
    assert np.array_equal(np.asarray(decode(saved(image))), np.asarray(expected))


@pytest.mark.parametrize("start", [b"\0\0\0\x18ftypheic", b"\xff\x0a", b"8BPS", b"<svg "])
def test_a_picture_of_another_format_is_called_that(start):
    with pytest.raises(Skip) as skip:
        decode(start + bytes(100))
    assert skip.value.reason == "unsupported-format"
    assert "convert it to PNG or JPEG" in skip.value.detail


def test_a_mislabelled_picture_is_what_it_holds():
    assert decode(JPEG).size == (40, 30)  # nothing says which suffix it had


def test_exif_turns_a_picture_and_sizes_are_asked_for_before_it_is_unpacked():
    image = Image.new("L", (6, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    seen = []
    assert decode(saved(image, exif=exif), lambda image: seen.append(image.size)).size == (2, 6)
    assert seen == [(6, 2)]


def test_a_size_that_is_refused_is_not_unpacked():
    def refuse(image):
        raise Skip("min-size")

    with pytest.raises(Skip, match="min-size"):
        decode(PNG[:60], refuse)  # unpacking would have found it truncated


def test_pixels_are_the_centre_square():
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48] = (255, 102, 0)
    pixels = cropped(Image.fromarray(wide), [(32, 32)])
    assert torch.equal(pixels, torch.tensor([255, 102, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 32, 32))
    untouched = noise(0, 16, 16)
    assert torch.equal(cropped(untouched, [(16, 16)]).permute(1, 2, 0), torch.from_numpy(np.asarray(untouched).copy()))


def test_the_nearest_shape_is_taken_and_filled():
    """Twice as wide as high: of 2:1, the whole picture; where that is not offered, the middle of it."""
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 8:56] = 255
    picture = Image.fromarray(wide)
    assert cropped(picture, [(16, 16), (32, 64), (64, 32)]).shape == (3, 32, 64)
    taken = cropped(picture, [(32, 32), (32, 48), (48, 32)])
    assert taken.shape == (3, 32, 48)
    assert taken.min() == 255


@pytest.mark.parametrize(("resolution", "step"), [(64, 8), (256, 32), (512, 64), (1024, 64), (72, 8), (100, 4)])
def test_buckets_have_about_the_squares_area(resolution, step):
    sizes = aspect_buckets(resolution, 4 if step == 4 else 8)
    assert (resolution, resolution) in sizes
    assert len(sizes) == len(set(sizes)) >= 3
    aspects = [width / height for height, width in sizes]
    assert aspects == sorted(aspects)
    for height, width in sizes:
        assert 0.5 <= width / height <= 2
        assert 0.75 * resolution**2 < height * width <= resolution**2
        if height != width:
            assert height % step == width % step == 0
    assert {(width, height) for height, width in sizes} == set(sizes)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(mode):
    source = Image.new("RGB", (4, 3), "white")
    image = to_rgb(source.convert("RGBA").convert(mode) if mode == "LA" else source.convert(mode))
    assert image.mode == "RGB"
    assert np.asarray(image).min() >= 250
