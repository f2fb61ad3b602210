"""The four-style data, what is read off their pictures, and the stages of the second edition, a few steps of each."""

import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments.embedded_teacher import build, decoder, drawings, image, text, unet
from experiments.embedded_teacher.measure import Measure, retrieval_accuracy, shares_right
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from scott.errors import UserError
from scott.mini import embedded, glyphs, scenes
from scott.mini.reading import read, styles

SHARD = drawings.SHARD
STYLES = ("noto", "3D", "flat", "twemoji")


@pytest.fixture(scope="module")
def drawn():
    return scenes.Scenes(4000, "train", 3, SHARD).scenes()


@pytest.fixture(scope="module")
def held_out():
    return scenes.Scenes(len(glyphs.load(SHARD)), "held-out", 3, SHARD).scenes()


# --- the data ------------------------------------------------------------------------------------------------


def test_every_subject_is_drawn_in_every_style():
    assert list(glyphs.load(SHARD)) == drawings.subject_names()
    for of_style in glyphs.load(SHARD).values():
        assert tuple(of_style) == STYLES
        for drawing in of_style.values():
            assert max(drawing.size) == drawings.SIDE
            assert (np.asarray(drawing)[..., 3] > 128).mean() > 0.1


def test_a_shard_that_cannot_be_drawn_stays_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(drawings, "characters", lambda: dict.fromkeys(drawings.subject_names(), "x"))
    monkeypatch.setattr(drawings, "styles", lambda sources: {"noto": lambda character: None})
    shard = tmp_path / "glyphs.tar"
    shard.write_bytes(b"drawings")
    with pytest.raises(UserError, match="noto lacks"):
        drawings.write_shard(shard, tmp_path)
    assert shard.read_bytes() == b"drawings"
    assert [*tmp_path.iterdir()] == [shard]


def test_what_drawing_needs_is_said_in_a_line(tmp_path, monkeypatch):
    for module, package in (("emoji", "emoji"), ("resvg_py", "resvg-py")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=rf"needs {module} \(.*\); pip install {package}"):
            drawings.characters() if module == "emoji" else drawings.icons(tmp_path)


def test_styles_and_their_naming_are_uniform_and_independent(drawn):
    counts = Counter((scene.style, scene.named) for scene in drawn)
    assert set(counts) == {(style, named) for style in STYLES for named in (False, True)}
    expected = len(drawn) / 8
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 24.3  # chi², 7 degrees, p = .001


def test_a_caption_names_the_style_where_the_scene_says_so(drawn):
    for scene in drawn[:1000]:
        said = [style for style in STYLES if style in scene.caption.split()]
        assert said == ([scene.style] if scene.named else [])


def test_naming_the_style_changes_the_caption_alone():
    for one, other in zip(
        scenes.Scenes(50, "held-out", 1, SHARD, True).scenes(),
        scenes.Scenes(50, "held-out", 1, SHARD, False).scenes(),
        strict=True,
    ):
        assert (one.named, other.named) == (True, False)
        assert replace(one, caption="", named=False) == replace(other, caption="")


def test_the_styles_of_a_subject_are_different_pictures(held_out):
    for scene in held_out[::10]:
        pictures = scenes.pictures([replace(scene, style=style) for style in STYLES], SHARD)
        for one, other in combinations(pictures, 2):
            assert (one - other).abs().mean() > 0.005, scene.subject


def test_no_caption_is_longer_than_the_text_tower_takes(drawn):
    tokenizer = CLIPTokenizer.from_pretrained(embedded.CLIP)
    longest = max(len(ids) for ids in tokenizer([scene.caption for scene in drawn]).input_ids)
    assert longest <= tokenizer.model_max_length


# --- what a picture shows ------------------------------------------------------------------------------------


def test_everything_is_read_off_real_pictures(held_out):
    shares, styles = shares_right(scenes.pictures(held_out, SHARD), held_out, SHARD)
    assert set(shares.values()) == {1.0}
    assert styles == [scene.style for scene in held_out]


@pytest.mark.parametrize("name", ["size", "place", "background", "style"])
def test_what_is_wrong_is_read_as_wrong(held_out, name):
    small = next(scene for scene in held_out if scene.size == "small" and scene.place == "top left")
    wrong = {"size": "large", "place": "bottom right", "background": "red", "style": "3D"}
    assert getattr(small, name) != wrong[name]
    # the picture shows another value than the caption asks for
    right = read(scenes.pictures([small], SHARD)[0], replace(small, **{name: wrong[name]}), SHARD)
    assert right.right(small)[name]
    assert not right.right(replace(small, **{name: wrong[name]}))[name]


