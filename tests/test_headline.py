"""The comparison's rows and its figures."""

import json
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from experiments.comparison import __main__ as comparison
from experiments.comparison.figure import draw, points, ratios
from experiments.comparison.figure import main as draw_again
from experiments.comparison.rows import Row, read_rows
from experiments.headline import Headline, headline, main, summary
from experiments.results import append_lines, insert

from scott.errors import UserError


def row(method, matched="nothing", seed=0, steps=2, fid=0.0, coverage=0.0, budget=240, samples=10, scenes=8):
    values = {"method": method, "matched": matched, "budget": budget, "seed": seed, "steps": steps, "fid": fid}
    return Row(
        **values,
        coverage=coverage,
        updates=10,
        cpu_minutes=1.0,
        guidance=None,
        clip_score=None,
        spread=None,
        samples=samples,
        scenes=0 if matched == "nothing" else scenes,
    )


def results():
    """Teacher .5 over a floor of .1; LCM 1.5 at equal updates and 1.0 at equal time; ours .7 and .9 by seed."""
    rows = [row("real", steps=0, fid=0.1, coverage=0.97), row("teacher", steps=50, fid=0.5, coverage=0.7)]
    for seed, fid in ((0, 0.7), (1, 0.9)):
        rows += [
            row("ours", "time", seed, 2, fid, 0.65),
            row("ours", "time", seed, 4, fid - 0.2, 0.68),
            row("lcm", "updates", seed, 2, 1.5, 0.6),
            row("lcm", "time", seed, 2, 1.0, 0.62),
        ]
    return rows


def test_the_figures():
    others = [row("ours", "time", 2), row("ours", "time", 0, budget=20), row("ufogen", "time", 0, 4, 0.9)]
    figures = headline([*results(), *others])
    assert (figures["seeds"], figures["budget"]) == (2, 240)
    expected = {
        "gap_closed_equal_updates": (0.8 + 0.6) / 2,
        "gap_closed_equal_time": (0.6 + 0.2) / 2,
        "coverage_closed_equal_updates": 0.5,
        "excess_ratio_2": (1.5 + 2.0) / 2,
        "excess_ratio_4": (1.0 + 1.5) / 2,
        "excess_ratio_ufogen_4": 2.0,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    # t of one degree of freedom at 97.5 % is tan(.475 π) = 12.706, and of two values the standard error half their gap
    assert figures["gap_closed_equal_updates_interval"] == pytest.approx([0.7 - 12.706 * 0.1, 0.7 + 12.706 * 0.1], 1e-4)


def test_the_table_has_a_line_of_each_budget_and_number_of_scenes_that_has_all_runs():
    fewer = [replace(one, scenes=4, fid=one.fid + 0.4) for one in results()[2:6]]
    short = [replace(one, budget=20) for one in results()[2:5]]
    header, _, *lines = summary(results() + fewer + short).splitlines()
    assert [line.split(" | ")[:4] for line in lines] == [["| 240", "4", "1", "10"], ["| 240", "8", "2", "10"]]
    # (1.9 − 1.1) / (1.9 − .5) of FID, and (1.1 − .1) / (.5 − .1)
    assert lines[0].split(" | ")[4:] == ["Mini-CLIP", "57%", "33%", "50%", "2.50", "2.00 |"]
    assert "| 70% (-57% to 197%) |" in lines[1]
    assert len(header.split(" | ")) == 10


def test_figures_by_another_network_are_not_mixed():
    by_another = [replace(one, features="efficientnet", fid=100 * one.fid + 7) for one in results()]
    assert headline(results() + by_another) == headline(results())
    alike, own = headline(by_another + results(), features="efficientnet"), headline(results())
    shares = [name for name in own if not name.endswith("_interval")]
    assert [alike[name] for name in shares] == pytest.approx([own[name] for name in shares])
    lines = summary(results() + by_another).splitlines()[2:]
    assert [line.split(" | ")[4] for line in lines] == ["Mini-CLIP", "EfficientNet-Lite0"]
    assert len(draw(results() + by_another).axes[1].containers) == 3


def test_a_line_of_several_devices_names_them():
    """Of the students that it takes: not of other budgets, and not of a rate that is behind."""
    rows = results()
    short = [replace(one, budget=20, device="cuda:1") for one in rows[2:]]
    behind = row("lcm-settles", "updates", 0, 2, 1.6, 0.5)
    alike = [*rows, *short, replace(behind, device="cuda:0")]
    assert headline(alike)["devices"] == "cpu"
    assert [line.split(" | ")[0] for line in summary(alike).splitlines()[2:]] == ["| 20", "| 240"]
    mixed = [replace(one, device="cuda:0") if (one.method, one.seed) == ("lcm", 1) else one for one in rows]
    assert headline(mixed)["devices"] == "cpu, cuda:0"
    assert summary(mixed).splitlines()[2].startswith("| 240 (cpu, cuda:0) | 8 |")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget": "x"}, "line 2: got budget 'x'; expected a number"),
        ({"matched": "fid"}, "line 2: got matched 'fid'; expected 'time' or 'updates' or 'nothing'"),
        ({"updates": 2.5}, "line 2: got updates 2.5; expected a whole number"),
        ({"seed": True}, "line 2: got seed True; expected a whole number"),
        ({"method": None}, "line 2: got method None; expected text"),
        ({"guidance": [2]}, r"line 2: got guidance \[2\]; expected a number or null"),
        ({"more": 1}, "line 2 is no row of the comparison .*'more'.*; expected method, matched"),
    ],
)
def test_a_row_of_another_form_is_named(tmp_path, change, said):
    file = tmp_path / "results.jsonl"
    append_lines(file, asdict(results()[0]), asdict(results()[2]) | change)
    with pytest.raises(UserError, match=f"results.jsonl, {said}"):
        read_rows(file)
    file.write_text("[1]\n")
    with pytest.raises(UserError, match="line 1 is no row of the comparison"):
        read_rows(file)


