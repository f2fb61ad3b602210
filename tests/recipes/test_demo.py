"""The demo, small: every file the README promises, and figures that hang together."""

import json

import pytest
from PIL import Image

from scott.recipes import prepare as prepare_module
from scott.recipes.demo import demo


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "run"
    phases = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "MINI_SCENES", 48)
        results = demo(out, max_steps=2, samples=20, seed=0, report=lambda phase, *_: phases.append(phase))
    return out, results, phases


def test_the_files_the_readme_promises(finished):
    out, _, _ = finished
    for name in ("results.json", "metrics.jsonl", "report.html", "student/model_index.json", "config.json"):
        assert (out / name).is_file(), name
    assert Image.open(out / "samples" / "grid-1.png").width > 8 * 64


def test_the_rows(finished):
    out, results, _ = finished
    rows = {row["name"]: row for row in json.loads((out / "results.json").read_text())["rows"]}
    assert list(rows) == ["real-vs-real", "teacher-ddim-50", "teacher-ddim-2", "scott-1", "scott-2", "scott-4"]
    assert [rows[name]["network_calls"] for name in ("teacher-ddim-50", "teacher-ddim-2", "scott-2")] == [100, 4, 2]
    assert all(rows[name]["seconds_per_image"] > 0 for name in rows if name != "real-vs-real")
    assert rows["teacher-ddim-50"]["fid"] < rows["teacher-ddim-2"]["fid"]
    assert results.fid_ratio(results.rows[1]) == 1


def test_progress_covers_every_phase(finished):
    _, _, phases = finished
    assert {"prepare", "distil", "evaluate scott-2"} <= set(phases)


def test_the_report_needs_nothing_from_outside(finished):
    page = (finished[0] / "report.html").read_text()
    assert "scott-2" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'src="http' not in page