def test_a_small_subject_in_a_corner_is_not_where_a_large_one_is_asked_for(held_out):
    small = next(this for this in held_out if (this.size, this.place) == ("small", "top left"))
    found = read(scenes.pictures([small], SHARD)[0], replace(small, size="large", place="center"), SHARD)
    assert (found.size, found.place) == ("small", "top left")


def test_pictures_on_a_gpu_are_read_alike(held_out):
    class OnGPU(torch.Tensor):
        """A picture there, which has no array, and on Apple's no float64."""

        def cpu(self):
            return self.as_subclass(torch.Tensor)

        def double(self):
            raise TypeError

        numpy = double

    (picture,) = scenes.pictures(held_out[:1], SHARD)
    assert read(picture.as_subclass(OnGPU), held_out[0], SHARD) == read(picture, held_out[0], SHARD)


def test_pictures_of_other_captions_are_right_by_chance(held_out):
    some = held_out[:150]
    others = [
        some[i] for i in np.random.default_rng(0).permutation(len(some))
    ]  # subjects in turn have backgrounds in turn
    found = [
        read(picture, this, SHARD).right(this) for picture, this in zip(scenes.pictures(others), some, strict=True)
    ]
    shares = {name: sum(one[name] for one in found) / len(found) for name in ("place", "size", "background")}
    assert shares == pytest.approx({"place": 1 / 4, "size": 1 / 3, "background": 1 / 7}, abs=0.1)


def test_an_empty_picture_has_a_background_alone(held_out):
    grey = torch.full((3, 64, 64), 150 / 255)
    found = read(grey, held_out[0], SHARD)
    assert (found.background, found.size, found.place, found.style) == ("gray", None, None, None)


def test_a_soft_picture_is_read_as_well(held_out):
    """Blurred as much as a decoder blurs."""
    pictures = torch.nn.functional.avg_pool2d(scenes.pictures(held_out, SHARD), 3, stride=1, padding=1)
    pictures[..., [0, -1], :] = pictures[..., [1, -2], :]
    pictures[..., [0, -1]] = pictures[..., [1, -2]]
    shares, _ = shares_right(pictures, held_out, SHARD)
    assert min(shares.values()) > 0.97


# --- training ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("second")
    with pytest.MonkeyPatch.context() as patch:
        for stage in (text, image, decoder, unet):
            patch.setattr(stage, "STAGE", replace(stage.STAGE, steps=2, batch_size=4))
        patch.setattr(decoder, "CRITIC_FROM", 1)
        patch.setattr(image, "POOL", 2048)
        patch.setattr(unet, "SCENES", 16)
        for work, out in (("work", "out"), ("again", "out2")):
            build.Build(start=glyphs.ASSETS, work=folder / work, out=folder / out, unet_steps=2, decoder_steps=2).run()
    return folder


def test_it_loads_and_keeps_tokenizer_and_encoder(built):
    old, new = embedded.load_teacher(), embedded.load_teacher(built / "out" / "teacher")
    before, after = old.vae.state_dict(), new.vae.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in moved)
    prompt = "a small 3D robot at the top"
    assert torch.equal(*(b.pipeline.tokenizer(prompt, return_tensors="pt").input_ids for b in (old, new)))
    assert any(map(torch.ne, old.network.conv_out.weight.flatten(), new.network.conv_out.weight.flatten()))


def test_both_folders_have_one_text_tower_in_half_precision(built):
    tower = CLIPTextModel.from_pretrained(built / "out" / "teacher" / "text_encoder", dtype=torch.float32)
    theirs = embedded.load_features(built / "out" / "clip").network.text_model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in tower.state_dict().items())
    for file in (built / "out").rglob("*.safetensors"):
        assert {value.dtype for value in load_file(file).values() if value.is_floating_point()} == {torch.float16}


def test_the_same_seed_gives_the_same_bytes(built):
    files = [file.relative_to(built / "out") for file in (built / "out").rglob("*.safetensors")]
    assert len(files) == 4
    assert all((built / "out" / file).read_bytes() == (built / "out2" / file).read_bytes() for file in files)