def test_a_number_may_be_whole_and_what_is_not_measured_null(tmp_path):
    rows = [replace(results()[0], fid=1, budget=20, guidance=None), replace(results()[2], guidance=2.0)]
    append_lines(tmp_path / "results.jsonl", *map(asdict, rows))
    assert read_rows(tmp_path / "results.jsonl") == rows


def test_lcm_is_the_better_of_its_two_rates():
    falling = [
        row("lcm-settles", "updates", 0, 2, 1.3, 0.62),
        row("lcm-settles", "updates", 1, 2, 1.7, 0.69),
    ]
    figures = headline(results() + falling)
    # ours .7 and .9, the teacher .5; LCM 1.3 and 1.5
    assert figures["gap_closed_equal_updates"] == pytest.approx((0.6 / 0.8 + 0.6 / 1.0) / 2)
    assert figures["coverage_closed_equal_updates"] == pytest.approx((0.03 / 0.08 + 0.5) / 2)
    assert figures["gap_closed_equal_time"] == headline(results())["gap_closed_equal_time"]


def test_a_seed_whose_rival_lacks_nothing_is_no_share():
    better = [replace(one, fid=0.45) if (one.method, one.seed) == ("lcm", 1) else one for one in results()]
    with pytest.raises(UserError, match="figures of seed 1 leave no gap"):
        headline(better)


def test_figures_of_other_sample_sizes_are_not_mixed():
    """FID of more samples is lower for all alike."""
    more = [replace(one, fid=one.fid - 0.05, samples=20) for one in results()]
    figures, of_more = headline(results()), headline(more)
    assert headline([*results(), *more]) == headline([*more, *results()]) == of_more
    assert headline([*results(), *more[2:5]]) == figures, "no seed of 20 has all runs"
    with pytest.raises(UserError, match="no teacher of 20 samples"):
        headline([*results(), more[0], *more[2:]])


def test_the_command(tmp_path, capsys):
    file = tmp_path / "results.jsonl"
    assert main(Headline(json=True, results=file)) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    for one in results()[:-1]:  # a run short of the second seed
        append_lines(file, asdict(one))
    assert main(Headline(json=True, results=file)) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["seeds"], figures["excess_ratio_2_interval"]) == (1, None)
    append_lines(file, {"method": "ours"})
    assert main(Headline(results=file)) == 2


class FakeTraining:
    """Takes .6 core-seconds an update as ours, .3 as another, and stops at the fifth run of the first call."""

    made: ClassVar[list] = []

    def __init__(self, config, data):
        self.config, self.backbone = config, SimpleNamespace(device="cpu")

    def train(self, report):
        if len(self.made) == 5 and "stopped" not in self.made:
            self.made.append("stopped")
            raise KeyboardInterrupt
        assert self.config.limit == 8
        self.made.append((self.config.out.name, self.config.max_steps))
        return self.config.max_steps * (0.6 if self.config.has_critic else 0.3)

    def samplers(self):
        return dict.fromkeys((1, 2, 4), SimpleNamespace(guidance=2.0))


class FakeBaseline:
    updates = 7
    backbone = SimpleNamespace(device="cpu")

    def __init__(self, out, cpu_minutes, slower, seed, scenes):
        assert (scenes, slower) == (8, 1.0)
        assert isinstance(cpu_minutes, float), "written as a command line's is, by which a run is known"
        self.minutes = cpu_minutes

    def train(self):
        return 60 * self.minutes

    def samplers(self):
        return dict.fromkeys((1, 2, 4), SimpleNamespace(guidance=2.0))


