"""The protocol on a sampler and features small enough to know the answer."""

import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scott.errors import UserError
from scott.evaluation import (
    batch_seed,
    coverage,
    evaluate,
    frechet_distance,
    pictures,
)
from scott.evaluation.evaluating import Diversity
from scott.evaluation.matrices import resamples
from scott.evaluation.measures import Figure, Resampled, few, figures, over_seeds, too_small
from scott.evaluation.pictures import is_whole
from scott.evaluation.references import Reference


class MeanColour:
    description = "mean colour"
    """An image's feature is its mean colour, a caption's the colour it names."""

    colours = {"red": [1.0, 0.0, 0.0], "green": [0.0, 1.0, 0.0], "blue": [0.0, 0.0, 1.0]}  # noqa: RUF012

    def images(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))

    def texts(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([self.colours[text] for text in texts])


def paint(prompts: Sequence[str], seed: int) -> Tensor:
    noise = torch.rand(len(prompts), 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return 0.5 * MeanColour().texts(prompts)[:, :, None, None] + 0.5 * noise


PROMPTS = ["red", "green", "blue", "red", "green", "blue", "blue"]
REFERENCE = torch.rand(20, 3, generator=torch.Generator().manual_seed(5))


class Painter:
    steps, network_calls, guidance = 2, 2, 3.0

    def __init__(self, generate=paint) -> None:
        self.generate = generate

    def __call__(self, prompts: Sequence[str], seed: int) -> Tensor:
        return self.generate(prompts, seed)


def reference(**changed) -> Reference:
    colour = MeanColour()
    return Reference(PROMPTS, {"features": colour, "clip": colour}, {"features": REFERENCE}, **changed)


def run(generate=paint, *, of=None, **changed):
    options = {"seeds": (3,), "batch_size": 3, "name": "student"} | changed
    return evaluate(Painter(generate), of or reference(), **options)


def test_measures_are_those_of_the_images_the_seeds_give() -> None:
    batches = [PROMPTS[:3], PROMPTS[3:6], PROMPTS[6:]]
    images = torch.cat([paint(batch, batch_seed(3, i)) for i, batch in enumerate(batches)])
    images = (255 * images).round() / 255
    fakes, texts = images.mean(dim=(2, 3)), MeanColour().texts(PROMPTS)
    row = run()
    assert (row.name, row.steps, row.network_calls, row.samples) == ("student", 2, 2, 7)
    assert (row.guidance, row.seeds) == (3.0, (3,))
    assert row.fid == frechet_distance(REFERENCE, fakes)
    assert row.coverage == coverage(REFERENCE, fakes)
    assert row.clip_score == pytest.approx(torch.cosine_similarity(fakes, texts).mean().item())
    assert not row.recorded


def test_same_seed_same_row_other_seed_other_row() -> None:
    assert run().fid == run().fid
    assert run().fid != run(seeds=(4,)).fid


def test_batch_seeds_are_fixed_and_distinct() -> None:
    seeds = {batch_seed(seed, batch) for seed in range(50) for batch in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert batch_seed(0, 0) == 2968811710  # results already published hang on this


@pytest.mark.parametrize(("batch_size", "expected"), [(3, (2.0 + 1.0) / 4), (7, 9.0 / 7)])
def test_the_first_of_several_batches_is_warm_up(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, expected: float
) -> None:
    now, durations = [0.0], iter([9.0, 2.0, 1.0])

    def slow(prompts: Sequence[str], seed: int) -> Tensor:
        now[0] += next(durations)
        return paint(prompts, seed)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert run(slow, batch_size=batch_size).seconds_per_image == expected


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch):
    """`launched(**options)`: the row of a new process, whose first batch takes 9 seconds and others one a picture."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def launch(**options):
        durations = iter([9.0])

        def slow(prompts: Sequence[str], seed: int) -> Tensor:
            now[0] += next(durations, len(prompts))
            return paint(prompts, seed)

        return run(slow, **{"batch_size": 1} | options)

    return launch


@pytest.mark.parametrize(("count", "expected"), [(3, 1.0), (7, None)])
def test_each_process_warms_up(launched, tmp_path, count: int, expected: float | None) -> None:
    """Of one batch each nothing else is known."""
    for rank in range(1, count):
        launched(images=tmp_path, process=(rank, count))
    assert launched(images=tmp_path, process=(0, count)).seconds_per_image == expected


def test_each_launch_on_a_kept_folder_warms_up(launched, tmp_path) -> None:
    """Whether it goes on within a seed or adds one; of one batch a seed, the first process's first alone."""
    launched(images=tmp_path)
    for file in sorted(tmp_path.rglob("*.png"))[3:]:
        file.unlink()
    assert launched(images=tmp_path).seconds_per_image == 1.0
    assert launched(images=tmp_path, seeds=(3, 4)).seconds_per_image == 1.0
    for _ in range(2):
        assert launched(images=tmp_path / "one", batch_size=7).seconds_per_image == 9 / 7
    assert launched(images=tmp_path / "two", batch_size=7, seeds=(3, 4)).seconds_per_image == 1.0


def test_progress_counts_images() -> None:
    seen = []
    run(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize(
    ("generate", "message"),
    [
        (lambda prompts, seed: paint(prompts, seed) * 3, r"expected \[0, 1\]"),
        (lambda prompts, seed: paint(prompts, seed)[:1], "got 1 images for 3 prompts"),
        (lambda prompts, seed: paint(prompts, seed)[0], r"expected floats \(B, 3, H, W\)"),
    ],
)
def test_refuses_what_is_not_an_image_for_each_prompt(generate, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(generate)


def test_what_cannot_be_measured_is_refused_before_a_picture_is_drawn() -> None:
    def drawn(prompts: Sequence[str], seed: int) -> Tensor:
        raise AssertionError

    with pytest.raises(UserError, match="got a sampler without steps, network_calls, guidance"):
        evaluate(drawn, reference(), name="mine")
    with pytest.raises(UserError, match="got the metric fidd"):
        run(drawn, of=reference(metrics=["fid", "fidd"]))


def test_refuses_an_empty_batch() -> None:
    with pytest.raises(ValueError, match="batch size 0"):
        run(batch_size=0)


OTHERS = torch.rand(7, 3, generator=torch.Generator().manual_seed(6))


def test_the_floor_and_the_excess_over_it() -> None:
    measured = reference(others={"features": OTHERS})
    floor = measured.floor()
    assert (floor.name, floor.samples, floor.network_calls) == ("real-vs-real", 7, 0)
    assert floor.clip_score is floor.seconds_per_image is None
    assert floor.fid == frechet_distance(REFERENCE, OTHERS)
    assert floor.coverage == coverage(REFERENCE, OTHERS)
    row = run(of=measured)
    assert row.metrics["fid"].excess == row.fid - floor.fid
    assert row.metrics["clip-score"].excess is None


def test_seeds_are_averaged_and_shown() -> None:
    apart = [run(seeds=(seed,)).fid for seed in (3, 4)]
    row = run(seeds=(3, 4))
    assert row.metrics["fid"].seeds == tuple(apart)
    assert row.fid == pytest.approx(sum(apart) / 2)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """The mean cosine is a mean: of 200 samples, the 95 % intervals miss its expectation 2 to 9 % of the time."""
    missed = 0
    for index in range(200):
        generator = torch.Generator().manual_seed(index)
        angle = torch.rand(100, generator=generator)
        images = torch.stack([angle.cos(), angle.sin()], dim=1)
        texts = torch.tensor([[1.0, 0.0]]).expand(100, 2)
        low, high = figures(["clip-score"], {}, {"clip": texts}, {"clip": images}, 100)["clip-score"].interval
        missed += not low <= torch.tensor(1.0).sin().item() <= high
    assert 4 <= missed <= 22


@pytest.mark.parametrize(
    ("name", "width"), [("fid", 4), ("fid", 100), ("fid", 250), ("kid", 100), ("coverage", 4), ("recall", 16)]
)
def test_an_interval_holds_the_mean_over_a_samplers_samples_and_is_no_wider(name: str, width: int) -> None:
    """Also of a distance of features that 200 samples hardly fill, or do not."""

    def normal(seed: int) -> Tensor:
        return torch.randn(200, width, generator=torch.Generator().manual_seed(seed))

    real = {"features": normal(1000)}
    found = [figures([name], real, {}, {"features": 0.9 * normal(seed) + 0.1}, 60)[name] for seed in range(60)]
    values = torch.tensor([figure.value for figure in found], dtype=torch.float64)
    mean = values.mean().item()
    assert sum(figure.interval[0] <= mean <= figure.interval[1] for figure in found) >= 50
    halves = torch.tensor([figure.interval[1] - figure.interval[0] for figure in found]) / 2
    assert 0.75 < (halves.mean() / (1.96 * values.std())).item() < 1.5
    bounded = name in ("coverage", "recall")
    assert all(f.interval[0] >= 0 and f.interval[1] <= 1 for f in found if bounded)


def test_the_interval_of_several_seeds_is_that_of_their_mean() -> None:
    """The cosine is a mean over captions, so that resamples of the seeds' mean are means of each caption's own mean."""
    texts = MeanColour().texts(PROMPTS)
    cosines = []
    for seed in (3, 4):
        fakes = torch.cat([paint(PROMPTS[i : i + 3], batch_seed(seed, i // 3)) for i in (0, 3, 6)])
        fakes = ((255 * fakes).round() / 255).mean(dim=(2, 3))
        cosines.append(torch.cosine_similarity(fakes.double(), texts.double()))
    resampled = resamples(7, 30)[1:] @ torch.stack(cosines).mean(dim=0) / 7
    figure = run(of=reference(replicates=30), seeds=(3, 4)).metrics["clip-score"]
    low, high = figure.interval
    assert (low + high) / 2 == pytest.approx(figure.value)
    assert high - low == pytest.approx(2 * 1.96 * resampled.std().item(), rel=1e-5)


def test_the_interval_of_several_seeds_keeps_a_metrics_bounds_and_its_whole_side() -> None:
    def coverage(*values: float) -> dict[str, Resampled]:
        return {"coverage": Resampled(torch.tensor(values, dtype=torch.float64), (0.0, 1.0))}

    figure = over_seeds([coverage(0.96, 0.94, 0.98), coverage(1.0, 0.98, 1.0)])["coverage"]
    half = 1.96 * torch.tensor([0.96, 0.99]).std().item()
    assert (figure.value, figure.seeds) == (pytest.approx(0.98), (0.96, 1.0))
    assert figure.interval == (pytest.approx(0.98 - half), 1.0)


@pytest.mark.parametrize(
    ("name", "instrument", "fakes"),
    [
        ("density", "features", [[0.0] * 4, [0.3] * 4, *[[9.0] * 4] * 10]),
        ("spread", "features", [[6.0] * 4, *[[0.0] * 4] * 11]),
        ("cmmd", "clip-l", [[1.0, 0, 0, 0], [-1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, -1.0, 0, 0]]),
    ],
)
def test_what_cannot_be_negative_has_no_interval_below_0(name: str, instrument: str, fakes: list[list[float]]) -> None:
    real = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    figure = figures([name], {instrument: real}, {}, {instrument: torch.tensor(fakes)}, 60)[name]
    assert figure.interval[0] == 0 < figure.value < figure.interval[1]


def test_an_interval_leaves_out_what_other_real_pictures_would_add() -> None:
    def normal(seed: int) -> Tensor:
        return torch.randn(300, 6, generator=torch.Generator().manual_seed(seed))

    def deviation(real: list[Tensor]) -> float:
        drawn = [{"features": 0.9 * normal(seed)} for seed in range(100)]
        found = [figures(["fid"], {"features": x}, {}, y)["fid"].value for x, y in zip(real, drawn, strict=True)]
        return torch.tensor(found).std().item()

    same, others = deviation([normal(1000)] * 100), deviation([normal(2000 + index) for index in range(100)])
    assert others / same == pytest.approx(1.5, abs=0.25)


def test_what_a_picture_shows_is_averaged_over_where_it_applies() -> None:
    def reading(pictures: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        blue, red = (torch.tensor([one == colour for one in captions]).float() for colour in ("blue", "red"))
        return {"blue": blue, "red": torch.where(blue.bool(), torch.nan, red)}

    row = run(of=reference(reading=reading))
    assert row.metrics["blue"].value == pytest.approx(3 / 7)
    assert row.metrics["red"].value == 0.5


def test_kept_pictures_are_measured_alike_and_not_drawn_again(tmp_path) -> None:
    drawn = run(images=tmp_path)
    files = sorted(tmp_path.rglob("*.png"))
    assert [file.name for file in files] == [f"{index:05d}.png" for index in range(7)]
    files[4].unlink()  # of the second batch, which alone is drawn again
    asked = []

    def counted(prompts: Sequence[str], seed: int) -> Tensor:
        asked.append(list(prompts))
        return paint(prompts, seed)

    again = run(counted, images=tmp_path)
    assert asked == [PROMPTS[3:6]]
    assert again.metrics == drawn.metrics == run().metrics
    with pytest.raises(UserError, match="made otherwise"):
        run(images=tmp_path, made={"guidance": 7.5})


@pytest.mark.parametrize("part", [0, 0.01, 0.3, 0.7, 0.95])
def test_a_picture_that_was_cut_off_is_drawn_again(part: float, tmp_path) -> None:
    def large(prompts: Sequence[str], seed: int) -> Tensor:
        return torch.nn.functional.interpolate(paint(prompts, seed), size=64)

    drawn = run(large, images=tmp_path)
    file = sorted(tmp_path.rglob("*.png"))[4]
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    assert run(large, images=tmp_path).metrics == drawn.metrics
    assert is_whole(file)


def test_a_batch_of_which_one_was_made_otherwise_is_left(tmp_path) -> None:
    """Also where another of it is missing."""
    run(images=tmp_path, made={"guidance": 7.5})
    files = sorted(tmp_path.rglob("*.png"))
    files[0].unlink()
    with pytest.raises(UserError, match=r"00001\.png was made otherwise"):
        run(images=tmp_path)
    assert not files[0].exists()


def test_a_picture_of_a_batch_of_another_length_is_drawn_again(tmp_path) -> None:
    """Its noise may be another: fewer prompts, and then more, are as if they were the first."""
    asked = []

    def by_length(prompts: Sequence[str], seed: int) -> Tensor:
        asked.append(list(prompts))
        return paint(prompts, seed) / len(prompts)

    run(by_length, images=tmp_path)
    for count, drawn_again in ((5, PROMPTS[3:5]), (7, PROMPTS[3:6])):
        of = replace(reference(), prompts=PROMPTS[:count])
        asked.clear()
        kept = run(by_length, of=of, images=tmp_path)
        assert asked == [drawn_again]
        assert kept.metrics == run(by_length, of=of).metrics


@pytest.mark.parametrize("process", [(0, 1), (0, 2)])
def test_pictures_of_another_batch_size_are_left(tmp_path, process: tuple[int, int]) -> None:
    """Those of the first batch too, whose seed is the same, whichever process would have drawn the others."""
    run(images=tmp_path, batch_size=7)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.png")}
    with pytest.raises(UserError, match=r"00004\.png was made otherwise"):
        run(images=tmp_path, batch_size=4, process=process)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.png")} == before


def test_waiting_for_a_process_that_is_gone_is_said(tmp_path, monkeypatch) -> None:
    said = []
    monkeypatch.setattr(pictures, "LINE_SECONDS", 0)
    monkeypatch.setattr(pictures, "POLL_SECONDS", 0)

    def warn(message: str) -> None:
        said.append(message)
        if len(said) == 2:
            run(images=tmp_path, process=(1, 2))

    monkeypatch.setattr(pictures, "warn", warn)
    assert run(images=tmp_path, process=(0, 2)).metrics == run().metrics
    assert len(said) == 2
    assert "00005.png, which process 1 draws; if it is gone, stop this, and the same command goes on" in said[0]


def test_a_kept_picture_has_its_calls(tmp_path) -> None:
    """Also of a sampler that counts them while it draws."""

    class Counting(Painter):
        network_calls = 0

        def __call__(self, prompts: Sequence[str], seed: int) -> Tensor:
            self.network_calls = 4
            return paint(prompts, seed)

    rows = [evaluate(Counting(), reference(), name="student", images=tmp_path) for _ in range(2)]
    assert [row.network_calls for row in rows] == [4, 4]


def test_two_processes_share_the_drawing(tmp_path) -> None:
    other = run(images=tmp_path, process=(1, 2))
    assert len(list(tmp_path.rglob("*.png"))) == 3, "the second of three batches"
    assert not other.metrics
    assert run(images=tmp_path, process=(0, 2)).metrics == run().metrics


def test_spread_is_the_mean_distance_of_a_captions_pictures() -> None:
    def two(prompts: Sequence[str], seed: int) -> Tensor:
        values = torch.linspace(0, 1, len(prompts)).view(-1, 1, 1, 1)
        return values.expand(-1, 3, 4, 4)

    sizes = set()

    class Seeing(MeanColour):
        def images(self, images: Tensor) -> Tensor:
            sizes.add(images.shape[-2:])
            return super().images(images)

    measured = Reference(["red", "blue"], {"features": Seeing()}, {}, size=4)
    Diversity(measured, 3, seed=1).of(lambda prompts, seed: torch.zeros(len(prompts), 3, 8, 8))
    assert sizes == {(4, 4)}, "the size that is measured, whatever is drawn"
    measured = Reference(["red", "blue"], {"features": MeanColour()}, {}, redrawn=two)
    figure = Diversity(measured, 3, seed=1).of(two)["diversity"]
    assert figure.value == figure.floor == pytest.approx(3**0.5 * (0.5 + 0.5 + 1) / 3, rel=1e-6)

    asked = []

    def black(prompts: Sequence[str], seed: int) -> Tensor:
        asked.append((len(prompts), seed))
        return torch.zeros(len(prompts), 3, 4, 4)

    def reading(pictures: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        return {
            "first": torch.tensor([1.0, 0.0, torch.nan]) if captions == ["red"] * 3 else torch.full((3,), torch.nan)
        }

    measured.reading_variants, measured.redrawn = reading, None
    figures = Diversity(measured, 3, seed=1, batch_size=2).of(black)
    assert [count for count, _ in asked] == [2, 1, 2, 1]
    assert len({seed for _, seed in asked}) == 4
    assert (figures["diversity"].value, figures["diversity"].floor) == (0, None)
    assert figures["first"].value == 0.5, "over the pictures and captions where it applies"


def test_a_sample_too_small_is_said() -> None:
    seven = torch.rand(7, 9, generator=torch.Generator().manual_seed(1))

    class Wide(MeanColour):
        def images(self, images: Tensor) -> Tensor:
            return seven[: len(images)]

    wide = Wide()
    measured = Reference(
        PROMPTS, {"features": wide}, {"features": seven}, metrics=("fid", "coverage"), others={"features": seven}
    )
    remark = run(of=measured, batch_size=7).remark
    assert "fid: 7 samples do not fill the covariance of 9 features; read its excess." in remark
    assert "features; draw more." in run(of=replace(measured, others={}), batch_size=7).remark, "there is no excess"
    assert "coverage: at its ceiling" in remark


@pytest.mark.parametrize(("low", "said"), [(-0.1, True), (0.01, False)])
def test_a_kid_that_may_be_0_is_said(low: float, said: bool) -> None:
    assert bool(too_small("kid", Figure(0.2, (low, 0.4)), 1000, 0)) == said


def test_few_samples_are_said() -> None:
    assert few(999) == "999 samples are few for any figure; draw 1,000 or more."
    assert few(1000) is None


@pytest.mark.parametrize(("value", "said"), [(0.975, True), (0.97, False)])
def test_coverage_within_chance_of_the_floor_is_at_its_ceiling(value: float, said: bool) -> None:
    # two deviations of a difference of two shares of 1,000: 2 √(2 · .984 · .016 / 1000) = .0112
    assert bool(too_small("coverage", Figure(value, floor=0.984), 1000, 0)) == said
