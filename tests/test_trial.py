"""`python -m experiments.trial`: a variant trained by scott's trainer, measured, and kept as one line."""

import errno
import json
import os
import shutil
import signal
from functools import partial

import pytest
import torch
from experiments.guidance.__main__ import Guidance
from experiments.runs import QUIET, Training, exit_code, parsed
from experiments.trial.__main__ import Trial, critic_loss

from scott.commands import prepare
from scott.data.locks import locked
from scott.errors import UserError
from scott.recipes.configs import mini
from scott.training.checkpoint import checkpoint_step, latest_checkpoint


def test_a_trial_is_one_line_and_the_next_begins_with_its_student(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "MINI_SCENES", 32)

    def trial(name, *settings, **options):
        fixed = {"updates": 2, "samples": 12, "folder": tmp_path, "runs": tmp_path / "runs"}
        return exit_code(Trial(name, ("batch_size=4", "warmup_steps=0", *settings), **fixed | options).run)

    still = ("learning_rate=1e-12", "critic_learning_rate=1e-12")
    large = ("learning_rate=1e-2", "adversarial_weight=0", "ema_decay=0")
    assert trial("moved", *large) == 0
    assert trial("moved", *large) == 0  # has its line
    assert trial("moved", *still) == 2
    assert "name another" in " ".join(capsys.readouterr().err.split())
    assert trial("goes on", *still, source=tmp_path / "runs" / "moved-0") == 0
    assert trial("untrained", *still) == 0
    moved, on, untrained = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert on["steps"]["2"]["fid"] == pytest.approx(moved["steps"]["2"]["fid"], rel=1e-3)
    assert untrained["steps"]["2"]["fid"] != pytest.approx(moved["steps"]["2"]["fid"], rel=1e-2)
    assert moved["set"]["learning_rate"] == 1e-2
    assert moved["cpu_seconds"] > 0
    assert moved["critic_loss"] == on["critic_loss"] is None, "two updates have no critic yet"
    assert trial("moved", *large, other="efficientnet") == 2, "its line has no such figures"
    assert trial("by another", *large, other="efficientnet") == 0
    *_, another = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert another["steps"]["2"]["fid"] == pytest.approx(moved["steps"]["2"]["fid"], rel=1e-3)
    assert another["steps"]["2"]["fid_efficientnet"] != pytest.approx(moved["steps"]["2"]["fid"], rel=1e-2)
    (tmp_path / "README.md").write_text("<!-- trials -->\n<!-- end of trials -->\n")
    assert trial("", table=True) == 0
    assert (tmp_path / "README.md").read_text().count("\n| ") == 6


def test_a_variant_of_the_step_has_a_run_of_its_own():
    trials = [Trial("a"), Trial("a", energy=True), Trial("a", matching=True), Trial("a", phases=2)]
    assert [trial.config().out.name for trial in trials] == ["a-0", "a-0-energy", "a-0-matching", "a-0-2-phases"]
    assert exit_code(Trial("a", matching=True, phases=2).run) == 2


def test_a_shared_trial_goes_on_from_the_plain_run_that_has_made_its_first_updates(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "MINI_SCENES", 32)
    settings = ("batch_size=4", "warmup_steps=0", "jump_store=8", "limit=16")

    def trial(name, *more, **options):
        fixed = {"samples": 12, "folder": tmp_path, "runs": tmp_path / "runs"}
        return Trial(name, (*settings, *more), **fixed | options)

    assert exit_code(trial("lcm", method="lcm", updates=3).run) == 0
    for name in ("lcm-0-2-phases", "lcm-0-energy"):
        shutil.copytree(tmp_path / "runs" / "lcm-0", tmp_path / "runs" / name)
    ours = trial("ours", shared=True, updates=5)
    assert ours.alike() == [tmp_path / "runs" / "lcm-0"]
    assert trial("fewer", "limit=12").alike() == []
    assert exit_code(ours.run) == 0
    lcm, on = (json.loads((tmp_path / "runs" / name / "cpu_seconds.json").read_text()) for name in ("lcm-0", "ours-0"))
    assert lcm["3"] == on["3"] < on["5"], "the critic comes at .6"
    assert exit_code(trial("ours", shared=True, phases=2).run) == 2


