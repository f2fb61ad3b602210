"""The notebooks: every cell runs, and the .ipynb that is read on a page holds the cells of the script beside it."""

import re
from pathlib import Path

import jupytext
import matplotlib
import pytest
from matplotlib import pyplot

FOLDER = Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
FEWER = {"UPDATES": "2", "SAMPLES": "1_000", "SCENES": "16", "ETAS": "(0.0, 0.2)"}
FEWER |= {"PROMPTS": 'Scenes(2, "held-out").captions()'}
FEWER |= {"grid": "JumpGrid(schedule, jump=96, substeps=3)"}
"""What a test has less of."""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_cell_runs(script, tmp_path, monkeypatch):
    monkeypatch.chdir(FOLDER)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    matplotlib.use("Agg")
    source = script.read_text()
    for name, value in FEWER.items():
        source = re.sub(rf"^{name} = .*", f"{name} = {value}", source, flags=re.MULTILINE)
    exec(compile(source, script, "exec"), {"__name__": "__main__"})
    pyplot.close("all")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_and_notebook_are_a_pair(script):
    pair = (jupytext.read(script), jupytext.read(script.with_suffix(".ipynb")))
    text, shown = ([(cell.cell_type, cell.source) for cell in notebook.cells] for notebook in pair)
    assert text == shown, f"run `make notebooks`: {script.stem}.ipynb is not of its script"
