"""Pictures of several shapes, prepared and trained on: every family takes them, and SDXL is told their size."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from scott.commands.distill import add_models
from scott.commands.prepare import prepare_source
from scott.data.settings import Settings
from scott.data.shard_source import ShardSource
from scott.errors import UserError
from scott.teachers import load_backbone
from scott.training.config import DistillConfig
from scott.training.loader import check_batch
from scott.training.metrics import read_metrics
from scott.training.trainer import distill

SHAPES = {(60, 40): "wide", (40, 40): "square", (30, 40): "tall"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(9):
        size, name = [*SHAPES.items()][index % 3]
        Image.effect_noise(size, 50.0 + index).convert("RGB").save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a {name} cat")
    return folder


@pytest.mark.parametrize("family", ["sd1", "sdxl", "pixart", "sd3"])
def test_a_run_on_several_shapes(teacher_folders, pictures, tmp_path, family, monkeypatch):
    backbone = load_backbone(str(teacher_folders[family]))
    settings = Settings(aspect_buckets=True, batch_size=2)
    prepare_source(str(pictures), backbone, tmp_path / "data", settings, lambda *_: None)
    data = ShardSource(tmp_path / "data", 0)
    config = DistillConfig(
        teacher=family,
        data=str(tmp_path / "data"),
        out=tmp_path / "run",
        max_steps=6,
        batch_size=2,
        critic_rank=4,
        lora_rank=4,
        loader_workers=0,
        log_every=1,
        tracker="none",
    )
    add_models(backbone, config)
    seen = []
    real = backbone.predict

    def predict(network, x_t, timestep, cond):
        seen.append((tuple(x_t.shape[-2:]), cond))
        return real(network, x_t, timestep, cond)

    monkeypatch.setattr(backbone, "predict", predict)
    assert distill(backbone, data, config) == 6
    assert all(record["consistency"] > 0 for record in read_metrics(tmp_path / "run" / "metrics.jsonl"))
    factor = backbone.resolution // backbone.latent_shape[-1]
    sides = {side for side, _ in seen}
    assert len(sides) == 3
    assert {width > height for height, width in sides} == {True, False}
    for (height, width), cond in seen:
        if family == "sdxl":
            size = torch.tensor([height * factor, width * factor, 0, 0, height * factor, width * factor]).float()
            assert torch.equal(cond["time_ids"], size.expand_as(cond["time_ids"])), "with a caption and without"


def test_latents_of_another_network_are_still_refused(teacher_folders, pictures, tmp_path):
    backbone = load_backbone(str(teacher_folders["sd1"]))
    prepare_source(str(pictures), backbone, tmp_path, Settings(aspect_buckets=True), lambda *_: None)
    batch, uncond = ShardSource(tmp_path, 0).batch(0, 2), backbone.unconditional()
    check_batch(batch, backbone, uncond, varied=True)
    with pytest.raises(UserError, match="prepare them for this teacher"):
        check_batch(replace(batch, mean=batch.mean.repeat(1, 4, 1, 1)), backbone, uncond, varied=True)
