"""`scott prepare` and what training opens: one path for every source, and shards of another teacher refused."""

import dataclasses
import json

import pytest
import torch
from tests.data.making import contents, noise, saved, write_tar

from scott.commands import prepare as recipe
from scott.commands.prepare import PRESETS, Preset, check_data, open_data, prepare_source
from scott.data.manifest import Manifest
from scott.data.settings import Settings
from scott.data.shard_source import ShardSource
from scott.errors import UserError
from scott.mini import glyphs
from scott.mini.scenes import render, scene
from scott.teachers import load_backbone


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


def test_a_raw_source_is_prepared_once(backbone, pictures, tmp_path):
    seen = []
    source = open_data(str(pictures), backbone, tmp_path / "cache", 0, lambda *said: seen.append(said[0]))
    assert (len(source), set(seen)) == (6, {"prepare"})
    seen.clear()
    again = open_data(str(pictures), backbone, tmp_path / "cache", 0, lambda *said: seen.append(said[0]))
    assert not seen
    assert torch.equal(again.batch(0, 4).mean, source.batch(0, 4).mean)


def test_a_source_that_changed_is_prepared_anew(backbone, pictures, tmp_path):
    open_data(str(pictures), backbone, tmp_path / "cache", 0, quiet)
    (pictures / "0.png").unlink()
    assert len(open_data(str(pictures), backbone, tmp_path / "cache", 0, quiet)) == 5


def test_the_embedded_pictures_go_the_same_way(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "MINI_SCENES", 5)
    source = open_data("mini", backbone, tmp_path, 0, quiet)
    means, captions = source.examples(9)
    scenes = [scene(i, split="train", seed=0) for i in range(5)]
    assert captions == [this.caption for this in scenes]
    pixels = torch.stack([recipe_pixels(render(this)) for this in scenes])
    torch.testing.assert_close(means.float(), backbone.encode_images(pixels)[0], rtol=2e-3, atol=1e-3)


def recipe_pixels(image):
    from scott.data.pictures import cropped

    return cropped(image, [(64, 64)]).float() / 255


def test_prepared_shards_are_opened_as_they_are(backbone, pictures, tmp_path):
    outcome = prepare_source(str(pictures), backbone, tmp_path / "shards", Settings(shard_size=4), quiet)
    source = open_data(str(tmp_path / "shards"), backbone, tmp_path / "cache", 3, quiet)
    assert isinstance(source, ShardSource)
    assert (source.manifest, source.seed) == (outcome.manifest, 3)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_shards_of_another_teacher_are_refused_with_both_names(pictures, tiny_sd, backbone, tmp_path, part):
    prepare_source(str(pictures), backbone, tmp_path / "shards", Settings(), quiet)
    other = load_backbone(tiny_sd(tmp_path / "other"))
    open_data(str(tmp_path / "shards"), other, tmp_path, 0, quiet)  # the same weights elsewhere
    with torch.no_grad():
        next(getattr(other.pipeline, part).parameters()).neg_()
    first = backbone.pipeline.config["_name_or_path"]
    with pytest.raises(
        UserError, match=rf"was made with the {part} .* of {first}, and .*other has .*; prepare the data"
    ):
        open_data(str(tmp_path / "shards"), other, tmp_path, 0, quiet)


@pytest.mark.parametrize("teacher", [None, [], {}, {"name": "x", "vae": 3}, {"name": "x", "vae": {}}])
def test_shards_of_nobody_are_refused(pictures, backbone, tmp_path, teacher):
    prepare_source(str(pictures), backbone, tmp_path / "shards", Settings(), quiet)
    manifest = Manifest.load(tmp_path / "shards")
    dataclasses.replace(manifest, settings={"teacher": teacher}).save(tmp_path / "shards")
    with pytest.raises(UserError, match=r"does not say whose VAE|was made with the"):
        open_data(str(tmp_path / "shards"), backbone, tmp_path, 0, quiet)


def test_shards_of_another_family_are_refused(pictures, backbone, make_backbone, tmp_path):
    prepare_source(str(pictures), backbone, tmp_path / "shards", Settings(), quiet)
    with pytest.raises(UserError, match="was made with the vae"):
        open_data(str(tmp_path / "shards"), make_backbone(family="sdxl"), tmp_path, 0, quiet)


def test_data_are_looked_for_before_anything_is_written(pictures, backbone):
    for name in ("mini", str(pictures)):
        check_data(name, backbone)
    with pytest.raises(UserError, match="no data at /nowhere/data"):
        check_data("/nowhere/data", backbone)


def test_unfinished_shards_are_refused(pictures, backbone, tmp_path):
    settings = Settings(shard_size=2)
    prepare_source(str(pictures), backbone, tmp_path / "shards", settings, quiet, rank=0, world=2)
    with pytest.raises(UserError, match="holds unfinished shards; run the `scott prepare`"):
        open_data(str(tmp_path / "shards"), backbone, tmp_path, 0, quiet)


@pytest.mark.parametrize("family", ["sdxl", "pixart", "sd3"])
def test_every_family_is_prepared(pictures, make_backbone, family, tmp_path):
    backbone = make_backbone(family=family)
    batch = open_data(str(pictures), backbone, tmp_path / "cache", 0, quiet).batch(0, 2)
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
