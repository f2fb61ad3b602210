"""A run at another size than its teacher's, from the pictures to what the student is drawn at."""

import json

import pytest
from PIL import Image
from tests.teachers.published import write_configs

from scott.data.manifest import Manifest
from scott.errors import UserError
from scott.teachers.skeleton import skeleton

SMALL = ("--max-steps", 1, "--batch-size", 2, "--lora-rank", 2, "--critic", "none", "--loader-workers", 0)
SMALL += ("--precision", "fp32", "--tracker", "none")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(2):
        Image.effect_noise((64, 64), 40.0 + index).convert("RGB").save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("a cat")
    return folder


@pytest.mark.parametrize(("family", "prepared"), [("sdxl", False), ("sd3", True)])
def test_a_student_of_another_size(command_line, teacher_folders, pictures, tmp_path, family, prepared):
    """Its pipeline draws at that size by itself, and so does scott with the LoRA on the original teacher."""
    teacher, run, data, size = teacher_folders[family], tmp_path / "run", pictures, ("--resolution", 32)
    if prepared:
        data = tmp_path / "shards"
        assert command_line("prepare", pictures, "--teacher", teacher, "--out", data, *size)[0] == 0
        size = ()
    code, _, err = command_line("distill", "--teacher", teacher, "--data", data, *size, "--out", run, *SMALL)
    assert code == 0, err
    if not prepared:
        assert Manifest.load(next((run / "data").iterdir())).tensors["mean"] == [4, 4, 4]
    for index, student in enumerate(([run], ["--teacher", teacher, "--lora", run / "lora"])):
        out = tmp_path / f"pictures-{index}"
        code, _, err = command_line("sample", *student, "--prompts", "a cat", "--out", out)
        assert code == 0, err
        assert Image.open(next(out.iterdir())).size == (32, 32)
    assert "height=32" in (run / "lora" / "card.md").read_text()
    assert "height=" not in (run / "student" / "card.md").read_text()


@pytest.mark.parametrize(("family", "size", "said"), [
    ("sd1", 36, "expected a multiple of 8"),
    ("pixart", 64, "for a PixArt teacher of 256, whose positions are of that size"),
    ("sd3", 256, "has positions for 128 pixels at most"),
])  # fmt: skip
def test_a_size_that_a_teacher_cannot_have(command_line, teacher_folders, pictures, tmp_path, family, size, said):
    """Is refused before the pictures are encoded, and leaves no folder in the way of the next run."""
    out = tmp_path / "run"
    asked = ("--teacher", teacher_folders[family], "--data", pictures, "--resolution", size, "--out", out, *SMALL)
    code, _, err = command_line("distill", *asked)
    assert (code, said in " ".join(err.split()), out.exists()) == (2, True, False), err


@pytest.mark.parametrize(("family", "side", "least"), [("flux", 72, 16), ("pixart", 64, None)])
def test_a_size_that_a_teacher_cannot_have_is_not_prepared(
    command_line, teacher_folders, pictures, tmp_path, family, side, least
):
    out = tmp_path / "shards"
    asked = ("prepare", pictures, "--teacher", teacher_folders[family], "--out", out, "--resolution", side)
    code, _, err = command_line(*asked)
    said = f"expected a multiple of {least}, as VAE and network need" if least else "for a PixArt teacher of 256"
    assert (code, said in " ".join(err.split()), out.exists()) == (2, True, False), err


@pytest.mark.parametrize(("name", "least"), [("sd15", 8), ("sd3", 16), ("flux", 16), ("qwen-image", 16), ("sana", 32)])
def test_sides_are_multiples_of_the_networks_patches(tmp_path, name, least):
    backbone = skeleton(write_configs(name, tmp_path))
    assert (backbone.least_side, backbone.resolution % least) == (least, 0)
    with pytest.raises(UserError, match=f"expected a multiple of {least}"):
        backbone.resize(512 + least // 2)
    backbone.resize(512 + least)


def test_a_sana_with_positions_is_trained_at_its_own_size(tmp_path):
    """Which scale with the size in its config: at another one it would not be the teacher, nor read back."""
    folder = write_configs("sana", tmp_path)
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"interpolation_scale": 1.0}))
    backbone = skeleton(folder)
    backbone.resize(own := backbone.resolution)
    with pytest.raises(UserError, match=f"for a Sana teacher of {own}, whose positions are of that size"):
        backbone.resize(own // 2)


def test_a_dry_run_refuses_what_is_asked_of_prepared_data(command_line, teacher_folders, pictures, tmp_path):
    teacher, shards = teacher_folders["sd1"], tmp_path / "shards"
    assert command_line("prepare", pictures, "--teacher", teacher, "--out", shards)[0] == 0
    for more in ((), ("--dry-run",)):
        code, _, err = command_line(
            "distill", "--teacher", teacher, "--data", shards, "--resolution", 32, *SMALL, *more
        )
        assert (code, "got --resolution for" in " ".join(err.split())) == (2, True), err


def test_a_dry_run_counts_at_the_size_of_the_data(command_line, teacher_folders, pictures, tmp_path):
    teacher, shards = teacher_folders["sd1"], tmp_path / "shards"
    assert command_line("prepare", pictures, "--teacher", teacher, "--out", shards, "--resolution", 32)[0] == 0

    def budget(*asked):
        code, out, err = command_line("distill", "--teacher", teacher, *asked, *SMALL, "--dry-run", "--json")
        assert code == 0, err
        return json.loads(out)

    small, own = budget("--data", shards), budget("--data", "x")
    assert own["sample_bytes"] - small["sample_bytes"] == 2 * 2 * 4 * (64 - 16), "latents of 8 x 8, not of 4 x 4"
    assert small["training"]["activations"] < own["training"]["activations"]
