"""A run that is stopped comes out as one that is not, and none spoils another's."""

import multiprocessing
import shutil
import signal
import subprocess
from contextlib import contextmanager
from dataclasses import replace

import pytest
from PIL import Image
from tests.training.launch import here, stop_after
from tests.training.runs import SPREAD_STEPS, assert_same_run, final, metrics

from scott.data.locks import locked
from scott.errors import UserError
from scott.recipes.configs import mini
from scott.teachers import load_backbone
from scott.training.config import DistillConfig
from scott.training.metrics import MetricsLog
from scott.training.trainer import distill

pytestmark = pytest.mark.timeout(600)


def test_a_run_that_is_killed_comes_out_bit_for_bit(one, distil, words, tmp_path):
    """SIGKILL between checkpoints, with batches read ahead, in the middle of an epoch."""
    out = tmp_path / "run"
    code, output = stop_after(distil(out), out, 4, signal.SIGKILL)
    assert code != 0, output
    assert metrics(out)[-1]["step"] < SPREAD_STEPS
    here(*words(out))
    assert_same_run(out, one)


def test_sigterm_saves_first_and_the_same_command_goes_on(one, words, tmp_path, monkeypatch, capsys):
    """It comes between the second step and the third, from another process, and to those that read ahead too."""
    out, write = tmp_path / "run", MetricsLog.write

    def write_and_be_signalled(log, step, values):
        write(log, step, values)
        if step == 2:
            readers = multiprocessing.active_children()
            pids = " ".join(str(process.pid) for process in (*readers, multiprocessing.current_process()))
            subprocess.run(["sh", "-c", f"kill -TERM {pids}"], check=True)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", write_and_be_signalled)
        here(*words(out, "--checkpoint-every", 1000), code=143)
    said = " ".join(capsys.readouterr().err.split())
    assert "stopped by SIGTERM after step 3, which is saved; the same command goes on from there" in said
    assert final(out)[1]["step"] == 3
    here(*words(out))
    assert_same_run(out, one)
    assert [record["step"] for record in metrics(out)] == list(range(1, SPREAD_STEPS + 1))


def test_a_run_that_another_command_writes_is_refused(one, words, tmp_path, capsys):
    with locked(one):
        here(*words(one), code=2)
    assert "is being written by another command (process" in " ".join(capsys.readouterr().err.split())
    before = DistillConfig.load(one / "config.json")
    backbone = load_backbone(before.teacher)
    backbone.add_student(before.train, rank=before.lora_rank, alpha=before.alpha)
    config = replace(before, critic="none", adversarial_weight=0.0, out=tmp_path)
    with locked(tmp_path), pytest.raises(UserError, match="is being written by another command"):
        distill(backbone, None, config)


def test_a_begun_run_that_is_refused_keeps_its_config(one, words, shards, small_teacher, tmp_path, capsys):
    out = shutil.copytree(one, tmp_path / "run")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in "abcd":
        Image.new("RGB", (64, 64), "teal").save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text(name)
    here("prepare", pictures, "--teacher", small_teacher, "--out", tmp_path / "others")
    here(*words(out, "--data", tmp_path / "others"), code=2)
    assert "the data of" in capsys.readouterr().err
    assert (out / "config.json").read_bytes() == (one / "config.json").read_bytes()


def test_a_run_that_made_no_step_is_begun_by_another_command(words, tmp_path):
    """As where its data were refused."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json").write_text(mini(batch_size=7, out=out).to_json())
    here(*words(out, "--max-steps", 1))
    assert final(out)[1]["step"] == 1


def test_of_two_runs_begun_at_once_in_one_folder_one_is_made(words, tmp_path, monkeypatch, capsys):
    """Here the other begins, and ends, when this one has found the folder empty and does not hold it yet."""
    out = tmp_path / "run"

    @contextmanager
    def other_first(folder):
        monkeypatch.setattr("scott.training.launch.locked", locked)
        here(*words(out, "--seed", 2, "--max-steps", 1))
        with locked(folder):
            yield

    monkeypatch.setattr("scott.training.launch.locked", other_first)
    here(*words(out, "--seed", 1, "--max-steps", 1), code=2)
    assert "holds another run (seed" in " ".join(capsys.readouterr().err.split())
    assert DistillConfig.load(out / "config.json").seed == 2
    here(*words(tmp_path / "alone", "--seed", 2, "--max-steps", 1))
    assert_same_run(out, tmp_path / "alone")


def test_a_command_that_has_just_begun_keeps_its_folder(words, tmp_path, capsys):
    """And one that was killed then leaves a folder that the next one takes."""
    out = tmp_path / "run"
    with locked(out):
        here(*words(out), code=2)
    assert "is being written by another command" in " ".join(capsys.readouterr().err.split())
    assert not (out / "config.json").exists()
    for name in (".lock-0-of-1", "config.json.1.partial"):
        (out / name).write_text("{")
    here(*words(out, "--max-steps", 1))
    assert metrics(out)[-1]["step"] == 1
