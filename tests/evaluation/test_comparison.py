"""Results beside one another: the share of a gap, and tables that cannot drift from their results."""

import csv
import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from scott.commands.compare import compare, update
from scott.errors import UserError
from scott.evaluation import Figure, Results, Row
from scott.evaluation.comparison import combined, comparison, drawn
from scott.evaluation.gaps import gaps

FLOOR = Row("real-vs-real", 0, 0, None, 10.0, None, 0.969, 5000)
# the paper's figures on COCO-2017 5K
TEACHER = Row("teacher-ddim-50", 50, 100, 2.0, 20.3, 0.318, 0.9130, 5000)
LCM = Row("lcm-2", 2, 2, 0.1, 30.4, 0.293, 0.7882, 5000, method="lcm")
SCOTT = Row("scott-2", 2, 2, 0.1, 21.9, 0.310, 0.9114, 5000, method="scott")


def test_the_papers_shares() -> None:
    fid, coverage = gaps(Results([FLOOR, TEACHER, LCM, SCOTT]))
    assert (fid.student, fid.metric, coverage.metric) == ("scott-2", "fid", "coverage")
    assert fid.value == pytest.approx(0.84, abs=0.005)
    assert coverage.value == pytest.approx(0.99, abs=0.005)
    assert "| scott-2 | 84% | 99% |" in comparison(Results([FLOOR, TEACHER, LCM, SCOTT]))


FID_ALONE = {"coverage": None, "metrics": {}}


@pytest.mark.parametrize(
    ("teacher", "lcm", "scott", "line", "reason"),
    [
        (TEACHER, replace(LCM, fid=TEACHER.fid - 0.1, metrics={}), SCOTT, "– | 99%", "no gap, .* (scott-2: FID, lcm)"),
        (TEACHER, replace(LCM, fid=TEACHER.fid, metrics={}), SCOTT, "– | 99%", "no gap, .* (scott-2: FID, lcm)"),
        (
            *(replace(row, **FID_ALONE) for row in (TEACHER, LCM, SCOTT)),
            *("84% | –", "not measured of .* (scott-2: coverage, lcm)"),
        ),
        (
            *(replace(row, fid=None, metrics={}) for row in (TEACHER, LCM, SCOTT)),
            *("– | 99%", "not measured of .* (scott-2: FID, lcm)"),
        ),
        (
            *(TEACHER, replace(LCM, samples=1000), SCOTT),
            *("– | –", "figures of other sample sizes, .* (scott-2: FID, lcm; scott-2: coverage, lcm)"),
        ),
    ],
    ids=["LCM ahead", "LCM as good", "FID alone", "no FID", "another n"],
)
def test_a_share_that_there_is_not_is_a_dash_with_its_reason(teacher, lcm, scott, line, reason) -> None:
    text = comparison(Results([FLOOR, teacher, lcm, scott]))
    assert f"| scott-2 | {line} |" in text
    assert re.search(f"\n–: {reason}.\n".replace("(", r"\(").replace(")", r"\)"), text)


def test_one_share_that_there_is_not_leaves_the_others() -> None:
    other = replace(SCOTT, name="scott-1", steps=1)
    results = Results([TEACHER, LCM, SCOTT, replace(LCM, name="lcm-1", steps=1, samples=1000), other])
    assert [one.value is None for one in gaps(results)] == [False, False, True, True]


def test_shares_between_other_guidance_say_so() -> None:
    """Once, though of two metrics; not of a row that has none."""
    teacher, lcm, scott = (replace(row, guidance=7.5) for row in (TEACHER, LCM, SCOTT))
    assert "ω:" not in comparison(Results([teacher, lcm, scott]))
    assert "ω:" not in comparison(Results([teacher, lcm, SCOTT]))
    text = comparison(Results([teacher, lcm, replace(scott, guidance=3.0)]))
    assert "| scott-2 | 84% | 99% |" in text
    assert text.count("\nAt several ω: scott-2 3, lcm-2 7.5, teacher-ddim-50 7.5.\n") == 1


