"""`experiments.beginning`: a run that goes on from another's updates is the run that made them itself."""

import json
from dataclasses import replace
from functools import partial

import pytest
from experiments.beginning import begin, common_updates
from experiments.comparison import __main__ as comparison
from experiments.comparison.rows import read_rows
from experiments.runs import QUIET, Training
from safetensors.torch import load_file

from scott.commands import prepare
from scott.errors import UserError
from scott.recipes.configs import mini

SMALL = {"batch_size": 4, "warmup_steps": 2, "jump_store": 8, "checkpoint_every": 1, "log_every": 1}


def config(out, **changes):
    return mini(**QUIET | SMALL | {"out": out, "max_steps": 10, "keep_checkpoints": 20} | changes)


def silent(*tick):
    pass


def tensors(run, step):
    return {file.name: load_file(file) for file in (run / "checkpoints" / f"step-{step:08d}").glob("*.safetensors")}


def test_what_two_runs_have_in_common(tmp_path):
    ours, lcm = config(tmp_path), config(tmp_path, method="lcm")
    assert common_updates(ours, lcm) == common_updates(lcm, ours) == 6, "the critic comes at .6"
    assert common_updates(ours, replace(ours, critic_start=0.3)) == 3
    assert common_updates(lcm, replace(lcm, max_steps=4)) == 4
    assert common_updates(lcm, replace(lcm, decay=0.5)) == 6, "the rate of update n = 6 is 4 fifths"
    assert common_updates(ours, replace(lcm, seed=1)) == 0
    assert common_updates(ours, replace(lcm, learning_rate=1e-3)) == 0


def test_the_run_is_the_same_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "MINI_SCENES", 32)
    data = tmp_path / "data"
    lcm, ours, own = (tmp_path / name for name in ("lcm", "ours", "own"))
    Training(config(lcm, method="lcm", max_steps=8), data).train(silent)
    run = Training(config(ours), data)
    assert begin(run, [lcm, tmp_path / "none"], silent) == 6
    assert begin(run, [lcm], silent) == 0, "it has begun"
    spent = run.train(silent)
    assert spent > 0
    Training(config(own), data).train(silent)
    mine, theirs = tensors(ours, 10), tensors(own, 10)
    assert {"critic.safetensors", "critic_optimizer.safetensors", "student_optimizer.safetensors"} <= mine.keys()
    assert mine.keys() == theirs.keys()
    for part, values in mine.items():
        assert all(value.equal(theirs[part][name]) for name, value in values.items()), part
    logs = [(run / "metrics.jsonl").read_text().splitlines() for run in (ours, own)]
    assert len(logs[0]) == len(logs[1])
    states = [(run / "checkpoints" / "step-00000010" / "state.json").read_text() for run in (ours, own)]
    assert states[0] == states[1]


def test_a_comparison_makes_what_is_common_once(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "TEACHER_STEPS", (2,))
    small = {name: partial(method, batch_size=4, warmup_steps=2) for name, method in comparison.METHODS.items()}
    monkeypatch.setattr(comparison, "METHODS", small)
    (tmp_path / "README.md").write_text("<!-- comparison -->\n<!-- end of comparison -->\n")
    compared = comparison.Comparison(
        budgets=(0.01,),
        seeds=(3,),
        methods=("ours", "lcm"),
        baselines=(),
        cost=("ours=0.149", "lcm=0.119"),
        shared=True,
        scenes=16,
        samples=12,
        folder=tmp_path,
        runs=tmp_path / "runs",
    )
    compared.run(silent)
    updates = {row.run: row.updates for row in read_rows(compared.file) if row.updates}
    assert updates == {
        ("ours", "time", 0.01, 3): 4,
        ("lcm", "time", 0.01, 3): 5,
        ("lcm", "updates", 0.01, 3): 4,
    }
    names = ("beginning-0.01-3", "ours-time-0.01-3", "lcm-updates-0.01-3", "lcm-time-0.01-3")
    begun, ours, short, long = (json.loads((compared.trainings / n / "cpu_seconds.json").read_text()) for n in names)
    assert begun["3"] == ours["3"] == short["3"], "three of the four are before the critic"
    assert short["4"] == long["4"] < long["5"]
    for there in (compared.file, compared.trainings / names[0] / "config.json"):
        there.unlink()  # what is trained is measured anew, as by another network
    compared.run(silent)
    assert not (compared.trainings / names[0] / "config.json").exists(), "a beginning that nobody needs"


def test_a_run_on_other_data_is_refused(tmp_path, monkeypatch):
    lcm = tmp_path / "lcm"
    monkeypatch.setattr(prepare, "MINI_SCENES", 32)
    Training(config(lcm, method="lcm", max_steps=6), tmp_path / "data").train(silent)
    monkeypatch.setattr(prepare, "MINI_SCENES", 16)
    with pytest.raises(UserError, match="is of a run on another data"):
        begin(Training(config(tmp_path / "ours"), tmp_path / "other"), [lcm], silent)
