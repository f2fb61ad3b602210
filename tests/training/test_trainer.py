"""A run that is stopped anywhere and started again ends bit for bit where an uninterrupted one does."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from tests.training.runs import STEPS, InMemory, assert_same_run, assert_same_run_but, final, metrics, source

from scott.data.batch import Batch
from scott.diffusion import DiscreteSchedule, JumpGrid
from scott.errors import Preempted, UserError
from scott.samplers import StudentSampler
from scott.teacher_source import TeacherSource
from scott.teachers import load_backbone
from scott.teachers.critic import Critic
from scott.training.checkpoint import (
    Best,
    checkpoint_step,
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from scott.training.config import DistillConfig
from scott.training.launch import _tracked_as, open_run, start_processes
from scott.training.metrics import MetricsLog, read_metrics
from scott.training.optimization import Optimization
from scott.training.step import Distillation
from scott.training.trainer import Hooks

TRAIN = ["lora", "full"]
TERMS = {"consistency", "adversarial", "critic", "critic_real_accuracy", "critic_fake_accuracy", "adversarial_ratio"}
PARTS = {f"seconds_{part}" for part in ("data", "teacher", "student", "critic", "update")}
FIELDS = {"step", *TERMS, "student_gradient_norm", "critic_gradient_norm", "ema_distance"}
FIELDS |= {*PARTS, "seconds_per_step", "images_per_second", "memory_gb"}


class Stopped(Exception):
    """Stands for the kill signal."""


def stop_at(step):
    def progress(done, terms):
        if done == step:
            raise Stopped

    return Hooks(progress=progress)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folders of uninterrupted runs by kind of student, made when first asked for."""
    made = {}

    def folder(start, train):
        if train not in made:
            made[train] = tmp_path_factory.mktemp(train) / "run"
            assert start(made[train], train)[0] == STEPS
        return made[train]

    return folder


@pytest.mark.parametrize("train", TRAIN)
def test_a_run_continued_is_an_uninterrupted_one(start, whole, tmp_path, train):
    assert start(tmp_path, train, max_steps=4)[0] == 4
    done, backbone = start(tmp_path, train)
    assert done == STEPS - 4
    assert_same_run(tmp_path, whole(start, train))
    target = final(tmp_path)[0]["target"]
    assert all(torch.equal(p, target[name]) for name, p in backbone.target_parameters().items())


@pytest.mark.parametrize(("train", "killed_at"), [("lora", 1), ("lora", 5), ("full", 4)])
def test_a_run_killed_anywhere_is_an_uninterrupted_one(start, whole, tmp_path, train, killed_at):
    with pytest.raises(Stopped):
        start(tmp_path, train, stop_at(killed_at))
    start(tmp_path, train)
    assert_same_run(tmp_path, whole(start, train))
    assert [record["step"] for record in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("within", "at", "last"), [("step", 2, 2), ("step", STEPS, STEPS), ("sample", 2, 3), ("save", 2, 3)]
)
def test_the_step_that_sigterm_comes_in_is_saved_and_no_hook_called(
    start, whole, tmp_path, monkeypatch, within, at, last
):
    """Where it comes between two, it is the next one."""
    calls = dict.fromkeys(("step", "sample", "validate", "save"), 0)

    def counted(part, function=lambda *given: {}):
        def call(*given):
            calls[part] += 1
            if part == within and calls["step"] == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return function(*given)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "step", counted("step", Distillation.step))
        patch.setattr("scott.training.trainer.save_checkpoint", counted("save", save_checkpoint))
        hooks = Hooks(sample=counted("sample"), validate=counted("validate"))
        with pytest.raises(Preempted, match=f"stopped by SIGTERM after step {last}, which is saved"):
            start(tmp_path, hooks=hooks, sample_every=1, validate_every=1)
    assert [calls[part] for part in ("step", "sample", "validate")] == [last, last - 1, last - 1]
    assert checkpoint_step(checkpoints(tmp_path / "checkpoints")[-1]) == last
    start(tmp_path)
    assert_same_run(tmp_path, whole(start, "lora"))


