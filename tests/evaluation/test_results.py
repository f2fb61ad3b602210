import json

import pytest

from scott.errors import UserError
from scott.evaluation import Results, Row

TEACHER = Row("teacher-50", 50, 100, 1.5, 20.0, 0.318, 0.913, 5000, recorded=True, note="DDIM")
STUDENT = Row("scott-2", 2, 2, 0.04, 21.6, 0.31, 0.9114, 5000)
FLOOR = Row("real-vs-real", 0, 0, None, 1.8, None, 0.969, 5000)


def test_file_round_trip(tmp_path) -> None:
    results = Results([FLOOR, TEACHER, STUDENT], {"seed": 0, "guidance": 3.0, "teacher": "ein Lehrer ü"})
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert list(content) == ["rows", "meta"]
    assert list(content["rows"][0]) == [
        *("name", "steps", "network_calls", "seconds_per_image", "fid", "clip_score", "coverage", "samples"),
        *("recorded", "note"),
    ]
    assert content["rows"][0]["clip_score"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_the_ratio_is_to_the_teacher_with_the_most_steps() -> None:
    few = Row("teacher-4", 4, 8, 0.1, 60.0, 0.2, 0.3, 5000)
    results = Results([few, TEACHER, STUDENT])
    assert results.baseline() is TEACHER
    assert results.fid_ratio(STUDENT) == pytest.approx(1.08)
    assert Results([STUDENT]).fid_ratio(STUDENT) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_figure_is_never_kept(tmp_path, value: float) -> None:
    with pytest.raises(ValueError, match="'scott-2': fid is"):
        Row("scott-2", 2, 2, 0.04, value, 0.31, 0.9, 5000)
    with pytest.raises(ValueError, match="JSON"):
        Results(meta={"loss": value}).save(tmp_path / "results.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"rows": []}', '{"rows": [{"name": "x"}], "meta": {}}', '{"rows": [{"fdi": 1}], "meta": {}}'],
)
def test_a_file_of_something_else_is_a_user_error(tmp_path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match="is not a results file"):
        Results.load(tmp_path / "results.json")
