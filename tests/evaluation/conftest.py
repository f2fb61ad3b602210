"""Data sets as they are published, of a few pictures."""

import json
from pathlib import Path

import pytest

from scott.evaluation import protocols
from scott.mini.scenes import Scenes

VAL2014 = [int(number) for number in Path(protocols.__file__).with_name("coco2014-30k.txt").read_text().split()]


def coco(folder, name, count):
    """`annotations/captions_NAME.json` with two captions a picture, and NAME/ beside its folder.

    Of val2014 one that is not in the list that ships, then the first of that list, backwards.
    """
    for place in ("annotations", name):
        (folder / place).mkdir(exist_ok=True)
    scenes, images, annotations = Scenes(count, "held-out"), [], []
    numbers = [1, *reversed(VAL2014[: count - 1])] if name == "val2014" else range(count)
    for index, number in enumerate(numbers):
        picture, caption = scenes[index]
        file = f"COCO_val2014_{number:012d}.jpg" if name == "val2014" else f"{number:012d}.png"
        picture.resize((80, 64)).save(folder / name / file)
        images.append({"id": index, "file_name": file})
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