def test_a_record_at_the_checkpoint_is_kept_when_the_next_comes_later(start, tmp_path):
    start(tmp_path, max_steps=4, log_every=2, checkpoint_every=4)
    start(tmp_path, log_every=2, checkpoint_every=4)
    assert [record["step"] for record in metrics(tmp_path)] == [2, 4, 6]


def test_a_finished_run_has_nothing_to_do(start, whole):
    before = metrics(whole(start, "lora"))
    assert start(whole(start, "lora"))[0] == 0
    with pytest.raises(UserError, match="more than max_steps 3"):
        start(whole(start, "lora"), max_steps=3)
    assert metrics(whole(start, "lora")) == before


@pytest.mark.parametrize("train", TRAIN)
def test_the_student_moves_the_target_follows_and_the_teacher_stays(start, make_backbone, tmp_path, train):
    _, backbone = start(tmp_path, train)
    fresh = make_backbone(train, critic_rank=2)
    assert not equal(backbone.student_parameters(), fresh.student_parameters())
    assert not equal(backbone.student_parameters(), backbone.target_parameters())
    assert not equal(backbone.critic_parameters(), fresh.critic_parameters())
    base, plain = (
        {name: p for name, p in b.network.named_parameters() if ".lora_" not in name} for b in (backbone, fresh)
    )
    assert equal(base, plain)


@pytest.mark.parametrize("train", TRAIN)
def test_three_steps_and_a_two_step_sample_of_every_family(start, make_backbone, tmp_path, family, train):
    """A critic that is trained whole beside the full student; the base stays as it was, bit for bit."""
    settings = {"critic": train, "max_steps": 3, "solver": "dpmpp-sde", "order": 1, "jump": 20}
    done, backbone = start(tmp_path, train, family=family, **settings)
    assert done == 3
    records = metrics(tmp_path)
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert all(record["student_gradient_norm"] > 0 for record in records)
    fresh = make_backbone(train, critic_rank=2, family=family, critic=train)
    assert not equal(backbone.target_parameters(), fresh.target_parameters())
    assert not equal(backbone.critic_parameters(), fresh.critic_parameters())
    base, plain = (
        {name: p for name, p in b.network.named_parameters() if ".lora_" not in name} for b in (backbone, fresh)
    )
    assert equal(base, plain)
    latents = StudentSampler(backbone, backbone.target, JumpGrid(backbone.schedule), 2, 3.0).latents(["a cat"], 0)
    assert latents.shape == (1, *backbone.latent_shape)
    assert latents.isfinite().all()
    assert backbone.decode(latents).shape == (1, 3, backbone.resolution, backbone.resolution)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("train", TRAIN)
def test_the_target_is_the_moving_average_of_the_student(start, tmp_path, make_backbone, train):
    start(tmp_path, train, max_steps=2, checkpoint_every=1, ema_decay=0.75)
    first, second = (load_checkpoint(path)[0] for path in checkpoints(tmp_path / "checkpoints"))
    begin = make_backbone(train).target_parameters()
    for name, value in first["student"].items():
        torch.testing.assert_close(first["target"][name], 0.75 * begin[name] + 0.25 * value)
    for name, value in second["student"].items():
        torch.testing.assert_close(second["target"][name], 0.75 * first["target"][name] + 0.25 * value)


def test_warm_up_is_linear_in_the_first_adam_step(start, make_backbone, tmp_path):
    """Adam's first update is lr · sign(gradient): 1e-3 · 1/4 with four steps of warm-up."""
    start(tmp_path, "full", max_steps=1, warmup_steps=4, adversarial_weight=0.0)
    before = make_backbone("full").student_parameters()
    student = final(tmp_path)[0]["student"]
    moved = torch.cat([(value - before[name].detach()).abs().flatten() for name, value in student.items()])
    assert moved.max() == pytest.approx(2.5e-4, rel=0.01)
    assert moved.median() == pytest.approx(2.5e-4, rel=0.05)


