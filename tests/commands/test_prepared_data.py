"""`scott prepare` and what training opens: one path for every source, and shards of another teacher refused."""

import base64
import dataclasses
import io
import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.making import contents, noise, saved, write_tar
from tests.tiny.stable import tiny_sd

from scott.commands import distill as distilling
from scott.commands import prepare as recipe
from scott.commands.check import check_named
from scott.commands.prepare import check_data, open_data, prepare_source, resolution_of
from scott.commands.presets import PRESETS, Preset
from scott.data.manifest import Manifest
from scott.data.pictures import cropped
from scott.data.settings import Reading, Settings
from scott.data.shard_source import ShardSource
from scott.errors import UserError
from scott.mini import glyphs
from scott.mini.scenes import render, scene
from scott.recipes.configs import sd15
from scott.teachers import LatentBackbone, load_backbone
from scott.training.config import DistillConfig


def quiet(*_):
    pass


@pytest.fixture(scope="module")
def backbone(make_backbone):
    return make_backbone()


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.png").write_bytes(saved(noise(i)))
        (folder / f"{i}.txt").write_text(f"picture {chr(97 + i)}")
    return folder


def test_a_run_that_has_begun_goes_on_with_what_it_read(backbone, pictures, tmp_path):
    """Of files that were touched; one that is to be read otherwise is refused before anything is prepared."""
    cache, said = tmp_path / "cache", []
    begun = open_data([str(pictures)], backbone, cache, 0, quiet)
    how = {"warn": said.append, "begun_on": begun.version}
    with pytest.raises(UserError, match=r"has begun on .*pictures read otherwise.*limit: None → 3.*give it as it was"):
        open_data([str(pictures)], backbone, cache, 0, quiet, reading=Reading(limit=3), **how)
    for file in pictures.iterdir():
        os.utime(file, (0, 0))
    assert open_data([str(pictures)], backbone, cache, 0, quiet, **how).folder == begun.folder
    assert "other names, sizes or times of change than when the run began" in said[0]
    assert [path.name for path in cache.iterdir()] == [begun.folder.name]
    assert open_data([str(pictures)], backbone, cache, 0, quiet).folder != begun.folder, "a new run reads what is there"


def test_a_raw_source_is_prepared_once(backbone, pictures, tmp_path):
    seen = []
    source = open_data([str(pictures)], backbone, tmp_path / "cache", 0, lambda *said: seen.append(said[0]))
    assert (len(source), set(seen)) == (6, {"prepare"})
    seen.clear()
    again = open_data([str(pictures)], backbone, tmp_path / "cache", 0, lambda *said: seen.append(said[0]))
    assert not seen
    assert torch.equal(again.batch(0, 4).mean, source.batch(0, 4).mean)


def test_a_device_holds_what_encodes_or_the_network(teacher_folders, pictures, tmp_path, monkeypatch):
    moved = []
    for module in (recipe, distilling):
        monkeypatch.setattr(module, "best_device", lambda: "gpu")
    monkeypatch.setattr(LatentBackbone, "place_encoders", lambda self, device: moved.append(("encoders", device)))
    monkeypatch.setattr(LatentBackbone, "place_network", lambda self, device: moved.append(("network", device)))
    monkeypatch.setattr(distilling, "distill", lambda *given, opened: moved.append("train"))
    monkeypatch.setattr(distilling, "is_exported", lambda config: True)
    config = sd15(teacher=str(teacher_folders["sd1"]), data=str(pictures), out=tmp_path / "run", precision="fp32")
    distilling.run(config, quiet)
    trained = [("encoders", "cpu"), ("network", "gpu"), "train"]
    assert moved == [("encoders", "gpu"), *trained]
    distilling.run(config, quiet)  # on data that are prepared
    assert moved[4:] == trained


