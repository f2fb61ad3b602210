"""Tables on pages are those of the results that the repository holds."""

import json

import pytest
from experiments.comparison.__main__ import HERE as COMPARISON
from experiments.comparison.__main__ import markdown as compared
from experiments.comparison.rows import read_rows
from experiments.guidance.__main__ import HERE as GUIDANCE
from experiments.guidance.__main__ import markdown as guided
from experiments.headline import summary
from experiments.mixture.tables import TABLES
from experiments.results import read_lines
from experiments.trial.__main__ import HERE as TRIAL
from experiments.trial.__main__ import markdown as tried
from tests.pages import PAGES, ROOT, name_of

from scott.evaluation.comparison import combined, updated

MIXTURE, RECORDED = ROOT / "experiments" / "mixture", ROOT / "experiments" / "recorded_run"


@pytest.mark.parametrize("page", [page for page in PAGES if "\n<!-- scott compare" in page.read_text()], ids=name_of)
def test_tables_of_scott_compare(page):
    assert updated(page) == page.read_text(), f"run scott compare --update {page.relative_to(ROOT)}"


def expected(part):
    """The text between a page's marks."""
    match part:
        case "trials":
            return TRIAL, tried(read_lines(TRIAL / "results.jsonl"))
        case "guidance" | "times":
            return GUIDANCE, dict(guided(read_lines(GUIDANCE / "results.jsonl")))[part]
        case "comparison":
            rows = read_rows(COMPARISON / "results.jsonl")
            return COMPARISON, compared(rows) if rows else ""
    return MIXTURE, TABLES[part](json.loads((MIXTURE / "results" / f"{part}.json").read_text()))


@pytest.mark.parametrize("part", ["trials", "guidance", "times", "comparison", *TABLES])
def test_tables_of_experiments(part):
    folder, table = expected(part)
    text = (folder / "README.md").read_text()
    assert text.split(f"<!-- {part} -->")[1].split(f"<!-- end of {part} -->")[0].strip() == table, (
        f"run python -m experiments.{folder.name}"
    )


@pytest.mark.parametrize("page", ["README.md", "experiments/comparison/README.md"])
def test_tables_of_the_headline(page):
    shown = (ROOT / page).read_text().split("<!-- headline -->")[1].split("<!-- end of headline -->")[0].strip()
    assert shown == summary(read_rows(COMPARISON / "results.jsonl")), (
        f"run python -m experiments.headline --update {page}"
    )


@pytest.mark.parametrize(
    ("ratio", "metric", "over", "under"),
    [
        ("FID, SCott-2 / teacher-50", "fid", "scott/student-2", "scott/teacher-ddim-50"),
        ("FID, LCM-2 / SCott-2", "fid", "lcm/student-2", "scott/student-2"),
        ("coverage, SCott-2 / LCM-2", "coverage", "scott/student-2", "lcm/student-2"),
    ],
)
def test_ratios_beside_the_papers(ratio, metric, over, under):
    results = combined([RECORDED / "scott.json", RECORDED / "lcm.json"])
    rows = {row.name: row.metrics[metric].value for row in results.rows}
    assert f"| {ratio} | {rows[over] / rows[under]:.2f} |" in (RECORDED / "README.md").read_text()