def test_what_is_written_as_it_is_leaves_no_data_of_a_half_trained_tower(tmp_path, monkeypatch):
    monkeypatch.setattr(unet, "SCENES", 16)
    build.Build(start=glyphs.ASSETS, work=tmp_path / "work", out=tmp_path / "out", as_is=True).run()
    assert (tmp_path / "out" / "teacher").is_dir()
    assert not [*tmp_path.glob("work/**/*.safetensors")]


def test_data_of_other_encoders_are_refused(tmp_path):
    teacher, file, options = embedded.load_teacher(), tmp_path / "data.safetensors", {"seed": 0, "config": unet.STAGE}
    made = unet.cached(file, teacher, SHARD, count=8, **options)
    again = unet.cached(file, teacher, SHARD, count=8, **options)
    assert all(torch.equal(value, again[name]) for name, value in made.items())
    with torch.no_grad():
        next(teacher.pipeline.text_encoder.parameters()).add_(0.1)
    with pytest.raises(UserError, match="made of other encoders or scenes"):
        unet.cached(file, teacher, SHARD, count=8, **options)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"samples": 0}, "got 0 samples"),
        ({"samples": 100, "grid": Path("grid.png")}, "got --grid of 100 samples; expected 128 or more"),
        ({"samples": 16, "shard": Path(__file__)}, "is no shard of glyphs"),
    ],
)
def test_what_cannot_be_measured_is_a_line(options, line):
    with pytest.raises(UserError, match=line):
        Measure(**options).run()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here cuda is there")
def test_a_device_that_is_not_there_is_a_line(tmp_path):
    with pytest.raises(UserError, match="got --device cuda, and torch sees none"):
        build.Build(start=glyphs.ASSETS, work=tmp_path, device="cuda").run()


def test_a_probe_tells_what_the_tower_keeps():
    """A tower whose states are the attributes themselves is read without error, one of noise at chance."""
    values = text.attributes(SHARD)
    tokenizer = CLIPTokenizer.from_pretrained(embedded.CLIP)
    shipped = CLIPTextModel.from_pretrained(embedded.TEACHER / "text_encoder", dtype=torch.float32).eval()
    kept = text.probe(shipped, tokenizer, SHARD, fitted_on=2048, measured_on=512)
    assert kept["background"] > 0.9

    class Noise(torch.nn.Module):
        def forward(self, ids):
            states = torch.randn(*ids.shape, 16, generator=torch.Generator().manual_seed(int(ids.sum())))
            return type("Out", (), {"last_hidden_state": states})

    lost = text.probe(Noise(), tokenizer, SHARD, fitted_on=2048, measured_on=512)
    assert lost["background"] < 3 / len(values["background"])


def test_measuring_tells_every_figure(built):
    assert Measure().guidance == embedded.GUIDANCE
    _, figures = Measure(built / "out", SHARD, samples=16, steps=2).measure()
    names = {"place", "size", "background", "style_named", "style_shares_off", "retrieval", "retrieval_real"}
    names |= {f"{what}_{features}" for what in ("fid", "floor") for features in ("clip", "efficientnet")}
    assert names <= figures.keys()
    assert all(0 <= figures[name] <= 1 for name in names if not name.startswith(("fid", "floor")))
    assert figures["fid_efficientnet"] > figures["floor_efficientnet"] > 0


def test_variants_differ_where_the_caption_leaves_it_open():
    rng = np.random.default_rng(0)
    for named in (True, False):
        scene = scenes.scene(3, split="held-out", seed=3, shard=SHARD, named=named)
        again = [scenes.variant(scene, rng, SHARD) for _ in range(40)]
        assert {other.caption for other in again} == {scene.caption}
        assert len({(other.pixels, other.left, other.top) for other in again}) > 10
        assert len({other.style for other in again}) == (1 if named else len(STYLES))
        pictures = scenes.pictures(again[:8], SHARD)
        assert all(read(picture, scene, SHARD).place == scene.place for picture in pictures)
        fractions = {name: values.mean().item() for name, values in styles(pictures, scene, SHARD).items()}
        shown = Counter(other.style for other in again[:8])
        expected = {f"style {style}": np.nan if named else shown[style] / 8 for style in STYLES}
        assert fractions == pytest.approx(expected, nan_ok=True)


def test_retrieval_among_all() -> None:
    texts = torch.eye(4)
    images = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [2, 0, 1, 0], [0, 0, 0, 1]])
    assert retrieval_accuracy(images, texts) == 0.75


def test_a_repeated_caption_is_no_rival() -> None:
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert retrieval_accuracy(texts, texts) == 1.0
