"""What a run prints where there is no terminal: few lines, each whole."""

import io
import shlex
import sys

from rich.console import Console

from scott.cli import parse
from scott.progress import Bars, outcome


def test_what_is_printed_into_a_file_stays_out_of_the_bars(capsys):
    """As of `... --json > FILE`, with the bars on the terminal."""
    terminal = io.StringIO()
    with Bars(Console(file=terminal, force_terminal=True)):
        sys.stdout.write('{"a": 1}\n')
    assert capsys.readouterr().out == '{"a": 1}\n'
    assert "{" not in terminal.getvalue()


def test_without_a_terminal_a_line_a_minute_and_one_at_the_end():
    now, out = [0.0], io.StringIO()
    bars = Bars(Console(file=out, width=80), clock=lambda: now[0])
    with bars:
        for step in range(1, 301):
            now[0] = step - 1.0
            bars.report("distil", step, 300, {"consistency": 0.0123, "adversarial_ratio": 0.4})
        bars.report("export", 0, 1, {})
        bars.report("export", 1, 1, {})
        bars.report("export", 1, 1, {})
    lines = out.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "distil: 61 of 300",
        "distil: 121 of 300",
        "distil: 181 of 300",
        "distil: 241 of 300",
        "distil: 300 of 300",
        "export: 1 of 1",
    ]
    assert lines[0] == "distil: 61 of 300, 4 min left, L_CD 0.0123, adversarial ratio 0.40"


def test_on_a_terminal_bars_are_drawn():
    out = io.StringIO()
    with Bars(Console(file=out, width=80, force_terminal=True)) as bars:
        bars.report("distil", 1, 2, {"consistency": 0.5})
        bars.report("distil", 2, 2, {"consistency": 0.25})
    assert "L_CD 0.25" in out.getvalue()
    assert "2/2" in out.getvalue()


def test_the_end_names_what_is_there_and_what_comes_next(tmp_path):
    run = tmp_path / "my run"
    (run / "student").mkdir(parents=True)
    (run / "warnings.txt").touch()
    lines = outcome(run).splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == [str(run / "student"), str(run / "warnings.txt")]
    for line in lines[3:]:
        command = parse(shlex.split(line)[1:])
        assert str(run) in str(command)
