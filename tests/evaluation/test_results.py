import csv
import io
import json
from dataclasses import replace

import pytest

from scott.errors import UserError
from scott.evaluation import Figure, Results, Row
from scott.evaluation.tables import csv_table, footnotes

TEACHER = Row("teacher-50", 50, 100, 1.5, 20.0, 0.318, 0.913, 5000, recorded=True, remark="DDIM")
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
        *("recorded", "remark", "guidance", "seeds", "metrics", "method", "excess"),
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
    [
        "",
        "[]",
        '{"rows": []}',
        '{"rows": [{"name": "x"}], "meta": {}}',
        '{"rows": [{"fdi": 1}], "meta": {}}',
        '{"rows": [], "meta": []}',
        '{"rows": [{"name": null, "steps": 2, "network_calls": 2, "seconds_per_image": 1}], "meta": {}}',
        '{"rows": [{"name": "x", "steps": 2, "network_calls": 2, "seconds_per_image": 1, "seeds": 3}], "meta": {}}',
        '{"rows": [{"name": "x", "steps": 2, "network_calls": 2, "seconds_per_image": 1, "guidance": ""}], "meta": {}}',
        '{"rows": [], "meta": {"networks": "x"}}',
        *(
            f'{{"rows": [{{"name": "x", "steps": 2, "network_calls": 2, "seconds_per_image": 1, {metrics}}}], '
            '"meta": {}}'
            for metrics in (
                '"metrics": {"fid": {"value": null}}',
                '"metrics": {"fid": {"value": 1, "interval": 5}}',
                '"metrics": {"fid": {"value": 1, "interval": "ab"}}',
                '"metrics": {"fid": {"value": 1, "interval": [1, NaN]}}',
                '"metrics": {"fid": {"value": 1, "interval": [1, 2, 3]}}',
                '"metrics": {"fid": {"value": 1, "floor": "x"}}',
                '"metrics": {"fid": {"value": 1, "seeds": 5}}',
            )
        ),
        "[" * 10**5,
    ],
    ids=range(18),
)
def test_a_file_of_something_else_is_a_user_error(tmp_path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json is not what `scott evaluate` wrote \(\w+: .*\); name another"):
        Results.load(tmp_path / "results.json")


def test_a_folder_of_results_says_what_they_are_called(tmp_path) -> None:
    Results().save(tmp_path / "results.json")
    Results().save(tmp_path / "evaluation-coco.json")
    with pytest.raises(UserError, match=r"is a folder; name its results\.json or evaluation-coco\.json$"):
        Results.load(tmp_path)


def test_figures_are_kept_with_their_intervals(tmp_path) -> None:
    figure = Figure(21.6, (21.0, 22.2), floor=1.8, seeds=(21.5, 21.7))
    row = Row("scott-2", 2, 2, 0.04, samples=5000, guidance=3.0, seeds=(1, 2), metrics={"fid": figure})
    Results([row]).save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json").rows == [row]
    assert row.fid == 21.6
    assert figure.excess == pytest.approx(19.8)


def test_the_excess_of_every_distance_is_kept_with_the_rows(tmp_path) -> None:
    """Over the floor's row of as many samples; what follows from the figures is not read back."""
    floor = replace(FLOOR, metrics=FLOOR.metrics | {"kid": Figure(0.01), "cmmd": Figure(0.2)})
    row = replace(STUDENT, metrics=STUDENT.metrics | {"kid": Figure(0.03), "cmmd": Figure(0.5)})
    results = Results([floor, row, replace(row, name="few-2", samples=100)])
    results.save(tmp_path / "results.json")
    _, whole, few = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert whole["excess"] == pytest.approx({"fid": 19.8, "kid": 0.02, "cmmd": 0.3, "coverage": 0.9114 - 0.969})
    assert few["excess"] == {}
    assert Results.load(tmp_path / "results.json") == results


def test_the_csv_has_interval_and_range_over_seeds() -> None:
    figure = Figure(21.6, (21.0, 22.2), floor=1.8, seeds=(21.7, 21.4, 21.5))
    row = Row("a", 2, 2, 0.1, samples=10, seeds=(1, 2, 3), metrics={"fid": figure, "kid": Figure(0.1)})
    (line,) = csv.DictReader(io.StringIO(csv_table(Results([row]))))
    names = ("fid", "fid low", "fid high", "fid seeds' least", "fid seeds' most", "fid floor")
    assert [float(line[name]) for name in names] == [21.6, 21.0, 22.2, 21.4, 21.7, 1.8]
    assert (line["kid"], line["kid seeds' least"]) == ("0.1", "")
    assert "coverage" not in line  # which no row has


def test_a_file_of_figures_without_intervals_is_read(tmp_path) -> None:
    row = {"name": "x", "steps": 1, "network_calls": 1, "seconds_per_image": 0.1, "fid": 2.0, "clip_score": 0.3}
    (tmp_path / "results.json").write_text(json.dumps({"rows": [row], "meta": {}}))
    (read,) = Results.load(tmp_path / "results.json").rows
    assert read.metrics == {"fid": Figure(2.0), "clip-score": Figure(0.3)}


def test_no_ratio_of_figures_with_different_sample_sizes() -> None:
    assert Results([TEACHER, replace(STUDENT, samples=1000)]).fid_ratio(STUDENT) is not None
    assert Results([TEACHER, STUDENT]).fid_ratio(replace(STUDENT, samples=1000)) is None
    assert "FID ratio: to teacher-50." in footnotes(Results([TEACHER, STUDENT]))
    few = Results([TEACHER, replace(STUDENT, samples=1000)])
    assert "FID ratio: to teacher-50, of as many samples alone." in footnotes(few)


def test_the_floor_is_that_of_as_many_samples() -> None:
    results = Results([FLOOR, TEACHER, STUDENT])
    assert results.figure(STUDENT, "fid") == Figure(21.6, floor=1.8)
    assert results.figure(replace(STUDENT, samples=1000), "fid") == Figure(21.6)
    assert results.figure(FLOOR, "fid") == Figure(1.8)
    assert results.figure(STUDENT, "kid") is None
