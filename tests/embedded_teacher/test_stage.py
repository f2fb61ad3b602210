"""A stage that is stopped and started again ends bit for bit where an uninterrupted one does."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from experiments.embedded_teacher.stage import StageConfig, run_stage
from torch import nn

from scott.errors import UserError
from scott.training.checkpoint import checkpoints

CONFIG = StageConfig(steps=25, batch_size=4, learning_rate=1e-2, warmup=5, checkpoint_every=10, log_every=5)


class Stopped(Exception):
    """Stands for the kill signal."""


def train(folder, config=CONFIG, stop_at=None, poison_at=None, seed=0):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

    def draw(indices, generator):
        if indices.start == (stop_at or -1) * config.batch_size:
            raise Stopped
        factor = torch.nan if indices.start == (poison_at or -1) * config.batch_size else 1.0
        x = torch.randn(len(indices), 3, generator=generator) + indices.start / 100
        return {"x": x, "factor": torch.tensor(factor)}

    def losses(drawn):
        error = (module(drawn["x"]) - drawn["x"].sum(1, keepdim=True)).square().mean()
        return {"error": drawn["factor"] * error, "size": 0.01 * module[0].weight.norm()}

    return run_stage("test", module, draw, losses, config, folder, seed=seed), module


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, *train(folder)


@pytest.mark.parametrize("stop_at", [3, 10, 14, 24])
def test_a_stage_stopped_anywhere_is_an_uninterrupted_one(whole, tmp_path, stop_at):
    folder, average, module = whole
    with pytest.raises(Stopped):
        train(tmp_path, stop_at=stop_at)
    again, other = train(tmp_path)
    assert average.keys() == again.keys()
    assert all(torch.equal(average[key], again[key]) for key in average)
    assert all(map(torch.equal, module.state_dict().values(), other.state_dict().values()))
    name = checkpoints(folder)[-1].name
    assert [path.name for path in checkpoints(tmp_path)] == [path.name for path in checkpoints(folder)]
    for file in (folder / name).glob("*.safetensors"):
        assert (tmp_path / name / file.name).read_bytes() == file.read_bytes()


def test_a_finished_stage_is_read_back(whole):
    folder, average, _ = whole
    again, module = train(folder)
    assert all(torch.equal(average[key], again[key]) for key in average)
    assert all(map(torch.equal, module.state_dict().values(), whole[2].state_dict().values()))


@pytest.mark.parametrize("change", [{"seed": 1}, {"config": replace(CONFIG, steps=20)}], ids=str)
def test_a_stage_of_another_seed_or_length_is_not_taken_for_this_one(whole, change):
    with pytest.raises(UserError, match="holds another stage"):
        train(whole[0], **change)


def test_the_average_lags_behind_the_model_and_the_loss_falls(whole, tmp_path):
    """The loss on other data than a stage's few and noisy ones."""
    folder, average, module = whole
    begun, untrained = train(tmp_path, replace(CONFIG, as_is=True))
    moved, lagging = ((weights["0.weight"] - begun["0.weight"]).norm() for weights in (module.state_dict(), average))
    assert 0 < lagging < moved
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    before, after = (
        (copy.deepcopy(network)(x) - x.sum(1, keepdim=True)).square().mean() for network in (untrained, module)
    )
    assert after < before / 2
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [5, 10, 15, 20, 25]
    assert {"lr", "gradient_norm", "error", "size", "seconds_per_step", "eta_minutes"} <= records[0].keys()


def test_the_rate_warms_up_and_ends_near_a_fiftieth(whole):
    records = [json.loads(line) for line in (whole[0] / "log.jsonl").read_text().splitlines()]
    rates = {record["step"]: record["lr"] for record in records}
    assert rates[5] == pytest.approx(1e-2)  # the last of five warm-up steps
    assert rates[15] == pytest.approx(1e-2 * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * 9 / 20))))  # the tenth of 20
    assert 0.02 < rates[25] / 1e-2 < 0.03


def test_a_loss_that_is_not_finite_stops_the_stage(tmp_path):
    with pytest.raises(FloatingPointError, match=r"test: step 12: .*nan"):
        train(tmp_path, poison_at=12)
    assert checkpoints(tmp_path)[-1].name == "step-00000010"


def test_a_stage_taken_as_it_is_gives_the_newest_average_and_trains_nothing(whole, tmp_path):
    folder, average, _ = whole
    again, _ = train(folder, replace(CONFIG, as_is=True))
    assert all(torch.equal(average[key], again[key]) for key in average)
    with pytest.raises(Stopped):
        train(tmp_path, stop_at=14)
    train(tmp_path, replace(CONFIG, as_is=True))
    assert checkpoints(tmp_path)[-1].name == "step-00000010"
    begun, module = train(tmp_path / "empty", replace(CONFIG, as_is=True))
    assert all(map(torch.equal, begun.values(), module.state_dict().values()))


def test_a_frozen_part_does_not_move(tmp_path):
    module = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1))
    before = module[0].weight.clone()

    def draw(indices, generator):
        return {"x": torch.randn(len(indices), 2, generator=generator)}

    def losses(drawn):
        return {"size": module(drawn["x"]).square().mean()}

    average = run_stage("test", module, draw, losses, replace(CONFIG, weight_decay=0.1), tmp_path, seed=0)
    assert torch.equal(average["0.weight"], before)
    assert not torch.equal(average["1.weight"], module[1].weight)


def test_the_rate_can_stay_until_the_last_fifth(tmp_path):
    train(tmp_path, replace(CONFIG, decay="last fifth"))
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rates = [record["lr"] for record in records]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-2, 1e-2, 1e-2 / 5])


def test_workers_draw_what_the_stage_itself_would(whole, tmp_path):
    _, average, _ = whole
    again, _ = train(tmp_path, replace(CONFIG, workers=2))
    assert all(torch.equal(average[key], again[key]) for key in average)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_stage_on_a_gpu_sees_the_same_data(whole, tmp_path):
    """So its losses are a CPU's, up to rounding, from the steps that are launched as one on."""
    train(tmp_path, replace(CONFIG, device="cuda", workers=1))
    errors = [
        [json.loads(line)["error"] for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (whole[0], tmp_path)
    ]
    assert errors[1] == pytest.approx(errors[0], rel=1e-2)
