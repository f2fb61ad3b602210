"""The tables say what the rows say; the page asks for nothing and lets no text through as markup."""

import base64
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from rich.console import Console

from scott.evaluation import Results, Row, curves_svg, image_grid, markdown_table, table, write_report

RESULTS = Results(
    [
        Row("real-vs-real", 0, 0, None, 1.8, None, 0.969, 5000),
        Row("teacher-50", 50, 100, 1.5, 20.0, 0.318, 0.913, 5000, recorded=True),
        Row("scott-2", 2, 2, 0.04, 21.6, 0.31, 0.9114, 5000, note="LoRA <64>"),
    ],
    {"guidance": 3.0, "samples": 5000},
)
METRICS = [
    {"step": s, "consistency": 1 / (s + 1), "critic_real": 0.5, "critic_grad_norm": 2.0, "lr": 8e-6}
    for s in range(1000)
]


def test_markdown() -> None:
    lines = markdown_table(RESULTS).splitlines()
    assert lines[0].startswith("| sampler | steps | calls | s / image | FID ↓ | FID ratio |")
    assert lines[2] == "| real-vs-real | – | – | – | 1.80 | 0.09 | – | 0.969 | 5,000 |"
    assert lines[3] == "| teacher-50 † | 50 | 100 | 1.5 | 20.0 | 1.00 | 0.318 | 0.913 | 5,000 |"
    assert lines[4] == "| scott-2 | 2 | 2 | 0.04 | 21.6 | 1.08 | 0.310 | 0.911 | 5,000 |"
    assert lines[6] == "scott-2: LoRA <64>"
    assert lines[8] == "FID ratio: to teacher-50."
    assert lines[10].startswith("† ")


def test_terminal_table_shows_every_row() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(table(RESULTS))
    text = console.export_text()
    assert all(row.name in text for row in RESULTS.rows)
    assert "1.08" in text


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that what is opened is closed."""

    void = ("meta", "img", "rect", "path")

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
        metrics=[*METRICS, {"step": 1000, "consistency<b>": 1.0}, {"step": 1001, "consistency<b>": 2.0}],
        grids=[('a "quoted" <caption>', Image.new("RGB", (8, 8), "red"))],
        notes=["Distilled & measured <here>."],
    )
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_page_is_self_contained(page: Page) -> None:
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert [source[:22] for source in page.sources] == ["data:image/png;base64,"]
    image = Image.open(io.BytesIO(base64.b64decode(page.sources[0][22:])))
    assert image.getpixel((4, 4)) == (255, 0, 0)
    assert "url(http" not in page.text
    assert "@import" not in page.text


def test_page_shows_texts_as_they_are(page: Page) -> None:
    for text in (
        "<script>alert('title')</script>",
        "Distilled & measured <here>.",
        "LoRA <64>",
        "consistency<b>",
    ):
        assert text in page.text
    assert "</pre><script>" in page.text
    assert 'a "quoted" <caption>' in page.text


def test_page_of_nothing_is_a_page(tmp_path) -> None:
    write_report(tmp_path / "r.html", title="Empty", results=Results(), config={}, metrics=[], grids=[], notes=[])
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not {"section", "details", "dl"} & set(page.tags)


def test_curves_sort_metrics_into_panels() -> None:
    panels = dict(curves_svg(METRICS))
    assert list(panels) == ["Consistency loss", "Critic", "Gradient norm"]
    assert "critic_grad_norm" in panels["Gradient norm"]
    assert "critic_grad_norm" not in panels["Critic"]


def test_curves_are_bounded_and_pass_over_gaps() -> None:
    gaps = [{"step": s, "consistency": [1.0, None, float("nan")][s % 3]} for s in range(30)]
    svg = dict(curves_svg(gaps))["Consistency loss"].split("<ul")[0]
    root = ElementTree.fromstring(svg)
    thin, thick = (line.get("points", "").split() for line in root.iter("polyline"))
    assert thin == thick
    assert len(thin) == 10
    long = dict(curves_svg([{"step": s, "consistency": s} for s in range(40_000)]))["Consistency loss"]
    points = [float(y) for y in re.findall(r",(\d+\.\d)", long.split("thick")[0])]
    assert len(points) == 400
    assert points == sorted(points, reverse=True)


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


@pytest.mark.parametrize(
    ("images", "rows", "columns", "scale"),
    [
        ([], [], [], 1),
        ([[(4, 4)]], ["a"], ["b", "c"], 1),
        ([[(4, 4)]], ["a", "d"], ["b"], 1),
        ([[(4, 4), (4, 5)]], ["a"], ["b", "c"], 1),
        ([[(4, 4)]], ["a"], ["b"], 0),
    ],
)
def test_grid_refuses(images, rows, columns, scale) -> None:
    with pytest.raises(ValueError, match=r"got (rows|sizes)"):
        image_grid([[Image.new("RGB", size) for size in row] for row in images], rows, columns, scale)
