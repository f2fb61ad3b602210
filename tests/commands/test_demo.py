"""The demo, small: every file the README promises, and figures that hang together."""

import json
from dataclasses import replace
from functools import partial

import pytest
from PIL import Image
from tests.pages import ROOT

from scott.commands import demo as demo_module
from scott.commands.demo import demo
from scott.errors import UserError
from scott.evaluation import Results, Row, evaluate
from scott.evaluation.comparison import combined
from scott.mini.embedded import load_teacher
from scott.mini.protocol import mini_reference, recorded_teacher_row
from scott.samplers import TeacherSampler


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "run"
    phases = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_module, "TEACHER_STEPS", (10, 2))
        results = demo(out, max_steps=2, samples=10, seed=0, report=lambda phase, *_: phases.append(phase))
    return out, results, phases


def test_the_files_the_readme_promises(finished):
    out, _, _ = finished
    for name in ("results.json", "metrics.jsonl", "report.html", "student/model_index.json", "config.json"):
        assert (out / name).is_file(), name
    assert Image.open(out / "samples" / "grid-1.png").width > 8 * 64


def test_the_rows(finished):
    out, results, _ = finished
    rows = {row["name"]: row for row in json.loads((out / "results.json").read_text())["rows"]}
    assert list(rows) == ["real-vs-real", "teacher-ddim-10", "teacher-ddim-2", "scott-1", "scott-2", "scott-4"]
    assert [rows[name]["network_calls"] for name in ("teacher-ddim-10", "teacher-ddim-2", "scott-2")] == [20, 4, 2]
    assert all(rows[name]["seconds_per_image"] > 0 for name in rows if name != "real-vs-real")
    assert rows["teacher-ddim-10"]["fid"] < rows["teacher-ddim-2"]["fid"]
    assert results.fid_ratio(results.rows[1]) == 1


def test_its_figures_are_compared_with_none_of_another_kind(finished):
    """They say what they were measured by, as those of `scott evaluate` do."""
    own, recorded = finished[0] / "results.json", ROOT / "experiments" / "recorded_run"
    meta = json.loads(own.read_text())["meta"]
    assert (meta["protocol"], meta["samples"]) == ("mini", 10)
    assert meta["networks"] == json.loads((recorded / "scott.json").read_text())["meta"]["networks"]
    with pytest.raises(UserError, match="compare figures of one kind"):
        combined([own, recorded / "efficientnet-scott.json"])


def test_a_short_run_prepares_what_it_reads(finished):
    (manifest,) = (finished[0] / "data").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["samples"] == 2 * 32


def test_progress_covers_every_phase(finished):
    _, _, phases = finished
    assert {"prepare", "distil", "export", "draw samples", "evaluate real pictures", "evaluate scott-2"} <= set(phases)


def test_a_recorded_row_is_shown_as_recorded_with_the_time_taken_here(tmp_path, monkeypatch):
    """And only for the guidance and the sample size that it was recorded with."""
    file = tmp_path / "recorded.json"
    row = Row("teacher-ddim-2", 2, 4, seconds_per_image=9.0, fid=7.5, clip_score=0.5, coverage=0.25, samples=10)
    Results([row], {"guidance": demo_module.GUIDANCE}).save(file)
    monkeypatch.setattr(demo_module, "recorded_teacher_row", partial(recorded_teacher_row, file=file))
    monkeypatch.setattr(demo_module, "BATCH", 4)
    monkeypatch.setattr(demo_module, "timed", lambda draw, prompts, seed: (draw(prompts, seed), 6.0))
    reference, ticks = mini_reference(10), []
    shown = demo_module._teacher_row(reference, load_teacher(), 2, lambda *told: ticks.append(told))
    assert shown == replace(row, recorded=True, seconds_per_image=1.5)
    assert ticks == [("teacher-ddim-2", 0, 4), ("teacher-ddim-2", 4, 4)]
    for steps, samples, guidance in ((50, 10, demo_module.GUIDANCE), (2, 11, demo_module.GUIDANCE), (2, 10, 3.5)):
        assert recorded_teacher_row(steps, samples, guidance, file) is None


def test_the_recorded_rows_are_of_the_weights_that_ship():
    """The cheap one of them, measured again as it was: results of other weights are far off."""
    recorded = recorded_teacher_row(2, 1000, demo_module.GUIDANCE)
    sampler = TeacherSampler(load_teacher(), 2, demo_module.GUIDANCE)
    measured = evaluate(sampler, mini_reference(1000), name=recorded.name)
    assert measured.fid == pytest.approx(recorded.fid, rel=1e-3)
    assert measured.coverage == pytest.approx(recorded.coverage, abs=2e-3)


def test_the_report_needs_nothing_from_outside(finished):
    page = (finished[0] / "report.html").read_text()
    assert "scott-2" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'src="http' not in page