def test_what_a_folder_refuses_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()

    def full(report):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "results.jsonl"))

    assert exit_code(lambda report: (tmp_path / "file" / "results.jsonl").write_text("")) == 2
    assert exit_code(full) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "Not a directory; a file is in the way" in said
    assert "No space left on device" in said


def test_a_run_that_sigterm_stops_keeps_what_it_cost_and_another_keeps_off(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "MINI_SCENES", 32)
    config = mini(**QUIET, batch_size=4, out=tmp_path / "run", max_steps=6, checkpoint_every=100)
    training, file = Training(config, tmp_path / "data"), config.out / "cpu_seconds.json"

    def stopping(name, done, total, terms):
        if (name, done) == ("distil", 2):
            os.kill(os.getpid(), signal.SIGTERM)

    assert exit_code(lambda report: training.train(stopping)) == 143
    assert "which is saved; the same command goes on" in " ".join(capsys.readouterr().err.split())
    saved = str(checkpoint_step(latest_checkpoint(config.out / "checkpoints")))
    spent = json.loads(file.read_text())
    assert spent.keys() == {saved}
    with locked(config.out):
        assert exit_code(training.train) == 2
    assert "is being written by another command" in " ".join(capsys.readouterr().err.split())
    assert training.train(lambda *tick: None) > spent[saved] > 0
    assert json.loads(file.read_text()).keys() == {saved, "6"}


def test_a_critics_loss_is_that_of_the_second_half_of_its_updates():
    assert critic_loss([{"step": 1}, *({"step": n, "critic": float(n)} for n in range(2, 6))]) == 4.5
    assert critic_loss([{"step": 1}]) is None


def test_a_student_is_measured_at_each_omega_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "MINI_SCENES", 32)
    runs, folder = tmp_path / "runs", tmp_path / "guidance"
    settings = ("batch_size=4", "warmup_steps=0", "learning_rate=1e-3", "adversarial_weight=0", "ema_decay=0")
    assert exit_code(Trial("moved", settings, updates=2, samples=12, folder=tmp_path, runs=runs).run) == 0
    folder.mkdir()
    (folder / "README.md").write_text("".join(f"<!-- {t} -->\n<!-- end of {t} -->\n" for t in ("guidance", "times")))

    def measured(*omegas, run="moved-0", times=(), **more):
        return exit_code(Guidance((runs / run,), omegas, times, 12, data=runs / "data", folder=folder, **more).run)

    assert measured(2.0) == 0
    assert measured(2.0, 1.0) == 0
    lines = list(map(json.loads, (folder / "results.jsonl").read_text().splitlines()))
    (trial,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert [line["omega"] for line in lines] == [2.0, 1.0]
    assert lines[0]["steps"]["2"] == pytest.approx(trial["steps"]["2"], rel=1e-3), "the recipe's own ω"
    assert lines[1]["steps"]["2"]["fid"] != pytest.approx(lines[0]["steps"]["2"]["fid"], rel=1e-3)
    assert measured(times=("999,499", "999,599")) == measured(times=("999,499",)) == 0
    own, other = list(map(json.loads, (folder / "results.jsonl").read_text().splitlines()))[2:]
    assert own["steps"] == {"2": pytest.approx(lines[0]["steps"]["2"])}, "the times that sampling in two steps has"
    assert other["steps"]["2"]["fid"] != pytest.approx(own["steps"]["2"]["fid"], rel=1e-3)
    assert measured(times=("999,499",), gammas=(1.0, 0.0)) == measured(times=("999,499",), gammas=(0.0,)) == 0
    kept = list(map(json.loads, (folder / "results.jsonl").read_text().splitlines()))[4:]
    assert [line["gamma"] for line in kept] == [0.0]
    assert kept[0]["steps"]["2"]["fid"] != pytest.approx(own["steps"]["2"]["fid"], rel=1e-3)
    assert measured(times=("999,499",), gammas=(1.5,)) == 2
    assert measured(times=("999,499",), split="held-out") == measured(times=("999,499",), split="held-out") == 0
    (_, held_out) = list(map(json.loads, (folder / "results.jsonl").read_text().splitlines()))[4:]
    assert held_out["steps"]["2"]["fid"] != pytest.approx(own["steps"]["2"]["fid"], rel=1e-3)
    assert "| 999, 499 | 1 | 12 held-out |" in (folder / "README.md").read_text()
    capsys.readouterr()
    for times, said in (
        ("999,500", "got timestep 500, which moved-0 was not trained at; near it are 499 599"),
        ("499,999", "got timesteps 499 999; expected them to descend"),
        ("999;499", "got --times 999;499; expected numbers"),
    ):
        assert measured(times=(times,)) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    shutil.copytree(runs / "moved-0", tmp_path / "other" / "moved-0")
    config = tmp_path / "other" / "moved-0" / "config.json"
    config.write_text(config.read_text().replace('"learning_rate": 0.001', '"learning_rate": 0.002'))
    assert measured(2.0, run=tmp_path / "other" / "moved-0") == 0
    assert len((folder / "results.jsonl").read_text().splitlines()) == 7, "of a folder of the same name"
    for run, said in (("none-0", "no run folder"), ("moved-0-2-phases", "draws otherwise")):
        if run != "none-0":
            shutil.copytree(runs / "moved-0", runs / run)
        assert measured(2.0, run=run) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    (runs / "moved-0" / "cpu_seconds.json").unlink()  # a run of `scott distill` has none
    assert measured(1.5) == 0
    assert exit_code(Trial("moved", settings, updates=2, samples=12, folder=tmp_path / "new", runs=runs).run) == 2
    assert "does not say what its 2 steps cost" in " ".join(capsys.readouterr().err.split())
    folder = tmp_path / "new"
    assert measured(2.0) == 2, "where no table can be written, before anything is measured"
    assert not (folder / "results.jsonl").exists()


def test_a_trial_of_two_numbers_is_not_made_again(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(Trial, "made", lambda trial, report: made.append(trial.name) or {})
    for _ in range(2):
        assert exit_code(Trial("betas", ("critic_betas=0,0.99",), folder=tmp_path / "new").run) == 0
    assert made == ["betas"]


def test_a_recipe_that_has_changed_is_not_taken_for_the_one_of_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Trial, "made", lambda trial, report: {})
    trial = Trial("plain", folder=tmp_path)
    assert exit_code(trial.run) == exit_code(trial.run) == 0
    monkeypatch.setattr("experiments.trial.__main__.mini", partial(mini, adversarial_share=0.3))
    assert exit_code(trial.run) == 2
    assert "of another recipe mini; name another" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("setting", "flag"), [("seed=1", "--seed"), ("max_steps=5", "--updates"), ("init=a", "--from")]
)
def test_what_a_flag_says_is_not_set_besides(tmp_path, capsys, setting, flag):
    assert exit_code(Trial("twice", (setting,), folder=tmp_path, runs=tmp_path).run) == 2
    assert f"got --set {setting}; give {flag}" in capsys.readouterr().err