def test_the_decay_is_linear_in_the_last_adam_steps(start, tmp_path):
    """Two runs alike but for it: of four steps, only the last has half the rate, and makes half the step."""
    settings = {"max_steps": 4, "warmup_steps": 0, "adversarial_weight": 0.0, "checkpoint_every": 1}
    moved = {}
    for decay in (0.0, 0.5):
        start(tmp_path / str(decay), "full", decay=decay, keep_checkpoints=4, **settings)
        before, after = (
            load_checkpoint(path)[0]["student"] for path in checkpoints(tmp_path / str(decay) / "checkpoints")[2:]
        )
        moved[decay] = torch.cat([(after[name] - before[name]).flatten() for name in after])
    torch.testing.assert_close(moved[0.5], moved[0.0] / 2, rtol=1e-2, atol=1e-6)


def test_records_have_their_fields(start, whole):
    records = read_metrics(whole(start, "lora") / "metrics.jsonl")
    spreads = {name for name in records[-1] if re.fullmatch(r"spread_\d+", name)}
    assert spreads
    assert all(record.keys() - spreads == FIELDS for record in records)
    for record in records:
        assert record["seconds_per_step"] == pytest.approx(sum(record[part] for part in PARTS))
        assert record["images_per_second"] == pytest.approx(2 / record["seconds_per_step"])
        assert min(record[part] for part in PARTS) > 0
        assert record["ema_distance"] > 0
    assert all(0 <= record[f"critic_{kind}_accuracy"] <= 1 for record in records for kind in ("real", "fake"))


@pytest.mark.parametrize("changes", [{"adversarial_weight": 0.0}, {"critic": "none"}], ids=str)
def test_without_a_critic_there_is_nothing_of_it(start, tmp_path, changes):
    start(tmp_path, max_steps=2, **changes)
    assert final(tmp_path)[0].keys() == {"student", "target", "student_optimizer"}
    assert not [name for record in metrics(tmp_path) for name in record if "critic" in name or "adv" in name]


def test_hooks_are_called_at_their_steps(start, tmp_path):
    seen = {"progress": [], "terms": [], "sample": []}

    def progress(done, terms):
        seen["progress"].append(done)
        if terms:
            seen["terms"].append(done)

    def sample(done):
        seen["sample"].append(done)
        return {"difference": done / 2}

    hooks = Hooks(progress=progress, sample=sample)
    start(tmp_path, hooks=hooks, max_steps=5, log_every=2, checkpoint_every=1, keep_checkpoints=3)
    assert seen == {"progress": [1, 2, 3, 4, 5], "terms": [2, 4, 5], "sample": [3, 5]}
    assert [(r["step"], r["difference"]) for r in metrics(tmp_path) if "difference" in r] == [(3, 1.5), (5, 2.5)]
    names = [path.name for path in checkpoints(tmp_path / "checkpoints")]
    assert names == ["step-00000003", "step-00000004", "step-00000005"]
    assert DistillConfig.load(tmp_path / "config.json").max_steps == 5


@pytest.mark.parametrize(("metric", "best"), [("fid", 2), ("coverage", 4)])
def test_the_best_checkpoint_is_kept_beside_the_newest(start, tmp_path, metric, best):
    """FID is best low, coverage high; a later value that is as good does not replace the first."""
    values = {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0, 5: 1.0, 6: 4.0}
    hooks = Hooks(validate=lambda done: {"fid": values[done], "coverage": values[done]})
    settings = {"validate_every": 1, "best_metric": metric, "checkpoint_every": 6, "keep_checkpoints": 1}
    start(tmp_path, hooks=hooks, **settings)
    kept = sorted({best, 6})
    assert [checkpoint_step(path) for path in checkpoints(tmp_path / "checkpoints")] == kept
    found = Best.read(tmp_path / "checkpoints")
    assert (found.step, found.metric, found.value) == (best, metric, values[best])
    assert [record["fid"] for record in metrics(tmp_path)] == list(values.values())


def test_a_best_checkpoint_that_is_saved_already_is_not_gathered_again(start, tmp_path, monkeypatch):
    gathered = []
    parts = Optimization.parts
    monkeypatch.setattr(Optimization, "parts", lambda self: gathered.append(self) or parts(self))
    hooks = Hooks(validate=lambda done: {"fid": 9.0 - done})
    start(
        tmp_path, hooks=hooks, max_steps=4, validate_every=1, best_metric="fid", checkpoint_every=2, keep_checkpoints=1
    )
    assert len(gathered) == 4
    assert Best.read(tmp_path / "checkpoints").step == 4


