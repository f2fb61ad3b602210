"""What experiments and benchmarks have in common: rows that none loses, refusals in a line, counts that are checked."""

import runpy
import subprocess
import sys
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from experiments import results
from experiments.comparison import __main__ as comparison
from experiments.comparison.rows import read_rows
from experiments.nothing_lost.__main__ import kill
from experiments.runs import digest
from experiments.trial import __main__ as trial


def test_rows_of_two_commands_are_both_kept_in_a_new_folder(tmp_path, monkeypatch):
    file, write, others = tmp_path / "new" / "results.jsonl", results.write_atomically, []

    def slowly(path, text):
        if not others:
            others.append(Thread(target=results.append_lines, args=(file, {"row": 2})))
            others[0].start()
            others[0].join(0.3)
        write(path, text)

    monkeypatch.setattr(results, "write_atomically", slowly)
    results.append_lines(file, {"row": 1})
    others[0].join()
    assert results.read_lines(file) == [{"row": 1}, {"row": 2}]
    assert [*file.parent.iterdir()] == [file], "no lock is left to be committed"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("experiments.embedded_teacher.measure --samples 4 --teacher NONE", "no embedded teacher at NONE/teacher"),
        ("experiments.embedded_teacher.build --start NONE", "no embedded teacher at NONE/teacher"),
        ("experiments.embedded_teacher.first.build --work NONE --start NONE", "no teacher in NONE"),
        ("experiments.recorded_run grid --student NONE", "NONE"),
        ("benchmarks.commits NONE", "NONE, which has no benchmarks/step.py"),
        ("benchmarks.gpu NONE sdxx", "got recipe 'sdxx'; expected one of"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_what_is_wrong_is_said_in_a_line(tmp_path, monkeypatch, capsys, command, said):
    none = str(tmp_path / "none")
    module, *words = command.replace("NONE", none).split()
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert ended.value.code == 2
    assert said.replace("NONE", none).replace(" ", "") in "".join(capsys.readouterr().err.split())


def started(code):
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_recorded_rows_are_of_the_recipes_as_they_are():
    """Else their commands would call them another recipe's, or train them again."""
    rows = [row for row in read_rows(comparison.HERE / "results.jsonl") if row.config]
    assert len({row.run for row in rows}) > 10
    for row in rows:
        compared = comparison.Comparison(scenes=row.scenes)
        config = compared.config(row.method, f"{row.method}-{row.matched}-{row.budget:g}", row.updates, row.seed)
        assert digest(config) == row.config, row.run
    lines = [line for line in results.read_lines(trial.HERE / "results.jsonl") if "config" in line]
    assert len(lines) > 20
    for line in lines:
        made = trial.Trial(line["name"], method=line["method"], updates=line["updates"], seed=line["seed"])
        made.source = line["from"] and Path(line["from"])
        made.given = lambda given=line["set"]: {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        assert digest(made.config()) == line["config"], line["name"]


def test_a_kill_is_of_what_ran():
    assert kill(started("import time; time.sleep(60)"))
    ended = started("")
    ended.wait()
    assert not kill(ended)
    failed = started("raise SystemExit('it broke')")
    failed.wait()
    with pytest.raises(SystemExit, match="it broke"):
        kill(failed)


def test_style_shares_are_off_by_chance_as_the_page_of_the_embedded_teacher_says():
    rng, n = np.random.default_rng(0), 1000
    one, other = (rng.multinomial(n, [0.25] * 4, 100_000) / n for _ in range(2))
    largest = abs(one - other).max(1)
    assert largest.mean() * n**0.5 == pytest.approx(0.85, abs=0.005)
    assert np.quantile(largest, 0.95) * n**0.5 == pytest.approx(1.52, abs=0.005)