def test_settings_have_their_types_also_where_they_may_be_left_out():
    given = ("jump=8", "critic_head_rate=1e-2", "guidance=2", "limit=9", "compile=True", "critic_betas=0,0.5", "phi=3")
    expected = {"jump": 8, "critic_head_rate": 0.01, "guidance": 2.0, "limit": 9, "compile": True}
    assert parsed(given) == expected | {"critic_betas": (0.0, 0.5), "phi": "3"}
    assert parsed(["drawn_timesteps=999,599,599"]) == {"drawn_timesteps": (999.0, 599.0, 599.0)}


@pytest.mark.parametrize("setting", ["eta", "etta=0", "eta=much", "jump=1.5", "guidance=much", "low_memory=2"])
def test_a_setting_that_is_none_is_refused(setting):
    with pytest.raises(UserError, match=setting.partition("=")[0]):
        parsed([setting])


@pytest.mark.parametrize("text", ["1", "0", "[1]", "null", "yes", '"true"'])
def test_what_is_no_boolean_is_refused(text):
    with pytest.raises(UserError, match=r"got --set compile=.*; expected true or false"):
        parsed([f"compile={text}"])


def test_an_update_is_of_one_thread_and_leaves_the_others_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "MINI_SCENES", 32)
    before, seen = torch.get_num_threads(), set()
    torch.set_num_threads(3)
    try:
        config = mini(**QUIET, batch_size=4, out=tmp_path / "run", max_steps=2, warmup_steps=0)
        training = Training(config, tmp_path / "data")
        training.train(lambda name, *tick: seen.add((name, torch.get_num_threads())))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert {threads for name, threads in seen if name == "distil"} == {1}