def test_a_comparison_goes_on_and_trains_for_equal_time_and_updates(tmp_path, monkeypatch):
    figures = {str(n): {"fid": 1.0, "coverage": 0.5, "clip_score": 0.9, "spread": 1.0} for n in (1, 2, 4)}
    monkeypatch.setattr(comparison, "Training", FakeTraining)
    monkeypatch.setattr(comparison, "BASELINES", {"ufogen": FakeBaseline})
    monkeypatch.setattr(comparison, "measured", lambda *arguments: figures)
    monkeypatch.setattr(comparison.Comparison, "reference", None)
    monkeypatch.setattr(FakeTraining, "made", [])
    for reference in (row("real", steps=0), row("teacher", steps=50), row("teacher", steps=25)):
        append_lines(tmp_path / "results.jsonl", asdict(reference))
    (tmp_path / "README.md").write_text("<!-- comparison -->\n<!-- end of comparison -->\n")

    def compare(samples=10):
        options = {"budgets": (1,), "seeds": (0, 1), "methods": ("ours", "lcm"), "baselines": ("ufogen",)}
        options |= {"samples": samples, "scenes": 8, "folder": tmp_path, "runs": tmp_path / "runs"}
        comparison.Comparison(**options).run(lambda *tick: None)

    with pytest.raises(KeyboardInterrupt):
        compare()
    compare()
    trained = [made for made in FakeTraining.made if made != "stopped" and not made[0].startswith("calibration")]
    runs = {"ours-time-1-{}": 100, "lcm-time-1-{}": 200, "lcm-updates-1-{}": 100}
    assert trained == [(name.format(seed), updates) for seed in (0, 1) for name, updates in runs.items()]
    rows = read_rows(tmp_path / "results.jsonl")
    assert [r.steps for r in rows if r.method == "lcm"] == [1, 2, 4] * 4
    others = [(r.method, r.updates, r.cpu_minutes, r.seed) for r in rows if r.method == "ufogen" and r.steps == 4]
    assert others == [("ufogen", 7, 1.0, 0), ("ufogen", 7, 1.0, 1)]
    assert {r.guidance for r in rows if r.method in ("ours", "lcm", "ufogen")} == {2.0}
    assert "lcm | updates" in (tmp_path / "README.md").read_text()
    for reference in (row("real", steps=0), row("teacher", steps=50), row("teacher", steps=25)):
        append_lines(tmp_path / "results.jsonl", asdict(replace(reference, samples=20)))
    compare(samples=20)
    more = read_rows(tmp_path / "results.jsonl")[len(rows) + 3 :]
    assert [(r.run, r.steps, r.updates) for r in more] == [(r.run, r.steps, r.updates) for r in rows[3:]]
    assert {r.samples for r in more} == {20}
    monkeypatch.setitem(comparison.METHODS, "ours", partial(comparison.METHODS["ours"], adversarial_share=0.3))
    with pytest.raises(UserError, match="has ours of seed 0 by another recipe"):
        compare()


def test_a_comparison_that_cannot_be_shown_is_not_made(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison.Comparison, "measure_references", None)
    options = {"folder": tmp_path, "runs": tmp_path / "runs"}
    (tmp_path / "README.md").write_text("# A page of another kind\n")
    with pytest.raises(UserError, match="has no place for the table comparison"):
        comparison.Comparison(**options).run(print)
    (tmp_path / "README.md").write_text("<!-- comparison -->\n<!-- end of comparison -->\n")
    with pytest.raises(UserError, match="got a budget of -5; expected core-minutes above 0"):
        comparison.Comparison(**options, budgets=(20, -5)).run(print)
    with pytest.raises(UserError, match="got --slower 0; expected a finite number above 0"):
        comparison.Comparison(**options, slower=0).run(print)


def test_a_new_folder_gets_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison.Comparison, "measure_references", lambda *_: None)
    folder, nothing = tmp_path / "a" / "new", {"seeds": (), "runs": tmp_path / "runs"}
    compared = comparison.Comparison(folder=folder, **nothing)
    compared.run(print)
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "quality.svg"]
    append_lines(compared.file, asdict(results()[2]))
    (folder / "README.md").write_text("My words.\n" + (folder / "README.md").read_text())
    compared.run(print)
    page = (folder / "README.md").read_text()
    assert page.startswith("My words.\n# Comparison\n")
    assert "| ours | time | 240 |" in page


