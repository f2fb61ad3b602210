"""Data sets as they are published, of a few pictures."""

import json

import pytest

from scott.mini.scenes import Scenes


def coco(folder, name, count):
    """`annotations/captions_NAME.json` with two captions a picture, and NAME/ beside its folder."""
    for place in ("annotations", name):
        (folder / place).mkdir(exist_ok=True)
    scenes, images, annotations = Scenes(count, "held-out"), [], []
    for index in range(count):
        picture, caption = scenes[index]
        picture.resize((80, 64)).save(folder / name / f"{index:012d}.png")
        images.append({"id": index, "file_name": f"{index:012d}.png"})
        annotations += [{"image_id": index, "caption": text} for text in ("cat", caption)]
    file = folder / "annotations" / f"captions_{name}.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    return file


@pytest.fixture(scope="session")
def coco2017(tmp_path_factory):
    return coco(tmp_path_factory.mktemp("coco2017"), "val2017", 10)


@pytest.fixture(scope="session")
def coco2014(tmp_path_factory):
    return coco(tmp_path_factory.mktemp("coco2014"), "val2014", 24)


@pytest.fixture(scope="session")
def mjhq(tmp_path_factory):
    """meta_data.json and mjhq30k_imgs: twelve pictures of each of two categories."""
    folder = tmp_path_factory.mktemp("mjhq")
    scenes, content = Scenes(24, "held-out"), {}
    for index in range(24):
        picture, caption = scenes[index]
        category = ("animals", "food")[index % 2]
        (folder / "mjhq30k_imgs" / category).mkdir(parents=True, exist_ok=True)
        picture.save(folder / "mjhq30k_imgs" / category / f"{index:04d}.jpg")
        content[f"{index:04d}"] = {"category": category, "prompt": caption}
    (folder / "meta_data.json").write_text(json.dumps(content))
    return folder / "meta_data.json"
