"""A folder of images with captions beside them, and what can be wrong with one."""

import pytest
from PIL import Image

from scott.data import Folder
from scott.errors import UserError


def add(folder, name, caption="a cat", size=(4, 4), **options):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 10, 10)).save(folder / name, **options)
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")


def test_images_of_all_folders_in_the_order_of_their_names(tmp_path):
    add(tmp_path / "b", "2.PNG", "two")
    add(tmp_path / "a", "1.jpg", " eins ü\n")
    add(tmp_path, "c.webp", "three")
    (tmp_path / "notes.md").write_text("not an image")
    data = Folder(tmp_path)
    assert len(data) == 3
    assert [data[i][1] for i in range(3)] == ["eins ü", "two", "three"]
    assert data.name == str(tmp_path)


def test_an_image_is_rgb_and_upright(tmp_path):
    image = Image.new("L", (6, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    add(tmp_path, "x.png")
    image.save(tmp_path / "x.png", exif=exif)
    drawn, _ = Folder(tmp_path)[0]
    assert (drawn.mode, drawn.size) == ("RGB", (2, 6))


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"no data at .*nowhere; expected `mini` or a folder"):
        Folder(tmp_path / "nowhere")


def test_no_images(tmp_path):
    (tmp_path / "only.txt").write_text("a caption")
    with pytest.raises(UserError, match=r"holds no images; expected files ending in .*\.png"):
        Folder(tmp_path)


def test_missing_captions_are_counted_and_the_first_named(tmp_path):
    for name, caption in (("a.png", "fine"), ("b.png", None), ("c.png", None)):
        add(tmp_path, name, caption)
    with pytest.raises(UserError, match=r"2 of 3 images lack a caption, first .*b\.png"):
        Folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_unreadable_image_is_named(tmp_path, content):
    add(tmp_path, "bad.png", size=(64, 64))
    file = tmp_path / "bad.png"
    file.write_bytes(file.read_bytes()[:80] if content is None else content)
    data = Folder(tmp_path)
    with pytest.raises(UserError, match=r"bad\.png is not a readable image"):
        data[0]


def test_a_caption_that_is_not_text_is_named(tmp_path):
    add(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8"):
        Folder(tmp_path)[0]
