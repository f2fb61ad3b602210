"""Pictures that were kept, measured again."""

import pytest
import torch

from scott.data.sources import open_source
from scott.errors import UserError
from scott.evaluation.pictures import Batches, write_captions
from scott.evaluation.stored import StoredPictures


class Noise:
    steps = network_calls = 1
    guidance = None

    def __call__(self, prompts, seed):
        return torch.rand(len(prompts), 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_a_folder_that_was_drawn_again_with_fewer_is_those(tmp_path) -> None:
    """The others stay there, and its captions do not list them."""
    folder = tmp_path / "row" / "seed-1"
    for count in (5, 3):
        prompts = [f"picture {index}" for index in range(count)]
        Batches(Noise(), prompts, 1, 2, folder, {}, (0, 1)).draw_own(None)
        write_captions(folder, prompts)
    assert len(list(folder.glob("*.png"))) == 5
    stored = StoredPictures(folder, open_source(str(folder)))
    stored.size = 8
    assert (stored.names, stored.prompts) == ([f"{index:05d}.png" for index in range(3)], prompts)
    ((pixels, _),) = stored.batches(3, 4)
    assert len(pixels) == 3
    assert stored.drawn["seeds"] == (1,)


def test_a_table_that_leaves_out_pictures_of_ones_own_is_refused(tmp_path) -> None:
    folder = tmp_path / "pictures"
    prompts = ["a", "b", "c"]
    Batches(Noise(), prompts, 1, 3, folder, {}, (0, 1)).draw_own(None)
    write_captions(folder, prompts[:2])
    with pytest.raises(UserError, match=r"00002\.png of the pictures to measure cannot be used: not-in-metadata"):
        StoredPictures(folder, open_source(str(folder)))
