"""The embedded pictures: repeatable, truthfully captioned, distinct, and held-out pairs never trained on."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from experiments.embedded_teacher.first import clip as first
from PIL import Image

from scott.mini import glyphs, scenes
from scott.mini.scenes import BACKGROUNDS, PLACES, SIZE_WORDS, SIZES, unseen_backgrounds

TRAIN = 20_000


@pytest.fixture(scope="module")
def train():
    return [scenes.scene(i, split="train", seed=0) for i in range(TRAIN)]


@pytest.fixture(scope="module")
def held_out():
    return [scenes.scene(i, split="held-out", seed=0) for i in range(len(glyphs.load()))]


def unseen_pairs():
    return {*unseen_backgrounds().items()}


def pairs(some):
    return {(scene.subject, scene.background) for scene in some}


# --- the splits ----------------------------------------------------------------------------------------------


def test_a_scene_is_a_function_of_split_seed_and_index(train):
    for i in (0, 7, 19_999):
        assert scenes.scene(i, split="train", seed=0) == train[i]
        assert scenes.scene(i, split="train", seed=1) != train[i]
        assert scenes.scene(i, split="held-out", seed=0) != train[i]
    assert len(set(train)) > 0.99 * TRAIN


def test_training_covers_every_pair_but_the_unseen_ones(train):
    everything = {(subject, background) for subject in glyphs.load() for background in BACKGROUNDS}
    assert pairs(train) == everything - unseen_pairs()


def test_held_out_and_validation_are_the_unseen_pairs_of_every_second_subject_in_turn(held_out):
    names = list(glyphs.load())
    validation = [scenes.scene(i, split="validation", seed=0) for i in range(len(names))]
    assert [scene.subject for scene in held_out] == names[1::2] * 2
    assert [scene.subject for scene in validation] == names[::2] * 2
    assert pairs(held_out) | pairs(validation) == unseen_pairs()


@pytest.mark.parametrize("subjects", [slice(None), slice(0, None, 2), slice(1, None, 2)])
def test_unseen_backgrounds_are_spread_evenly(subjects):
    unseen = [*unseen_backgrounds().values()][subjects]
    counts = [unseen.count(name) for name in BACKGROUNDS]
    assert max(counts) - min(counts) <= 1


def test_no_shard_shows_in_training_what_the_shipped_one_holds_out():
    shown = pairs(scenes.scene(i, split="train", seed=0, shard=first.SHARD) for i in range(TRAIN))
    assert {subject for subject, _ in shown} >= {*glyphs.load()}
    assert not shown & unseen_pairs()


# --- captions ------------------------------------------------------------------------------------------------


def test_a_caption_says_subject_size_place_and_background(train, held_out):
    for scene in [*train[:3000], *held_out]:
        assert scene.subject.lower() in scene.caption
        assert f" {scene.background}" in scene.caption
        assert any(word in scene.caption.split() for word in SIZE_WORDS[scene.size])
        assert any(phrase in scene.caption for phrase in PLACES[scene.place][2])


def test_phrases_of_different_meaning_are_different():
    words = [word for words in SIZE_WORDS.values() for word in words]
    phrases = [phrase for *_, phrases in PLACES.values() for phrase in phrases]
    assert len(set(words)) == len(words)
    assert len(set(phrases)) == len(phrases)


def test_an_article_where_there_is_one():
    without = {name.lower() for name in scenes.WITHOUT_ARTICLE.split(", ")}
    subjects = {name.lower() for shard in (glyphs.SHARD, first.SHARD) for name in glyphs.load(shard)}
    assert without <= subjects
    for i in range(500):
        scene = scenes.scene(i, split="train", seed=3, named=False)
        word = next(w for w in SIZE_WORDS[scene.size] if w in scene.caption.split())
        assert (f"a {word} {scene.subject.lower()}" in scene.caption) == (scene.subject.lower() not in without)


# --- pictures ------------------------------------------------------------------------------------------------


def test_a_picture_is_the_subject_in_its_box_on_its_background(train, held_out):
    for scene in [*train[:300], *held_out[:100]]:
        image = np.asarray(scenes.render(scene)).astype(int)
        assert image.shape == (64, 64, 3)
        different = (image != BACKGROUNDS[scene.background]).any(-1)
        rows, columns = np.flatnonzero(different.any(1)), np.flatnonzero(different.any(0))
        drawing = glyphs.load()[scene.subject][scene.style]
        width, height = (round(extent * scene.pixels / max(drawing.size)) for extent in drawing.size)
        assert scene.left <= columns[0] <= columns[-1] < scene.left + width <= 64
        assert scene.top <= rows[0] <= rows[-1] < scene.top + height <= 64
        assert scene.left >= 1
        assert scene.top >= 1
        low, high = SIZES[scene.size]
        extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
        assert low - 3 <= extent <= high
        assert different.sum() > 0.1 * scene.pixels**2


def test_the_subject_is_where_the_caption_says(train):
    for scene in train[:300]:
        if scene.size == "large":
            continue
        image = np.asarray(scenes.render(scene)).astype(int)
        ys, xs = np.nonzero((image != BACKGROUNDS[scene.background]).any(-1))
        right, down, _ = PLACES[scene.place]
        for at, fraction in (((xs.min() + xs.max()) / 2, right), ((ys.min() + ys.max()) / 2, down)):
            assert np.sign(at - 31.5) * (abs(at - 31.5) > 3) == np.sign(fraction - 0.5), scene


def test_size_words_are_in_order():
    assert all(smaller[1] < larger[0] for smaller, larger in pairwise(SIZES.values()))


def test_backgrounds_differ():
    for one, other in combinations(BACKGROUNDS.values(), 2):
        assert np.linalg.norm(np.subtract(one, other)) > 40


def test_pictures_are_the_renderings():
    expected = [scenes.scene(i, split="train", seed=2) for i in range(5, 8)]
    pixels = scenes.pictures(expected)
    assert (pixels.shape, pixels.dtype) == ((3, 3, 64, 64), torch.float32)
    first = torch.from_numpy(np.asarray(scenes.render(expected[0])).copy()).permute(2, 0, 1)
    assert torch.equal((pixels[0] * 255).round().byte(), first)


# --- subjects ------------------------------------------------------------------------------------------------


def drawings():
    return [(name, drawing) for name, of_style in glyphs.load().items() for drawing in of_style.values()]


def thumbnail(drawing):
    """16x16 on grey, the drawing's longer side filling it."""
    canvas = np.full((128, 128, 3), 128.0)
    rgba = np.asarray(drawing).astype(float)
    top, left = ((128 - extent) // 2 for extent in rgba.shape[:2])
    box = canvas[top : top + rgba.shape[0], left : left + rgba.shape[1]]
    box[:] = rgba[..., :3] + box * (1 - rgba[..., 3:] / 255)
    image = Image.fromarray(canvas.round().astype(np.uint8)).resize((16, 16), Image.Resampling.BOX)
    return np.asarray(image).astype(float)


def test_every_subject_is_drawn_and_no_two_subjects_alike():
    """Two hands may draw one subject alike, as Fluent's two do where there is little to shade."""
    for name, drawing in drawings():
        alpha = np.asarray(drawing)[..., 3]
        assert (alpha > 128).mean() > 0.1, name
        assert max(drawing.size) > 60, name
    small = torch.from_numpy(np.stack([thumbnail(drawing).ravel() for _, drawing in drawings()]))
    distance = torch.cdist(small, small) / small.shape[1] ** 0.5
    names = [name for name, _ in drawings()]
    distance[torch.tensor([[one == other for other in names] for one in names])] = torch.inf
    assert distance.min() > 6


def test_drawings_are_premultiplied():
    for _, drawing in drawings():
        rgba = np.asarray(drawing)
        assert drawing.mode == "RGBa"
        assert (rgba[..., :3] <= rgba[..., 3:]).all()
