"""Real pictures that samplers are measured on: each once, and kept for the next time."""

import json
from pathlib import Path

import pytest
import torch
from tests.data.making import noise, saved
from torch import nn

from scott.data.sources import open_source
from scott.errors import UserError
from scott.evaluation.features import Features
from scott.evaluation.references import SAME, source_reference

SIDE = 16


class Mean(nn.Linear):
    """Of each channel; counts what it is asked for. Its weights are a network's that has none."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        self.asked = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.asked += len(images)
        return images.mean((2, 3))


@pytest.fixture
def several(tmp_path, monkeypatch):
    """A table of `count` pictures with a row a caption, three each; `write(count)` gives its source."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(count: int, folder: str = "data", start: int = 0):
        place = tmp_path / folder
        place.mkdir()
        rows = []
        for number in range(start, start + count):
            (place / f"{number:02d}.png").write_bytes(saved(noise(number, SIDE, SIDE)))
            rows += [{"file_name": f"{number:02d}.png", "text": f"{k} of {number}"} for k in range(3)]
        (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return open_source(str(place))

    return write


def reference(source, samples=10, network=None, **options):
    network = network or Mean()
    instruments = {"features": Features("mean", network, network)}
    return source_reference(source, samples, SIDE, instruments, lambda *_: None, **options)


def test_a_picture_with_a_row_a_caption_is_measured_once(several) -> None:
    """And is not in the floor either."""
    found = reference(several(20))
    assert found.names == [f"{number:02d}.png" for number in range(10)]
    assert found.prompts == [f"0 of {number}" for number in range(10)]
    assert found.skipped == {SAME: 18}, "of those before the tenth"
    both = torch.cat([found.real["features"], found.others["features"]])
    assert len({tuple(row) for row in both.tolist()}) == 20


def test_fewer_pictures_than_rows_have_no_floor(several) -> None:
    found = reference(several(12), samples=30)
    assert (len(found.prompts), len(found.others)) == (12, 0)


def test_rows_of_one_picture_are_kept_for_the_next_time(several, tmp_path) -> None:
    source, networks = several(20), (Mean(), Mean())
    first, again = (reference(source, network=network, key=["k"]) for network in networks)
    assert [network.asked for network in networks] == [20, 0]
    assert (again.names, again.skipped) == (first.names, first.skipped)
    assert all(torch.equal(again.real[name], value) for name, value in first.real.items())
    (Path(tmp_path) / "data" / "05.png").write_bytes(b"")
    assert len(reference(open_source(str(tmp_path / "data")), key=["k"]).prompts) == 10
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1, "what cannot be read is looked at again"


def test_a_set_that_is_measured_as_it_was_published_keeps_its_copies(several) -> None:
    assert reference(several(4), once=False).names == [f"{number // 3:02d}.png" for number in range(10)]


def test_a_floor_of_the_same_pictures_is_none(several) -> None:
    said = r"got 2 readable pictures in --floor-data \(same-picture 34\); expected as many as are drawn, 10"
    with pytest.raises(UserError, match=said):
        reference(several(20), floor=several(12, "floor"))