@pytest.mark.parametrize(("shard", "moved"), [("none", ["gpu"]), ("full", [])])
def test_what_is_split_is_made_in_main_memory(teacher_folders, pictures, tmp_path, monkeypatch, shard, moved):
    """A device that has room for its part of the networks need not have it for all, before they are split."""
    seen = []
    monkeypatch.setattr(distilling, "best_device", lambda: "gpu")
    monkeypatch.setattr(LatentBackbone, "place_network", lambda self, device: seen.append(device))
    given = {"teacher": str(teacher_folders["sd1"]), "data": str(pictures), "out": tmp_path, "precision": "fp32"}
    config = sd15(**given, train="full", critic="full", shard=shard)
    backbone = load_backbone(config.teacher)
    distilling.data_and_models(backbone, config, {}, tmp_path / "cache", quiet, print)
    assert set(backbone.copies) == {"student", "target", "critic"}
    assert seen == moved


def test_a_source_that_changed_is_prepared_anew(backbone, pictures, tmp_path):
    open_data([str(pictures)], backbone, tmp_path / "cache", 0, quiet)
    (pictures / "0.png").unlink()
    assert len(open_data([str(pictures)], backbone, tmp_path / "cache", 0, quiet)) == 5


def test_the_embedded_pictures_go_the_same_way(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "MINI_SCENES", 5)
    source = open_data(["mini"], backbone, tmp_path, 0, quiet)
    means, captions = source.examples(9)
    scenes = [scene(i, split="train", seed=0) for i in range(5)]
    assert captions == [this.caption for this in scenes]
    pixels = torch.stack([recipe_pixels(render(this)) for this in scenes])
    torch.testing.assert_close(means.float(), backbone.encode_images(pixels)[0], rtol=2e-3, atol=1e-3)


def test_a_limit_draws_more_of_the_embedded_pictures_than_usual(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "MINI_SCENES", 5)
    assert [len(open_data(["mini"], backbone, tmp_path, 0, quiet, reading=Reading(limit=n))) for n in (3, 7)] == [3, 7]


def recipe_pixels(image):
    return cropped(image, [(64, 64)]).float() / 255


def test_prepared_shards_are_opened_as_they_are(backbone, pictures, tmp_path):
    outcome = prepare_source(str(pictures), backbone, tmp_path / "shards", Settings(shard_size=4), quiet)
    source = open_data([str(tmp_path / "shards")], backbone, tmp_path / "cache", 3, quiet)
    assert isinstance(source, ShardSource)
    assert (source.manifest, source.seed) == (outcome.manifest, 3)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_shards_of_another_teacher_are_refused_with_both_names(pictures, backbone, tmp_path, part):
    prepare_source(str(pictures), backbone, tmp_path / "shards", Settings(), quiet)
    other = load_backbone(tiny_sd(tmp_path / "other"))
    open_data([str(tmp_path / "shards")], other, tmp_path, 0, quiet)  # the same weights elsewhere
    with torch.no_grad():
        next(getattr(other.pipeline, part).parameters()).neg_()
    first = backbone.pipeline.config["_name_or_path"]
    with pytest.raises(
        UserError, match=rf"was made with the {part} .* of {first}, and .*other has .*; prepare the data"
    ):
        open_data([str(tmp_path / "shards")], other, tmp_path, 0, quiet)


@pytest.mark.parametrize("teacher", [None, [], {}, {"name": "x", "vae": 3}, {"name": "x", "vae": {}}])
def test_shards_of_nobody_are_refused(pictures, backbone, tmp_path, teacher):
    prepare_source(str(pictures), backbone, tmp_path / "shards", Settings(), quiet)
    manifest = Manifest.load(tmp_path / "shards")
    dataclasses.replace(manifest, settings={"teacher": teacher}).save(tmp_path / "shards")
    with pytest.raises(UserError, match=r"does not say whose VAE|was made with the"):
        open_data([str(tmp_path / "shards")], backbone, tmp_path, 0, quiet)


def test_shards_of_another_family_are_refused(pictures, backbone, make_backbone, tmp_path):
    prepare_source(str(pictures), backbone, tmp_path / "shards", Settings(), quiet)
    with pytest.raises(UserError, match="was made with the vae"):
        open_data([str(tmp_path / "shards")], make_backbone(family="sdxl"), tmp_path, 0, quiet)


def test_data_are_looked_for_before_anything_is_written(pictures, backbone):
    for name in ("mini", str(pictures)):
        check_data([name], backbone)
    with pytest.raises(UserError, match="no data at /nowhere/data"):
        check_data(["/nowhere/data"], backbone)