def test_lcm_is_what_a_row_says_and_not_its_name() -> None:
    """A student under LCMScheduler has "lcm" in its name; LCM's own may have not."""
    drawn = replace(SCOTT, name="student-lcm-2")
    plain = replace(LCM, name="student-2")
    (fid, _) = gaps(Results([TEACHER, plain, drawn]))
    assert (fid.student, fid.rival) == ("student-lcm-2", "student")
    assert gaps(Results([TEACHER, replace(LCM, method=""), SCOTT])) == []


def test_other_numbers_of_samples_stand_side_by_side(tmp_path) -> None:
    """Whose prompts are others; the share between them is a dash."""
    for row, digest in ((SCOTT, "0a1b"), (replace(LCM, samples=1000), "2c3d")):
        Results([TEACHER, row], {"samples": row.samples, "prompts": digest}).save(tmp_path / f"{row.family}.json")
    text = comparison(combined([tmp_path / "scott.json", tmp_path / "lcm.json"]))
    assert "| scott/scott-2 | – | – |" in text


def test_what_all_files_were_measured_under_is_kept(tmp_path) -> None:
    """The folder of the data is another on another machine, and may be."""
    networks = {"features": "Inception", "clip": "ViT-g"}
    one = {"protocol": "custom", "size": 64, "target": "a", "data": "here/coco.json", "networks": networks}
    other = one | {"target": "b", "data": "there/coco.json", "networks": {"features": "Inception"}}
    for name, meta in (("a", one), ("b", other)):
        Results([replace(SCOTT, name=name)], meta).save(tmp_path / f"{name}.json")
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    kept = {"protocol": "custom", "size": 64, "networks": {"features": "Inception"}}
    assert combined(files).meta == {"files": [str(file) for file in files]} | kept
    assert "Features: Inception." in comparison(combined(files))


def test_each_lcm_has_its_columns() -> None:
    later = replace(LCM, name="lcm-time-2", fid=26.0, metrics={})
    text = comparison(Results([TEACHER, LCM, later, SCOTT]))
    assert "| sampler | FID, lcm | coverage, lcm | FID, lcm-time | coverage, lcm-time |" in text
    assert "| scott-2 | 84% | 99% | 72% | 99% |" in text


def test_another_rival_may_be_named(tmp_path, command_line) -> None:
    results = Results([TEACHER, replace(LCM, name="ufogen-2", method=""), LCM, SCOTT])
    assert {one.rival for one in gaps(results, ["ufogen"])} == {"ufogen"}
    results.save(tmp_path / "r.json")
    code, out, _ = command_line("compare", tmp_path / "r.json", "--rival", "ufogen")
    assert (code, "| sampler | FID, ufogen | coverage, ufogen |" in out) == (0, True)
    code, _, error = command_line("compare", tmp_path / "r.json", "--rival", "ufogen-2")
    assert (code, "got the rival ufogen-2; expected one of teacher-ddim, ufogen, lcm, scott" in error) == (2, True)
    page = tmp_path / "page.md"
    page.write_text("<!-- scott compare r.json --rival ufogen -->\n<!-- end -->\n")
    update([page], check=False)
    assert "| sampler | FID, ufogen | coverage, ufogen |" in page.read_text()