@pytest.mark.parametrize("page", [None, "", "<!-- end of a -->\n<!-- a -->", "<!-- a --><!-- end of a --><!-- a -->"])
def test_a_page_without_a_place_is_left_as_it_is(tmp_path, page):
    file = tmp_path / "README.md"
    if page is not None:
        file.write_text(page)
    with pytest.raises(UserError, match="has no place for the table a"):
        insert(file, "a", "text")
    assert (file.read_text() if file.is_file() else None) == page


def test_no_results_are_no_figure(tmp_path, capsys):
    out = tmp_path / "quality.svg"
    assert draw_again(out, tmp_path / "none.jsonl") == 2
    assert "there are no results" in capsys.readouterr().err
    assert not out.exists()


def test_the_figures_are_of_runs_on_as_many_scenes():
    fewer = [replace(one, scenes=4, fid=2 * one.fid) for one in results() if one.matched != "nothing"]
    assert headline(results() + fewer) == headline(results())
    alone = headline([one for one in results() if one.matched == "nothing"] + fewer)
    assert alone["scenes"] == 4
    assert headline(results() + fewer, scenes=4) == alone
    with pytest.raises(UserError, match="no seed has ours"):
        headline(results() + fewer, scenes=5)


def test_a_comparison_on_a_gpu_is_told_what_an_update_costs_a_core(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "best_device", lambda: torch.device("cuda"))
    options = {"methods": ("ours", "lcm"), "folder": tmp_path, "runs": tmp_path}
    with pytest.raises(UserError, match="got no --cost of lcm"):
        comparison.Comparison(**options, cost=("ours=0.5",)).run(print)
    with pytest.raises(UserError, match="got --cost lcm=fast; expected seconds of"):
        comparison.Comparison(**options, cost=("ours=0.5", "lcm=fast")).run(print)
    given = comparison.Comparison(**options, cost=("ours=0.5", "lcm=0.25"))
    blank = row("lcm", matched="time", budget=20)
    assert given.updates(blank, tmp_path / "none", print) == 20 * 60 * 4


def test_a_calibration_is_of_the_core_that_budgets_are_of(tmp_path, monkeypatch):
    """Forty updates take 12 s: of a core twice as fast a minute is 120 s here."""
    monkeypatch.setattr(comparison, "Training", FakeTraining)
    monkeypatch.setattr(FakeTraining, "made", [])
    options = {"scenes": 8, "folder": tmp_path, "runs": tmp_path}
    updates = [
        comparison.Comparison(**options, slower=slower).updates(
            row("lcm", "time", budget=1.0), tmp_path / "none", print
        )
        for slower in (1.0, 2.0)
    ]
    assert updates == [200, 400]


def test_as_many_updates_as_ours_are_those_of_another_seed_where_its_own_is_not_there(tmp_path):
    ours = [replace(row("ours", "time", seed), updates=updates) for seed, updates in ((0, 5), (1, 6))]
    append_lines(tmp_path / "results.jsonl", *map(asdict, ours))
    compared = comparison.Comparison(scenes=8, folder=tmp_path, runs=tmp_path)
    made = [compared.updates(row("lcm", "updates", seed), tmp_path / "none", print) for seed in (0, 1, 2)]
    assert made == [5, 6, 5]
    with pytest.raises(UserError, match="got lcm at equal updates without ours"):
        compared.updates(row("lcm", "updates", 0, budget=20), tmp_path / "none", print)


def test_the_figure_has_the_excess_of_the_most_samples_by_seed_and_scenes():
    rows = results()  # the floor is .1 and the teacher .5
    fewer = [replace(one, samples=5, fid=2 * one.fid) for one in rows]
    on_four = [replace(one, scenes=4, fid=one.fid + 0.4) for one in rows if one.matched != "nothing"]
    by_budget = points([(one, q) for one, q in ratios(rows + fewer + on_four) if one.steps == 2], "budget")
    assert by_budget["ours", "time", 8] == [(240, pytest.approx([1.5, 2.0]))]
    assert by_budget["ours", "time", 4] == [(240, pytest.approx([2.5, 3.0]))]
    by_calls, of_budgets = draw(rows + on_four).axes
    assert [len(drawn.containers) for drawn in (by_calls, of_budgets)] == [3, 6]  # by calls on most scenes alone
    assert [text.get_text() for text in of_budgets.get_legend().get_texts()] == ["on fewer than 8 scenes"]
    assert draw(rows).axes[1].get_legend() is None
    drawn = [line.get_label() for line in draw(rows).legends[0].get_texts()]
    assert len(drawn) == 4
    assert ratios([row("real", steps=0, fid=1.0), row("teacher", steps=50, fid=1.0), row("ours", fid=2.0)]) == []