def test_a_best_metric_without_validation_is_refused(start, tmp_path):
    with pytest.raises(UserError, match="best_metric fid without validate_every"):
        start(tmp_path / "run", best_metric="fid")


# --- what stops a run ----------------------------------------------------------------------------------------


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_another_config_on_the_same_folder_is_refused_with_the_difference(start, whole):
    out = whole(start, "lora")
    before = contents(out)
    way_on = f"choose another --out; to go on from it under other settings: --continue-from {out} --out ANOTHER"
    with pytest.raises(UserError, match=rf"holds another run \(seed: 0 → 1; loss: l2 → huber\); {way_on}$"):
        start(out, seed=1, loss="huber")
    with pytest.raises(UserError, match=r"holds another run \(optimizer: .*\); choose another --out$"):
        start(out, optimizer="adamw8bit")  # whose states are others
    assert contents(out) == before


def test_a_folder_that_is_not_a_run_is_left_alone(start, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a run of scott"):
        start(tmp_path)
    assert contents(tmp_path) == {Path("thesis.txt"): b"mine"}
    with pytest.raises(UserError, match="is not a run of scott"):
        start(tmp_path / "thesis.txt")
    (tmp_path / "config.json").write_text('{"model": "another program\'s"}')
    with pytest.raises(UserError, match="is not the config of a scott run"):
        start(tmp_path)
    assert contents(tmp_path).keys() == {Path("thesis.txt"), Path("config.json")}


def test_a_config_that_cannot_run_leaves_no_folder(start, tmp_path):
    for changes in ({"substeps": 5}, {"solver": "ddim", "eta": 2.0}):
        with pytest.raises(UserError):
            start(tmp_path / "run", **changes)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("log_every", [1, 100])
def test_nan_data_stop_the_run_and_save_nothing_more(start, make_backbone, tmp_path, log_every):
    class Poisoned:
        version, varied = "poisoned", False

        def __init__(self, good):
            self.good = good

        def batch(self, step, size, part=slice(None)):
            batch = self.good.batch(step, size, part)
            return Batch(batch.mean * float("nan"), batch.std, batch.cond) if step == 4 else batch

    backbone = make_backbone("lora", critic_rank=2)
    with pytest.raises(FloatingPointError, match=r"step 5: consistency = nan.* \(t_n from \d+ to \d+\)"):
        start(tmp_path, data=Poisoned(source(backbone)), backbone=backbone, log_every=log_every)
    assert all(p.isfinite().all() for p in backbone.network.parameters())
    assert final(tmp_path)[1]["step"] == 4
    assert all(p.isfinite().all() for part in final(tmp_path)[0].values() for p in part.values())


def test_data_of_another_shape_stop_the_run_before_the_first_step(start, make_backbone, tmp_path):
    backbone = make_backbone("lora", critic_rank=2)
    other = source(backbone, mean=torch.zeros(5, 4, 16, 16))
    with pytest.raises(UserError, match=r"the data have .*\(4, 16, 16\).* the teacher takes .*\(4, 8, 8\)"):
        start(tmp_path, data=other, backbone=backbone)
    assert not metrics(tmp_path)


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED"])
def test_a_launch_with_an_engine_that_is_not_run_is_refused(start, tmp_path, monkeypatch, engine):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(UserError, match=f"got a launch with {engine}; launch without, and split with --shard full"):
        start(tmp_path)


@pytest.mark.parametrize(
    ("environment", "why"), [({"RANK": "x"}, "invalid literal for int"), ({"RANK": "0"}, "MASTER_ADDR")]
)
def test_an_environment_that_is_no_launch(start, tmp_path, monkeypatch, environment, why):
    for name, value in ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"} | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for state in (AcceleratorState, PartialState):
        monkeypatch.setattr(state, "_shared_state", {})  # as in a process that has not read its environment
    with pytest.raises(UserError, match=f"the processes cannot be joined .*{why}.*torchrun"):
        start(tmp_path)


@pytest.mark.parametrize("state", [{}, {"spread": [[1.0]]}, {"spread": None}])
def test_a_checkpoint_without_what_a_run_counts_is_refused(start, tmp_path, state):
    start(tmp_path, max_steps=2)
    file = latest_checkpoint(tmp_path / "checkpoints") / "state.json"
    left = {name: value for name, value in json.loads(file.read_text()).items() if name != "spread"}
    file.write_text(json.dumps(left | state))
    with pytest.raises(UserError, match=r"step-00000002 cannot be read .*delete it to resume from the one before"):
        start(tmp_path)


def test_one_process_splits_nothing(start, tmp_path):
    with pytest.raises(UserError, match="got --shard full in one process"):
        start(tmp_path, shard="full")


def test_data_that_changed_are_refused_on_resume(start, make_backbone, tmp_path):
    start(tmp_path, max_steps=2)
    backbone = make_backbone("lora", critic_rank=2)
    other = source(backbone)
    other.version = "other"
    with pytest.raises(UserError, match="are other and were memory at step 2"):
        start(tmp_path, backbone=backbone, data=other)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_cannot_be_read_is_one_line(start, make_backbone, tmp_path, workers):
    class Corrupt(InMemory):
        def batch(self, step, size, part=slice(None)):
            if step == 2:
                raise UserError("000000.tar is corrupt")
            return super().batch(step, size, part)

    backbone = make_backbone("lora", critic_rank=2)
    with pytest.raises(UserError, match=r"^000000.tar is corrupt$"):
        start(tmp_path, backbone=backbone, data=Corrupt(source(backbone).samples), loader_workers=workers)
    assert [record["step"] for record in metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize("more", [{"gradient_accumulation": 2, "critic_r1": 0.1}, {"jump_reuse": 2, "jump_store": 4}])
def test_what_workers_make_ahead_is_what_a_step_would_make(start, tmp_path, more):
    for workers in (0, 2):
        start(tmp_path / str(workers), loader_workers=workers, **more)
    assert_same_run(tmp_path / "2", tmp_path / "0")


def test_processes_that_see_other_folders_are_refused(start, tmp_path, monkeypatch):
    start(tmp_path, max_steps=2)
    monkeypatch.setattr("scott.training.launch.gather_object", lambda mine: [*mine, 0])
    with pytest.raises(UserError, match="newest step is 2 to the first of 2 processes and 0 to another"):
        start(tmp_path)


def test_what_fails_beside_the_training_loses_none_of_it(start, whole, tmp_path):
    """A sample or a validation that fails comes after the checkpoint; resumed, the run draws that step first."""

    def fail(done):
        raise Stopped

    with pytest.raises(Stopped):
        start(tmp_path, hooks=Hooks(validate=fail), validate_every=4)
    assert final(tmp_path)[1]["step"] == 4
    seen = []
    start(tmp_path, hooks=Hooks(validate=lambda done: seen.append(done) or {"fid": 1.0}), validate_every=4)
    assert seen == [4, STEPS]
    assert_same_run_but(tmp_path, whole(start, "lora"), {"fid"})


def test_a_finished_run_that_was_not_looked_at_is(start, tmp_path):
    """Stopped between its last checkpoint and the last sample and validation."""

    def fail(done):
        raise Stopped

    with pytest.raises(Stopped):
        start(tmp_path, hooks=Hooks(sample=fail), sample_every=1000)
    assert final(tmp_path)[1]["step"] == STEPS
    seen = []
    hooks = Hooks(sample=lambda done: seen.append(done) or {"student_change": 1.0})
    for _ in range(2):
        assert start(tmp_path, hooks=hooks, sample_every=1000)[0] == 0
    assert seen == [STEPS], "once"


def test_another_metric_or_a_deleted_checkpoint_starts_the_search_anew(start, tmp_path):
    folder = tmp_path / "checkpoints"
    hooks = Hooks(validate=lambda done: {"fid": float(done), "coverage": 1 / done})
    start(tmp_path, hooks=hooks, validate_every=2, best_metric="fid", max_steps=4)
    how = {"features": "mini", "samples": 500, "guidance": 3.0}
    assert Best.read(folder) == Best(2, "fid", 2.0, how)
    start(tmp_path, hooks=hooks, validate_every=2, best_metric="coverage")
    assert Best.read(folder) == Best(4, "coverage", 0.25, how)
    assert not Best(9, "coverage", math.nan, how).is_best(folder)
    assert not Best(9, "coverage", 0.1, how).is_best(folder)
    assert Best(9, "coverage", 0.1, how | {"samples": 50}).is_best(folder), "which is of another kind"
    (folder / "best.json").write_text('{"step": 4, "metric": "coverage", "value": 0.25}')
    assert not Best(9, "coverage", 0.1, how).is_best(folder), "of before it was said how"
    shutil.rmtree(folder / "step-00000004")
    assert Best.read(folder) is None
    assert Best(6, "coverage", 0.1).is_best(folder)


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(start, tmp_path):
    """Its log would be cut and its student replaced; one that was stopped before it saved any is."""
    start(tmp_path, max_steps=4, checkpoint_every=2)
    log = (tmp_path / "metrics.jsonl").read_text()
    for checkpoint in checkpoints(tmp_path / "checkpoints"):
        shutil.rmtree(checkpoint)
    with pytest.raises(UserError, match="has made 4 steps, and its checkpoints are gone; put them back, or give"):
        start(tmp_path, max_steps=4, checkpoint_every=2)
    assert (tmp_path / "metrics.jsonl").read_text() == log
    (tmp_path / "metrics.jsonl").write_text("".join(log.splitlines(keepends=True)[:2]))
    assert start(tmp_path, max_steps=4, checkpoint_every=2)[0] == 4


def test_a_tracker_knows_a_run_by_itself_and_not_by_its_place(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    one, other = _tracked_as(tmp_path / "one"), _tracked_as(tmp_path / "other")
    (tmp_path / "one").rename(tmp_path / "moved")
    assert one == _tracked_as(tmp_path / "moved") != other


@pytest.mark.parametrize(("precision", "fits"), [("fp32", False), ("fp16", True)])
def test_a_launch_of_another_precision_is_refused(tmp_path, monkeypatch, precision, fits):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    config = DistillConfig(teacher="t", data="d", out=tmp_path, precision=precision, guidance_min=4.0, guidance_max=4.0)
    refused = pytest.raises(UserError, match="mixed precision fp16 and --precision fp32; give --precision fp16, or la")
    with contextlib.nullcontext() if fits else refused:
        start_processes(config)


def test_a_tracker_that_is_not_installed_is_refused(start, tmp_path, monkeypatch):
    monkeypatch.setattr("scott.training.launch.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="got tracker wandb, which is not installed; pip install wandb"):
        start(tmp_path / "run", tracker="wandb")


def test_a_corrupt_checkpoint_is_refused_and_deleting_it_resumes_from_the_one_before(start, whole, tmp_path):
    start(tmp_path, max_steps=4)
    newest = latest_checkpoint(tmp_path / "checkpoints")
    (newest / "student.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="delete it to resume from the one before"):
        start(tmp_path)
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    assert start(tmp_path)[0] == STEPS - 2
    assert_same_run(tmp_path, whole(start, "lora"))


@pytest.mark.parametrize("part", ["target", "critic", "student_optimizer"])
def test_a_checkpoint_without_one_of_its_parts_is_refused(start, tmp_path, part):
    start(tmp_path, max_steps=2)
    (latest_checkpoint(tmp_path / "checkpoints") / f"{part}.safetensors").unlink()
    with pytest.raises(UserError, match=f"lacks {part}; delete it"):
        start(tmp_path)


def test_a_checkpoint_of_another_teacher_is_refused(start, tmp_path):
    start(tmp_path, max_steps=2)
    newest = latest_checkpoint(tmp_path / "checkpoints")
    parts, state = load_checkpoint(newest)
    parts["student"].popitem()
    shutil.rmtree(newest)
    save_checkpoint(tmp_path / "checkpoints", 2, parts, state)
    with pytest.raises(UserError, match="the checkpoint's student does not fit"):
        start(tmp_path)


def test_opening_a_new_run_writes_the_config(tmp_path):
    config = DistillConfig(teacher="t", data="d", out=tmp_path / "a" / "b", train="full")
    assert open_run(config, "teacher", DiscreteSchedule.stable_diffusion()) == 0
    assert DistillConfig.load(config.out / "config.json") == config
    assert (config.out / "samples").is_dir()


# --- the same run by another name ----------------------------------------------------------------------------


def test_teacher_data_and_folder_may_be_spelt_otherwise(start, teacher_folders, tmp_path, monkeypatch):
    """As a relative path, through a link, with a slash behind, or a hub id for its snapshot: content decides."""
    run, link, linked_run = tmp_path / "run", tmp_path / "link", tmp_path / "linked run"
    snapshot = tmp_path / "hub" / "models--me--sd" / "snapshots" / "main"
    shutil.copytree(teacher_folders["sd1"], snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("main")
    link.symlink_to(snapshot)
    linked_run.symlink_to(run)
    monkeypatch.chdir(tmp_path)
    for module in ("huggingface_hub.constants", "huggingface_hub.file_download", "diffusers.utils.hub_utils"):
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            monkeypatch.setattr(f"{module}.{name}", str(tmp_path / "hub"), raising=False)
    spelt = [(snapshot, run), (snapshot.relative_to(tmp_path), Path("run")), (link, linked_run), (f"{snapshot}/", run)]
    for steps, (teacher, out) in enumerate([*spelt, ("me/sd", run)], 1):
        backbone = load_backbone(teacher)
        backbone.add_student("lora", rank=4, alpha=4.0)
        data = source(backbone)
        settings = {"max_steps": steps, "checkpoint_every": 1, "adversarial_weight": 0.0}
        made, _ = start(out, teacher=str(teacher), data=data, backbone=backbone, **settings)
        assert made == 1, teacher
    assert [record["step"] for record in metrics(run)] == [1, 2, 3, 4, 5]


def test_another_teacher_is_refused_whatever_its_name(start, tmp_path):
    start(tmp_path, max_steps=2)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"holds another run \(its teacher is not tiny\); choose another --out"):
        start(tmp_path, family="sd2")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_a_run_goes_on_only_as_its_networks_output_was_read(start, teacher_folders, tmp_path, prediction):
    """--prediction decides what is distilled; it may be said where the scheduler's config says it too."""
    for given, steps in ((None, 1), (prediction, 2)):
        backbone = load_backbone(TeacherSource(teacher=str(teacher_folders["sd1"]), prediction=given))
        backbone.add_student("lora", rank=4, alpha=4.0)
        settings = {"max_steps": steps, "adversarial_weight": 0.0, "prediction": given}
        run = partial(start, tmp_path, backbone=backbone, data=source(backbone), **settings)
        if given == "v":
            before = contents(tmp_path)
            with pytest.raises(
                UserError, match=r"holds another run \(its .* prediction is not tiny's, which predicts v_pred"
            ):
                run()
            assert contents(tmp_path) == before
        else:
            assert run()[0] == 1


# --- the critic ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("r1", [0.0, 0.1])
def test_r1_is_made_without_tf32(start, tmp_path, monkeypatch, r1):
    """The switch is the process's, and a GPU's alone: what a step finds it at."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    found = []
    hooks = Hooks(progress=lambda done, terms: found.append(torch.backends.cudnn.allow_tf32))
    start(tmp_path, hooks=hooks, critic="heads", critic_input="clean", critic_r1=r1, max_steps=1)
    assert found == [not r1]


def test_heads_are_standardised_once_over_the_whole_batch_at_the_guidance_that_is_drawn_with(
    start, make_backbone, tmp_path, monkeypatch
):
    given, standardise = [], Critic.standardise

    def recorded(critic, batches):
        batches = [*batches]
        given.append([(len(x0), cond["guidance"].tolist()) for x0, cond in batches])
        standardise(critic, batches)

    monkeypatch.setattr(Critic, "standardise", recorded)
    settings = {"critic": "heads", "critic_input": "clean", "batch_size": 4, "gradient_accumulation": 2, "jump": 20}
    omega = {"guidance_min": 2.0, "guidance_max": 8.0, "guidance": 3.5}
    for steps in (1, 2):  # the second goes on
        backbone = make_backbone(family="flux")
        backbone.resize(64)
        backbone.add_student("full")
        backbone.add_critic(2, "heads")
        start(tmp_path, "full", backbone=backbone, max_steps=steps, **settings, **omega)
    assert given == [[(2, [3.5, 3.5]), (2, [3.5, 3.5])]]


# --- the log -------------------------------------------------------------------------------------------------


def test_a_steps_seconds_are_those_of_its_parts_whatever_stands_between(start, make_backbone, tmp_path, monkeypatch):
    """By a clock that only some calls move: 2 s a batch, 3 s an update; hooks and checkpoints take 100."""
    now = [0.0]

    def slow(seconds, function):
        def call(*arguments, **options):
            now[0] += seconds
            return function(*arguments, **options)

        return call

    monkeypatch.setattr("scott.training.metrics.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("scott.training.trainer.save_checkpoint", slow(100, save_checkpoint))
    monkeypatch.setattr(Optimization, "update", slow(3, Optimization.update))
    backbone = make_backbone("lora")
    data = source(backbone)
    data.batch = slow(2, data.batch)
    waiting = slow(100, lambda *given: {})
    hooks = Hooks(progress=waiting, sample=waiting, validate=waiting)
    settings = {
        "log_every": 2,
        "sample_every": 3,
        "checkpoint_every": 2,
        "validate_every": 1,
        "adversarial_weight": 0.0,
    }
    start(tmp_path, hooks=hooks, backbone=backbone, data=data, **settings)
    timed = [record for record in read_metrics(tmp_path / "metrics.jsonl") if "seconds_per_step" in record]
    assert [record["step"] for record in timed] == [2, 4, 6]
    assert {(r["seconds_data"], r["seconds_update"], r["seconds_per_step"]) for r in timed} == {(2.0, 3.0, 5.0)}


@pytest.mark.parametrize(
    "content", [b"\xff", b"[1]\n", b"3\n", b'{"a": 1}\n', b'{"step": null}\n', b'{"st\n{"step": 2}\n', None]
)
def test_a_log_that_no_run_wrote_is_refused(tmp_path, content):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(content) if content else os.mkfifo(file)
    with pytest.raises(UserError, match="move it away"):
        MetricsLog(file)


def test_the_log_drops_what_a_resumed_run_writes_again(tmp_path):
    file = tmp_path / "metrics.jsonl"
    log = MetricsLog(file)
    for step in (10, 20, 30):
        log.write(step, {"consistency": step / 3})
        log.write(step, {"fid": 1.0})
    with file.open("a") as stream:
        stream.write('{"step": 40, "x"')
    log = MetricsLog(file, 20, "consistency")
    log.write(20, {"fid": 2.0, "spread": 3.0})
    log.write(30, {"consistency": 0.5})
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"step": 10, "consistency": 10 / 3},
        {"step": 10, "fid": 1.0},
        {"step": 20, "consistency": 20 / 3},
        {"step": 20, "fid": 2.0, "spread": 3.0},
        {"step": 30, "consistency": 0.5},
    ]


def test_a_longer_run_keeps_what_its_last_step_was_measured_as(start, tmp_path, make_backbone):
    hooks = Hooks(validate=lambda step: {"fid": float(step)}, sample=lambda step: {"student_change": -float(step)})
    settings = {"sample_every": 2, "validate_every": 3, "checkpoint_every": 2, "adversarial_weight": 0.0}
    for steps in (5, 7):
        backbone = make_backbone("lora")
        start(tmp_path, hooks=hooks, backbone=backbone, data=source(backbone), max_steps=steps, **settings)
    logged = {
        r["step"]: (r.get("fid"), r.get("student_change"))
        for r in read_metrics(tmp_path / "metrics.jsonl")
        if "consistency" not in r
    }
    assert logged == {2: (None, -2), 3: (3, None), 4: (None, -4), 5: (5, -5), 6: (6, -6), 7: (7, -7)}


@pytest.mark.parametrize(
    ("has", "wants", "message"),
    [
        ({}, {}, r"no student and no critic; expected add_student\('lora'\) and add_critic before"),
        ({"train": "lora"}, {"train": "full"}, r"a lora student and no critic; expected add_student\('full'\)"),
        ({"train": "lora"}, {}, "a lora student and no critic; expected .* and add_critic"),
    ],
)
def test_a_backbone_without_what_the_config_trains_is_refused(make_backbone, start, tmp_path, has, wants, message):
    with pytest.raises(UserError, match=message):
        start(tmp_path / "run", backbone=make_backbone(**has), **wants)
    assert not (tmp_path / "run").exists()