def test_some_rows_and_metrics_of_all(tmp_path, command_line) -> None:
    """What ratios and excess are taken against stays, and so do they."""
    four = replace(SCOTT, name="scott-4", steps=4, network_calls=4)
    results = Results([FLOOR, replace(TEACHER, name="teacher-ddim-25", steps=25), TEACHER, LCM, SCOTT, four])
    results.save(tmp_path / "r.json")
    some = results.only([2], ["fid"])
    assert [row.name for row in some.rows] == ["real-vs-real", "teacher-ddim-50", "lcm-2", "scott-2"]
    assert {name for row in some.rows for name in row.metrics} == {"fid"}
    assert [some.fid_ratio(row) for row in some.rows] == [
        results.fid_ratio(row) for row in (FLOOR, TEACHER, LCM, SCOTT)
    ]
    assert results.only() == results
    code, out, _ = command_line("compare", tmp_path / "r.json", "--steps", 2, "--metrics", "fid", "--out", tmp_path)
    assert (code, out.split("\n\n")[0]) == (0, comparison(some).split("\n\n")[0])
    assert "coverage" not in (tmp_path / "comparison.csv").read_text()
    page = tmp_path / "page.md"
    page.write_text("<!-- scott compare r.json --steps 2 --metrics fid -->\n<!-- end -->\n")
    update([page], check=False)
    assert comparison(some) in page.read_text()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--steps 3", "got steps 3, which no row has; expected some of 2, 50"),
        ("--metrics fid kid", "got metrics kid, which no row has; expected some of clip-score, coverage, fid"),
        ("--steps two", "--steps"),
        ("--order fid", "--order"),
    ],
)
def test_what_no_row_has_is_refused(tmp_path, command_line, options, line) -> None:
    Results([TEACHER, LCM, SCOTT]).save(tmp_path / "r.json")
    page = tmp_path / "page.md"
    page.write_text(text := f"<!-- scott compare r.json {options} -->\n<!-- end -->\n")
    for words in ([tmp_path / "r.json", *options.split()], ["--update", page]):
        code, _, error = command_line("compare", *words)
        assert (code, line in " ".join(error.split())) == (2, True)
    assert page.read_text() == text


def test_options_of_a_table_without_results_are_refused(tmp_path, command_line) -> None:
    code, _, error = command_line("compare", "--update", tmp_path / "page.md", "--steps", 2)
    assert (code, "--steps and --metrics are of results that are named" in " ".join(error.split())) == (2, True)


def test_runs_are_told_apart_by_their_folders(tmp_path) -> None:
    for name, student in (("sd15-scott", SCOTT), ("sd15-lcm", LCM)):
        (tmp_path / name).mkdir()
        Results([FLOOR, TEACHER, replace(student, name="student-2")]).save(tmp_path / name / "evaluation.json")
    results = combined([tmp_path / name / "evaluation.json" for name in ("sd15-scott", "sd15-lcm")])
    assert "| sd15-scott/student-2 | 84% | 99% |" in comparison(results)
    assert results.figure(results.rows[2], "fid").floor == FLOOR.fid


def test_files_of_one_folder_are_told_apart_by_their_names(tmp_path) -> None:
    for name, row in {"scott": SCOTT, "lcm": LCM}.items():
        Results([replace(row, name="student-2", metrics={})]).save(tmp_path / f"{name}.json")
    names = [row.name for row in combined([tmp_path / "scott.json", tmp_path / "lcm.json"]).rows]
    assert names == ["scott/student-2", "lcm/student-2"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a/run/evaluation", "lcm/run/evaluation"], ["a/run", "lcm/run"]),
        (["a/evaluation", "b/results"], ["a", "b"]),
        (["a/evaluation", "a/evaluation-coco", "b/evaluation"], ["a/evaluation", "a/evaluation-coco", "b/evaluation"]),
    ],
)
def test_names_are_of_the_shortest_ends_that_tell_the_files_apart(tmp_path, files, expected) -> None:
    """Of every row, also those whose name is of one file alone."""
    rows = [[SCOTT], [replace(SCOTT, fid=30.0, metrics={}), LCM], [replace(SCOTT, fid=31.0, metrics={})]]
    paths = [tmp_path / f"{file}.json" for file in files]
    for path, own in zip(paths, rows, strict=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        Results(own).save(path)
    first, second, *others = expected
    names = [f"{first}/scott-2", f"{second}/scott-2", f"{second}/lcm-2", *(f"{one}/scott-2" for one in others)]
    assert [row.name for row in combined(paths).rows] == names
    with pytest.raises(UserError, match="twice"):
        combined([paths[0], paths[0]])


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"protocol": "coco2017-5k"}, {"protocol": "mjhq-5k"}, "has protocol coco2017-5k and .* mjhq-5k"),
        ({"networks": {"features": "Inception"}}, {"networks": {"features": "CLIP"}}, "has features Inception and"),
        ({"data": "coco/a.json"}, {"data": "coco/b.json"}, r"has data a\.json and .* b\.json"),
        ({"floor data": "what follows"}, {"floor data": "c.json"}, "has floor data what follows and"),
        ({"data": "a", "prompts": "0a1b"}, {"data": "a", "prompts": "2c3d"}, "has prompts 0a1b and"),
        ({"data split": "train"}, {"data split": "val"}, "has data split train and .* val; compare figures of one"),
        ({"image column": "a", "scott": "1"}, {"scott": "1"}, "has image column a and .* the usual one;"),
        ({"scott": "1"}, {"caption columns": ["a", "b"], "scott": "1"}, "columns the usual ones and .* a b;"),
    ],
)
def test_figures_of_another_kind_are_refused(tmp_path, one, other, said) -> None:
    for name, meta in (("a", one), ("b", other), ("c", {})):
        Results([replace(SCOTT, name=name)], meta).save(tmp_path / f"{name}.json")
    assert len(combined([tmp_path / "a.json", tmp_path / "c.json"]).rows) == 2
    with pytest.raises(UserError, match=said):
        combined([tmp_path / "a.json", tmp_path / "b.json"])


