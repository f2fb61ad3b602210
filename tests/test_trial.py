"""`python -m experiments.trial`: a variant trained by scott's trainer, measured, and kept as one line."""

import json

import pytest
from experiments.runs import exit_code, parsed
from experiments.trial.__main__ import Trial

from scott.commands import prepare
from scott.errors import UserError


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
    assert "name another" in capsys.readouterr().err
    assert trial("goes on", *still, source=tmp_path / "runs" / "moved-0") == 0
    assert trial("untrained", *still) == 0
    moved, on, untrained = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert on["steps"]["2"]["fid"] == pytest.approx(moved["steps"]["2"]["fid"], rel=1e-3)
    assert untrained["steps"]["2"]["fid"] != pytest.approx(moved["steps"]["2"]["fid"], rel=1e-2)
    assert moved["set"]["learning_rate"] == 1e-2
    assert moved["cpu_seconds"] > 0
    (tmp_path / "README.md").write_text("<!-- trials -->\n<!-- end of trials -->\n")
    assert trial("", table=True) == 0
    assert (tmp_path / "README.md").read_text().count("\n| ") == 5


@pytest.mark.parametrize("setting", ["eta", "etta=0", "eta=much", "jump=1.5"])
def test_a_setting_that_is_none_is_refused(setting):
    with pytest.raises(UserError, match=setting.partition("=")[0]):
        parsed([setting])
