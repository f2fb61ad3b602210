"""What `experiments.mixture` trains: networks side by side, the energy score, and every method on a few updates."""

import json

import pytest
import torch
from experiments.energy import energy_score
from experiments.mixture import exact, tables
from experiments.mixture.__main__ import Run
from experiments.mixture.methods import METHODS, Trial, trials
from experiments.mixture.networks import Networks
from experiments.mixture.trained import DATA, distances
from experiments.mixture.training import BATCH, SD, Training

from scott.errors import UserError
from scott.sampling import sample


def test_networks_side_by_side_are_networks_of_their_own():
    networks = Networks(torch.tensor([1e-3, 1e-2]), 3, 2, 8, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(networks.parameters(), lr=1.0)
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    networks(x).sum().backward()
    optimizer.step()
    moved = (networks.rates * networks.biases[-1].detach()).abs().mean((1, 2))
    assert moved.tolist() == pytest.approx([1e-3, 1e-2], rel=1e-3)
    other = torch.cat([x[:5], torch.zeros(5, 3)])
    assert networks(x)[:5].equal(networks(other)[:5])
    assert not networks(x)[5:].equal(networks(other)[5:])


def test_the_energy_score_is_least_for_the_law_itself():
    generator = torch.Generator().manual_seed(0)
    first, second, target = torch.randn(3, 200_000, 2, generator=generator)
    scores = {
        (shift, spread): energy_score(shift + spread * first, shift + spread * second, target).mean().item()
        for shift in (0.0, 0.2)
        for spread in (0.7, 1.0, 1.3)
    }
    assert min(scores, key=scores.get) == (0.0, 1.0)


def test_every_method_has_as_many_trials():
    assert {len(trials(method)) for method in METHODS.values()} == {6}


@pytest.mark.parametrize("name", DATA)
def test_every_weight_is_trained(name):
    """Of a student and of what stands against it, in whatever number of dimensions."""
    data, width = DATA[name]
    for method in ("noise, critic of drawn fakes", "noise, dmd of drawn fakes"):
        training = Training(METHODS[method], data, [Trial(1e-2, 0.03)], width, seed=0)
        training.train(4, of=4)
        for networks in (training.student.networks, training.opponent):
            assert all(bool(weight.any()) for weight in networks.weights)


@pytest.mark.parametrize(
    "name", ["lcm", "noise, critic of noised fakes", "noise, dmd of drawn fakes", "energy score, critic of drawn fakes"]
)
def test_a_student_comes_nearer_to_the_data_than_its_teacher_in_one_step(name):
    data, _ = DATA["2-d"]
    training = Training(METHODS[name], data, [Trial(1e-2, 0.03)], 32, seed=0)
    reference = data.sample(4000, torch.Generator().manual_seed(1))
    noise = torch.randn(1000, 2, generator=torch.Generator().manual_seed(2))

    def w1():
        assert len(training.strength) == BATCH
        drawn = sample(training.target, SD, noise, None, times=training.grid.inference_times(1))
        return distances(drawn.double(), reference)[0]

    before = w1()
    training.train(120, of=120)
    assert w1() < 0.85 * before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"updates": 5}, "is of 3 seeds, 7 updates; ask for as many"),
        ({"updates": 7, "seeds": 4}, "is of 3 seeds, 7 updates; ask for as many"),
        ({"methods": ("foo",)}, "got method 'foo'"),
        ({"samples": 30_000}, "a divisor of 100,000 samples"),
        ({"updates": 3}, "3 updates and 50000 samples; expected"),
    ],
)
def test_rows_of_another_length_are_not_taken_for_those_asked_for(of_seven_updates, options, message):
    with pytest.raises(UserError, match=message):
        Run(("2-d",), folder=of_seven_updates, **{"seeds": 3, "methods": ("lcm",)} | options).run()


@pytest.fixture(scope="module")
def of_seven_updates(tmp_path_factory):
    """The folder of a part that was made of three seeds and seven updates."""
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "README.md").write_text("<!-- 2-d -->\n<!-- end of 2-d -->\n")
    Run(("2-d",), folder=folder, seeds=3, updates=7, methods=("lcm",)).run()
    return folder


def test_rows_that_are_there_are_not_made_again(of_seven_updates):
    """Of as many updates as were asked for, in four parts."""
    file = of_seven_updates / "results" / "2-d.json"
    made = json.loads(file.read_text())
    assert [quarter["updates"] for quarter in made["rows"][1]["quarters"]] == [1, 3, 5, 7]
    Run(("2-d",), folder=of_seven_updates, seeds=3, updates=7, methods=("lcm",)).run()
    assert json.loads(file.read_text())["rows"] == made["rows"]


def test_a_part_without_an_order_of_its_own_is_written_whole(tmp_path, monkeypatch):
    """Stopped at its second row, it begins anew."""
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").touch()

    def stopped():
        yield {"s": 1}
        raise KeyboardInterrupt

    monkeypatch.setattr(exact, "gaussian", stopped)
    with pytest.raises(KeyboardInterrupt):
        Run(("gaussian",), folder=tmp_path).run()
    assert not any((tmp_path / "results").iterdir())


def test_a_folder_without_its_page_or_with_broken_rows_is_a_line(tmp_path):
    with pytest.raises(UserError, match=r"has no README\.md"):
        Run(("gaussian",), folder=tmp_path).run()
    (tmp_path / "README.md").touch()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "gaussian.json").write_text("{")
    with pytest.raises(UserError, match=r"gaussian\.json has no rows of a part"):
        Run(folder=tmp_path).run()


def test_the_floor_alone_is_a_table(of_seven_updates):
    floor = json.loads((of_seven_updates / "results" / "2-d.json").read_text())["rows"][:1]
    assert len(tables.trained({"rows": floor}).splitlines()) == 3


def test_at_equal_time_a_figure_is_on_the_line_between_its_neighbours():
    quarters = [{"cpu_seconds": s, "2": {"w1": [w, w / 10]}} for s, w in ((1.0, 0.4), (2.0, 0.2))]
    assert tables._at(1.5, {"method": "ode", "quarters": quarters}) == "0.300 ± 0.030"
    assert tables._at(1.5, {"method": "noise annealed", "quarters": quarters}) is None


def test_fixed_points_of_another_number_of_samples_are_refused(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("<!-- jumps -->\n<!-- end of jumps -->\n")
    monkeypatch.setattr(exact, "jumps", lambda seeds, samples: iter([{"jump": 24, "h": 3, "spacing": 8}]))
    monkeypatch.setattr(tables, "TABLES", {"jumps": lambda made: ""})
    Run(("jumps",), folder=tmp_path, samples=100).run()
    Run(("jumps",), folder=tmp_path, samples=100).run()
    with pytest.raises(UserError, match="is of 10 seeds, 100 samples; ask for as many"):
        Run(("jumps",), folder=tmp_path).run()