def test_unfinished_shards_are_refused(pictures, backbone, tmp_path):
    settings = Settings(shard_size=2)
    prepare_source(str(pictures), backbone, tmp_path / "shards", settings, quiet, rank=0, world=2)
    with pytest.raises(UserError, match="holds unfinished shards; run the `scott prepare`"):
        open_data([str(tmp_path / "shards")], backbone, tmp_path, 0, quiet)


@pytest.mark.parametrize("family", ["sdxl", "pixart", "sd3"])
def test_every_family_is_prepared(pictures, make_backbone, family, tmp_path):
    backbone = make_backbone(family=family)
    batch = open_data([str(pictures)], backbone, tmp_path / "cache", 0, quiet).batch(0, 2)
    assert batch.cond.keys() == backbone.encode_prompts(["a cat"]).keys()
    assert batch.mean.shape[1:] == backbone.latent_shape


def test_a_preset_fills_in_what_is_left_open(backbone, tmp_path):
    from pyarrow import Table, parquet

    urls = ["none.png", "none.png", "0.png"]
    (tmp_path / "0.png").write_bytes(saved(noise(0)))
    rows = {"URL": urls, "TEXT": ["a", "b", "c"], "aesthetic": [5.9, None, 6.0], "WIDTH": [40, 40, 40]}
    parquet.write_table(Table.from_pydict(rows), tmp_path / "m.parquet")
    laion, settings = PRESETS["laion-aesthetics-6plus"], Settings(where="WIDTH < 50", licence="mine")
    outcome = prepare_source(str(tmp_path / "m.parquet"), backbone, tmp_path / "o", settings, quiet, preset=laion)
    assert (outcome.manifest.samples, outcome.manifest.skipped) == (1, {"where": 2})
    kept = outcome.manifest.settings
    assert (kept["where"], kept["licence"]) == ("(WIDTH < 50) and aesthetic >= 6", "mine")
    assert (kept["image_column"], kept["caption_column"]) == ("URL", ["TEXT"])


def test_a_preset_without_its_score_is_refused(backbone, pictures, tmp_path):
    preset = Preset("", {}, ("score",))
    with pytest.raises(UserError, match="column 'score'; the source has none"):
        prepare_source(str(pictures), backbone, tmp_path / "o", Settings(), quiet, preset=preset)


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def scott(command_line):
    """Run a command line: (exit code, the words it printed, a space between them)."""

    def run(*arguments):
        code, out, err = command_line(*arguments)
        return code, " ".join((out + err).split())

    return run


def test_the_command_prepares_and_says_what_it_left_out(scott, pictures, sd_folders, tmp_path):
    (pictures / "3.png").write_bytes(b"")
    common = ["prepare", pictures, "--teacher", sd_folders["epsilon"], "--out", tmp_path / "out", "--licence", "CC0"]
    code, said = scott(*common, "--shard-size", 2)
    assert code == 0
    for part in ("kept │ 5", "skipped, empty-file │ 1", "shards │ 3", "pictures/s"):
        assert part in said, said
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.samples, manifest.settings["licence"]) == (5, "CC0")
    before = contents(tmp_path / "out")
    assert scott(*common, "--shard-size", 2)[0] == 0
    assert contents(tmp_path / "out") == before
    code, said = scott(*common, "--shard-size", 3)
    assert code == 2
    assert "shard_size: 2 → 3" in said


def test_processes_of_a_launcher_share_the_work(scott, pictures, sd_folders, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):  # the first one waits for the others
        monkeypatch.setenv("RANK", rank)
        command = [
            "prepare",
            pictures,
            "--teacher",
            sd_folders["epsilon"],
            "--out",
            tmp_path / "out",
            "--shard-size",
            2,
        ]
        code, said = scott(*command)
        assert code == 0
        assert ("kept" in said and "6" in said) == (rank == "0"), said
    assert Manifest.load(tmp_path / "out").samples == 6


