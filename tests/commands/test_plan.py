"""`scott distill … --dry-run`: says what a run would need from config files alone, and leaves nothing behind."""

import dataclasses
import json

import pytest
import torch
from tests.teachers.published import write_configs

from scott.commands.plan import gpu_hours, plan
from scott.errors import UserError
from scott.recipes.configs import mini, pixart, sd3, sd15, sdxl
from scott.teachers import load_backbone
from scott.training.counting import storage_bytes


@pytest.fixture
def scott(command_line, monkeypatch, tmp_path):
    """Run a command line in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    return command_line


def test_a_dry_run_prints_a_table_and_writes_nothing(scott, tmp_path):
    code, said, _ = scott("distill", "mini", "--method", "paper", "--dry-run", "--batch-size", "2")
    assert code == 0
    budget = plan(mini(batch_size=2, method="paper"))
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in said.splitlines() if line[0] == "│"]
    assert all(len(line) <= 80 for line in said.splitlines())
    table = {row[0]: row[1:] for row in rows}
    assert table["recipe"] == ["mini", "ω 1 to 3, drawn at 2; fp32"]
    assert table["--low-memory"] == [f"{budget.savings['--low-memory'] / 1e6:,.2f} MB", "of activations"]
    assert table["network"] == [f"{budget.parameters:,}", "UNet2DConditionModel"]
    assert table["teacher"] == ["3", "on 4 samples"]
    assert table["critic decoder"] == ["2", "on 2 samples, and 3 backward"]
    assert table["in all"][0] == f"{budget.total / 1e6:,.2f} MB"
    assert table["between steps"][0] == f"{budget.drawing / 1e6:,.2f} MB"
    assert not list(tmp_path.iterdir())


def test_json_is_the_budget(scott, teacher_folders):
    arguments = ["--teacher", teacher_folders["sdxl"], "--data", "/nowhere", "--batch-size", "2", "--lora-rank", "4"]
    code, said, _ = scott("distill", "sdxl", *arguments, "--dry-run", "--json")
    assert code == 0
    config = sdxl(teacher=str(teacher_folders["sdxl"]), data="/nowhere", batch_size=2, lora_rank=4)
    budget = plan(config)
    totals = {"total": budget.total, "start": budget.start, "peak": budget.peak}
    taken = {"recipe": "sdxl", "guidance": 8.0, "precision": "fp16"}
    assert json.loads(said) == json.loads(json.dumps(dataclasses.asdict(budget))) | totals | taken
    pipeline = load_backbone(config.teacher, config.dtype).pipeline
    first = (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
    held = storage_bytes(tensor for part in first for tensor in (*part.parameters(), *part.buffers()))
    assert budget.start == held + budget.preparing["encoding"]


def test_json_without_a_dry_run_is_refused(scott, tmp_path):
    code, _, said = scott("distill", "mini", "--json")
    assert code == 2
    assert "--dry-run" in said
    assert not list(tmp_path.iterdir())


def test_hours_are_of_the_precision_and_of_the_walks_that_are_made(teacher_folders):
    """An H100 has 67 TFLOP/s in fp32, as torch computes it, and 989 in fp16."""
    given = {"teacher": str(teacher_folders["sd1"]), "data": "none", "batch_size": 2, "max_steps": 100}
    config, again = sd15(**given, precision="fp32"), sd15(**given, precision="fp32", jump_reuse=4, jump_store=2)
    budget = plan(config)
    assert gpu_hours(config, budget) == pytest.approx(100 * budget.flops / (0.3 * 67e12 * 3600))
    half = dataclasses.replace(config, precision="fp16")
    assert gpu_hours(half, budget) == pytest.approx(67 / 989 * gpu_hours(config, budget))
    assert gpu_hours(again, plan(again)) < gpu_hours(config, budget)


@pytest.mark.parametrize("processes", ["0", "-1"])
def test_a_run_over_no_processes_is_refused(scott, processes):
    code, _, said = scott("distill", "mini", "--dry-run", "--processes", processes)
    assert code == 2
    assert f"got --processes {processes}; expected 1 or more" in said


def test_a_published_teacher_is_planned_without_its_weights(tmp_path):
    """PixArt at its real size, with its recipe's batch of 16."""
    config = pixart(teacher=str(write_configs("pixart", tmp_path)), data="none", adversarial_weight=0.0)
    budget = plan(config)
    assert (budget.parameters, budget.student, budget.critic) == (610_856_096, 53_673_984, 0)
    assert budget.training["frozen network"] == pytest.approx(2 * 610_856_096, rel=0.01), "fp16"
    assert budget.training["optimizers"] == 8 * 53_673_984
    kept_in_fp32 = 24 * 4096 * 10240  # T5's `wo`, which overflows in fp16
    assert budget.preparing["text encoders"] == 2 * 4_762_310_656 + 2 * kept_in_fp32
    assert 3e9 < budget.total < 9e9


def test_what_a_flag_saves_is_what_a_run_with_it_holds_less(teacher_folders):
    given = {"teacher": str(teacher_folders["sd3"]), "data": "none", "critic": "none", "gradient_checkpointing": True}
    without = plan(sd3(**given))
    assert without.savings.keys() == {"--quantize int8", "--quantize nf4", "--low-memory"}
    for flag, saved in without.savings.items():
        name, _, value = flag.removeprefix("--").partition(" ")
        budget = plan(sd3(**given, **{name.replace("-", "_"): value or True}))
        assert budget.total == without.total - saved, flag
        assert saved > 0 or flag == "--low-memory", "a walk that is not what a step holds at its highest"
        assert flag not in budget.savings
    assert plan(sd3(**given, train="full")).savings.keys() == {"--low-memory"}


def test_text_encoders_one_at_a_time_leave_the_largest(teacher_folders):
    given = {"teacher": str(teacher_folders["sd3"]), "data": "none", "critic": "none"}
    together, apart = plan(sd3(**given)), plan(sd3(**given, low_memory=True))
    encoders = load_backbone(given["teacher"], torch.float16).text_encoders
    sizes = [storage_bytes([*encoder.parameters(), *encoder.buffers()]) for encoder in encoders]
    assert len(sizes) == 3
    assert together.start - apart.start == together.start_savings["--low-memory"] > 0
    assert (together.preparing["text encoders"], apart.preparing["text encoders"]) == (sum(sizes), max(sizes))
    assert not apart.start_savings
    alone = {"teacher": str(teacher_folders["pixart"]), "data": "none", "critic": "none"}
    assert not plan(pixart(**alone)).start_savings, "one encoder"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"teacher": "/nowhere/teacher"}, "no teacher at"),
        ({"substeps": 5}, "multiple"),
        ({"guidance_min": 2.0, "guidance_max": 7.0, "train": "full"}, "takes no ω"),
    ],
)
def test_what_a_run_would_refuse_is_refused(settings, said, teacher_folders):
    config = pixart(**{"teacher": str(teacher_folders["pixart"]), "data": "none", **settings})
    with pytest.raises(UserError, match=said):
        plan(config)