def test_other_precision_pictures_left_out_and_versions_are_named(tmp_path) -> None:
    """Of the files that say them: one that says its scott left out nothing where it says none."""
    one = {"scott": "1", "precision": "fp16", "data version": "0a1b", "left out": "not-a-picture 1"}
    other = {"scott": "1", "precision": "fp32", "data version": "2c3d"}
    for name, meta in (("a", one), ("b", other), ("c", {})):
        Results([replace(SCOTT, name=name)], meta).save(tmp_path / f"{name}.json")
    a, b, c = (tmp_path / f"{name}.json" for name in "abc")
    lines = {
        "Precision: fp16 (a); fp32 (b).",
        "Data version: 0a1b (a); 2c3d (b).",
        "Left out: not-a-picture 1 (a); nothing (b).",
    }
    assert lines <= {*comparison(combined([a, b, c])).splitlines()}
    for alike in ([a], [a, c], [c, b]):
        assert not [line for line in comparison(combined(alike)).splitlines() if line.startswith(("P", "D", "L"))]


def test_files_side_by_side(tmp_path) -> None:
    """The floor that two files have stands once; every form says the same."""
    recall = {"precision": Figure(0.7), "recall": Figure(0.6, (0.55, 0.66), floor=0.8)}
    for name, rows in (("a", [FLOOR, TEACHER, LCM]), ("b", [FLOOR, replace(SCOTT, metrics=recall)])):
        (tmp_path / name).mkdir()
        Results(rows).save(tmp_path / name / "evaluation.json")
    files = [tmp_path / name / "evaluation.json" for name in "ab"]
    names = ["a/real-vs-real", "a/teacher-ddim-50", "a/lcm-2", "b/scott-2"]
    assert [row.name for row in combined(files).rows] == names
    results, text = compare(files, tmp_path / "out")
    assert "| b/scott-2 | 84% | 99% |" in text
    assert (tmp_path / "out" / "comparison.md").read_text() == text
    lines = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    assert [line["name"] for line in lines] == [row.name for row in results.rows]
    assert float(lines[-1]["recall excess"]) == pytest.approx(-0.2)
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["rows"][-1]["excess"]["recall"] == pytest.approx(-0.2)
    assert ElementTree.parse(tmp_path / "out" / "comparison.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("options", [" --rival teacher-ddim", ""], ids=["another table", "the same table"])
def test_a_table_without_an_end_takes_nothing_with_it(tmp_path, options) -> None:
    Results([TEACHER]).save(tmp_path / "a.json")
    page = tmp_path / "page.md"
    block = "<!-- scott compare a.json -->\n<!-- end -->\n"
    page.write_text(text := f"<!-- scott compare a.json{options} -->\nSome words.\n{block}")
    with pytest.raises(UserError, match=rf"no line <!-- scott compare a.json{options} --> with an <!-- end"):
        update([page], check=False)
    assert page.read_text() == text


def test_a_network_is_the_same_whatever_its_folder_is_called(tmp_path) -> None:
    told = "CLIP {}: shorter side to 224 (bicubic, antialiased), centre, not normalised; weights {}"
    for name, row, network in (
        ("a", TEACHER, told.format("clip-vit-base-patch32", "6f72f488")),
        ("b", SCOTT, told.format("3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268", "6f72f488")),
        ("c", LCM, told.format("clip-vit-base-patch32", "00000000")),
    ):
        Results([row], {"networks": {"clip": network}}).save(tmp_path / f"{name}.json")
    a, b, c = (tmp_path / f"{name}.json" for name in "abc")
    assert len(combined([a, b]).rows) == 2
    with pytest.raises(UserError, match="00000000; compare figures of one kind"):
        combined([a, c])


def test_some_steps_keep_what_coverages_gap_is_to() -> None:
    """Where FID was not measured, or of another teacher's row."""
    row = Row("student-2", 2, 2, None, coverage=0.6, method="scott")
    fewer = replace(row, name="student-4", steps=4)
    teachers = [Row("teacher-ddim-50", 50, 100, None, coverage=0.9), Row("teacher-ddim-25", 25, 50, None, fid=3.0)]
    some = Results([*teachers, row, fewer]).only([2])
    assert [one.name for one in some.rows] == ["teacher-ddim-50", "teacher-ddim-25", "student-2"]


def test_networks_that_a_file_does_not_name(tmp_path) -> None:
    Results([TEACHER], {"networks": None}).save(tmp_path / "a.json")
    Results([SCOTT], {"networks": {"features": "Inception"}}).save(tmp_path / "b.json")
    assert "| b/scott-2 |" in comparison(combined([tmp_path / "a.json", tmp_path / "b.json"]))


def test_a_table_that_drifted_is_found_and_made_again(tmp_path) -> None:
    Results([TEACHER, SCOTT]).save(tmp_path / "results.json")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- scott compare results.json -->\nold\n<!-- end -->\nafter\n")
    with pytest.raises(UserError, match=r"are not those of their results; run scott compare --update"):
        update([page], check=True)
    assert "old" in page.read_text()
    assert update([page], check=False) == [page]
    assert re.fullmatch(r"before\n<!-- .* -->\n\| sampler.*<!-- end -->\nafter\n", page.read_text(), re.DOTALL)
    assert update([page], check=True) == []
    block = "<!-- scott compare results.json{} -->\n<!-- end -->\n".format
    page.write_text(block(" -- --metrics fid"))
    assert update([page], check=False) == [page]
    wrong = (block(" --metrics fid,coverage").encode(), "metrics fid,coverage, which no row has")
    for content, said in ((b"no table", "has no line"), (b"\xff", "is not UTF-8 text"), wrong):
        page.write_bytes(content)
        with pytest.raises(UserError, match=said) as refused:
            update([page], check=True)
        assert "--steps are numbers" not in str(refused.value)


def test_a_page_keeps_its_ends_of_lines_and_names_files_with_spaces(tmp_path) -> None:
    (tmp_path / "my runs").mkdir()
    Results([TEACHER, SCOTT]).save(tmp_path / "my runs" / "a.json")
    page = tmp_path / "page.md"
    page.write_bytes(b'before\r\n<!-- scott compare "my runs/a.json" -->\r\nold\r\n<!-- end -->\r\nafter\r\n')
    assert update([page], check=False) == [page]
    content = page.read_bytes()
    assert b"scott-2" in content
    assert content.count(b"\n") == content.count(b"\r\n") > 5
    assert update([page], check=True) == []
    page.write_text('<!-- scott compare "a.json -->\n<!-- end -->\n')
    with pytest.raises(UserError, match="No closing quotation"):
        update([page], check=False)


@pytest.mark.filterwarnings("error")
def test_names_are_drawn_as_they_are(tmp_path) -> None:
    """Of folders, that people name: no formula, and in the legend."""
    rows = [replace(SCOTT, name=r"a$\frac$-2"), replace(SCOTT, name="_old-2"), replace(LCM, seconds_per_image=None)]
    drawing = drawn(Results(rows)).decode()
    assert r"a$\frac$" in drawing
    assert "_old" in drawing
    assert drawn(Results([replace(LCM, seconds_per_image=None)]))