def test_the_embedded_pictures_are_shared_too(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "MINI_SCENES", 4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    glyphs.load.cache_clear()  # it has been read by a single process
    for rank in range(2):
        prepare_source("mini", backbone, tmp_path / "out", Settings(shard_size=2), quiet, rank, 2)
    assert Manifest.load(tmp_path / "out").samples == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"caption_column": ("foo",)},
            "mini holds pictures and captions that are drawn, and no columns; got foo; leave out",
        ),
        (
            {"image_column": "bar"},
            "mini holds pictures and captions that are drawn, and no columns; got bar; leave out",
        ),
        ({"split": "test"}, "mini has no splits; got test; leave out --split"),
    ],
)
def test_embedded_data_have_no_columns_and_no_splits(backbone, tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        check_named("mini", Settings(limit=2, **options), tmp_path / "page.html", quiet)
    with pytest.raises(UserError, match=said):
        resolution_of(["mini"], backbone, Reading(**options))
    assert not (tmp_path / "page.html").exists()


BAD = {
    "no source": ([], "got neither a source nor --preset"),
    "nowhere": (["/nowhere/data"], "no data at /nowhere/data"),
    "unknown preset": (["--preset", "coco2018"], "coco2017"),
    "unknown column": (["PICTURES", "--where", "score > 3"], "column 'score'; the source has none"),
    "not an expression": (["PICTURES", "--where", "score >"], "got --where 'score >'"),
    "a size of nothing": (["PICTURES", "--shard-size", "0"], "shard_size 0, expected 1 or more"),
}


@pytest.mark.parametrize(("arguments", "names"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_message_and_nothing_is_written(
    scott, pictures, sd_folders, tmp_path, monkeypatch, arguments, names
):
    given = [str(pictures) if argument == "PICTURES" else argument for argument in arguments]
    code, said = scott("prepare", *given, "--teacher", sd_folders["epsilon"], "--out", tmp_path / "out")
    assert code == 2
    assert names in said.replace("│ ", ""), said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_tars_keep_their_columns(scott, sd_folders, tmp_path):
    write_tar(tmp_path / "a.tar", 4)
    command = ["prepare", tmp_path / "a.tar", "--teacher", sd_folders["epsilon"], "--out", tmp_path / "out"]
    assert scott(*command, "--where", "score >= 2")[0] == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["samples"], manifest["skipped"]) == (2, {"where": 2})


# --- distil from any of it ---------------------------------------------------------------------------------------


def test_what_was_left_out_is_told(backbone, pictures, tmp_path):
    (pictures / "3.png").write_bytes(b"")
    (pictures / "4.txt").unlink()
    said = []
    for _ in range(2):
        open_data([str(pictures)], backbone, tmp_path / "cache", 0, quiet, warn=said.append)
    assert said == [f"{pictures}: kept 4, left out 2 (empty-file 1, no-caption 1)"] * 2


def test_distill_tells_what_was_left_out(teacher_folders, pictures, tmp_path, monkeypatch):
    """And leaves it in the run's folder."""
    (pictures / "3.png").write_bytes(b"")
    monkeypatch.setattr(distilling, "distill", lambda *given, opened: 1)
    monkeypatch.setattr(distilling, "export_finished", lambda *given: None)
    config = sd15(teacher=str(teacher_folders["sd1"]), data=str(pictures), out=tmp_path / "run", precision="fp32")
    said = []
    distilling.run(config, quiet, said.append)
    left_out = f"{pictures}: kept 5, left out 1 (empty-file 1)"
    assert left_out in said
    assert left_out in (tmp_path / "run" / "warnings.txt").read_text().splitlines()


def test_a_source_is_the_same_however_it_is_spelt(backbone, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(pictures)
    write_tar(tmp_path / "a.tar", 2)
    folder = (str(pictures), "pictures", f"{pictures}/", "link", "./pictures")
    for out, names in (("of the folder", folder), ("of the tar", (f"{tmp_path}/a.tar", "a.tar"))):
        for name in names:
            open_data([name], backbone, tmp_path / "cache", 0, quiet)
            prepare_source(name, backbone, tmp_path / out, Settings(), quiet)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_options_of_reading_are_those_of_preparing(backbone, pictures, tmp_path):
    reading = Reading(limit=4, aspect_buckets=True)
    source = open_data([str(pictures)], backbone, tmp_path / "cache", 0, quiet, reading=reading)
    assert len(source) == 4
    assert source.manifest.shards[0].buckets
    prepare_source(str(pictures), backbone, tmp_path / "shards", Settings(), quiet)
    with pytest.raises(UserError, match="got --aspect-buckets, --limit for "):
        check_data([str(tmp_path / "shards")], backbone, reading)
    check_data([str(pictures)], backbone, Reading(resolution=32, aspect_buckets=True))
    with pytest.raises(UserError, match="got resolution 33, expected a multiple of 8"):
        check_data([str(pictures)], backbone, Reading(resolution=33, aspect_buckets=True))
    with pytest.raises(UserError, match="got --where with a column 'score'; the source has none"):
        check_data([str(pictures)], backbone, Reading(where="score > 3"))


def test_the_size_of_a_run_is_that_of_its_data(backbone, pictures, tmp_path):
    shards = str(tmp_path / "shards")
    prepare_source(str(pictures), backbone, tmp_path / "shards", Settings(resolution=32), quiet)
    assert [resolution_of([name], backbone) for name in (str(pictures), shards)] == [64, 32]
    assert resolution_of([str(pictures), shards], backbone, Reading(resolution=32)) == 32
    with pytest.raises(UserError, match=r"got data of several sizes, .*pictures of 64, .*shards of 32; prepare them"):
        resolution_of([str(pictures), shards], backbone)


def test_several_sources_in_proportion(backbone, pictures, tmp_path):
    write_tar(tmp_path / "a.tar", 3, start=20)
    names = [str(pictures), str(tmp_path / "a.tar")]
    data = open_data(names, backbone, tmp_path / "cache", 0, quiet, weights=(3, 1))
    of_tar = {row.tobytes() for row in data.sources[1].all().mean.numpy()}
    came = [row.tobytes() in of_tar for step in range(1000) for row in data.batch(step, 2).mean.numpy()]
    assert sum(came) == 500
    assert sum(came[:200]) == pytest.approx(50, abs=25)
    again = open_data(names, backbone, tmp_path / "cache", 0, quiet, weights=(3, 1))
    assert torch.equal(again.batch(417, 2).mean, data.batch(417, 2).mean)
    assert data.version == again.version != open_data(names, backbone, tmp_path / "cache", 0, quiet).version
    assert data.alike == 9
    assert [len(part) for part in data.examples(8)] == [8, 8]
    conditions = data.conditions(8)
    for caption in data.examples(8)[1]:
        for name, value in backbone.encode_prompts([caption]).items():
            torch.testing.assert_close(conditions[caption]()[name].float(), value, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match=r"got the weights \[1\] for 2 sources"):
        open_data(names, backbone, tmp_path / "cache", 0, quiet, weights=[1])


def test_a_picture_of_a_repeated_folder_comes_as_often(backbone, tmp_path):
    for name, count in (("3_cat", 2), ("1_dog", 4)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "data" / name / f"{i}.png").write_bytes(saved(noise(len(name) * count + i)))
    data = open_data([str(tmp_path / "data")], backbone, tmp_path / "cache", 0, quiet)
    assert [shard.repeats for shard in data.manifest.shards] == [1, 3]
    rows = [row.tobytes() for step in range(10) for row in data.batch(step, 1).mean.numpy()]
    assert sorted(rows.count(row) for row in set(rows)) == [1, 1, 1, 1, 3, 3]
    assert sorted(data.examples(9)[1]) == ["cat"] * 2 + ["dog"] * 4
    assert data.alike == len(data) == 6


def test_a_config_names_one_source_or_several(tmp_path):
    common = {"teacher": "t", "out": tmp_path, "train": "full"}
    config = DistillConfig(data=("a", "b"), weights=(3, 1), limit=5, caption_column=("x",), **common)
    (tmp_path / "config.json").write_text(config.to_json())
    assert DistillConfig.load(tmp_path / "config.json") == config
    assert config.sources == ("a", "b")
    assert DistillConfig(data="a", **common).sources == ("a",)
    for weights in ((1,), (1, 0), (1, 1e-4), (1, float("inf"))):
        with pytest.raises(UserError, match="got weights"):
            DistillConfig(data=("a", "b"), weights=weights, **common)


def test_check_says_what_would_be_kept_and_shows_it(scott, pictures, tmp_path):
    (tmp_path / "page[").mkdir()
    (pictures / "3.png").write_bytes(b"")
    (pictures / "4.txt").unlink()
    (pictures / "5.txt").write_text("a <b>cat</b> & ein Löwe")
    code, said = scott("prepare", pictures, "--check", "--out", tmp_path / "page[/x].html", "--resolution", 32)
    assert code == 0, said
    assert "/x].html" in said.replace(" ", "")  # a long folder wraps it
    for part in ("kept │ 4", "no-caption │ 1 │ 4.png no .txt", "empty-file │ 1 │ 3.png"):
        assert part in said, said
    page = (tmp_path / "page[" / "x].html").read_text()
    assert "a &lt;b&gt;cat&lt;/b&gt; &amp; ein Löwe" in page
    shown = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", page)]
    assert [image.size for image in shown] == [(32, 32)] * 4
    expected = cropped(Image.open(pictures / "0.png"), [(32, 32)]).float().mean(0).numpy()
    assert np.corrcoef(np.asarray(shown[0].convert("L")).ravel(), expected.ravel())[0, 1] > 0.7


def test_check_of_many_shows_sixteen_of_them_all(tmp_path):
    write_tar(tmp_path / "a.tar", 60)
    found = check_named(str(tmp_path / "a.tar"), Settings(resolution=16), tmp_path / "page.html", quiet)
    captions = [sample.captions[0] for sample in found.shown]
    assert (found.count, len(captions), len(set(captions))) == (60, 16, 16)
    assert any(int(caption.split()[1]) > 30 for caption in captions)


def test_a_name_of_any_bytes_is_shown_and_kept(scott, backbone, pictures, tmp_path):
    for name in (b"\xff", b"\xfe"):
        (pictures / os.fsdecode(name + b".png")).write_bytes(saved(noise(9)))
    (pictures / os.fsdecode(b"\xff.txt")).write_text("a cat")
    code, said = scott("prepare", pictures, "--check", "--out", tmp_path / "page.html")
    assert (code, "no-caption │ 1 │ \\udcfe.png" in said) == (0, True), said
    outcome = prepare_source(str(pictures), backbone, tmp_path / "out", Settings(), quiet)
    assert outcome.manifest.samples == 7


def test_a_page_that_cannot_be_is_refused_before_the_work(scott, pictures, tmp_path):
    for place in (pictures, tmp_path / "none" / "page.html"):
        code, said = scott("prepare", pictures, "--check", "--out", place)
        assert (code, "expected a file in a folder that is there" in said) == (2, True), said
    caption = next(pictures.glob("*.txt"))
    before = caption.read_bytes()
    code, said = scott("prepare", pictures, "--check", "--out", caption)
    assert (code, "a file that is no such page" in said, caption.read_bytes() == before) == (2, True, True), said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


def test_a_page_of_check_is_replaced_and_no_other(scott, pictures, tmp_path):
    page = tmp_path / "index.html"
    page.write_text("<!doctype html><title>mine</title>")
    code, said = scott("prepare", pictures, "--check", "--out", page)
    assert (code, "a file that is no such page" in said, page.read_text()[-12:]) == (2, True, "mine</title>"), said
    for _ in range(2):
        code, said = scott("prepare", pictures, "--check", "--out", tmp_path / "page.html")
        assert code == 0, said


def test_check_that_finds_nothing_is_one_line(scott, pictures, tmp_path):
    for file in pictures.glob("*.txt"):
        file.unlink()
    code, said = scott("prepare", pictures, "--check", "--out", tmp_path / "page.html")
    assert code == 2
    assert "nothing would be kept (no-caption 6)" in said
    flags = {"--teacher": "mini", "--out": tmp_path / "shards"}
    for given, missing in (
        ((), "no --teacher and no --out"),
        (("--teacher",), "no --out"),
        (("--out",), "no --teacher"),
    ):
        code, said = scott("prepare", pictures, *(word for flag in given for word in (flag, flags[flag])))
        assert (code, f"got {missing}; expected both, or --check" in said) == (2, True), said
