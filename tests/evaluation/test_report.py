"""The tables say what the rows say; the page asks for nothing and lets no text through as markup."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from scott.evaluation import Figure, Results, Row, image_grid, markdown_table, table
from scott.evaluation.curves import PANELS, curves_svg, finite_points, smooth
from scott.evaluation.measures import METRICS as KNOWN
from scott.evaluation.report import write_report
from scott.evaluation.tables import DECIMALS, footnotes, significant

RESULTS = Results(
    [
        Row("real-vs-real", 0, 0, None, 1.8, None, 0.969, 5000),
        Row("teacher-50", 50, 100, 1.5, 20.0, 0.318, 0.913, 5000, recorded=True),
        Row("scott-2", 2, 2, 0.04, 21.6, 0.31, 0.9114, 5000, remark="LoRA <64>"),
    ],
    {"guidance": 3.0, "samples": 5000},
)
METRICS = [
    {"step": s, "consistency": 1 / (s + 1), "critic_real_accuracy": 0.5, "critic_gradient_norm": 2.0, "lr": 8e-6}
    for s in range(1000)
]


def test_markdown() -> None:
    lines = markdown_table(RESULTS).splitlines()
    assert lines[0].startswith("| sampler | steps | calls | s / image | FID ↓ | excess | FID ratio |")
    assert lines[2] == "| real-vs-real | – | – | – | 1.80 | – | 0.09 | – | 0.969 | 5,000 |"
    assert lines[3] == "| teacher-50 † | 50 | 100 | 1.5 | 20.0 | 18.2 | 1.00 | 0.318 | 0.913 | 5,000 |"
    assert lines[4] == "| scott-2 | 2 | 2 | 0.04 | 21.6 | 19.8 | 1.08 | 0.310 | 0.911 | 5,000 |"
    assert lines[6] == "scott-2: LoRA <64>"
    assert lines[8] == "FID ratio: to teacher-50."
    assert lines[10].startswith("Excess: ")
    assert lines[12].startswith("† ")


def test_a_remark_of_several_rows_stands_once() -> None:
    rows = [Row(name, 2, 2, 0.1, 5.0, samples=100, remark="few") for name in ("a", "b")]
    assert "a, b: few" in markdown_table(Results(rows)).splitlines()


def test_intervals_and_seeds_stand_behind_their_figures() -> None:
    one = Row("a", 2, 2, 0.1, samples=100, guidance=3.0, metrics={"fid": Figure(5.0, (4.8, 5.2)), "kid": Figure(0.25)})
    header, _, line, *rest = markdown_table(Results([one])).splitlines()
    assert header.startswith("| sampler | steps | calls | ω | s / image | FID ↓ |")
    assert header.endswith("| FID ratio | kid ↓ | samples |")  # and no CLIP score, which no row has
    assert line == "| a | 2 | 2 | 3 | 0.1 | 5.00 ±0.2 | – | – | 0.250 | 100 |"
    assert "±: half of 95 % of the bootstrap over samples." in rest
    seeds = replace(one, metrics={"fid": Figure(5.0, (4.8, 5.2), seeds=(4.5, 5.5))}, seeds=(1, 3))
    assert "| 5.00 ±0.5 |" in markdown_table(Results([seeds]))
    assert "Seeds: 1, 3." in footnotes(Results([seeds, replace(seeds, name="b")]))
    assert "Seeds: 1, 3 (a); 2 (b)." in footnotes(Results([seeds, replace(seeds, name="b", seeds=(2,))]))


def test_of_an_interval_that_a_bound_cuts_the_whole_side_counts() -> None:
    cut = {"coverage": Figure(1.0, (0.98, 1.0)), "fid": Figure(0.3, (0.0, 0.7))}
    line = markdown_table(Results([Row("a", 2, 2, 0.1, samples=100, metrics=cut)])).splitlines()[2]
    assert "| 0.300 ±0.4 |" in line
    assert "| 1.000 ±0.02 |" in line


def test_resamples_that_are_all_alike_tell_nothing() -> None:
    alike = Row(
        "a-1", 1, 1, None, samples=20, metrics={"place": Figure(1.0, (1.0, 1.0)), "fid": Figure(2.0, (1.0, 3.0))}
    )
    assert "| 2.00 ±1 |" in markdown_table(Results([alike]))
    assert "| 1.00 |" in markdown_table(Results([alike]))


def test_an_arrow_is_where_more_or_less_is_better() -> None:
    """Diversity and styles are to be the data's, where the floor's row says what that is."""
    names = ("kid", "recall", "place", "diversity", "style noto", "spread")
    row = Row("a", 2, 2, 0.1, samples=100, metrics={name: Figure(0.5) for name in names})
    floor = Row("real-vs-real", 0, 0, None, samples=100, metrics={"diversity": Figure(0.6)})
    header = markdown_table(Results([floor, row])).splitlines()[0].split(" | ")
    assert {"kid ↓", "recall ↑", "place ↑", "diversity → data", "style noto", "spread → 1"} <= {*header}


def test_the_bootstrap_is_marked_where_others_are_of_seeds() -> None:
    """As in a row of several seeds, whose diversity is of the first, and in that of real pictures."""
    over_seeds = {"fid": Figure(5.0, (4.8, 5.2), seeds=(4.5, 5.5)), "diversity": Figure(9.0, (8.0, 10.0))}
    rows = [
        Row("a", 2, 2, 0.1, samples=100, metrics=over_seeds),
        Row("real-vs-real", 0, 0, None, samples=100, metrics={"fid": Figure(1.0, (0.8, 1.2))}),
    ]
    text = markdown_table(Results(rows))
    assert all(cell in text for cell in ("| 5.00 ±0.5 |", "| 9.00 ±1‡ |", "| 1.00 ±0.2‡ |"))
    assert {"±: half the range over seeds.", "±‡: half of 95 % of the bootstrap over samples."} <= {*text.splitlines()}
    assert "‡" not in markdown_table(Results(rows[1:]))


def test_terminal_table_shows_every_row() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(table(RESULTS))
    text = console.export_text()
    assert all(row.name in text for row in RESULTS.rows)
    assert all(figure in text for figure in ("21.6", "1.08", "0.310", "0.911", "5,000"))


def test_a_table_of_many_metrics_is_read_in_80_columns() -> None:
    """Every figure whole, each beside its sampler's name, no line longer than the terminal."""
    values = {name: Figure(300 + index, (250.0 + index, 350.0 + index)) for index, name in enumerate(KNOWN)}
    rows = [Row(f"stable-diffusion-v1-5-ddim-{n}", n, n, 0.1, samples=5000, metrics=values) for n in (1, 25)]
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(table(Results(rows)))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    for row in rows:
        own = " ".join(line for line in lines if line.startswith(row.name + " "))
        assert all(f"{figure.value:.0f} ±50" in own for name, figure in values.items() if name not in DECIMALS)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((270.0, "270"), (1283.4, "1,283"), (999.6, "1,000"), (99.96, "100"), (9.996, "10.0"), (6.5, "6.50")),
        *((0.0, "0.00"), (0.0123456, "0.0123"), (-0.002953, "-0.00295"), (1.5e-7, "1.50e-07")),
    ],
)
def test_numbers_have_three_digits_and_no_exponent(value: float, expected: str) -> None:
    assert significant(value) == expected


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that what is opened is closed."""

    void = ("meta", "img")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def page(tmp_path) -> Page:
    write_report(
        tmp_path / "report.html",
        title="<script>alert('title')</script>",
        results=RESULTS,
        config={"path": "</pre><script>alert(1)</script>", "lr": 8e-6},
        metrics=METRICS,
        grids=[('a "quoted" <caption>', Image.new("RGB", (8, 8), "red"))],
        statements=["Distilled & measured <here>."],
    )
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_page_is_self_contained(page: Page) -> None:
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert [source[:15] for source in page.sources] == ["data:image/png;", "data:image/svg+"]
    image = Image.open(io.BytesIO(base64.b64decode(page.sources[0][22:])))
    assert image.getpixel((4, 4)) == (255, 0, 0)
    assert "url(http" not in page.text
    assert "@import" not in page.text


def test_page_shows_texts_as_they_are(page: Page) -> None:
    for text in (
        "<script>alert('title')</script>",
        "Distilled & measured <here>.",
        "LoRA <64>",
        "1.08",
    ):
        assert text in page.text
    assert "</pre><script>" in page.text
    assert 'a "quoted" <caption>' in page.text


def test_page_of_nothing_is_a_page(tmp_path) -> None:
    write_report(tmp_path / "r.html", title="Empty", results=Results(), config={}, metrics=[], grids=[], statements=[])
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not {"h2", "table", "img", "details", "dl"} & set(page.tags)


def test_curves_sort_metrics_into_panels() -> None:
    svg = curves_svg(METRICS)
    assert svg is not None
    # matplotlib draws texts as shapes and keeps each in a comment beside them
    builder = ElementTree.TreeBuilder(insert_comments=True)
    root = ElementTree.fromstring(svg, ElementTree.XMLParser(target=builder))
    texts = [str(node.text).strip() for node in root.iter() if node.tag is ElementTree.Comment]
    titles = [*PANELS]
    assert [text for text in texts if text in titles or text in METRICS[0]] == [
        *("Consistency loss", "consistency"),
        *("Critic", "critic_real_accuracy"),
        *("Gradient norm", "critic_gradient_norm"),
    ]


def test_the_spread_is_drawn_at_each_time_of_sampling() -> None:
    rows = [
        {"step": s} | {f"spread_{t}": -0.1 for t in ("255", "999", "1e+03")} | {"spread_drawn_503": 0.1} for s in (0, 1)
    ]
    svg = curves_svg(rows)
    assert svg is not None
    marks = [text for text in svg.decode().split("<!-- ")[1:] if "pread" in text]
    assert [text.partition(" -->")[0] for text in marks] == [
        *("Spread, log10 of the data's", "spread_1e+03", "spread_999", "spread_255"),
        *("Spread of drawn samples", "spread_drawn_503"),
    ]


def test_the_same_metrics_give_the_same_bytes() -> None:
    assert curves_svg(METRICS) == curves_svg(METRICS)
    assert curves_svg([{"step": 0, "consistency": 1.0}]) is None, "one point is no curve"
    assert curves_svg([]) is None


def test_curves_pass_over_gaps() -> None:
    gaps = [{"step": s, "consistency": [1.0 * s, None, float("nan")][s % 3]} for s in range(30)]
    steps, values = finite_points(gaps, "consistency")
    assert steps.tolist() == values.tolist() == list(range(0, 30, 3))


def test_the_average_is_the_exponential_one_over_a_twentieth_of_the_points() -> None:
    values = np.random.default_rng(0).normal(size=100)
    decay = 1 - 1 / 5
    weights = decay ** np.arange(99, -1, -1)
    assert smooth(values)[-1] == pytest.approx((weights * values).sum() / weights.sum())
    assert smooth(np.ones(7)).tolist() == [1.0] * 7


def test_grid_keeps_the_pixels_and_makes_room_for_labels() -> None:
    red, blue = Image.new("RGB", (10, 10), "red"), torch.tensor([0.0, 0, 1]).view(3, 1, 1).expand(3, 10, 10)
    grid = image_grid([[red, blue], [blue, red]], ["teacher", "student"], ["a", "a caption of words"], scale=5)
    colours = grid.getcolors()
    assert colours is not None
    counts = {colour: count for count, colour in colours}
    assert counts[(255, 0, 0)] == counts[(0, 0, 255)] == 2 * 50 * 50
    one_line = image_grid([[red, blue]], ["teacher"], ["a", "b"], scale=5)
    three_lines = image_grid([[red, blue]], ["teacher"], ["a", "a caption of words"], scale=5)
    assert three_lines.height > one_line.height


@pytest.mark.parametrize("word", ["background", "x" * 60])
def test_captions_of_a_grid_do_not_run_into_each_other(word: str) -> None:
    """Between two columns there is paper from the top of the captions to the pictures' end."""
    picture = Image.new("RGB", (64, 64), "red")
    grid = image_grid([[picture] * 2], [""], [word, word])
    paper = (np.asarray(grid) == 255).all(axis=(0, 2))
    reds = np.flatnonzero((np.asarray(grid) == (255, 0, 0)).all(axis=-1).any(axis=0))
    second = reds[np.flatnonzero(np.diff(reds) > 1)[0] + 1]
    assert paper[second - 6 : second].all()
    assert grid.width < 3 * 96 + 40


def test_the_page_is_read_in_the_dark_and_scrolls_beside_its_first_column(tmp_path) -> None:
    write_report(tmp_path / "r.html", title="", results=RESULTS, config={}, metrics=[], grids=[], statements=[])
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "color-scheme: light dark" in style
    assert "prefers-color-scheme: dark" in style
    assert re.search(r"td:first-child \{ position: sticky; left: 0;[^}]* background: var\(--paper\)", style)
