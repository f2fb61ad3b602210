"""The whole build, two steps a stage: what it writes loads as a teacher and as the features that measure one."""

from dataclasses import replace

import pytest
import torch
from experiments.embedded_teacher.first import autoencoder, build, clip, unet

from scott.mini.embedded import load_features, load_teacher


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    with pytest.MonkeyPatch.context() as patch:
        for stage in (autoencoder, clip, unet):
            patch.setattr(stage, "STAGE", replace(stage.STAGE, steps=2, batch_size=4))
        patch.setattr(unet, "SCENES", 16)
        patch.setitem(clip.train_tokenizer.__kwdefaults__, "captions", 2_000)
        build.build(folder / "work", folder / "out", unet_steps=2, say=lambda line: None)
        build.build(folder / "again" / "work", folder / "again" / "out", unet_steps=2, say=lambda line: None)
        build.build(folder / "work2", folder / "out2", unet_steps=2, start=folder / "out", say=lambda line: None)
    return folder


def test_it_loads_as_a_teacher(built):
    teacher = load_teacher(built / "out" / "teacher")
    assert teacher.latent_shape == (8, 8, 8)
    assert teacher.schedule.t_max == 999
    cond = teacher.encode_prompts(["a small red apple"])
    assert cond["text"].shape == (1, 32, 128)
    x0 = teacher.teacher(torch.randn(1, 8, 8, 8), torch.tensor([500]), cond)
    assert teacher.decode(x0.detach()).shape == (1, 3, 64, 64)


def test_the_text_tower_is_the_pipelines_text_encoder(built):
    features, teacher = load_features(built / "out" / "clip"), load_teacher(built / "out" / "teacher")
    mine, theirs = features.network.text_model.state_dict(), teacher.pipeline.text_encoder.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_everything_that_ships_is_half_precision(built):
    from safetensors.torch import load_file

    files = list((built / "out").rglob("*.safetensors"))
    assert len(files) == 4
    for file in files:
        assert {tensor.dtype for tensor in load_file(file).values() if tensor.is_floating_point()} == {torch.float16}


def test_the_same_seed_builds_the_same_bytes(built):
    files = [file.relative_to(built / "out") for file in (built / "out").rglob("*.safetensors")]
    assert all((built / "out" / file).read_bytes() == (built / "again" / "out" / file).read_bytes() for file in files)


def test_going_on_keeps_the_encoders_and_moves_the_network(built):
    first, second = (load_teacher(built / name / "teacher") for name in ("out", "out2"))
    for part in ("vae", "text_encoder"):
        before, after = (getattr(teacher.pipeline, part).state_dict() for teacher in (first, second))
        assert all(torch.equal(before[key], after[key]) for key in before)
    before, after = (teacher.network.state_dict() for teacher in (first, second))
    assert any(not torch.equal(before[key], after[key]) for key in before)
