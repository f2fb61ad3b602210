"""A run that is stopped comes out as one that is not, and none spoils another's."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from PIL import Image
from tests.training.launch import ROOT, finish, here, stop_after
from tests.training.runs import SPREAD_STEPS, assert_same_run, assert_same_up_to_sums, final, metrics

from scott.data.locks import locked
from scott.recipes import mini
from scott.training.config import DistillConfig

pytestmark = pytest.mark.timeout(600)


def test_a_run_that_is_killed_comes_out_bit_for_bit(one, distil, words, tmp_path):
    """SIGKILL between and right after checkpoints, with batches read ahead, in the middle of epochs."""
    out = tmp_path / "run"
    for step in (2, 4):
        code, output = stop_after(distil(out), out, step, signal.SIGKILL)
        assert code != 0, output
        assert metrics(out)[-1]["step"] < SPREAD_STEPS
    here(*words(out))
    assert_same_run(out, one)


def test_sigterm_saves_first_and_the_same_command_goes_on(one, distil, words, tmp_path):
    out = tmp_path / "run"
    code, output = stop_after(distil(out, "--checkpoint-every", "1000"), out, 2, signal.SIGTERM)
    assert code == 143, output
    assert "stopped by SIGTERM after step" in " ".join(output.split())
    assert 2 <= final(out)[1]["step"] < SPREAD_STEPS
    here(*words(out))
    assert_same_run(out, one)
    assert [record["step"] for record in metrics(out)] == list(range(1, SPREAD_STEPS + 1))


def test_a_run_that_another_command_writes_is_refused(one, words, capsys):
    with locked(one), pytest.raises(AssertionError):
        here(*words(one))
    assert "is being written by another command (process" in " ".join(capsys.readouterr().err.split())


def test_a_begun_run_that_is_refused_keeps_its_config(one, words, shards, small_teacher, tmp_path, capsys):
    out = shutil.copytree(one, tmp_path / "run")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in "abcd":
        Image.new("RGB", (64, 64), "teal").save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text(name)
    here("prepare", pictures, "--teacher", small_teacher, "--out", tmp_path / "others")
    with pytest.raises(AssertionError):
        here(*words(out, "--data", tmp_path / "others"))
    assert "the data of" in capsys.readouterr().err
    assert (out / "config.json").read_bytes() == (one / "config.json").read_bytes()


def test_a_run_that_made_no_step_is_begun_by_another_command(words, tmp_path):
    """As where its data were refused."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json").write_text(mini(batch_size=7, out=out).to_json())
    here(*words(out, "--max-steps", 1))
    assert final(out)[1]["step"] == 1


def test_a_split_run_that_is_killed_goes_on_in_one_process(one, distil, words, tmp_path):
    out = tmp_path / "run"
    code, output = stop_after(distil(out, "--shard", "full", processes=2), out, 5, signal.SIGKILL)
    assert code != 0, output
    here(*words(out))
    assert_same_up_to_sums(one, out)


AT_ONCE = """
import sys, time
from pathlib import Path
from scott import cli
from scott.commands import validation
from scott.training import launch

validation.TEACHER_STEPS = 2
newest, both, mine = launch.latest_checkpoint, Path(sys.argv.pop(1)), sys.argv.pop(1)

def together(folder):
    if not (both / mine).exists():
        (both / mine).touch()
        while len(list(both.iterdir())) < 2:
            time.sleep(0.02)
    return newest(folder)

launch.latest_checkpoint = together
cli.main()
"""
"""A command that has found its folder empty, and goes on when another has too."""


def test_of_two_runs_begun_at_once_in_one_folder_one_is_made(words, tmp_path):
    out, both = tmp_path / "run", tmp_path / "both"
    both.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    commands = [
        ["-c", AT_ONCE, both, str(seed), *words(out, "--seed", str(seed), "--max-steps", "1")] for seed in (1, 2)
    ]
    processes = [subprocess.Popen([sys.executable, *words], env=environment, cwd=ROOT, **pipes) for words in commands]
    ends = {seed: finish(process) for seed, process in enumerate(processes, 1)}
    (made, (code, _)), (_, (refused, output)) = sorted(ends.items(), key=lambda end: end[1][0])
    assert (code, refused) == (0, 2), ends
    assert "is being written by another command (process" in output
    assert DistillConfig.load(out / "config.json").seed == final(out)[1]["seed"] == made


def test_a_command_that_has_just_begun_keeps_its_folder(words, tmp_path, capsys):
    """And one that was killed then leaves a folder that the next one takes."""
    out = tmp_path / "run"
    with locked(out), pytest.raises(AssertionError):
        here(*words(out))
    assert "is being written by another command" in " ".join(capsys.readouterr().err.split())
    assert not (out / "config.json").exists()
    for name in (".lock-0-of-1", "config.json.1.partial"):
        (out / name).write_text("{")
    here(*words(out, "--max-steps", 1))
    assert metrics(out)[-1]["step"] == 1
